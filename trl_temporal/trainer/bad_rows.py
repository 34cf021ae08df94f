# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Rows whose video turns out to be bad in the middle of training, on one rank of many."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from ..data.feature_key import FeatureCacheError
from ..data.schema import RowError, coerce_videos
from ..video import VideoError

BAD_ROW = (RowError, VideoError, FeatureCacheError, OSError)
SKIPPED = "skipped_rows"


@dataclass
class BadRowCollator:
    """
    A collator that names the row that cannot be collated, or leaves it out.

    A row that is left out becomes one of plain text with nothing to learn: ranks gather values of every row, and would
    wait for each other if their batches had different sizes.

    Args:
        collate (`Callable`):
            Collator of the trainer.
        skip (`bool`):
            Leave bad rows out. The batch then has `skipped_rows`, a list of `id`, `video` and `reason`.
        advice (`str`, *optional*):
            What an error says at its end.

    Returns:
        `dict[str, torch.Tensor]`, of a call: the batch.

    Raises:
        RowError: If a row cannot be collated, unless `skip`; it names the row, the file and the mend. Likewise
            `VideoError`, `FeatureCacheError` and `OSError`.

    Example:

    ```python
    >>> from trl_temporal.trainer.bad_rows import BadRowCollator
    >>> collate = BadRowCollator(lambda rows: {"number": len(rows)}, skip=False)
    >>> collate([{"id": "a"}, {"id": "b"}])
    {'number': 2}
    ```
    """

    collate: Callable[[list[dict]], dict]
    skip: bool
    advice: str = " Or set `on_bad_sample='skip'` to go on without such rows."

    def __call__(self, rows: list[dict]) -> dict:
        try:
            return self.collate(rows)
        except BAD_ROW as error:
            faults = {index: fault for index, row in enumerate(rows) if (fault := self._fault(row)) is not None}
            if not faults:  # of the batch, not of one of its rows
                raise
            if not self.skip:
                index, fault = next(iter(faults.items()))
                named = str(fault) if isinstance(fault, RowError) else f"row {rows[index].get('id')!r}: {fault}"
                raise type(fault)(named + self.advice) from error
        batch = self.collate([_blank(row) if index in faults else row for index, row in enumerate(rows)])
        masked = {"labels": -100, "completion_mask": 0}
        for name in batch.keys() & masked.keys():
            for index in faults:
                batch[name][index :: len(rows)] = masked[name]  # of a pair, both responses
        batch[SKIPPED] = [
            {"id": rows[index].get("id"), "video": _video(rows[index]), "reason": str(fault)}
            for index, fault in faults.items()
        ]
        return batch

    def _fault(self, row: dict) -> Exception | None:
        try:
            self.collate([row])
        except BAD_ROW as error:
            return error
        return None


def share_error(accelerator: Accelerator, error: Exception | None) -> None:
    """
    Ends all ranks together, where one of them met an error that the others would wait for it with. Called by all ranks
    as soon as they know that one has.

    Args:
        accelerator (`Accelerator`):
            Of the trainer.
        error (`Exception`, *optional*):
            That of this rank.

    Raises:
        RuntimeError: with the rank and the message of the error, on ranks that have none.
    """
    message = None if error is None else f"rank {accelerator.process_index} met an error in its rows: {error}"
    messages = gather_object([message])
    if error is not None:
        raise error
    raise RuntimeError("; ".join(filter(None, messages)))


def write_skipped(accelerator: Accelerator, path: Path, step: int, skipped: list[dict]) -> None:
    """
    Appends the rows that all ranks left out of a step to a manifest. Called by all ranks.

    Args:
        accelerator (`Accelerator`):
            Of the trainer.
        path (`Path`):
            JSON-lines file of `step`, `rank`, `id`, `video` and `reason`.
        step (`int`):
            Step that the rows were for.
        skipped (`list[dict]`):
            Those of this rank.
    """
    lines = gather_object([{"step": step, "rank": accelerator.process_index, **row} for row in skipped])
    if accelerator.is_main_process:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)


def _video(row: dict) -> str | None:
    entry = next(iter(coerce_videos(row.get("videos"))), None)
    return None if entry is None else entry.get("path") or entry.get("frames_dir")


def _blank(row: dict) -> dict:
    """A row of plain text with the columns of another."""
    user, assistant = ([{"role": role, "content": [{"type": "text", "text": "-"}]}] for role in ("user", "assistant"))
    words = {"prompt": user, "completion": assistant, "chosen": assistant, "rejected": assistant}
    empty = {name: [] for name in ("videos", "images")} | {name: [] for name in row if name.endswith("spans")}
    # Reference log-probabilities of no token, so that the pair has no margin.
    zero = {"ref_chosen_logps": 0.0, "ref_rejected_logps": 0.0}
    blank = words | empty | zero | {"factor": "skipped"}
    return {name: blank.get(name, value) for name, value in row.items()}
