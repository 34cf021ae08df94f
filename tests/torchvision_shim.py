# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Lets torchvision import beside a torch that its compiled operators do not fit, so that the real image and video
processors of transformers run in the tests.

The wheels of PyPI are built for CUDA. Beside the CPU wheel of torch their operators cannot be loaded, `import
torchvision` ends with "operator torchvision::nms does not exist", and transformers, which only looks whether there is
such a package, breaks with it: not even `AutoProcessor` imports then. So `make setup` keeps such a torchvision out of
site-packages, in a folder of its own in the environment, which only this module puts on the path.

What processors use of torchvision, resizing, cropping and normalisation, is written in torch and runs as it is. Its
compiled operators stay missing: `nms`, `roi_pool`, `deform_conv2d` and their like raise, and so does what reads and
writes image files.
"""

import importlib.util
import sys
from pathlib import Path

import torch

FOLDER = Path(sys.prefix) / "torchvision"  # as in the Makefile
# What torchvision registers for, when it is imported, whether or not it has loaded its operators.
OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library = []  # declarations last as long as the object


def load_torchvision() -> None:
    """
    Imports torchvision, with declarations in place of operators where it cannot load its own. To be called before
    transformers is imported, which looks for torchvision once. Does nothing where there is no torchvision at all.
    """
    if importlib.util.find_spec("torchvision") is None:
        if not FOLDER.is_dir():
            return
        if "transformers" in sys.modules:
            raise RuntimeError(
                "transformers was imported before torchvision could be found: call load_torchvision first"
            )
        sys.path.append(str(FOLDER))
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in OPERATORS:
            library.define(operator)
        _library.append(library)
        import torchvision  # noqa: F401
