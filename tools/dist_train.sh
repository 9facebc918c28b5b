#!/usr/bin/env bash
# Trains in several processes of this machine, one a GPU, or over several machines.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=launch.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"

if (($# < 2)); then
    cat >&2 <<'USAGE'
Usage: tools/dist_train.sh CONFIG NUM_PROCESSES [arguments of tools/train.py]

  tools/dist_train.sh configs/swin_t_maskrcnn_1x.py 8 --auto-scale-lr

Over several machines, once on each, with NUM_PROCESSES for that machine and these variables set:
  NNODES=2  NODE_RANK=0 (1 on the second)  MASTER_ADDR=address-of-the-first  PORT=29500
On one machine a free port is taken unless PORT is set.
USAGE
    exit 2
fi
need_file "$1"
run_torchrun "$2" train.py "$1" "${@:3}"
