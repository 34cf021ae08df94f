# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""One annotation format a file, each with a function that returns rows of the data contract."""

from .activitynet_captions import read_activitynet_captions
from .charades_sta import read_charades_sta
from .clip_events import load_clip_events, read_clip_events
from .d2vlm import choose_rejected, load_d2vlm, preference_row_from_d2vlm, sft_row_from_d2vlm
from .didemo import read_didemo
from .etbench import read_etbench
from .etinstruct import read_etinstruct
from .nextgqa import read_nextgqa
from .qvhighlights import read_qvhighlights
from .records import ConversionReport, RecordError
from .spans_file import read_spans_file
from .youcook2 import read_youcook2

__all__ = [
    "ConversionReport",
    "RecordError",
    "choose_rejected",
    "load_clip_events",
    "load_d2vlm",
    "preference_row_from_d2vlm",
    "read_activitynet_captions",
    "read_charades_sta",
    "read_clip_events",
    "read_didemo",
    "read_etbench",
    "read_etinstruct",
    "read_nextgqa",
    "read_qvhighlights",
    "read_spans_file",
    "read_youcook2",
    "sft_row_from_d2vlm",
]
