#!/usr/bin/env bash
# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
#
# Trains on several machines with torchrun alone; DeepSpeed comes in by the trainers' own flag. The same line on each
# machine: which of them is which, they settle at the address. Not tested on more than one machine.
#
#     NODES=2 GPUS_PER_NODE=8 HEAD=10.0.0.1 recipes/multi_node/torchrun.sh examples/sft.py \
#         --config recipes/qwen3_vl_4b/sft.yaml --dataset_name path/to/rows
#
# One machine with two processes on CPUs, as the tests have it:
#
#     GPUS_PER_NODE=2 recipes/multi_node/torchrun.sh examples/sft.py --config recipes/qwen3_vl_4b/sft.yaml \
#         --dataset_name path/to/rows --use_cpu true --ddp_backend gloo
set -euo pipefail

exec torchrun --nnodes "${NODES:-1}" --nproc_per_node "${GPUS_PER_NODE:-8}" --rdzv_id "${RUN:-trl_temporal}" \
    --rdzv_backend c10d --rdzv_endpoint "${HEAD:-localhost}:29500" \
    "$@" --deepspeed "${DEEPSPEED:-recipes/deepspeed/zero2.json}"
