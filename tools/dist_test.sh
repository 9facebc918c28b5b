#!/usr/bin/env bash
# Tests in several processes of this machine, one a GPU, or over several machines.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=launch.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"

if (($# < 3)); then
    cat >&2 <<'USAGE'
Usage: tools/dist_test.sh CONFIG CHECKPOINT NUM_PROCESSES [arguments of tools/test.py]

  tools/dist_test.sh configs/swin_t_maskrcnn_1x.py work_dirs/swin_t_maskrcnn_1x/epoch_12.pth 8

NNODES, NODE_RANK, MASTER_ADDR and PORT are as for tools/dist_train.sh.
USAGE
    exit 2
fi
need_file "$1"
run_torchrun "$3" test.py "$1" "$2" "${@:4}"
