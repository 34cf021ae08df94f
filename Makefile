# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
#
# make demo      train the shipped EventWorld model with FPO, print a table and write an HTML report
# make test      the default tests (no network, no GPU)
# make quality   ruff: lint and formatting
# make setup     the environment alone (.venv); the others make it when it is missing or setup.py or this has changed
#
# TORCH_INDEX=URL  take torch and torchvision from this wheel index (a machine without a GPU saves gigabytes with the
#                  CPU wheels)
# PYTHON=...       the Python to make .venv from (3.11 or newer)
# THREADS=N        CPU threads of the demo and the tests; more than one only pays on an idle machine, where it is
#                  somewhat faster: next to another busy process it was eight times slower than one
# WORKERS=N        processes of the tests, each with THREADS threads and up to 3 GB of memory

PYTHON ?= python3
THREADS ?= 1
WORKERS ?= 2
TORCH_INDEX ?=

BIN := .venv/bin
STAMP := .venv/.setup-done
ASIDE := .venv/torchvision
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
TORCH_SOURCE := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))

demo test: export HF_HUB_OFFLINE = 1
demo test: export HF_HUB_DISABLE_TELEMETRY = 1
demo test: export TOKENIZERS_PARALLELISM = false
demo test: export OMP_NUM_THREADS = $(THREADS)

.PHONY: setup demo test quality

setup: $(STAMP)

# torch goes first, so that nothing behind it can bring in a second one. The image and video processors of transformers
# need the torchvision that was built for it, which both names in one command make sure of.
#
# Where torch is a CPU wheel and torchvision comes from PyPI, which has it for CUDA only, it does not import, and
# transformers would break with it: it then goes to a folder of its own, where only the tests find it
# (tests/torchvision_shim.py).
$(STAMP): setup.py Makefile
	@echo "Setting up .venv (the first time takes some minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@rm -rf $(ASIDE)
	$(PIP) $(TORCH_SOURCE) "torch==2.13.0" "torchvision==0.28.0"
	@$(BIN)/python -c "import torchvision" 2> /dev/null || { \
		$(BIN)/python -m pip uninstall -qq --yes torchvision && \
		$(PIP) $(TORCH_SOURCE) --no-deps --target $(ASIDE) "torchvision==0.28.0"; }
	$(PIP) --editable ".[dev]"
	@touch $@

demo: $(STAMP)
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		--num_cpu_threads_per_process $(THREADS) examples/fpo.py

# The same examples of the property tests every time; `pytest` alone draws new ones.
test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --hypothesis-profile ci

quality: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
