# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
