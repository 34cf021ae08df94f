# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
The mask of each object in every frame, Eq. 5 of Grounded-VideoDiT: seeded by its box where tracking starts, carried on
to the end, and back to the beginning.

A tracker is any callable `track(frames, start, boxes, backward) -> masks`: [`Sam2Tracker`], or one of your own.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .detect import files_of, pick_device

if TYPE_CHECKING:
    import torch

DEFAULT_TRACKER = "facebook/sam2.1-hiera-tiny"
# Of ImageNet, as SAM 2's video processor has them. That processor needs torchvision; this module does not.
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BOX_CORNER_LABELS = (2, 3)  # what SAM 2 calls the top left and bottom right point of a box
BATCH_SIZE = 16  # frames that are resized at a time

Tracker = Callable[[np.ndarray, int, np.ndarray, bool], np.ndarray]


@dataclass(frozen=True)
class Sam2Tracker:
    """
    Tracks boxes with the video model of SAM 2. It loads when it is first called.

    Args:
        model (`str`, *optional*, defaults to `"facebook/sam2.1-hiera-tiny"`):
            Folder or Hub repository.
        revision (`str`, *optional*):
            Revision on the Hub.
        device (`str`, *optional*):
            Device of the model. Defaults to the GPUs in turn, else the CPU.

    Example:
        >>> from trl_temporal.objects.track import Sam2Tracker
        >>> track = Sam2Tracker("facebook/sam2.1-hiera-small")
        >>> track(frames, 10, boxes, backward=True).shape  # doctest: +SKIP
        (2, 96, 360, 640)
    """

    model: str = DEFAULT_TRACKER
    revision: str | None = None
    device: str | None = field(default=None, repr=False)  # `repr` names what is cached
    files: tuple = field(default=(), init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", files_of(self.model))

    def __call__(self, frames: np.ndarray, start: int, boxes: np.ndarray, backward: bool) -> np.ndarray:
        """
        Tracks objects.

        Args:
            frames (`np.ndarray` of shape `(num_frames, height, width, 3)`, uint8):
                RGB.
            start (`int`):
                Frame in which the boxes are, `t_s`.
            boxes (`np.ndarray` of shape `(num_objects, 4)`):
                Left, top, right and bottom edge of each object as shares of width and height.
            backward (`bool`):
                Whether to track to the first frame too. The paper does not, so that its masks say before or after the
                start by being empty.

        Returns:
            `np.ndarray` of shape `(num_objects, num_frames, height, width)`, bool: empty where it is lost, and before
            `start` without `backward`.
        """
        import torch
        from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

        model = _load_tracker(self)
        height, width = frames.shape[1:3]
        side = model.config.prompt_encoder_config.image_size
        session = Sam2VideoInferenceSession(
            video=sam2_pixels(frames, side),
            video_height=height,
            video_width=width,
            inference_device=model.device,
            dtype=torch.float32,
        )
        ids = list(range(len(boxes)))
        for index, box in zip(ids, np.asarray(boxes, dtype=np.float32) * side, strict=True):
            corners = torch.from_numpy(box).view(1, 1, 2, 2)
            points = {"point_coords": corners, "point_labels": torch.tensor([[BOX_CORNER_LABELS]], dtype=torch.int32)}
            session.add_point_inputs(session.obj_id_to_idx(index), start, points)
        session.obj_with_new_inputs = ids.copy()

        masks = np.zeros((len(boxes), *frames.shape[:3]), dtype=bool)
        with torch.inference_mode():
            model(session, frame_idx=start)
            for reverse in (False, True) if backward else (False,):
                for output in model.propagate_in_video_iterator(session, start_frame_idx=start, reverse=reverse):
                    logits = torch.nn.functional.interpolate(
                        output.pred_masks.float(), (height, width), mode="bilinear", align_corners=False
                    )
                    masks[:, output.frame_idx] = (logits[:, 0] > 0).cpu().numpy()
        return masks


@functools.lru_cache(maxsize=1)
def _load_tracker(tracker: Sam2Tracker):
    import torch
    from transformers import Sam2VideoModel

    model = Sam2VideoModel.from_pretrained(tracker.model, revision=tracker.revision, dtype=torch.float32)
    return model.to(pick_device(tracker.device)).eval()


def sam2_pixels(frames: np.ndarray, side: int) -> "torch.Tensor":
    """
    Frames as SAM 2 takes them, without its processor and torchvision: a square, whatever their proportions.

    Args:
        frames (`np.ndarray` of shape `(num_frames, height, width, 3)`, uint8):
            RGB.
        side (`int`):
            Side of the square in pixels.

    Returns:
        `torch.Tensor` of shape `(num_frames, 3, side, side)`, float32.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.objects.track import sam2_pixels
        >>> sam2_pixels(np.zeros((2, 6, 8, 3), np.uint8), 4).shape
        torch.Size([2, 3, 4, 4])
    """
    import torch

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    pixels = torch.empty(len(frames), 3, side, side)
    for first in range(0, len(frames), BATCH_SIZE):
        part = torch.tensor(frames[first : first + BATCH_SIZE]).permute(0, 3, 1, 2)
        part = torch.nn.functional.interpolate(
            part / 255, (side, side), mode="bilinear", align_corners=False, antialias=True
        )
        pixels[first : first + BATCH_SIZE] = (part - mean) / std
    return pixels
