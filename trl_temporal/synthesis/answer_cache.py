# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""What language models have answered, on disk."""

import json
import os
import socket
from pathlib import Path


class AnswerCache:
    """
    Answers on disk, by the hash of their request.

    Every process appends lines to a file of its own, which works on network file systems too, and reads the files of
    all at its start. A line that a crash cut short is left out.

    Args:
        folder (`str` or `os.PathLike`):
            Folder of the files; made where there is none.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self._answers: dict[str, str] | None = None

    def __contains__(self, key: str) -> bool:
        return key in self._loaded()

    def __getitem__(self, key: str) -> str:
        return self._loaded()[key]

    def add(self, key: str, answer: str) -> None:
        """Keep an answer. Threads may call this at the same time: a line is one write to the end of the file."""
        line = json.dumps({"key": key, "answer": answer}, ensure_ascii=True) + "\n"
        path = self.folder / f"answers-{socket.gethostname()}-{os.getpid()}.jsonl"
        with open(path, "ab", buffering=0) as file:
            file.write(line.encode())
        self._loaded()[key] = answer

    def _loaded(self) -> dict[str, str]:
        if self._answers is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            answers = {}
            for path in sorted(self.folder.glob("answers-*.jsonl")):
                for line in path.read_bytes().split(b"\n"):
                    try:
                        entry = json.loads(line)
                        answers[entry["key"]] = entry["answer"]
                    except (ValueError, KeyError, TypeError):
                        continue
            self._answers = answers
        return self._answers
