# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Tiny models from scratch: for EventWorld, for tests and for trying things on a laptop."""

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from .d2vlm import D2VLMConfig, D2VLMConvStemConfig, D2VLMForConditionalGeneration, D2VLMProcessor
from .grounded_videodit import (
    GroundedVideoDiTConfig,
    GroundedVideoDiTForConditionalGeneration,
    GroundedVideoDiTProcessor,
    TimeTokens,
    add_time_tokens,
)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'video' %}<video>{% elif part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int = 512) -> PreTrainedTokenizerFast:
    """
    Trains a byte-level BPE tokenizer: any text encodes, the given texts encode short.

    Args:
        texts (`Iterable[str]`):
            Texts to learn merges from.
        vocab_size (`int`, *optional*, defaults to `512`):
            Size of the vocabulary with the 256 bytes and the special tokens.

    Returns:
        `PreTrainedTokenizerFast` with `<evi>`, `</evi>`, `<video>`, chat markers, and `<|end|>` as end of sequence.
    """
    special = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<video>"]
    # The space before an evidence token belongs to it: "in <evi> and <evi>." needs no token for single spaces.
    evidence = [AddedToken(token, lstrip=True, special=True) for token in ("<evi>", "</evi>")]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(evidence),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(evidence)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=special[2:] + evidence,
        clean_up_tokenization_spaces=False,
    )


def build_tiny_d2vlm(
    texts: Iterable[str],
    vocab_size: int = 512,
    hidden_size: int = 128,
    num_hidden_layers: int = 4,
    image_size: int = 64,
    fps: float = 2.0,
    **config_kwargs,
) -> tuple[D2VLMForConditionalGeneration, D2VLMProcessor]:
    """
    Builds a randomly initialised D2VLM with a convolutional frame encoder and its processor.

    Args:
        texts (`Iterable[str]`):
            Texts that the tokenizer is trained on.
        vocab_size (`int`, *optional*, defaults to `512`):
            Size of the vocabulary.
        hidden_size (`int`, *optional*, defaults to `128`):
            Hidden size of the language model and the frame encoder; a multiple of 32.
        num_hidden_layers (`int`, *optional*, defaults to `4`):
            Layers of the language model.
        image_size (`int`, *optional*, defaults to `64`):
            Height and width of the frames in pixels.
        fps (`float`, *optional*, defaults to `2.0`):
            Frames that are sampled per second.
        **config_kwargs:
            Further arguments of [`D2VLMConfig`].

    Returns:
        The model and its [`D2VLMProcessor`].
    """
    tokenizer = train_tokenizer(texts, vocab_size)
    processor = D2VLMProcessor(
        tokenizer,
        chat_template=CHAT_TEMPLATE,
        image_size=image_size,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.25, 0.25, 0.25),
        fps=fps,
    )
    text_config = _text_config(tokenizer, hidden_size, num_hidden_layers)
    config = D2VLMConfig(
        text_config=text_config,
        vision_config=D2VLMConvStemConfig(image_size=image_size, hidden_size=hidden_size),
        video_token_id=processor.video_token_id,
        evidence_token_id=processor.evidence_token_id,
        evidence_end_token_id=processor.evidence_end_token_id,
        **{"capture_layer": max(num_hidden_layers // 2, 1), **config_kwargs},
    )
    model = D2VLMForConditionalGeneration(config)
    return _generating(model, tokenizer), processor


def build_tiny_grounded_videodit(
    texts: Iterable[str],
    clip_config: dict,
    vocab_size: int = 512,
    hidden_size: int = 128,
    num_hidden_layers: int = 4,
    num_frames: int = 24,
    image_size: int = 64,
    **config_kwargs,
) -> tuple[GroundedVideoDiTForConditionalGeneration, GroundedVideoDiTProcessor]:
    """
    Builds a randomly initialised Grounded-VideoDiT over the features of a vision tower, and its processor.

    Args:
        texts (`Iterable[str]`):
            Texts that the tokenizer is trained on.
        clip_config (`dict`):
            The vision tower, as in [`GroundedVideoDiTConfig`].
        vocab_size (`int`, *optional*, defaults to `512`):
            Size of the vocabulary without time tokens.
        hidden_size (`int`, *optional*, defaults to `128`):
            Hidden size of the language model; a multiple of 32.
        num_hidden_layers (`int`, *optional*, defaults to `4`):
            Layers of the language model.
        num_frames (`int`, *optional*, defaults to `24`):
            Frames of each video.
        image_size (`int`, *optional*, defaults to `64`):
            Height and width of the frames in pixels.
        **config_kwargs:
            Further arguments of [`GroundedVideoDiTConfig`].

    Returns:
        The model and its [`GroundedVideoDiTProcessor`].
    """
    tokenizer = train_tokenizer(texts, vocab_size)
    config_kwargs = {"frame_encoders": ["clip", "dtl_feature"], "num_time_steps": 60, **config_kwargs}
    if "time_tokens" in config_kwargs.get("grounding_head", ()):
        ids = add_time_tokens(tokenizer, TimeTokens(config_kwargs["num_time_steps"]))
        config_kwargs["time_token_start_id"] = ids[0]
    config = GroundedVideoDiTConfig(
        text_config=_text_config(tokenizer, hidden_size, num_hidden_layers),
        clip_config=clip_config,
        **{"feature_size": hidden_size, "time_embedding_size": hidden_size // 2, **config_kwargs},
        video_token_id=tokenizer.convert_tokens_to_ids(GroundedVideoDiTProcessor.video_token),
        evidence_token_id=tokenizer.convert_tokens_to_ids(GroundedVideoDiTProcessor.evidence_token),
    )
    processor = GroundedVideoDiTProcessor(
        tokenizer,
        chat_template=CHAT_TEMPLATE,
        num_frames=num_frames,
        image_size=image_size,
        tokens_per_frame=config.tokens_per_frame,
        num_object_tokens=config.num_object_tokens,
        num_time_anchors=config.num_time_anchors,
        grounding_head=config.grounding_head,
        num_time_steps=config.num_time_steps,
    )
    return _generating(GroundedVideoDiTForConditionalGeneration(config), tokenizer), processor


def _text_config(tokenizer: PreTrainedTokenizerFast, hidden_size: int, num_hidden_layers: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=hidden_size // 32,
        num_key_value_heads=hidden_size // 32,
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        # Unit gain: at the usual 0.02 the attention of so narrow a model starts uniform and takes long to leave that.
        initializer_range=hidden_size**-0.5,
        tie_word_embeddings=True,
    )


def _generating(model, tokenizer: PreTrainedTokenizerFast):
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model
