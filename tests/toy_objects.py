# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Tiny GroundingDINO, OWLv2 and SAM 2 with random weights, saved as folders that load like those of the Hub."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    Owlv2Config,
    Owlv2ForObjectDetection,
    PreTrainedTokenizerFast,
    Sam2VideoConfig,
    Sam2VideoModel,
)
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil
from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

WORDS = "a photo of dog cat red frisbee man ball umbrella".split()


def _save_tokenizer(path: Path, vocab: dict[str, int], start: str, end: str) -> None:
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, vocab[start]), (end, vocab[end])]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token=start, sep_token=end
    )
    fast.save_pretrained(path)


def save_toy_grounding_dino(path: Path, kind: str = "grounding-dino") -> Path:
    """A GroundingDINO for pictures of 128 pixels; `[CLS] [SEP] . ?` have the ids of BERT's vocabulary."""
    torch.manual_seed(0)
    config_class, model_class = {
        "grounding-dino": (GroundingDinoConfig, GroundingDinoForObjectDetection),
        "mm-grounding-dino": (MMGroundingDinoConfig, MMGroundingDinoForObjectDetection),
    }[kind]
    config = config_class(
        backbone_config={
            "model_type": "swin",
            "image_size": 64,
            "embed_dim": 8,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 1, 1],
            "window_size": 2,
            "out_features": ["stage2", "stage3", "stage4"],
        },
        text_config={
            "model_type": "bert",
            "vocab_size": 1100,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "max_position_embeddings": 64,
        },
        d_model=32,
        num_queries=6,
        encoder_layers=1,
        decoder_layers=2,  # one has no heads to tie, which is an error
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_feature_levels=4,
        max_text_len=32,
        disable_custom_kernels=True,
    )
    model = model_class(config)
    with torch.no_grad():  # so that regions and nouns differ
        for name, parameter in model.named_parameters():
            if "text_projection" in name or "embeddings" in name:
                torch.nn.init.normal_(parameter, std=0.5)
        model.model.decoder.layer_norm.weight.mul_(0.05)  # and scores are not all 1
    model.save_pretrained(path)
    vocab = {f"[unused{index}]": index for index in range(1100)}
    named = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}
    named |= {word: 1030 + index for index, word in enumerate(WORDS)}
    vocab = {name: index for name, index in vocab.items() if index not in named.values()} | named
    _save_tokenizer(path, vocab, "[CLS]", "[SEP]")
    GroundingDinoImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 128}).save_pretrained(path)
    return path


def save_toy_owlv2(path: Path) -> Path:
    """An OWLv2 for pictures of 32 pixels."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vocab = {name: index for index, name in enumerate(["[PAD]", "[BOS]", "[UNK]", *WORDS, "[EOS]"])}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": len(vocab) - 1}
    config = Owlv2Config(
        text_config={**sizes, **special, "vocab_size": len(vocab), "max_position_embeddings": 16},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    model = Owlv2ForObjectDetection(config)
    with torch.no_grad():
        model.class_head.logit_shift.weight.mul_(0.05)
    model.save_pretrained(path)
    _save_tokenizer(path, vocab, "[BOS]", "[EOS]")
    Owlv2ImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(path)
    return path


def save_toy_sam2(path: Path) -> Path:
    """A video model of SAM 2 for pictures of 128 pixels. Its memory has 64 channels: others do not run."""
    torch.manual_seed(0)
    hidden = 128  # 64 does not run
    config = Sam2VideoConfig(
        vision_config={
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": 16,
                "num_attention_heads": 1,
                "image_size": [128, 128],
                "window_positional_embedding_background_size": [7, 7],
                # A stage must not be one block that attends everywhere.
                "blocks_per_stage": [1, 1, 2, 1],
                "embed_dim_per_stage": [16, 32, 64, 128],
                "num_attention_heads_per_stage": [1, 2, 4, 8],
                "window_size_per_stage": [8, 4, 8, 4],
                "global_attention_blocks": [3],
            },
            "backbone_channel_list": [128, 64, 32, 16],
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
            "fpn_hidden_size": hidden,
        },
        prompt_encoder_config={"hidden_size": hidden, "image_size": 128},
        mask_decoder_config={"hidden_size": hidden, "mlp_dim": 32, "iou_head_hidden_dim": 32},
        image_size=128,
        memory_attention_hidden_size=hidden,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=32,
        memory_attention_rope_feat_sizes=[8, 8],
        memory_encoder_hidden_size=hidden,
        memory_encoder_output_channels=64,
        mask_downsampler_embed_dim=hidden,
        memory_fuser_num_layers=1,
        memory_fuser_embed_dim=hidden,
        memory_fuser_intermediate_dim=32,
    )
    Sam2VideoModel(config).save_pretrained(path)
    return path
