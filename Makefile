# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
#
# make demo      train the shipped EventWorld model with FPO, print a table and write an HTML report
# make test      the default tests (no network, no GPU)
# make quality   ruff: lint and formatting
# make setup     the environment alone (.venv); the others make it when it is missing or setup.py has changed
#
# TORCH_INDEX=URL  take torch from this wheel index (a machine without a GPU saves gigabytes with the CPU wheels)
# PYTHON=...       the Python to make .venv from (3.11 or newer)
# THREADS=N        CPU threads of the demo and the tests; more than one only pays on an idle machine, where it is
#                  somewhat faster: next to another busy process it was eight times slower than one

PYTHON ?= python3
THREADS ?= 1
TORCH_INDEX ?=

BIN := .venv/bin
STAMP := .venv/.setup-done
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

demo test: export HF_HUB_OFFLINE = 1
demo test: export HF_HUB_DISABLE_TELEMETRY = 1
demo test: export TOKENIZERS_PARALLELISM = false
demo test: export OMP_NUM_THREADS = $(THREADS)

.PHONY: setup demo test quality

setup: $(STAMP)

# torch goes first and alone, so that nothing behind it can bring in a second one.
$(STAMP): setup.py
	@echo "Setting up .venv (the first time takes some minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "torch==2.13.0"
	$(PIP) --editable ".[dev]"
	@touch $@

demo: $(STAMP)
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		--num_cpu_threads_per_process $(THREADS) examples/fpo.py

test: $(STAMP)
	$(BIN)/python -m pytest

quality: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
