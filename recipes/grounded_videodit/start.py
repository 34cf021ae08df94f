# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Makes the model that `sft.yaml` begins with: a language model, with all else of a Grounded-VideoDiT new.

    python recipes/grounded_videodit/start.py outputs/grounded_videodit/start

Once, it loads Wan's text encoder (11 GB) for the sentence that conditions VACE, and writes its embedding beside the
model; `--prompt_embeds FILE` takes one that is there.
"""

import argparse
from pathlib import Path

from trl_temporal.models.grounded_videodit.encoder_loading import embed_prompt
from trl_temporal.models.grounded_videodit.from_language_model import from_language_model

LANGUAGE_MODEL = "microsoft/Phi-3.5-mini-instruct"  # of the paper's Phi-3.5-Vision
CLIP = {"name": "openai/clip-vit-large-patch14", "hidden_size": 1024}
VACE = {"name": "Wan-AI/Wan2.1-VACE-1.3B-diffusers", "hidden_size": 1536, "num_segments": 12}


def make_start(
    output: str, prompt_embeds: str | None = None, language_model: str = LANGUAGE_MODEL, clip: dict = CLIP
) -> None:
    """Saves the model and its processor."""
    if prompt_embeds is None:
        Path(output).mkdir(parents=True, exist_ok=True)
        prompt_embeds = str(Path(output, "prompt_embeds.safetensors"))
        embed_prompt(VACE["name"], prompt_embeds)
    model, processor = from_language_model(
        language_model,
        num_frames=96,
        frame_encoders=["clip", "vace"],
        clip_config=clip,
        vace_config={**VACE, "prompt_embeds": prompt_embeds},
        grounding_head=["span"],
        num_object_tokens=4,
        num_time_anchors=8,
    )
    model.save_pretrained(output)
    processor.save_pretrained(output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="folder to write")
    parser.add_argument("--prompt_embeds", metavar="FILE", help="of `embed_prompt`")
    make_start(**vars(parser.parse_args()))
