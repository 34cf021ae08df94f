# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Writes a folder of golden tensors that says the same in another way, which must pass as well:

    python -m tests.golden.variants tests/golden/d2vlm OUT --padding 7

The samples of every batch stand in another order, and every sequence has more padding on its right.
"""

import argparse
import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

# Padding of outputs with a sequence axis, and how many axes of that length they have.
SEQUENCES = {
    "out.inputs_embeds": 1,
    "out.attention_mask": 1,
    "out.labels": 1,
    "out.attn_allowed": 2,
    "out.h_penult": 1,
    "out.logits": 1,
    "out.label_logps": 1,
    "out.position_ids": 1,
}


def write_variant(source: Path, destination: Path, padding: int) -> None:
    """
    Args:
        source (`Path`):
            Folder of golden tensors.
        destination (`Path`):
            Folder to make.
        padding (`int`):
            Positions that each sequence grows by.
    """
    shutil.copytree(source, destination)
    for file in destination.glob("*.json"):
        case = file.stem
        tensors_file = destination / f"{case}.safetensors"
        if not case.startswith(("sft_", "fpo_", "infer")) or not tensors_file.exists():
            continue
        numbers, tensors = json.loads(file.read_text()), load_file(tensors_file)
        size = len(numbers["videos"] if case.startswith("infer") else numbers["samples"])
        order = [*range(1, size), 0]
        numbers = {
            name: [value[i] for i in order] if isinstance(value, list) and len(value) == size else value
            for name, value in numbers.items()
        }
        file.write_text(json.dumps(numbers))
        moved = {_rename(name, order): _permute(name, tensor, order) for name, tensor in tensors.items()}
        padded = {name: _pad(name, tensor, padding) for name, tensor in moved.items()}
        save_file({name: tensor.contiguous() for name, tensor in padded.items()}, tensors_file)


def _rename(name: str, order: list[int]) -> str:
    numbered = re.fullmatch(r"(.*)\.(\d+)", name)
    return f"{numbered[1]}.{order.index(int(numbered[2]))}" if numbered else name


def _permute(name: str, tensor: torch.Tensor, order: list[int]) -> torch.Tensor:
    batched = name.startswith(("in.", "out.")) and not re.search(r"\.\d+$", name)
    return tensor[order] if batched else tensor


def _pad(name: str, tensor: torch.Tensor, padding: int) -> torch.Tensor:
    if name not in SEQUENCES:
        return tensor
    trailing = tensor.ndim - 1 - SEQUENCES[name]  # axes behind those of the sequence
    pads = [0, 0] * trailing + [0, padding] * SEQUENCES[name]
    return torch.nn.functional.pad(tensor, pads, value=-100 if name == "out.labels" else 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("destination", type=Path)
    parser.add_argument("--padding", type=int, default=7)
    args = parser.parse_args()
    write_variant(args.source, args.destination, args.padding)
