# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
What a training step keeps in the memory of one device. Weights, gradients and optimizer states are counted, the rest
is estimated.
"""

from dataclasses import dataclass

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

# TRL's LM head makes logits of so many tokens and entries of the vocabulary at a time.
LOGITS_TILE = (4096, 32768)
# Bytes of optimizer state per byte of a trained weight; `None` for two states of a byte for each number.
OPTIMIZER_STATES = {
    "adamw_torch": 2.0,
    "adamw_torch_fused": 2.0,
    "sgd": 0.0,
    "adamw_8bit": None,
    "adamw_bnb_8bit": None,
    "paged_adamw_8bit": None,
}


@dataclass(frozen=True)
class Decoder:
    """
    The sizes of a language model that decide what its layers keep for the backward pass.

    Args:
        hidden, queries, keys, intermediate (`int`):
            Width of the hidden state, of all query heads, of all key heads, and of the feed-forward layer.
        layers, vocab (`int`):
            Number of layers and of rows of the LM head.
        qk_norm (`bool`):
            Whether queries and keys are normalised, as in Qwen3.
        base_trainable (`bool`):
            Whether the layers themselves are trained, not only adapters on them.
        lora_inputs (`float`):
            Width of the inputs of all LoRA layers, per layer of the model.
        lora_dropout (`bool`):
            Whether these inputs are dropped out.
        head_trainable (`bool`):
            Whether the LM head, or some of its rows, is trained.
    """

    hidden: int
    queries: int
    keys: int
    intermediate: int
    layers: int
    vocab: int
    qk_norm: bool = False
    base_trainable: bool = True
    lora_inputs: float = 0.0
    lora_dropout: bool = False
    head_trainable: bool = True

    @classmethod
    def of(cls, model: nn.Module, config) -> "Decoder":
        """
        Of a model, on any device, with or without adapters.

        Args:
            model (`nn.Module`):
                The model, on which what is trained requires a gradient.
            config (`PreTrainedConfig`):
                Its configuration; of a video model that of the language model is read.

        Returns:
            [`Decoder`]
        """
        text = config.get_text_config()
        sizes = text.to_dict()
        head_dim = sizes.get("head_dim") or text.hidden_size // text.num_attention_heads
        decoder = model.get_decoder()
        lora = [module for module in decoder.modules() if isinstance(module, LoraLayer)]
        base = [
            parameter
            for name, parameter in decoder.layers.named_parameters()
            if "lora_" not in name and parameter.ndim > 1
        ]
        head = model.get_output_embeddings()  # with a wrapper around it where some of its rows are trained
        return cls(
            hidden=text.hidden_size,
            queries=text.num_attention_heads * head_dim,
            keys=(sizes.get("num_key_value_heads") or text.num_attention_heads) * head_dim,
            intermediate=text.intermediate_size,
            layers=text.num_hidden_layers,
            vocab=text.vocab_size,
            qk_norm=any(name.endswith("q_norm") for name, _ in decoder.named_modules()),
            base_trainable=any(parameter.requires_grad for parameter in base),
            lora_inputs=sum(module.in_features for module in lora) / text.num_hidden_layers,
            lora_dropout=any(isinstance(drop, nn.Dropout) for layer in lora for drop in layer.lora_dropout.values()),
            head_trainable=any(parameter.requires_grad for parameter in head.parameters()),
        )

    def layer_bytes(self, compute: int, residual: int, adapter: int, masked: bool) -> float:
        """
        What one layer keeps of one token for the backward pass.

        The norms compute in float32 and keep their input in it; attention keeps queries, keys, values and its output;
        the feed-forward layer both halves of its gate and their activation. A trained weight keeps its input too, an
        adapter its own copy of it.

        Args:
            compute, residual, adapter (`int`):
                Bytes of a number in the matrix products, in the hidden state, and in the products of adapters.
            masked (`bool`):
                Whether attention has a mask: keys and values are then copied for every query head.

        Returns:
            `float`: bytes.
        """
        keys = self.queries if masked else self.keys
        kept = 2 * 4 * self.hidden + compute * (2 * self.queries + 2 * keys + 3 * self.intermediate)
        if self.qk_norm:
            kept += 4 * (self.queries + self.keys)
        if self.base_trainable:
            kept += 2 * (residual + compute) * self.hidden + compute * self.intermediate
            kept += compute * (self.queries + self.keys) if self.qk_norm else 0
        # With dropout, what is left of the input, and a byte that says what was dropped.
        return kept + self.lora_inputs * (adapter + self.lora_dropout)


@dataclass(frozen=True)
class Step:
    """
    One forward and backward pass on one device.

    Args:
        weight_bytes (`int`):
            Of all weights.
        trainable_bytes, trainable_numbers (`int`):
            Of those that are trained.
        state_bytes (`int`):
            Of the optimizer.
        reference_bytes (`int`):
            Of the weights of a reference model.
        decoder ([`Decoder`]):
            The language model.
        rows, length (`int`):
            Sequences that run together, and tokens of each.
        scored (`int`):
            Tokens of all responses, which the LM head runs on.
        passes (`float`):
            How often the layers run: more than once where evidence is captured beforehand.
        video_tokens, video_planes (`int`):
            Tokens of videos in all rows, and how many layers they are fed to.
        video_bytes (`int`):
            Of their pixels, as the processor makes them.
        tower_bytes (`float`):
            What the vision tower keeps while it runs; if it is trained, for its backward pass.
        compute, residual (`int`):
            Bytes of a number in the matrix products and in the hidden state.
        adapter (`int`):
            Bytes of a number in the matrix products of adapters.
        masked (`bool`):
            Whether attention has a mask of `length` by `length`: for several rows, or for a shared prompt.
        flash (`bool`):
            Whether attention takes no such mask.
        checkpointing (`bool`):
            Gradient checkpointing.
        copies_gradients (`bool`):
            Whether DDP keeps a second copy of the gradients to reduce.
    """

    weight_bytes: int
    trainable_bytes: int
    trainable_numbers: int
    state_bytes: int
    reference_bytes: int
    decoder: Decoder
    rows: int
    length: int
    scored: int
    passes: float
    video_tokens: int
    video_planes: int
    video_bytes: int
    tower_bytes: float
    compute: int
    residual: int
    adapter: int
    masked: bool
    flash: bool
    checkpointing: bool
    copies_gradients: bool

    def memory(self) -> dict[str, int]:
        """Bytes of each part, by its name in the plan."""
        gradients = self.trainable_bytes * (2 if self.copies_gradients else 1)
        parts = {
            "weights": self.weight_bytes,
            "weights of the reference": self.reference_bytes,
            "gradients": gradients,
            "optimizer states": self.state_bytes,
            "activations": self._activations(),
            "logits": self._logits(),
            "video": self._video(),
        }
        return {name: round(value) for name, value in parts.items() if value or name != "weights of the reference"}

    def _activations(self) -> float:
        decoder, tokens = self.decoder, self.rows * self.length
        masked = self.masked and not self.flash
        layer = tokens * decoder.layer_bytes(self.compute, self.residual, self.adapter, masked)
        # While a layer runs backward, gradients of its widest states are there too.
        working = tokens * (3 * self.compute * decoder.intermediate + 3 * 4 * decoder.hidden)
        between = tokens * self.residual * decoder.hidden
        mask = self.rows * self.length**2 if masked else 0  # boolean; each attention makes numbers of it
        if self.checkpointing:
            kept = self.passes * decoder.layers * between + layer + mask * self.compute
        else:
            kept = self.passes * decoder.layers * (layer + mask * self.compute)
        # Under autocast the products run on copies of the weights in half precision, which the backward pass needs.
        copies = self.weight_bytes / 2 if self.residual > self.compute else 0
        if self.checkpointing and not decoder.base_trainable:
            copies /= decoder.layers
        return kept + working + mask + copies

    def _logits(self) -> float:
        decoder = self.decoder
        tile = min(self.scored, LOGITS_TILE[0]) * min(decoder.vocab, LOGITS_TILE[1]) * self.compute
        states = self.scored * decoder.hidden * (4 + self.residual)
        if not decoder.head_trainable:
            return tile + states
        # The gradient of the head is summed in float32 and then copied to its type. An adapter that trains some rows
        # works on copies of the head and of the embedding.
        copies = 2 if decoder.lora_inputs else 0
        return tile + states + decoder.vocab * decoder.hidden * (4 + self.residual * (1 + copies))

    def _video(self) -> float:
        features = self.video_tokens * self.video_planes * self.decoder.hidden * self.residual
        return self.video_bytes + features + self.tower_bytes


def tower_bytes(tower: nn.Module, config, num_patches: int, compute: int, checkpointing: bool) -> float:
    """
    What a vision tower keeps: while it is frozen that of one layer, else what its backward pass needs.

    Args:
        tower (`nn.Module`):
            The tower.
        config (`PreTrainedConfig`):
            Of the tower.
        num_patches (`int`):
            Patches of all videos of a batch.
        compute (`int`):
            Bytes of a number in the matrix products.
        checkpointing (`bool`):
            Gradient checkpointing.

    Returns:
        `float`: bytes.
    """
    sizes = config.to_dict()
    hidden = sizes.get("embed_dim") or sizes["hidden_size"]  # in Qwen2-VL the latter is the language model's
    layers = sizes.get("depth") or sizes.get("num_hidden_layers") or 1
    intermediate = sizes.get("intermediate_size") or 4 * hidden
    layer = num_patches * (2 * 4 * hidden + compute * (8 * hidden + 4 * intermediate))
    between = num_patches * hidden * compute
    if not any(parameter.requires_grad for parameter in tower.parameters()):
        return layer
    return layers * between + layer if checkpointing else layers * layer


def bytes_of(parameters) -> int:
    """Bytes of distinct parameters."""
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def optimizer_bytes(optim: str, trainable: list[torch.Tensor]) -> int | None:
    """
    Bytes of the states of an optimizer.

    Args:
        optim (`str`):
            Its name in `TrainingArguments.optim`.
        trainable (`list[torch.Tensor]`):
            What it steps.

    Returns:
        `int` or `None`: `None` for an optimizer that is not known here.
    """
    if optim not in OPTIMIZER_STATES:
        return None
    factor = OPTIMIZER_STATES[optim]
    if factor is None:
        return 2 * sum(parameter.numel() for parameter in trainable)
    return round(factor * bytes_of(trainable))
