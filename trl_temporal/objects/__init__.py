# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The objects of a question in its video, found once before training: nouns, detection, start, tracks and masks."""
