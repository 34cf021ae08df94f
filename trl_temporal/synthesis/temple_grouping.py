# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Which shots of a video look alike, and which of them make a clip.

An embedder is any callable that turns frames, uint8 of shape `(num_frames, height, width, 3)`, into one vector for
each: [`ModelEmbedder`] for pictures of the world, [`color_histogram`] where there are no weights.
"""

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import numpy as np

DEFAULT_MODEL = "google/siglip-so400m-patch14-384"
BATCH_SIZE = 32
MIN_SIMILARITY = 0.8  # groups merge above it
MAX_RUNS = 3  # of one group
LEVELS, CELLS = 6, 4  # of a histogram: levels of each colour, and cells along each side of the picture

Embedder = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class ModelEmbedder:
    """
    Embeds frames with the image tower of SigLIP, CLIP or another model of transformers that has
    `get_image_features`. It loads when it is first called, in float16 on a GPU, else in float32.

    Args:
        model (`str`, *optional*, defaults to `"google/siglip-so400m-patch14-384"`):
            Folder or Hub repository.
        revision (`str`, *optional*):
            Revision on the Hub.
        device (`str`, *optional*):
            Device of the model. Defaults to the GPUs in turn, else the CPU.

    Example:
        >>> from trl_temporal.synthesis.temple_grouping import ModelEmbedder
        >>> embed = ModelEmbedder("google/siglip-base-patch16-224")
        >>> embed(frames).shape  # doctest: +SKIP
        (12, 768)
    """

    model: str = DEFAULT_MODEL
    revision: str | None = None
    device: str | None = field(default=None, repr=False)  # `repr` names the vectors in the cache
    files: tuple = field(default=(), init=False)

    def __post_init__(self) -> None:
        if os.path.isdir(self.model):  # weights that are written anew make other vectors
            status = {file.name: file.stat() for file in sorted(Path(self.model).iterdir()) if file.is_file()}
            files = tuple((name, file.st_size, file.st_mtime_ns) for name, file in status.items())
            object.__setattr__(self, "files", files)

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """
        Embeds frames.

        Args:
            frames (`np.ndarray` of shape `(num_frames, height, width, 3)`, uint8):
                RGB.

        Returns:
            `np.ndarray` of shape `(num_frames, hidden_size)`, float32.
        """
        import torch

        model, processor = _load_model(self)
        vectors = []
        for first in range(0, len(frames), BATCH_SIZE):
            images = list(frames[first : first + BATCH_SIZE])
            inputs = processor(images=images, input_data_format="channels_last", return_tensors="pt")
            with torch.inference_mode():
                features = model.get_image_features(**inputs.to(model.device, model.dtype))
            vectors.append(features.pooler_output.float().cpu().numpy())
        return np.concatenate(vectors)


@functools.lru_cache(maxsize=1)
def _load_model(embedder: ModelEmbedder):
    import torch
    from transformers import AutoImageProcessor, AutoModel

    name, device, from_hub = embedder.model, embedder.device, {"revision": embedder.revision}
    if device is None:  # the processes that share out the videos have different ids
        device = f"cuda:{os.getpid() % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device.startswith("cuda") else torch.float32
    model = AutoModel.from_pretrained(name, dtype=dtype, **from_hub)
    if not hasattr(model, "get_image_features"):
        raise ValueError(
            f"{name} is a {type(model).__name__}, which has no `get_image_features`; give a model such as SigLIP or "
            "CLIP, or a function that embeds frames"
        )
    return model.to(device).eval(), AutoImageProcessor.from_pretrained(name, **from_hub)


def color_histogram(frames: np.ndarray) -> np.ndarray:
    """
    Embed frames by their colours: how many pixels of each of 216 colours there are in each of 4x4 parts of the
    picture. No part of the published method, and blind to what is seen, but it needs no weights.

    Args:
        frames (`np.ndarray` of shape `(num_frames, height, width, 3)`, uint8):
            RGB.

    Returns:
        `np.ndarray` of shape `(num_frames, 3456)`, float32: roots of the shares, so that the cosine of two frames is
        the overlap of their colours.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.synthesis.temple_grouping import color_histogram
        >>> color_histogram(np.zeros((3, 8, 8, 3), dtype=np.uint8)).shape
        (3, 3456)
    """
    height, width = frames.shape[1:3]
    rows, columns = np.arange(height) * CELLS // height, np.arange(width) * CELLS // width
    offset = (rows[:, None] * CELLS + columns) * LEVELS**3
    vectors = np.empty((len(frames), CELLS**2 * LEVELS**3), dtype=np.float32)
    for vector, frame in zip(vectors, frames, strict=True):
        red, green, blue = np.moveaxis(frame.astype(np.int32) * LEVELS >> 8, -1, 0)
        colors = (red * LEVELS + green) * LEVELS + blue
        vector[:] = np.sqrt(np.bincount((colors + offset).ravel(), minlength=len(vector)) / (height * width))
    return vectors


class CachedEmbedder:
    """
    Keeps the vectors of frames on disk, by what the frames show and who embeds them.

    Args:
        embed (`Callable`):
            Embedder.
        name (`str`):
            Its name in the cache: another one, or another model, needs another name.
        folder (`str` or `os.PathLike`):
            Folder of the cache.

    Example:
        >>> from trl_temporal.synthesis.temple_grouping import CachedEmbedder, color_histogram
        >>> embed = CachedEmbedder(color_histogram, "histogram", "embeddings")
    """

    def __init__(self, embed: Embedder, name: str, folder: str | os.PathLike):
        self.embed, self.name, self.folder = embed, name, Path(folder)

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """
        Embeds frames, or reads their vectors.

        Args:
            frames (`np.ndarray` of shape `(num_frames, height, width, 3)`, uint8):
                RGB.

        Returns:
            `np.ndarray` of shape `(num_frames, hidden_size)`.

        Raises:
            `ValueError`: the embedder does not give one finite vector for each frame.
        """
        digest = hashlib.sha256(f"{self.name} {frames.shape}".encode())
        digest.update(np.ascontiguousarray(frames))
        name = digest.hexdigest()[:32]
        file = self.folder / name[:2] / f"{name}.npy"
        if file.exists():
            return np.load(file)
        vectors = np.asarray(self.embed(frames))
        if vectors.ndim != 2 or len(vectors) != len(frames) or not np.isfinite(vectors).all():
            raise ValueError(
                f"the embedder {self.name} gave an array of shape {vectors.shape} for {len(frames)} frames; it has to "
                "give one vector of finite numbers for each"
            )
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{name}.{uuid4().hex}.npy")
        np.save(partial, vectors)
        os.replace(partial, file)
        return vectors


def group_shots(vectors: np.ndarray) -> list[int]:
    """
    Group shots that look alike: again and again the two groups with the highest similarity become one, whose
    similarity to a third is the mean of theirs, while it is above 0.8.

    Args:
        vectors (`np.ndarray` of shape `(num_shots, hidden_size)`):
            What an embedder gives.

    Returns:
        `list[int]`: the group of each shot, numbered from 0 as they first come.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.synthesis.temple_grouping import group_shots
        >>> group_shots(np.array([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]]))
        [0, 1, 0]
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return group_similar(unit @ unit.T)


def group_similar(similarity: np.ndarray) -> list[int]:
    """
    As [`group_shots`], from the similarities.

    Args:
        similarity (`np.ndarray` of shape `(num_shots, num_shots)`):
            Symmetric.

    Returns:
        `list[int]`: the group of each shot.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.synthesis.temple_grouping import group_similar
        >>> group_similar(np.array([[1.0, 0.9, 0.1], [0.9, 1.0, 0.1], [0.1, 0.1, 1.0]]))
        [0, 0, 1]
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    if len(similarity) < 2:
        return [0] * len(similarity)
    # Distances of the upper triangle, in the order that scipy wants. WPGMA is its name of the mean of the two.
    distances = 1 - similarity[np.triu_indices(len(similarity), 1)]
    labels = fcluster(linkage(distances.clip(min=0), "weighted"), t=1 - MIN_SIMILARITY, criterion="distance")
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels.tolist()))}
    return [numbers[label] for label in labels.tolist()]


def runs_of(groups: Sequence[int]) -> list[tuple[int, int, int]]:
    """
    Find the runs of shots of one group.

    Args:
        groups (`Sequence[int]`):
            Group of each shot.

    Returns:
        `list[tuple[int, int, int]]`: of each run its group, its first shot and its last.

    Example:
        >>> from trl_temporal.synthesis.temple_grouping import runs_of
        >>> runs_of([0, 0, 1, 0])
        [(0, 0, 1), (1, 2, 2), (0, 3, 3)]
    """
    starts = [index for index, group in enumerate(groups) if index == 0 or groups[index - 1] != group]
    ends = [*(start - 1 for start in starts[1:]), len(groups) - 1]
    return [(groups[start], start, end) for start, end in zip(starts, ends, strict=True)] if starts else []


def recurring_group(groups_of_runs: Sequence[int]) -> int | None:
    """
    Find a group that comes back too often: in more than a third of the runs (rounded down), or in more than three.

    Args:
        groups_of_runs (`Sequence[int]`):
            Group of each run.

    Returns:
        `int` or `None`: the first such group.

    Example:
        >>> from trl_temporal.synthesis.temple_grouping import recurring_group
        >>> recurring_group([0, 1, 0, 2]), recurring_group([0, 1, 0, 2, 3, 4])
        (0, None)
    """
    limit = min(len(groups_of_runs) // 3, MAX_RUNS)
    return next((group for group, count in Counter(groups_of_runs).items() if count > limit), None)
