#!/usr/bin/env bash
# Tests on a Slurm cluster, one process a GPU.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=launch.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"

if (($# < 4)); then
    cat >&2 <<'USAGE'
Usage: tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [arguments of tools/test.py]

  GPUS=8 tools/slurm_test.sh gpu swin configs/swin_t_maskrcnn_1x.py work_dirs/swin_t_maskrcnn_1x/epoch_12.pth

GPUS, GPUS_PER_NODE, CPUS_PER_TASK, PORT, SRUN_ARGS and PYTHON are as for tools/slurm_train.sh.
USAGE
    exit 2
fi
need_file "$3"
run_srun "$1" "$2" test.py "$3" "$4" "${@:5}"
