# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Tiny random models of the families of transformers that take videos, with the real processors of their families.

Image and video processors need torchvision: import this module after `tests.torchvision_shim.load_torchvision`, which
the tests' conftest calls. The vocabulary of the tokenizers is tiny, their special tokens are those of the family, and
so is the chat template.
"""

import copy
from pathlib import Path

import torch
import transformers
import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE as SMOLVLM_TEMPLATE

# Weights are large, so that answers differ from row to row and a wrong mask or video is noticed.
SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "initializer_range": 0.4}
VISION_SIZES = {**SIZES, "num_hidden_layers": 2, "intermediate_size": 48}
FRAME = {"height": 16, "width": 16}  # of the families that make every frame square

TEXTS = [
    "You are a helpful assistant. system user assistant\n",
    "User: Assistant: You are provided the following series of six frames from a 0:00:03 [H:MM:SS] video.\n",
    "Frame from 00:01: Frame1: <0.2 seconds> When? What happens first in the video? Describe every event.",
]
CHAT = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

QWEN_TEMPLATES = Path(trl.__file__).parent / "chat_templates"
# As https://huggingface.co/llava-hf/llava-onevision-qwen2-0.5b-ov-hf has it: pictures first, and a space behind the
# role that the generation prompt does not have.
LLAVA_ONEVISION_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\n' + content['text'] }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As https://huggingface.co/OpenGVLab/InternVL3-1B-hf has it.
INTERNVL_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif content['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_tokenizer(special: list[str], eos_token: str = "<|im_end|>", pad_token: str = "<|endoftext|>", **named):
    """A byte-level tokenizer of about 350 tokens; `named` are special tokens that the processor asks it for."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=CHAT,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=eos_token,
        pad_token=pad_token,
        extra_special_tokens=named,
        clean_up_tokenization_spaces=False,
    )
    made.add_special_tokens({"additional_special_tokens": [*CHAT, *special]}, replace_extra_special_tokens=False)
    return made


def text_config(tokenizer, **kwargs) -> dict:
    return {
        **SIZES,
        "vocab_size": len(tokenizer),
        "intermediate_size": 64,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        **kwargs,
    }


# Of the Qwens: patches of two frames, 4 x 4 pixels, of which four are a token; numbers of pixels of a frame.
PATCHES = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
PIXELS = {"shortest_edge": 16 * 16, "longest_edge": 16 * 32}


def qwen(model_type: str, processor_class, videos, vision_config: dict, template: str, **text_kwargs):
    """Qwen2-VL and its successors."""
    tokens = ("vision_start", "vision_end", "image_pad", "video_pad")
    tokenizer = make_tokenizer([f"<|{token}|>" for token in tokens])
    vision_start, vision_end, image, video = (tokenizer.convert_tokens_to_ids(f"<|{token}|>") for token in tokens)
    config = transformers.AutoConfig.for_model(
        model_type,
        text_config=text_config(
            tokenizer,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
            **text_kwargs,
        ),
        vision_config={
            "depth": 2,
            "num_heads": 2,
            "hidden_size": 32,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "initializer_range": 0.4,
            **vision_config,
        },
        vision_start_token_id=vision_start,
        vision_end_token_id=vision_end,
        image_token_id=image,
        video_token_id=video,
    )
    images = transformers.Qwen2VLImageProcessor(size=PIXELS, **PATCHES)
    chat_template = (QWEN_TEMPLATES / template).read_text(encoding="utf-8")
    return config, processor_class(images, tokenizer, videos, chat_template=chat_template)


def qwen2_vl():
    videos = transformers.Qwen2VLVideoProcessor(size=PIXELS, cap_pixels_per_frame=True, **PATCHES)
    return qwen("qwen2_vl", transformers.Qwen2VLProcessor, videos, {"embed_dim": 32}, "qwen2_5_vl.jinja")


def qwen2_5_vl():
    videos = transformers.Qwen2VLVideoProcessor(size=PIXELS, cap_pixels_per_frame=True, **PATCHES)
    vision_config = {
        "intermediate_size": 48,
        "out_hidden_size": 32,
        "window_size": 16,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
    }
    return qwen("qwen2_5_vl", transformers.Qwen2_5_VLProcessor, videos, vision_config, "qwen2_5_vl.jinja")


def qwen3_vl():
    # Here the size is that of all frames together, and a frame has so many tokens at most.
    size = {**PIXELS, "longest_edge": 64 * 16 * 32}
    videos = transformers.Qwen3VLVideoProcessor(size=size, cap_pixels_per_frame=True, max_video_tokens=8, **PATCHES)
    vision_config = {
        "intermediate_size": 48,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
    }
    return qwen("qwen3_vl", transformers.Qwen3VLProcessor, videos, vision_config, "qwen3_vl.jinja", head_dim=16)


def llava_onevision():
    tokenizer = make_tokenizer(["<image>", "<video>"])
    grid = [[16, 16], [16, 32], [32, 16]]
    config = transformers.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **text_config(tokenizer)},
        vision_config={
            **VISION_SIZES,
            "model_type": "siglip_vision_model",
            "image_size": 16,
            "patch_size": 4,
            "vision_use_head": False,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid,
    )
    processor = transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(size=FRAME, image_grid_pinpoints=grid),
        tokenizer,
        transformers.LlavaOnevisionVideoProcessor(size=FRAME),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=LLAVA_ONEVISION_TEMPLATE,
    )
    return config, processor


def smolvlm():
    tokens = ["<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>"]
    tiles = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    tokenizer = make_tokenizer([*tokens, *tiles], eos_token="<end_of_utterance>", pad_token="<|im_end|>")
    config = transformers.SmolVLMConfig(
        text_config={"model_type": "llama", **text_config(tokenizer)},
        vision_config={**VISION_SIZES, "image_size": 16, "patch_size": 4},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    max_image_size = {"longest_edge": 16}
    processor = transformers.SmolVLMProcessor(
        transformers.SmolVLMImageProcessor(size={"longest_edge": 32}, max_image_size=max_image_size),
        tokenizer,
        transformers.SmolVLMVideoProcessor(
            max_image_size=max_image_size,
            video_sampling={"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 16}},
        ),
        image_seq_len=4,
        chat_template=SMOLVLM_TEMPLATE,
    )
    return config, processor


def internvl():
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = make_tokenizer([], **named)
    config = transformers.InternVLConfig(
        text_config={"model_type": "qwen2", **text_config(tokenizer)},
        vision_config={**VISION_SIZES, "image_size": [16, 16], "patch_size": [4, 4]},
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
    )
    processor = transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessor(size=FRAME, max_patches=2),
        tokenizer,
        transformers.InternVLVideoProcessor(size=FRAME),
        image_seq_length=4,
        chat_template=INTERNVL_TEMPLATE,
    )
    return config, processor


FAMILIES = {
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "llava_onevision": llava_onevision,
    "smolvlm": smolvlm,
    "internvl": internvl,
}


def build(family: str):
    """
    The same model every time, in float32 and with four layers, and its processor.

    Returns:
        `PreTrainedModel` as of `AutoModelForImageTextToText`, and `ProcessorMixin` as of `AutoProcessor`.
    """
    config, processor = FAMILIES[family]()
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    return model.eval(), processor


def watch_videos(monkeypatch, processor) -> list[dict]:
    """
    Keeps what the video processor is called with from now on.

    Returns:
        `list[dict]`, which grows by a dictionary a call: its arguments, as they were before the call.
    """
    calls, preprocess = [], type(processor.video_processor).preprocess

    def watch(self, videos, **kwargs):
        calls.append({"videos": videos, **copy.deepcopy(kwargs)})
        return preprocess(self, videos, **kwargs)

    monkeypatch.setattr(type(processor.video_processor), "preprocess", watch)
    return calls
