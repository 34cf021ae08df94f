# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Offline work in shards: datatrove runs them, here or on a cluster, and remembers which are done."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from datatrove.executor import LocalPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger
from tqdm import tqdm

# Fixed, so that the shards are the same for any number of workers, and after a kill for another number of them.
NUM_SHARDS = 64

Executor = Literal["local", "slurm", "ray"]


class _QuietLocalExecutor(LocalPipelineExecutor):
    """datatrove's own processes, without a dozen lines on the terminal for each shard. Errors are raised anyway."""

    def _run_for_rank(self, *args, **kwargs):
        logger.disable("datatrove")
        return super()._run_for_rank(*args, **kwargs)


def shard_range(num_items: int, rank: int, num_shards: int) -> range:
    """
    Items of a shard: contiguous, so that the shards' results one after the other are in the order of the items.

    Args:
        num_items (`int`):
            Number of items in all shards.
        rank (`int`):
            Which shard.
        num_shards (`int`):
            Number of shards.

    Returns:
        `range`: indices of the items.

    Example:
        >>> from trl_temporal.data.shards import shard_range
        >>> [shard_range(5, rank, num_shards=2) for rank in range(2)]
        [range(0, 2), range(2, 5)]
    """
    return range(rank * num_items // num_shards, (rank + 1) * num_items // num_shards)


def run_shards(
    step: PipelineStep,
    sizes: Sequence[int],
    logging_dir: Path,
    *,
    executor: Executor = "local",
    num_workers: int = 2,
    executor_args: dict[str, Any] | None = None,
    progress: str | None = None,
) -> bool:
    """
    Run a step of a datatrove pipeline on every shard that `logging_dir` does not say is done.

    Args:
        step (`datatrove.pipeline.base.PipelineStep`):
            Its `run(data, rank, world_size)` makes the result of shard `rank`. It is called again for a shard that a
            kill has cut short, so it has to put its file in place only when it is whole.
        sizes (`Sequence[int]`):
            Number of items in each shard, for the progress bar.
        logging_dir (`Path`):
            Folder for datatrove's marks of completion and its logs, which all workers can reach.
        executor (`str`, *optional*, defaults to `"local"`):
            `"local"` (processes of this machine), `"slurm"` (submits an array job and returns) or `"ray"` (the cluster
            that `ray.init()` connects to).
        num_workers (`int`, *optional*, defaults to `2`):
            How many shards run at a time.
        executor_args (`dict`, *optional*):
            More arguments of datatrove's executor; Slurm needs `time` and `partition`.
        progress (`str`, *optional*):
            Title of the progress bar; none without.

    Returns:
        `bool`: whether all shards are done, which they are unless they run in Slurm.
    """
    common = {"tasks": len(sizes), "workers": num_workers, "logging_dir": str(Path(logging_dir).absolute())}
    common |= executor_args or {}
    if executor == "slurm":
        from datatrove.executor import SlurmPipelineExecutor

        runner = SlurmPipelineExecutor(pipeline=[step], **common)
    elif executor == "ray":
        from datatrove.executor import RayPipelineExecutor

        runner = RayPipelineExecutor(pipeline=[step], **common)
    elif executor == "local":
        runner = _QuietLocalExecutor(pipeline=[step], **common)
    else:
        raise ValueError(f"executor is {executor!r}; it must be one of 'local', 'slurm', 'ray'")

    if not runner.get_incomplete_ranks():
        return True
    if executor == "local":
        logger.disable("datatrove")
    before = sum(sizes) - sum(sizes[rank] for rank in runner.get_incomplete_ranks())  # says nothing about the speed
    hidden = progress is None or executor == "slurm"
    with tqdm(total=sum(sizes), initial=before, desc=progress, disable=hidden) as bar:
        finished = threading.Event()
        watcher = threading.Thread(target=_watch, args=(runner, sizes, bar, finished), daemon=True)
        watcher.start()
        try:
            runner.run()
        finally:
            finished.set()
            watcher.join()
            logger.enable("datatrove")
    return not runner.get_incomplete_ranks()


def _watch(runner: PipelineExecutor, sizes: Sequence[int], bar: tqdm, finished: threading.Event) -> None:
    """Move the bar as shards become complete."""
    last_look = False
    while not last_look:
        last_look = finished.wait(0.5)
        done = sum(sizes) - sum(sizes[rank] for rank in runner.get_incomplete_ranks())
        bar.update(done - bar.n)


def write_whole(path: Path, text: str) -> None:
    """Writes a file that has all of the text if it is there, whenever the process is killed."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
