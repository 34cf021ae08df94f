# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Asks a model about a video; it answers with spans in seconds.

    python examples/predict.py VIDEO "When does the red disc blink?"
    python examples/predict.py VIDEO "Describe every event in the video." --model outputs/fpo/fpo
"""

import argparse
from pathlib import Path

import torch

from trl_temporal import D2VLMForConditionalGeneration, D2VLMProcessor, generate_answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", help="path of a video file")
    parser.add_argument("question")
    parser.add_argument("--model", default=str(Path(__file__).parent / "eventworld_tiny"))
    parser.add_argument("--max_new_tokens", type=int, default=256)
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = D2VLMForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32).to(device)
    processor = D2VLMProcessor.from_pretrained(args.model)
    content = [{"type": "video"}, {"type": "text", "text": args.question}]
    row = {"videos": [{"path": args.video}], "prompt": [{"role": "user", "content": content}]}
    (answer,) = generate_answers(model, processor, [row], max_new_tokens=args.max_new_tokens, progress=False)
    print(answer if answer.text else "(no answer)")
    print("evidence:", ", ".join(map(str, answer.evidence)) or "none")


if __name__ == "__main__":
    main()
