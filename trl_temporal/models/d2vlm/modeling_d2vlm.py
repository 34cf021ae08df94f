# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""D2VLM: grounding, then answering, with evidence tokens (https://huggingface.co/papers/2512.24097).

This file travels to the Hub as remote code: torch and transformers only. Letters in shapes: `rows` sequences, `videos`
videos, `L` tokens, `T` frames, `E` `<evi>` tokens of a row, `P` patches of a frame, `H` hidden size.
"""

import inspect
import os
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    Blip2VisionModel,
    GenerationMixin,
    InstructBlipQFormerModel,
    PreTrainedModel,
)
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.integrations import deepspeed as deepspeed_integration
from transformers.modeling_outputs import ModelOutput

from .configuration_d2vlm import D2VLMConfig, D2VLMConvStemConfig, backbone_traits, check_backbone
from .modeling_d2vlm_backbone import (
    backbone_positions,
    encode_videos,
    features_of_rows,
    mm_encoder_outputs,
    video_input_names,
)
from .processing_d2vlm import D2VLMBackboneProcessor

# What `evidence_stage` says of an `<evi>` token.
STAGE_NONE = 0  # padding
STAGE_PROMPT = 1  # the question refers to an event
STAGE_EVIDENCE = 2  # before `</evi>`: pure grounding
STAGE_RESPONSE = 3  # after `</evi>`: the answer refers to its evidence


@dataclass
class D2VLMModelOutput(ModelOutput):
    """
    Output of [`D2VLMModel`].

    Args:
        last_hidden_state (`torch.Tensor` of shape `(rows, L, H)`):
            Hidden states after the final norm.
        past_key_values (`Cache`, *optional*):
            Key-value cache of the language model.
        evidence_logits (`torch.Tensor` of shape `(rows, E, T)`, *optional*):
            Scaled dot products between the state that predicts each `<evi>` and the frames, before the sigmoid.
        evidence_queries (`torch.Tensor` of shape `(rows, E, H)`, *optional*):
            Projected states that predict each `<evi>`.
        evidence_mask (`torch.BoolTensor` of shape `(rows, E)`, *optional*):
            The `<evi>` tokens of the response, which carry a label; not padding and not those of the question.
        frame_mask (`torch.BoolTensor` of shape `(rows, T)`, *optional*):
            Frames that are not padding.
        frame_states (`torch.Tensor` of shape `(rows, T, H)`, *optional*):
            States of the frames after `capture_layer` layers: what `<evi>` tokens capture.
        frame_features (`torch.Tensor` of shape `(rows, T, H)`, *optional*):
            Projected frame states of `similarity_layer`, the keys of the similarity.
        next_salience (`torch.Tensor` of shape `(rows, T)`, *optional*):
            Similarity in `[0, 1]` between the last state and every frame; the salience of an `<evi>` if that is what
            comes next. Only with `use_cache=True`.
        next_query (`torch.Tensor` of shape `(rows, H)`, *optional*):
            Projected last state, from which `next_salience` comes.
        rope_deltas (`torch.LongTensor` of shape `(rows, 1)`, *optional*):
            By how much the position of a token that follows differs from its number, with backbones whose positions
            have three planes.
    """

    last_hidden_state: torch.Tensor | None = None
    past_key_values: object | None = None
    evidence_logits: torch.Tensor | None = None
    evidence_queries: torch.Tensor | None = None
    evidence_mask: torch.Tensor | None = None
    frame_mask: torch.Tensor | None = None
    frame_states: torch.Tensor | None = None
    frame_features: torch.Tensor | None = None
    next_salience: torch.Tensor | None = None
    next_query: torch.Tensor | None = None
    rope_deltas: torch.Tensor | None = None


@dataclass
class D2VLMCausalLMOutput(D2VLMModelOutput):
    """
    Output of [`D2VLMForConditionalGeneration`]: the fields of [`D2VLMModelOutput`] and

    Args:
        loss (`torch.Tensor`, *optional*):
            Mean negative log-likelihood of the labels (L_sft). The evidence losses are the trainers'.
        logits (`torch.Tensor` of shape `(rows, L, vocabulary)`):
            Next-token logits.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


@dataclass
class D2VLMGenerateOutput(GenerateDecoderOnlyOutput):
    """
    Output of [`D2VLMForConditionalGeneration.generate`] with `return_dict_in_generate=True`: the fields of
    `GenerateDecoderOnlyOutput` and

    Args:
        evidence_salience (`torch.Tensor` of shape `(rows, E, T)`):
            Similarity in `[0, 1]` between each generated `<evi>`, in order, and every frame; zero at padding.
        evidence_frames (`torch.BoolTensor` of shape `(rows, E, T)`):
            The salient run of frames of each generated `<evi>`.
        evidence_mask (`torch.BoolTensor` of shape `(rows, E)`):
            Which `<evi>` exist.
        token_salience (`torch.Tensor` of shape `(rows, S, T)`):
            Similarity between the state that predicted each of the S generated tokens and every frame; -1 at padding.
            Its rows at `<evi>` are `evidence_salience`.
        evidence_logits (`torch.Tensor` of shape `(rows, E, T)`):
            Scaled dot products whose sigmoid is `evidence_salience`; zero at padding.
        evidence_cosines (`torch.Tensor` of shape `(rows, E, T)`):
            Cosines of the same two vectors; zero at padding.
    """

    evidence_salience: torch.Tensor | None = None
    evidence_frames: torch.Tensor | None = None
    evidence_mask: torch.Tensor | None = None
    token_salience: torch.Tensor | None = None
    evidence_logits: torch.Tensor | None = None
    evidence_cosines: torch.Tensor | None = None


def salient_run(
    salience: torch.Tensor, threshold: float, frame_mask: torch.Tensor | None = None, ties: str = "first"
) -> torch.Tensor:
    r"""
    The contiguous run of salient frames with the largest mean similarity.

    Args:
        salience (`torch.Tensor` of shape `(..., T)`):
            Similarities in `[0, 1]`.
        threshold (`float`):
            Frames of at least `threshold * max` are salient.
        frame_mask (`torch.BoolTensor` of shape `(..., T)`, *optional*):
            Frames that are not padding.
        ties (`str`, *optional*, defaults to `"first"`):
            Of runs with the same mean take the `"first"`, or the `"span"` from the first to the last of them.

    Returns:
        `torch.BoolTensor` of shape `(..., T)`: the frames of the run.

    Example:

    ```python
    >>> salient_run(torch.tensor([0.9, 0.1, 0.9, 0.9]), threshold=0.6).tolist()
    [True, False, False, False]
    >>> salient_run(torch.tensor([0.9, 0.1, 0.9, 0.9]), threshold=0.6, ties="span").tolist()
    [True, True, True, True]
    ```
    """
    if frame_mask is not None:
        salience = salience.masked_fill(~frame_mask, -1.0)
    salient = salience >= threshold * salience.amax(-1, keepdim=True)
    if frame_mask is not None:
        salient = salient & frame_mask
    if ties == "span":
        return _span_of_equal_runs(salience, salient)
    starts = salient & ~F.pad(salient, (1, 0))[..., :-1]
    run = starts.cumsum(-1) * salient  # 1, 2, ... inside the runs, 0 outside
    sums = torch.zeros_like(salience).to(torch.float64)
    sums = F.pad(sums, (0, 1)).scatter_add(-1, run, salience.double())
    counts = torch.zeros_like(sums).scatter_add(-1, run, torch.ones_like(salience, dtype=torch.float64))
    means = (sums / counts.clamp(min=1)).masked_fill(counts == 0, -1.0)
    best = means[..., 1:].argmax(-1, keepdim=True) + 1
    return run == best


def _span_of_equal_runs(salience: torch.Tensor, salient: torch.Tensor) -> torch.Tensor:
    """
    From the first to the last run whose mean is the largest one. Whether two means are equal hangs on how they are
    rounded, so that each is computed as the released code does, alone and on the CPU: one row and run after the other.
    """
    num_frames = salience.shape[-1]
    spans = torch.zeros_like(salient, device="cpu").view(-1, num_frames)
    rows = zip(spans, salience.reshape(-1, num_frames).cpu(), salient.reshape(-1, num_frames).cpu(), strict=True)
    for span, values, inside in rows:
        bounds = F.pad(inside.int(), (1, 1)).diff()
        runs = list(zip(bounds.eq(1).nonzero()[:, 0].tolist(), bounds.eq(-1).nonzero()[:, 0].tolist(), strict=True))
        means = [values[start:end].float().mean().to(values.dtype).item() for start, end in runs]
        best = [run for run, mean in zip(runs, means, strict=True) if mean == max(means)]
        if best:  # none in a row of padding
            span[best[0][0] : best[-1][1]] = True
    return spans.view_as(salient).to(salient.device)


def _masked_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of `states (..., T, H)` over the frames of `mask (..., E, T)`; zero where the mask is empty."""
    mask = mask.to(states.dtype)
    return mask @ states / mask.sum(-1, keepdim=True).clamp(min=1)


def _gather_positions(states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """`states (rows, L, H)` at `positions (rows, N)`; negative positions read position 0 and must be masked."""
    index = positions.clamp(min=0).unsqueeze(-1).expand(-1, -1, states.shape[-1])
    return states.gather(1, index)


def _positions_of(mask: torch.Tensor, size: int) -> torch.Tensor:
    """Positions of the first `size` true entries of each row of `mask (rows, L)`, padded with -1."""
    order = mask.cumsum(-1) - 1
    slots = torch.where(mask & (order < size), order, size)
    positions = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    out = torch.full((mask.shape[0], size + 1), -1, dtype=torch.long, device=mask.device)
    return out.scatter(1, slots, positions)[:, :size]


def build_attention_mask(
    attention_mask: torch.Tensor,
    is_frame: torch.Tensor | None,
    segment_ids: torch.Tensor | None,
    dtype: torch.dtype,
    attn_implementation: str,
) -> torch.Tensor:
    r"""
    The 4-D attention mask for video frames that see each other and for responses that share one prompt.

    Args:
        attention_mask (`torch.Tensor` of shape `(rows, L)`):
            1 for tokens, 0 for padding.
        is_frame (`torch.BoolTensor` of shape `(rows, L)`, *optional*):
            Frame tokens that attend to each other in both directions.
        segment_ids (`torch.Tensor` of shape `(rows, L)`, *optional*):
            0 for the prompt, 1, 2, ... for responses that see the prompt and themselves only.
        dtype (`torch.dtype`):
            Of the additive mask that eager attention takes.
        attn_implementation (`str`):
            `"sdpa"` or `"eager"`.

    Returns:
        `torch.Tensor` of shape `(rows, 1, L, L)`: boolean for sdpa, additive for eager.
    """
    if attn_implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"Prefix sharing and bidirectional video attention need a 4-D attention mask, which "
            f"{attn_implementation!r} does not take. Load the model with `attn_implementation='sdpa'`, or set "
            "`prefix_sharing=False` and `video_attention='causal'`."
        )
    length = attention_mask.shape[1]
    position = torch.arange(length, device=attention_mask.device)
    allowed = (position[None, :, None] >= position[None, None, :]).expand(attention_mask.shape[0], -1, -1)
    if segment_ids is not None:
        key_segment = segment_ids[:, None, :]
        allowed = allowed & ((key_segment == 0) | (key_segment == segment_ids[:, :, None]))
    if is_frame is not None:
        allowed = allowed | (is_frame[:, :, None] & is_frame[:, None, :])
    # A padding row sees itself: a row without any key would be NaN.
    allowed = allowed & attention_mask[:, None, :].bool() | (position[:, None] == position[None, :])
    allowed = allowed[:, None]
    if attn_implementation == "sdpa":
        return allowed
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)


class _EarlyExit(Exception):
    def __init__(self, value):
        self.value = value


def _hidden_states(args: tuple, kwargs: dict) -> torch.Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _keywords(args: tuple, kwargs: dict) -> dict:
    return kwargs


@contextmanager
def _input_of(module: nn.Module, stop: bool = False, read: Callable = _hidden_states):
    """Collects the input of `module` in the yielded list; with `stop` the forward ends there."""
    seen = []

    def hook(module, args, kwargs):
        if stop:
            raise _EarlyExit(read(args, kwargs))
        seen.append(read(args, kwargs))

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield seen
    except _EarlyExit as exit:
        seen.append(exit.value)
    finally:
        handle.remove()


class D2VLMConvStem(nn.Module):
    """
    Small frame encoder for EventWorld: convolutions over the frame and its differences to both neighbours, then over
    time. `(videos, T, 3, height, width)` to `(videos, T, 1, hidden_size)`.
    """

    def __init__(self, config: D2VLMConvStemConfig):
        super().__init__()
        self.config = config
        channels = [9, *config.channels]
        self.convs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels[i], channels[i + 1], 3 if i else 5, stride=2 if i else 4, padding=1 if i else 2),
                nn.GroupNorm(8, channels[i + 1]),
                nn.GELU(),
            )
            for i in range(len(config.channels))
        )
        side = config.image_size // 2 ** (len(config.channels) + 1)
        self.projection = nn.Linear(channels[-1] * side**2, config.hidden_size)
        self.temporal = nn.ModuleList(
            nn.Conv1d(config.hidden_size, config.hidden_size, 3, padding=1) for _ in range(config.num_temporal_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, pixel_values_videos: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
        num_frames = frame_mask.sum(-1, keepdim=True)
        index = torch.arange(frame_mask.shape[1], device=frame_mask.device)
        last = (num_frames - 1).clamp(min=0)
        rows = torch.arange(frame_mask.shape[0], device=frame_mask.device)[:, None]
        previous = pixel_values_videos[rows, (index - 1).clamp(min=0).expand_as(frame_mask)]
        following = pixel_values_videos[rows, torch.minimum(index + 1, last)]
        scale = self.config.difference_scale
        frames = torch.cat(
            [
                pixel_values_videos,
                scale * (pixel_values_videos - previous),
                scale * (following - pixel_values_videos),
            ],
            dim=2,
        )[frame_mask]
        for conv in self.convs:
            frames = conv(frames)
        features = self.projection(frames.flatten(1))
        padded = features.new_zeros(*frame_mask.shape, features.shape[-1])
        padded = padded.masked_scatter(frame_mask.unsqueeze(-1), features)
        for conv in self.temporal:
            update = F.gelu(conv(padded.transpose(1, 2))).transpose(1, 2)
            padded = (padded + update) * frame_mask.unsqueeze(-1)
        return self.norm(padded).unsqueeze(2)


class D2VLMQFormerCompressor(nn.Module):
    """
    Compresses the patches of a frame to one token: a Q-Former that reads the question, plus attention pooling of the
    raw patches with the Q-Former's outputs as queries.
    """

    def __init__(self, config: D2VLMConfig):
        super().__init__()
        vision_size, query_size = config.vision_config.hidden_size, config.qformer_config.hidden_size
        self.memory_norm = nn.LayerNorm(vision_size, eps=1e-5)
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, query_size))
        self.qformer = InstructBlipQFormerModel(config.qformer_config)
        self.query_to_vision = nn.Linear(query_size, vision_size)
        self.pool_query = nn.Sequential(nn.LayerNorm(vision_size), nn.Linear(vision_size, vision_size))
        self.pool_key = nn.Sequential(nn.LayerNorm(vision_size), nn.Linear(vision_size, vision_size))
        self.output = nn.Sequential(nn.LayerNorm(vision_size), nn.Linear(vision_size, config.text_config.hidden_size))

    def forward(
        self,
        features: torch.Tensor,
        frame_mask: torch.Tensor,
        qformer_input_ids: torch.Tensor,
        qformer_attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        """`features (rows, T, P, C)` and the question's `(rows, W)` ids to frame tokens `(rows, T, H)`."""
        patches = features[frame_mask]  # (frames, P, C)
        row = frame_mask.nonzero()[:, 0]
        queries = self.query_tokens.expand(len(patches), -1, -1)
        num_queries = queries.shape[1]
        text_mask = qformer_attention_mask[row]
        hidden = self.qformer(
            input_ids=qformer_input_ids[row],
            attention_mask=torch.cat([text_mask.new_ones(len(row), num_queries), text_mask], dim=1),
            query_embeds=queries,
            encoder_hidden_states=self.memory_norm(patches),
        ).last_hidden_state[:, :num_queries]
        summary = self.query_to_vision(hidden)
        pooled = F.scaled_dot_product_attention(
            self.pool_query(summary)[:, None], self.pool_key(patches)[:, None], patches[:, None]
        ).squeeze(1)
        tokens = self.output((pooled + summary).mean(1))
        padded = tokens.new_zeros(*frame_mask.shape, tokens.shape[-1])
        return padded.masked_scatter(frame_mask.unsqueeze(-1), tokens)


class D2VLMHeadLinear(nn.Linear):
    """
    A linear layer that starts with unit gain. The similarity is a product of two evidence heads: with transformers'
    usual 0.02 it starts, and stays for long, at zero in models much narrower than the paper's (3072 ** -0.5 = 0.018).
    """


class D2VLMEvidenceHead(nn.Sequential):
    """Projection of a hidden state into the space in which `<evi>` and frames are compared."""

    def __init__(self, hidden_size: int):
        super().__init__(
            nn.LayerNorm(hidden_size),
            D2VLMHeadLinear(hidden_size, hidden_size // 2),
            nn.GELU(),
            D2VLMHeadLinear(hidden_size // 2, hidden_size),
        )


class D2VLMPreTrainedModel(PreTrainedModel):
    config_class = D2VLMConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("text", "video")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _skip_keys_device_placement = "past_key_values"

    @torch.no_grad()
    def _init_weights(self, module):
        # Submodules come first, and what is initialised once stays: hence a branch for each leaf.
        if isinstance(module, D2VLMHeadLinear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.Conv1d, nn.Conv2d)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, D2VLMQFormerCompressor):
            nn.init.normal_(module.query_tokens, std=0.02)
        else:
            super()._init_weights(module)


class D2VLMModel(D2VLMPreTrainedModel):
    """
    D2VLM without its language-model head: vision tower, compressor to one token per frame, language model and evidence
    heads; or a video model of transformers, whose frames have many tokens, in the place of the first three.

    A forward runs the frames through the vision tower, the prompt up to its last frame through the first
    `capture_layer` layers of the language model to obtain the states that `<evi>` tokens capture, and the whole
    sequence once. Because the video precedes the text and attention is causal, the first part is exact.
    """

    def __init__(self, config: D2VLMConfig):
        super().__init__(config)
        self.has_backbone = config.backbone_config is not None
        if self.has_backbone:
            self.backbone = AutoModel.from_config(config.backbone_config)
        elif config.vision_config.model_type == "d2vlm_conv_stem":
            self.vision_tower = D2VLMConvStem(config.vision_config)
            self.compressor = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)
        else:
            self.vision_tower = Blip2VisionModel(config.vision_config)
            self.compressor = D2VLMQFormerCompressor(config)
        if not self.has_backbone:
            self.language_model = AutoModel.from_config(config.text_config)
        self.evi_head = D2VLMEvidenceHead(config.text_config.hidden_size)
        self.frame_head = D2VLMEvidenceHead(config.text_config.hidden_size)
        self.post_init()

    def get_decoder(self):
        return self.backbone.get_decoder() if self.has_backbone else self.language_model

    def get_encoder(self, modality: str | None = None):
        return self.backbone.get_encoder(modality=modality) if self.has_backbone else self.vision_tower

    def get_input_embeddings(self):
        return self.get_decoder().get_input_embeddings()

    def set_input_embeddings(self, value):
        self.get_decoder().set_input_embeddings(value)

    def encode_videos(self, frame_mask: torch.Tensor, **video_inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Runs the vision tower: what of a video does not depend on the text, and can be computed once.

        Args:
            frame_mask (`torch.BoolTensor` of shape `(videos, T)`):
                Frames that are not padding.
            **video_inputs:
                What the processor makes of videos, e.g. `pixel_values_videos`.

        Returns:
            Features of shape `(D, N, C)`, video after video, and the number of entries of each, `(videos,)`. Passed to
            the forward as `video_features` and `num_video_features`, they stand for the pixels.
        """
        frame_mask = frame_mask.bool()
        if self.has_backbone:
            return encode_videos(self.backbone, video_inputs, frame_mask.sum(-1))
        pixel_values_videos = video_inputs["pixel_values_videos"]
        if isinstance(self.vision_tower, D2VLMConvStem):
            patches = self.vision_tower(pixel_values_videos, frame_mask)[frame_mask]
        else:
            # Patches after the last block, without class token and final norm, as in the released code.
            with _input_of(self.vision_tower.post_layernorm) as seen:
                self.vision_tower(pixel_values_videos[frame_mask])
            patches = seen[0][:, 1:]
        return patches.flatten(0, 1)[None], frame_mask.sum(-1) * patches.shape[1]

    def _frame_tokens(self, features, frame_mask, video_index, qformer_input_ids, qformer_attention_mask):
        """One token per frame and row, `(rows, T, H)`, from the features of the tower, `(1, N, C)`."""
        patches = features[0].unflatten(0, (int(frame_mask.sum()), -1))
        padded = patches.new_zeros(*frame_mask.shape, *patches.shape[1:])
        features = padded.masked_scatter(frame_mask[..., None, None], patches)
        if isinstance(self.compressor, nn.Linear):
            return self.compressor(features).squeeze(2)[video_index]
        if qformer_input_ids is None:
            raise ValueError(
                "The Q-Former reads the question: pass `qformer_input_ids` and `qformer_attention_mask`, which the "
                "processor makes when it has a `qformer_tokenizer`."
            )
        return self.compressor(
            features[video_index], frame_mask[video_index], qformer_input_ids, qformer_attention_mask
        )

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        pixel_values_videos: torch.Tensor | None = None,
        frame_index: torch.LongTensor | None = None,
        frame_mask: torch.Tensor | None = None,
        video_index: torch.LongTensor | None = None,
        video_features: torch.Tensor | None = None,
        num_video_features: torch.LongTensor | None = None,
        qformer_input_ids: torch.LongTensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        evidence_frame_mask: torch.Tensor | None = None,
        evidence_stage: torch.Tensor | None = None,
        segment_ids: torch.LongTensor | None = None,
        frame_states: torch.Tensor | None = None,
        frame_features: torch.Tensor | None = None,
        next_salience: torch.Tensor | None = None,
        rope_deltas: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **video_inputs,
    ) -> D2VLMModelOutput:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(rows, L)`):
                Token ids with one `video_token_id` per frame, or per token of a frame.
            attention_mask (`torch.Tensor` of shape `(rows, L)`, *optional*):
                1 for tokens, 0 for padding on either side.
            position_ids (`torch.LongTensor` of shape `(rows, L)`, *optional*):
                Defaults to the count of tokens before, or what the backbone makes of its rows, `(3, rows, L)`.
            past_key_values (`Cache`, *optional*):
                Cache of the language model.
            pixel_values_videos (`torch.Tensor` of shape `(videos, T, 3, height, width)`, *optional*):
                Normalised frames; for a backbone what its processor makes of them.
            frame_index (`torch.LongTensor` of shape `(rows, L)`, *optional*):
                Frame that each token belongs to, -1 for text. Needed with a backbone.
            frame_mask (`torch.BoolTensor` of shape `(videos, T)`, *optional*):
                Frames that are not padding. In decoding steps `(rows, T)`, carried by `generate`.
            video_index (`torch.LongTensor` of shape `(rows,)`, *optional*):
                Video of each row, -1 for none: rows that share a video have it encoded once. Defaults to one per row.
            video_features, num_video_features (`torch.Tensor`, *optional*):
                Of [`~D2VLMModel.encode_videos`], instead of pixels.
            qformer_input_ids, qformer_attention_mask (`torch.Tensor` of shape `(rows, W)`, *optional*):
                The question in the Q-Former's vocabulary.
            evidence_frame_mask (`torch.BoolTensor` of shape `(rows, E, T)`, *optional*):
                Frames of the span of the row's k-th `<evi>`, which it captures (teacher forcing).
            evidence_stage (`torch.Tensor` of shape `(rows, E)`, *optional*):
                0 padding, 1 in the question, 2 evidence stage, 3 response stage.
            segment_ids (`torch.LongTensor` of shape `(rows, L)`, *optional*):
                0 for the prompt, 1, 2, ... for responses that share it and do not see each other.
            frame_states, frame_features, next_salience, rope_deltas (*optional*):
                Carried by `generate` from the previous step.
            use_cache (`bool`, *optional*):
                Whether to return the cache and `next_salience`.
            **video_inputs:
                What else the backbone's processor makes of videos, e.g. `video_grid_thw`.
        """
        video_inputs["pixel_values_videos"] = pixel_values_videos
        video_inputs = {name: value for name, value in video_inputs.items() if value is not None}
        self._refuse_unknown(video_inputs)
        decoding = frame_states is not None
        has_pixels = any(name.startswith("pixel_values") for name in video_inputs)
        has_video = not decoding and (video_features is not None or has_pixels)
        if has_video:
            frame_mask, frames_of_rows, video_index = self._videos_of_rows(
                input_ids, frame_mask, video_index, video_inputs
            )
            frame_index = self._frame_index(input_ids, frame_index, frames_of_rows)
        elif not decoding and bool((input_ids == self.config.video_token_id).any()):
            raise ValueError(
                "Image features and image tokens do not match: the text has video tokens, but no video was passed. "
                "The model would answer blind."
            )
        elif not decoding and evidence_frame_mask is not None and evidence_stage.any():
            raise ValueError("`evidence_frame_mask` needs a video: there are no frames to refer to.")
        position_ids, rope_deltas = self._positions(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            frame_index,
            video_index,
            rope_deltas,
            video_inputs,
        )
        if has_video and video_features is None:
            video_features, num_video_features = self.encode_videos(frame_mask, **video_inputs)

        layer_inputs = {}  # what the decoder of a backbone takes beside the embeddings
        if decoding:
            inputs_embeds = self.get_input_embeddings()(input_ids)
            inputs_embeds = inputs_embeds + self._capture_salient(input_ids, frame_states, next_salience, frame_mask)
        elif not has_video:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        elif self.has_backbone:
            features = features_of_rows(video_features, num_video_features, video_index)
            inputs_embeds, layer_inputs = self._backbone_embeds(input_ids, attention_mask, position_ids, features)
        else:
            frames = self._frame_tokens(
                video_features, frame_mask, video_index.clamp(min=0), qformer_input_ids, qformer_attention_mask
            )
            is_frame = frame_index >= 0
            # The placeholder of frames needs no row of its own in the embedding.
            inputs_embeds = self.get_input_embeddings()(input_ids.masked_fill(is_frame, 0))
            inputs_embeds = inputs_embeds.masked_scatter(
                is_frame.unsqueeze(-1), frames[frames_of_rows].to(inputs_embeds.dtype)
            )

        if has_video:
            frame_mask = frames_of_rows
            tokens_of_frame = (
                frame_index[:, None] == torch.arange(frame_mask.shape[1], device=input_ids.device)[:, None]
            )
            if evidence_frame_mask is not None or use_cache:
                token_states = self._capture_token_states(
                    inputs_embeds, attention_mask, position_ids, segment_ids, video_index, frame_index, layer_inputs
                )
                frame_states = _masked_mean(token_states, tokens_of_frame[..., : token_states.shape[1]])
            if evidence_frame_mask is not None:
                frames = _masked_mean(inputs_embeds, tokens_of_frame)
                inputs_embeds = self._capture_spans(
                    input_ids, inputs_embeds, frames, frame_states, evidence_frame_mask, evidence_stage
                )

        is_frame = frame_index >= 0 if has_video else None
        mask = self._attention_mask(attention_mask, is_frame, segment_ids, inputs_embeds)
        decoder = self.get_decoder()
        layers = decoder.layers
        similarity_index = self.config.similarity_layer % (len(layers) + 1)
        # `hidden_states[i]` is the input of layer i; the last entry is the output of the final norm.
        with _input_of(layers[min(similarity_index, len(layers) - 1)]) as seen:
            outputs = decoder(
                inputs_embeds=inputs_embeds,
                attention_mask=mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **layer_inputs,
            )
        hidden_states = outputs.last_hidden_state
        similarity_states = hidden_states if similarity_index == len(layers) else seen[0]

        output = D2VLMModelOutput(
            last_hidden_state=hidden_states,
            past_key_values=outputs.past_key_values,
            frame_mask=frame_mask,
            frame_states=frame_states,
            frame_features=frame_features,
            rope_deltas=rope_deltas,
        )
        if frame_mask is None:
            return output
        if not decoding:
            output.frame_features = self.frame_head(_masked_mean(similarity_states, tokens_of_frame))
        if evidence_stage is not None:
            predictors = self._evidence_predictors(input_ids, segment_ids, evidence_stage.shape[1])
            output.evidence_queries = self.evi_head(_gather_positions(similarity_states, predictors))
            output.evidence_logits = self._similarity(output.evidence_queries, output.frame_features)
            output.evidence_mask = evidence_stage >= STAGE_EVIDENCE
        if use_cache:
            query = self.evi_head(similarity_states[:, -1:])
            output.next_query = query.squeeze(1)
            output.next_salience = self._similarity(query, output.frame_features).sigmoid().squeeze(1)
        return output

    def _refuse_unknown(self, video_inputs: dict) -> None:
        known = video_input_names(self.backbone) if self.has_backbone else {"pixel_values_videos"}
        unknown = set(video_inputs) - known
        if unknown:
            raise TypeError(
                f"D2VLM got inputs it does not know: {sorted(unknown)}. They would be ignored in silence, and a loss "
                "with them; remove them from the batch (is the collator of another model in use?)."
            )

    def _videos_of_rows(self, input_ids, frame_mask, video_index, video_inputs):
        """Frames of the videos `(videos, T)` and of the rows `(rows, T)`, and the video of each row."""
        if frame_mask is None:
            if self.has_backbone:
                raise ValueError("`frame_mask` is missing: the processor of the model makes it.")
            shape = video_inputs["pixel_values_videos"].shape[:2]
            frame_mask = torch.ones(shape, dtype=torch.bool, device=input_ids.device)
        num_rows, num_videos = len(input_ids), len(frame_mask)
        if video_index is None:
            if num_rows != num_videos:
                raise ValueError(
                    f"{num_rows} rows with {num_videos} videos: pass `video_index` to say which row shows which video."
                )
            video_index = torch.arange(num_videos, device=input_ids.device)
        frame_mask = frame_mask.bool()
        return frame_mask, frame_mask[video_index.clamp(min=0)] & (video_index >= 0)[:, None], video_index

    def _frame_index(self, input_ids, frame_index, frames_of_rows) -> torch.Tensor:
        """Frame of each token, `(rows, L)`, -1 for text."""
        if not self.has_backbone:
            is_frame = input_ids == self.config.video_token_id
            frame_index = torch.where(is_frame, is_frame.cumsum(-1) - 1, -1)
        elif frame_index is None:
            raise ValueError("`frame_index` is missing: the processor of the model makes it.")
        num_frames = frame_index.amax(-1) + 1
        if not torch.equal(num_frames, frames_of_rows.sum(-1)):
            row = int((num_frames != frames_of_rows.sum(-1)).nonzero()[0])
            raise ValueError(
                f"Image features and image tokens do not match: row {row} of the batch has {int(num_frames[row])} "
                f"video tokens for {int(frames_of_rows[row].sum())} frames. Was the text truncated inside the video?"
            )
        return frame_index

    def _positions(
        self, input_ids, attention_mask, position_ids, past_key_values, frame_index, video_index, rope_deltas, inputs
    ):
        """Positions, and with three planes by how much later ones differ from the number of their token."""
        decoding = past_key_values is not None and past_key_values.get_seq_length() > 0
        planes = self.has_backbone and backbone_traits(self.config.backbone_config).mrope
        if not planes:
            if position_ids is None and attention_mask is not None and not decoding:
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
            return position_ids, None
        if decoding:
            return position_ids[None].expand(3, -1, -1) + rope_deltas, rope_deltas
        if position_ids is not None and position_ids.ndim == 3:
            return position_ids, rope_deltas
        return self.plain_positions(input_ids, attention_mask, frame_index, video_index, **inputs)

    def plain_positions(self, input_ids, attention_mask=None, frame_index=None, video_index=None, **video_inputs):
        """
        Positions of rows with one response each, as the backbone makes them, and the `rope_deltas` of
        [`D2VLMModelOutput`]. The arguments are those of the forward.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        is_video = torch.zeros_like(input_ids, dtype=torch.bool) if frame_index is None else frame_index >= 0
        return backbone_positions(self.backbone, input_ids, attention_mask, is_video, video_index, video_inputs)

    def _backbone_embeds(self, input_ids, attention_mask, position_ids, features):
        """What the backbone passes to its decoder: embeddings with the video, and features for the first layers."""
        with _input_of(self.get_decoder(), stop=True, read=_keywords) as seen:
            self.backbone(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                mm_encoder_outputs=mm_encoder_outputs(self.backbone, features),
                use_cache=False,
            )
        names = ("visual_pos_masks", "deepstack_visual_embeds")
        return seen[0]["inputs_embeds"], {name: seen[0][name] for name in names if seen[0].get(name) is not None}

    def _similarity(self, queries: torch.Tensor, frame_features: torch.Tensor) -> torch.Tensor:
        """Normalised dot product of `(rows, E, H)` and `(rows, T, H)`: `(rows, E, T)`."""
        return queries @ frame_features.transpose(1, 2) / queries.shape[-1] ** 0.5

    def _capture_token_states(
        self, inputs_embeds, attention_mask, position_ids, segment_ids, video_index, frame_index, layer_inputs
    ):
        """
        States of the prompt up to its last frame after the first `capture_layer` layers, `(rows, length, H)`.

        Rows that share a video and the text before it are run once.
        """
        is_frame = frame_index >= 0
        length_index = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)
        last_frame = (is_frame * length_index).amax(-1)
        length = int(last_frame.max()) + 1
        rows = representative = torch.arange(len(inputs_embeds), device=inputs_embeds.device)
        if len(inputs_embeds) > 1:
            same_video = video_index[:, None] == video_index[None, :]
            first = same_video.int().argmax(-1)  # first row with the same video
            beyond = length_index[None, :length] > last_frame[:, None]
            # Embeddings, not ids: the frame tokens of a Q-Former differ with the question.
            same_prefix = (inputs_embeds[:, :length] == inputs_embeds[first, :length]).all(-1)
            if attention_mask is not None:
                same_prefix &= attention_mask[:, :length] == attention_mask[first, :length]
            if bool((same_prefix | beyond).all()):
                rows, representative = torch.unique(first, return_inverse=True)
        if layer_inputs:
            is_visual = layer_inputs["visual_pos_masks"]
            kept = torch.isin(is_visual.nonzero()[:, 0], rows)
            layer_inputs = {
                "visual_pos_masks": is_visual[rows, :length],
                "deepstack_visual_embeds": [plane[kept] for plane in layer_inputs["deepstack_visual_embeds"]],
            }
        inputs_embeds = inputs_embeds[rows, :length]
        attention_mask = None if attention_mask is None else attention_mask[rows, :length]
        segment_ids = None if segment_ids is None else segment_ids[rows, :length]
        mask = self._attention_mask(attention_mask, is_frame[rows, :length], segment_ids, inputs_embeds)
        decoder = self.get_decoder()
        with _input_of(decoder.layers[self.config.capture_layer], stop=True) as seen:
            decoder(
                inputs_embeds=inputs_embeds,
                attention_mask=mask,
                position_ids=None if position_ids is None else position_ids[..., rows, :length],
                use_cache=False,
                **layer_inputs,
            )
        return seen[0][representative]

    def _capture_spans(
        self, input_ids, inputs_embeds, frames, frame_states, evidence_frame_mask, evidence_stage
    ) -> torch.Tensor:
        """Adds to each `<evi>` the mean of its event: frame states, or raw frame tokens for those in the question."""
        positions = _positions_of(input_ids == self.config.evidence_token_id, evidence_stage.shape[1])
        exists = (evidence_stage != STAGE_NONE).unsqueeze(-1)
        if not torch.equal(exists.squeeze(-1).sum(-1), (input_ids == self.config.evidence_token_id).sum(-1)):
            raise ValueError(
                "The number of `<evi>` tokens and of entries in `evidence_stage` disagree: every `<evi>` of a row "
                "needs its span."
            )
        evidence_frame_mask = evidence_frame_mask.bool()
        captured = _masked_mean(frame_states, evidence_frame_mask)
        in_prompt = (evidence_stage == STAGE_PROMPT).unsqueeze(-1)
        captured = torch.where(in_prompt, _masked_mean(frames.to(captured.dtype), evidence_frame_mask), captured)
        captured = (captured * exists).to(inputs_embeds.dtype)
        index = positions.clamp(min=0).unsqueeze(-1).expand_as(captured)
        return inputs_embeds.scatter_add(1, index, captured)

    def _capture_salient(self, input_ids, frame_states, next_salience, frame_mask) -> torch.Tensor:
        """What an `<evi>` that was just generated captures: the mean over its salient run. Zero for other tokens."""
        is_evidence = input_ids[:, -1] == self.config.evidence_token_id
        run = torch.zeros_like(frame_mask)
        run[is_evidence] = salient_run(
            next_salience[is_evidence],
            self.config.salience_threshold,
            frame_mask[is_evidence],
            self.config.interval_ties,
        )
        return _masked_mean(frame_states, run[:, None])

    def _evidence_predictors(self, input_ids, segment_ids, num_evidence: int) -> torch.Tensor:
        """Position whose logits predict each `<evi>`, `(rows, E)`: one before it, or the prompt's end if it opens."""
        positions = _positions_of(input_ids == self.config.evidence_token_id, num_evidence)
        predictors = positions - 1
        if segment_ids is not None:
            segment = segment_ids.gather(1, positions.clamp(min=0))
            previous = segment_ids.gather(1, predictors.clamp(min=0))
            prompt_end = (segment_ids == 0).sum(-1, keepdim=True) - 1
            predictors = torch.where(segment != previous, prompt_end, predictors)
        return predictors

    def _attention_mask(self, attention_mask, is_frame, segment_ids, inputs_embeds):
        bidirectional = self.config.video_attention == "bidirectional" and is_frame is not None
        if segment_ids is None and not bidirectional:
            return attention_mask
        if attention_mask is None:
            attention_mask = torch.ones(inputs_embeds.shape[:2], device=inputs_embeds.device)
        return build_attention_mask(
            attention_mask,
            is_frame if bidirectional else None,
            segment_ids,
            inputs_embeds.dtype,
            self.config.text_config._attn_implementation,
        )


# What describes a prompt and is done with once the prompt is in the cache.
PROMPT_INPUTS = (
    "frame_index",
    "video_index",
    "qformer_input_ids",
    "qformer_attention_mask",
    "evidence_frame_mask",
    "evidence_stage",
)


def _check_backbone(backbone: PreTrainedModel, processor: D2VLMBackboneProcessor) -> None:
    """Whether it is a model with a plain head that can carry evidence tokens, whose processor this is."""
    check_backbone(backbone.config)
    traits, head = backbone_traits(backbone.config), backbone.get_output_embeddings()
    if not isinstance(backbone, PreTrainedModel):
        raise ValueError(
            f"The backbone is a {type(backbone).__name__}, not a model of transformers. Merge an adapter into its "
            "model first, with `merge_and_unload`."
        )
    if type(head) is not nn.Linear or head.bias is not None:
        raise ValueError(
            f"The language-model head of {type(backbone).__name__} is no linear layer without bias, so it would not "
            "be saved as it is. Pass a model as of `AutoModelForImageTextToText`."
        )
    if any(hasattr(parameter, "ds_id") for parameter in backbone.parameters()):
        raise ValueError(
            "The backbone is in pieces, as it is loaded under DeepSpeed ZeRO-3, so its rows cannot be read. Pass its "
            "name, or load it before the training arguments are made."
        )
    config = backbone.config
    if processor.video_token_id != (config.image_token_id if traits.modality == "image" else config.video_token_id):
        raise ValueError(
            f"The processor is of another model than the backbone, {type(backbone).__name__}: their video tokens "
            "differ. Make it with `D2VLMBackboneProcessor.from_backbone` from the backbone's own."
        )


@contextmanager
def _in_one_piece():
    """
    Under DeepSpeed ZeRO-3 transformers makes models in pieces, of which no rows can be read. While this is open it
    makes them whole; DeepSpeed takes them apart when training starts.
    """
    config = deepspeed_integration._hf_deepspeed_config_weak_ref
    deepspeed_integration.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None and config() is not None:
            deepspeed_integration.set_hf_deepspeed_config(config())


def _give_rows(backbone: PreTrainedModel, processor: D2VLMBackboneProcessor) -> None:
    """Rows for the evidence tokens in both embeddings: about the mean of the others, which is a token like any."""
    ids = [processor.evidence_token_id, processor.evidence_end_token_id]
    num_known = min(ids)
    if max(ids) >= backbone.get_input_embeddings().weight.shape[0]:
        backbone.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    embedding, head = backbone.get_input_embeddings(), backbone.get_output_embeddings()
    with torch.no_grad():
        for weight in dict.fromkeys([embedding.weight, head.weight]):  # once where they are tied
            known = weight[:num_known].float()
            noise = torch.randn(len(ids), known.shape[1], device="cpu").to(known.device) * known.std(0)
            weight[ids] = (known.mean(0) + 0.1 * noise).to(weight.dtype)


class D2VLMForConditionalGeneration(D2VLMPreTrainedModel, GenerationMixin):
    r"""
    D2VLM with a language-model head: grounds the events that an answer needs with `<evi>` tokens, closes the evidence
    with `</evi>`, then answers and refers to the evidence with `<evi>` again.

    Example:

    ```python
    >>> from transformers import AutoModelForImageTextToText, AutoProcessor

    >>> model = AutoModelForImageTextToText.from_pretrained("org/d2vlm", trust_remote_code=True)  # doctest: +SKIP
    >>> processor = AutoProcessor.from_pretrained("org/d2vlm", trust_remote_code=True)  # doctest: +SKIP
    >>> inputs = processor(text=text, videos=[frames], return_tensors="pt")  # doctest: +SKIP
    >>> output = model.generate(**inputs, max_new_tokens=64, return_dict_in_generate=True)  # doctest: +SKIP
    >>> times = {"timestamps_s": [timestamps_s], "duration_s": [duration_s]}  # doctest: +SKIP
    >>> processor.post_process_grounded(output, inputs, **times)  # doctest: +SKIP
    ```
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: D2VLMConfig):
        super().__init__(config)
        self.model = D2VLMModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        if config.backbone_config is not None:
            embedding = self.model.get_input_embeddings()
            (name,) = (name for name, module in self.named_modules() if module is embedding)
            self._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}
        self.post_init()

    @classmethod
    def from_backbone(
        cls,
        backbone: str | PreTrainedModel,
        processor: D2VLMBackboneProcessor | None = None,
        *,
        capture_layer: int = 6,
        similarity_layer: int = -2,
        salience_threshold: float = 0.6,
        **kwargs,
    ) -> "D2VLMForConditionalGeneration":
        r"""
        Gives a video model of transformers evidence tokens.

        Its weights are taken over as they are. New are the evidence heads and, in rows of the vocabulary that no token
        has yet if there are such, the tokens `<evi>` and `</evi>`. A frame's state is the mean over its tokens; where
        the model merges several sampled frames, over those of all of them.

        Args:
            backbone (`str` or `PreTrainedModel`):
                Name or folder of a model that `AutoModelForImageTextToText` loads, or the model, whose parts are used.
            processor ([`D2VLMBackboneProcessor`], *optional*):
                Its processor with the evidence tokens. Defaults to `D2VLMBackboneProcessor.from_backbone(backbone)`.
            capture_layer, similarity_layer, salience_threshold (*optional*):
                See [`D2VLMConfig`].
            **kwargs:
                Of `from_pretrained`, for a name.

        Returns:
            [`D2VLMForConditionalGeneration`]

        Raises:
            ValueError: if the model cannot carry evidence tokens; the message says why.

        Example:

        ```python
        >>> processor = D2VLMBackboneProcessor.from_backbone("Qwen/Qwen3-VL-4B-Instruct", fps=2.0)  # doctest: +SKIP
        >>> model = D2VLMForConditionalGeneration.from_backbone(
        ...     "Qwen/Qwen3-VL-4B-Instruct", processor, dtype="bfloat16"
        ... )  # doctest: +SKIP
        ```
        """
        is_name = isinstance(backbone, str | os.PathLike)
        if processor is None and is_name:
            processor = D2VLMBackboneProcessor.from_backbone(backbone)
        if not isinstance(processor, D2VLMBackboneProcessor):
            raise ValueError(
                f"`processor` is a {type(processor).__name__}: pass the one with the evidence tokens, which "
                "`D2VLMBackboneProcessor.from_backbone` makes."
            )
        if is_name:
            with _in_one_piece():
                backbone = AutoModelForImageTextToText.from_pretrained(backbone, **kwargs)
        _check_backbone(backbone, processor)
        embedding, head = backbone.get_input_embeddings(), backbone.get_output_embeddings()
        config = cls.config_class(
            backbone_config=backbone.config,
            video_token_id=processor.video_token_id,
            evidence_token_id=processor.evidence_token_id,
            evidence_end_token_id=processor.evidence_end_token_id,
            capture_layer=capture_layer,
            similarity_layer=similarity_layer,
            salience_threshold=salience_threshold,
            tie_word_embeddings=head.weight is embedding.weight,
        )
        # What is new is drawn the same every time: an adapter must meet what it was trained beside.
        with torch.random.fork_rng(devices=[]), _in_one_piece():
            torch.default_generator.manual_seed(0)
            _give_rows(backbone, processor)
            embedding, head = backbone.get_input_embeddings(), backbone.get_output_embeddings()
            with torch.device("meta"):  # all but the evidence heads is there already
                model = cls._from_config(config, dtype=embedding.weight.dtype)
            model.model.backbone, model.lm_head = backbone.model, head
            for evidence_head in (model.model.evi_head, model.model.frame_head):
                evidence_head.to_empty(device="cpu")
                for module in evidence_head.modules():
                    module._is_hf_initialized = False
                evidence_head.apply(model._init_weights)
                evidence_head.to(embedding.weight.device)
        model.generation_config = backbone.generation_config
        return model.eval()

    def save_pretrained(self, save_directory, **kwargs):
        # One auto class can be registered per model class; the others are named here.
        self.config.auto_map = {
            auto_class: "modeling_d2vlm.D2VLMForConditionalGeneration"
            for auto_class in ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText")
        }
        return super().save_pretrained(save_directory, **kwargs)

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        pixel_values_videos: torch.Tensor | None = None,
        frame_index: torch.LongTensor | None = None,
        frame_mask: torch.Tensor | None = None,
        video_index: torch.LongTensor | None = None,
        video_features: torch.Tensor | None = None,
        num_video_features: torch.LongTensor | None = None,
        qformer_input_ids: torch.LongTensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        evidence_frame_mask: torch.Tensor | None = None,
        evidence_stage: torch.Tensor | None = None,
        segment_ids: torch.LongTensor | None = None,
        frame_states: torch.Tensor | None = None,
        frame_features: torch.Tensor | None = None,
        next_salience: torch.Tensor | None = None,
        rope_deltas: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        return_dict: bool | None = None,
        **video_inputs,
    ) -> D2VLMCausalLMOutput:
        r"""
        See [`D2VLMModel.forward`]; in addition

        Args:
            labels (`torch.LongTensor` of shape `(rows, L)`, *optional*):
                Token ids, -100 where no loss is wanted.
            logits_to_keep (`int`, *optional*, defaults to `0`):
                Compute the logits of the last positions only; 0 for all.
            num_items_in_batch (`int`, *optional*):
                Divide the summed loss by this count instead of the batch's own labels (gradient accumulation).
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            pixel_values_videos=pixel_values_videos,
            frame_index=frame_index,
            frame_mask=frame_mask,
            video_index=video_index,
            video_features=video_features,
            num_video_features=num_video_features,
            qformer_input_ids=qformer_input_ids,
            qformer_attention_mask=qformer_attention_mask,
            evidence_frame_mask=evidence_frame_mask,
            evidence_stage=evidence_stage,
            segment_ids=segment_ids,
            frame_states=frame_states,
            frame_features=frame_features,
            next_salience=next_salience,
            rope_deltas=rope_deltas,
            use_cache=use_cache,
            **video_inputs,
        )
        logits = self.lm_head(outputs.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=logits.shape[-1], num_items_in_batch=num_items_in_batch
            )
        return D2VLMCausalLMOutput(loss=loss, logits=logits, **outputs)

    @torch.no_grad()
    def generate(self, inputs: torch.LongTensor | None = None, generation_config=None, **kwargs):
        r"""
        Generates grounded answers; batched with left padding. See `GenerationMixin.generate`.

        Returns:
            Token ids, or [`D2VLMGenerateOutput`] with `return_dict_in_generate=True`.

        Raises:
            ValueError: for beam search, assisted decoding and generation without the cache, which would reorder or
                discard the states that the evidence of a token was read from.
        """
        settings = {**(generation_config or self.generation_config).to_dict(), **kwargs}
        if (
            (settings.get("num_beams") or 1) > 1
            or settings.get("assistant_model") is not None
            or settings.get("prompt_lookup_num_tokens")
            or settings.get("use_cache") is False
        ):
            raise ValueError(
                "D2VLM generates greedily or by sampling, with the cache: beam search, assisted decoding and no cache "
                "would lose the states that each `<evi>` was read from. Set `num_beams=1` and `use_cache=True`, and "
                "pass neither `assistant_model` nor `prompt_lookup_num_tokens`."
            )
        if self.training and self.is_gradient_checkpointing:
            raise ValueError(
                "Gradient checkpointing switches the cache off in training mode, and generation needs it: call "
                "`model.eval()` first."
            )
        # Per generated token: similarity of the state that predicted it to every frame (-1 at padding), its query, and
        # the features of the frames, which stay the same.
        trace: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        output = super().generate(inputs, generation_config=generation_config, evidence_trace=trace, **kwargs)
        if not isinstance(output, GenerateDecoderOnlyOutput) or not trace:
            return output
        prompt = inputs if inputs is not None else kwargs["input_ids"]
        new_ids = output.sequences[:, prompt.shape[1] :]
        is_evidence = new_ids == self.config.evidence_token_id
        positions = _positions_of(is_evidence, int(is_evidence.sum(-1).max()))
        evidence_mask = (positions >= 0).unsqueeze(-1)
        saliences, queries, frame_features = zip(*trace[: new_ids.shape[1]], strict=True)
        token_salience = torch.stack(saliences, dim=1)
        salience = _gather_positions(token_salience, positions)
        frame_mask = (salience >= 0) & evidence_mask
        queries = _gather_positions(torch.stack(queries, dim=1), positions)
        cosines = F.normalize(queries, dim=-1) @ F.normalize(frame_features[0], dim=-1).mT
        return D2VLMGenerateOutput(
            **output,
            evidence_salience=salience * frame_mask,
            evidence_frames=salient_run(
                salience, self.config.salience_threshold, frame_mask, self.config.interval_ties
            ),
            evidence_mask=evidence_mask.squeeze(-1),
            token_salience=token_salience,
            evidence_logits=self.model._similarity(queries, frame_features[0]) * frame_mask,
            evidence_cosines=cosines * frame_mask,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids,
        past_key_values=None,
        frame_states=None,
        evidence_trace=None,
        is_first_iteration=False,
        **kwargs,
    ):
        if frame_states is not None:
            # The prompt is in the cache: what describes it stays behind, what `<evi>` tokens need travels on.
            for name in (*self._video_input_names(), *PROMPT_INPUTS):
                kwargs.pop(name, None)
        return super().prepare_inputs_for_generation(
            input_ids,
            past_key_values=past_key_values,
            frame_states=frame_states,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, *args, **kwargs):
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        if outputs.rope_deltas is not None:
            model_kwargs["rope_deltas"] = outputs.rope_deltas
        if outputs.frame_states is not None:
            for name in ("frame_states", "frame_features", "frame_mask", "next_salience"):
                model_kwargs[name] = outputs[name]
            if model_kwargs.get("evidence_trace") is not None:
                salience = outputs.next_salience.masked_fill(~outputs.frame_mask, -1.0)
                model_kwargs["evidence_trace"].append((salience, outputs.next_query, outputs.frame_features))
        return model_kwargs

    def _video_input_names(self) -> list[str]:
        """Inputs with an entry for each video, or each of its frames or patches, but none for a row."""
        names = ["pixel_values_videos", "video_features", "num_video_features"]
        if self.model.has_backbone:
            known = inspect.signature(self.model.backbone.forward).parameters
            names += [name for name in known if name.startswith(("pixel_", "video_", "image_", "second_per_"))]
        return sorted(set(names))

    def _validate_model_kwargs(self, model_kwargs):
        # What a backbone's processor makes of videos is not among the arguments of the forward.
        names = self._video_input_names()
        super()._validate_model_kwargs({name: value for name, value in model_kwargs.items() if name not in names})

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        # `num_return_sequences` repeats rows; the videos stay as they are, since `video_index` points to them.
        videos = {name: model_kwargs.pop(name, None) for name in (*self._video_input_names(), "frame_mask")}
        has_video = any(value is not None for value in videos.values())
        if expand_size > 1 and has_video and model_kwargs.get("video_index") is None:
            model_kwargs["video_index"] = torch.arange(len(input_ids), device=input_ids.device)
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        return input_ids, {**model_kwargs, **{name: value for name, value in videos.items() if value is not None}}


__all__ = [
    "D2VLMForConditionalGeneration",
    "D2VLMModel",
    "D2VLMModelOutput",
    "D2VLMGenerateOutput",
    "D2VLMPreTrainedModel",
    "salient_run",
]
