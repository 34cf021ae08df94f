# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""A Grounded-VideoDiT on a language model: everything but the language model is new."""

import torch
from transformers import AddedToken, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel

from .configuration_grounded_videodit import GroundedVideoDiTConfig
from .modeling_grounded_videodit import GroundedVideoDiTForConditionalGeneration
from .processing_grounded_videodit import GroundedVideoDiTProcessor
from .time_tokens import TimeTokens, add_time_tokens, give_time_rows

# Written before the template of a language model, which knows messages of plain text: their parts become one text.
PARTS_TO_TEXT = (
    "{% set texts = namespace(messages=[]) %}"
    "{% for message in messages %}"
    "{% set content %}"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'video' %}<video>{% elif part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% endset %}"
    "{% set texts.messages = texts.messages + [dict(message, content=content)] %}"
    "{% endfor %}"
    "{% set messages = texts.messages %}"
)


def from_language_model(
    name: str,
    *,
    num_frames: int = 96,
    image_size: int = 224,
    time_token_format: str = "<{i}>",
    chat_template: str | None = None,
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    **config,
) -> tuple[GroundedVideoDiTForConditionalGeneration, GroundedVideoDiTProcessor]:
    r"""
    Makes a Grounded-VideoDiT of a language model, which keeps its weights. Save both of what it returns: the new parts
    are random, and the language model gets rows for `<video>`, `<evi>`, `</evi>` and time tokens.

    Args:
        name (`str`):
            Folder, or name on the Hub, of a language model whose tokenizer has a chat template.
        num_frames (`int`, *optional*, defaults to `96`):
            Frames of each video.
        image_size (`int`, *optional*, defaults to `224`):
            Height and width of the frames that the frame encoders are given, in pixels.
        time_token_format (`str`, *optional*, defaults to `"<{i}>"`):
            How time tokens are written, with the head `"time_tokens"`. See [`TimeTokens`].
        chat_template (`str`, *optional*):
            Jinja template in place of the tokenizer's.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`):
            Type of the weights.
        revision (`str`, *optional*):
            Revision on the Hub.
        **config:
            Arguments of [`GroundedVideoDiTConfig`], such as `frame_encoders`, `clip_config` and `grounding_head`.

    Returns:
        `tuple`: the [`GroundedVideoDiTForConditionalGeneration`], in evaluation mode, and its
        [`GroundedVideoDiTProcessor`].

    Raises:
        ValueError: if there is no chat template, or the model is no plain language model.

    Example:

    ```python
    >>> model, processor = from_language_model(
    ...     "microsoft/Phi-3.5-mini-instruct",
    ...     frame_encoders=["clip", "vace"],
    ...     clip_config={"name": "openai/clip-vit-large-patch14", "hidden_size": 1024},
    ...     vace_config={"name": "Wan-AI/Wan2.1-VACE-1.3B-diffusers", "hidden_size": 1536},
    ... )  # doctest: +SKIP
    >>> model.save_pretrained("start"), processor.save_pretrained("start")  # doctest: +SKIP
    ```
    """
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    template = chat_template or tokenizer.chat_template
    if template is None:
        raise ValueError(f"The tokenizer of {name} has no chat template: pass `chat_template`.")
    language_model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, revision=revision)
    _check(language_model, name)

    num_known = len(tokenizer)
    processor_class = GroundedVideoDiTProcessor
    evidence = (processor_class.evidence_token, processor_class.evidence_end_token)
    tokens = [AddedToken(processor_class.video_token, special=True)]
    tokens += [AddedToken(token, lstrip=True, special=True) for token in evidence]  # " <evi>" is one token
    tokenizer.add_special_tokens({"additional_special_tokens": tokens}, replace_extra_special_tokens=False)
    heads = config.get("grounding_head", "span")
    if "time_tokens" in ([heads] if isinstance(heads, str) else heads):
        steps = TimeTokens(config.get("num_time_steps", GroundedVideoDiTConfig.num_time_steps), time_token_format)
        config["time_token_start_id"] = add_time_tokens(tokenizer, steps)[0]
    if len(tokenizer) > num_known:
        give_time_rows(language_model, range(num_known, len(tokenizer)))

    video_id, evidence_id = tokenizer.convert_tokens_to_ids([processor_class.video_token, evidence[0]])
    embedding, head = language_model.get_input_embeddings(), language_model.get_output_embeddings()
    attention = language_model.config._attn_implementation
    config = GroundedVideoDiTConfig(
        text_config=language_model.config,
        video_token_id=video_id,
        evidence_token_id=evidence_id,
        **{"tie_word_embeddings": head.weight is embedding.weight, **config},
    )
    config._attn_implementation = attention  # of its language model too, which a configuration of its own resets
    model = _around(language_model, config)
    processor = processor_class(
        tokenizer,
        chat_template=_end_turns(tokenizer, template, language_model) + PARTS_TO_TEXT + template,
        num_frames=num_frames,
        image_size=image_size,
        tokens_per_frame=config.tokens_per_frame,
        num_object_tokens=config.num_object_tokens,
        num_time_anchors=config.num_time_anchors,
        grounding_head=config.grounding_head,
        num_time_steps=config.num_time_steps,
        time_token_format=time_token_format,
    )
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, processor


def _check(language_model: PreTrainedModel, name: str) -> None:
    """Refuses models that would not be loaded again as they are."""
    config, head = language_model.config, language_model.get_output_embeddings()
    names = {name for name, _ in language_model.base_model.named_parameters()}
    if config.get_text_config() is not config or head.bias is not None or "embed_tokens.weight" not in names:
        raise ValueError(
            f"{name} is a {type(language_model).__name__}, which sees more than text, has a bias in its head, or has "
            "its embedding elsewhere than in `embed_tokens`. Give a plain language model, such as a Phi-3 or a Qwen3."
        )


def _around(
    language_model: PreTrainedModel, config: GroundedVideoDiTConfig
) -> GroundedVideoDiTForConditionalGeneration:
    """The new parts, around a language model that is there already."""
    text, kept = config.text_config, language_model.get_output_embeddings()
    # Without layers, so that the weights are not made twice.
    none = LlamaConfig(
        vocab_size=1,
        hidden_size=text.hidden_size,
        intermediate_size=1,
        num_hidden_layers=0,
        num_attention_heads=1,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=config.tie_word_embeddings,
    )
    settings = {name: value for name, value in config.to_dict().items() if name not in ("text_config", "model_type")}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # what is new is the same every time
        model = GroundedVideoDiTForConditionalGeneration(GroundedVideoDiTConfig(text_config=none, **settings))
    model.to(kept.weight.device, kept.weight.dtype)
    model.config = model.model.config = config
    model.model.language_model, model.lm_head = language_model.base_model, kept
    model.generation_config = language_model.generation_config
    return model.eval()


def _end_turns(tokenizer, template: str, language_model: PreTrainedModel) -> str:
    """
    Has the tokenizer call what ends a turn its end of sequence, as answers are read up to there. The template keeps
    the one that it writes, which may be another: a line for its beginning.
    """
    before = tokenizer.eos_token
    if tokenizer.pad_token is None:
        tokenizer.pad_token = before
    stops = language_model.generation_config.eos_token_id
    stops = {tokenizer.eos_token_id} | set([stops] if isinstance(stops, int) else stops or [])
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    written = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    behind = tokenizer(written[written.rindex("b") + 1 :], add_special_tokens=False)["input_ids"]
    end = next((token for token in behind if token in stops), tokenizer.eos_token_id)
    if end == tokenizer.eos_token_id:
        return ""
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    return f"{{% set eos_token = {before!r} %}}"


__all__ = ["from_language_model"]
