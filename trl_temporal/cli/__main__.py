# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""`python -m trl_temporal.cli`, as launchers take it."""

import sys

from .main import main

if __name__ == "__main__":
    sys.exit(main())
