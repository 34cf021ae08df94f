#!/usr/bin/env bash
# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
#
# Trains on several machines under Slurm, with accelerate. Not tested: there was no cluster.
#
#     sbatch recipes/multi_node/slurm.sh examples/sft.py --config recipes/qwen3_vl_4b/sft.yaml \
#         --dataset_name path/to/rows --resume_from_checkpoint last
#
# Run it from the root of the repository, which all machines see, as they do the output folder and the frame cache. A
# minute before the time is up Slurm sends SIGTERM to every process: the trainers finish the step and write a checkpoint,
# from which the next run goes on. The launcher kills what has not ended 30 seconds later, so keep `save_steps` small
# enough where a step and a checkpoint take longer.
#
#SBATCH --job-name=trl_temporal
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@60
set -euo pipefail

GPUS_PER_NODE=${SLURM_GPUS_PER_NODE:-8}
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export HEAD GPUS_PER_NODE

# The rank of the machine is known in the task, not here.
srun bash -c 'exec accelerate launch --config_file recipes/accelerate/multi_node.yaml \
    --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * GPUS_PER_NODE))" \
    --machine_rank "$SLURM_NODEID" --main_process_ip "$HEAD" --main_process_port 29500 "$@"' accelerate "$@"
