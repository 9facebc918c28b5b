#!/usr/bin/env bash
# Trains on a Slurm cluster, one process a GPU.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=launch.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"

if (($# < 3)); then
    cat >&2 <<'USAGE'
Usage: tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of tools/train.py]

  GPUS=16 tools/slurm_train.sh gpu swin configs/swin_t_maskrcnn_1x.py --auto-scale-lr

  GPUS=8            processes in all, one a GPU
  GPUS_PER_NODE=8   of them on a machine (GPUS, if that is less)
  CPUS_PER_TASK=5   cores for each process
  PORT=             a port of the first machine; drawn when not set
  SRUN_ARGS=        more arguments of srun
  PYTHON=python     the interpreter
USAGE
    exit 2
fi
need_file "$3"
run_srun "$1" "$2" train.py "$3" "${@:4}"
