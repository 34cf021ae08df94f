# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""What is published: adapters merged into their base, cards, and uploads."""
