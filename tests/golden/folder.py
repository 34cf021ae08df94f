# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Reads a folder of golden tensors: the model, the processor, and the samples of a case as rows and as a batch."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer
from trl.trainer.utils import disable_dropout_in_model

from trl_temporal.models.d2vlm import D2VLMForConditionalGeneration, D2VLMProcessor
from trl_temporal.models.d2vlm.convert_d2vlm_to_hf import convert_state_dict
from trl_temporal.models.d2vlm.released_config import convert_config
from trl_temporal.models.d2vlm.released_tokenizer import CHAT_TEMPLATE, build_qformer_tokenizer
from trl_temporal.trainer.fpo_trainer import disable_attention_dropout
from trl_temporal.video import Video

RELEASED_VIDEO_ID = -200


class GoldenFolder:
    """
    A folder of the form that `d2vlm/README.md` describes.

    Args:
        path (`str` or `Path`):
            The folder.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not (self.path / "config.json").is_file():
            raise FileNotFoundError(f"{self.path} has no config.json: is it a folder of golden tensors?")
        self.settings = json.loads((self.path / "config.json").read_text())
        tokenizer = AutoTokenizer.from_pretrained(self.path / "tokenizer")
        tokenizer.add_tokens(["<video>"], special_tokens=True)
        self.processor = D2VLMProcessor(
            tokenizer,
            chat_template=CHAT_TEMPLATE,
            image_size=self.settings["vision"]["img"],
            time_rule="index",
        )
        self.processor.qformer_tokenizer = build_qformer_tokenizer(self.path / "qformer_tokenizer" / "vocab.txt")
        self._weights: dict[str, dict[str, torch.Tensor]] = {}

    def names(self, pattern: str) -> list[str]:
        """Cases whose file fits the pattern."""
        return sorted(file.stem for file in self.path.glob(f"{pattern}.safetensors"))

    def read(self, case: str) -> tuple[dict[str, torch.Tensor], dict]:
        """Tensors and numbers of a case."""
        return self.read_tensors(case), json.loads((self.path / f"{case}.json").read_text())

    def read_tensors(self, case: str) -> dict[str, torch.Tensor]:
        """Tensors of a case without numbers."""
        return load_file(self.path / f"{case}.safetensors")

    def weights(self, kind: str) -> dict[str, torch.Tensor]:
        """The released state dict `"random"` or `"trained"`, in float32."""
        if kind not in self._weights:
            tensors = load_file(self.path / f"weights_{kind}.safetensors")
            base = {} if kind == "random" else self.weights("random")
            self._weights[kind] = {**base, **{name: tensor.float() for name, tensor in tensors.items()}}
        return self._weights[kind]

    def model(self, kind: str) -> D2VLMForConditionalGeneration:
        """Our model with the released weights."""
        weights = self.weights(kind)
        config = convert_config(
            self.settings,
            {name: tuple(tensor.shape) for name, tensor in weights.items()},
            {"<video>": self.processor.video_token_id},
        )
        model = D2VLMForConditionalGeneration(config).eval()
        missing, unexpected = model.load_state_dict(convert_state_dict(weights), strict=False)
        unused = {f"model.vision_tower.post_layernorm.{name}" for name in ("weight", "bias")}
        if unexpected or set(missing) != unused:
            raise ValueError(f"weights_{kind} and the model differ: missing {missing}, unexpected {unexpected}")
        disable_dropout_in_model(model)  # the golden tensors were made without
        disable_attention_dropout(model)
        model.generation_config.eos_token_id = self.settings["special_ids"]["<|end|>"]
        model.generation_config.pad_token_id = self.processor.tokenizer.pad_token_id
        return model

    def read_video(self, entry: dict) -> Video:
        """`case/2/14`: the third video of a case with 14 frames, black, frame i at second i."""
        num_frames, size = int(entry["path"].rsplit("/", 1)[1]), self.processor.image_size
        return Video(
            frames=np.zeros((num_frames, size, size, 3), dtype=np.uint8),
            timestamps_s=np.arange(num_frames, dtype=np.float64),
            duration_s=float(num_frames),
            path=entry["path"],
            warnings=[],
        )


def pairs(flat: list[float] | None) -> list[list[float]]:
    """`[s, e, s, e]` as spans. An odd number at the end is dropped, as the released training does."""
    flat = flat or []
    return [list(ends) for ends in zip(flat[::2], flat[1::2], strict=False)]


def prompt_messages(question: str) -> list[dict]:
    """A released question with its `<image>`, as messages."""
    before, after = question.split("<image>")
    content = [{"type": "video"}, {"type": "text", "text": after.removeprefix("\n")}]
    return [{"role": "user", "content": ([{"type": "text", "text": before}] if before else []) + content}]


def answer_messages(answer: str) -> list[dict]:
    return [{"role": "assistant", "content": [{"type": "text", "text": answer}]}]


def sample_row(case: str, number: int, sample: dict) -> dict:
    """A sample of a case as a row of the data contract, without its answer."""
    return {
        "id": f"{case} {number}",
        "videos": [{"path": f"{case}/{number}/{sample['frames']}"}],
        "prompt": prompt_messages(sample["conversation"][0]["value"]),
        "prompt_spans": pairs(sample["src"]) or None,
    }


def pad_videos(videos: list[torch.Tensor]) -> torch.Tensor:
    """Videos of different length, `(T, ...)` each, as one tensor `(videos, T, ...)`."""
    return torch.nn.utils.rnn.pad_sequence([video.float() for video in videos], batch_first=True)
