#!/usr/bin/env bash
# Fill the environment $VENV from the pinned files beside this script. Called by `make env`.
# Quick where everything is there already. On failure it shows the end of the log and leaves the rest to the next run.
set -euo pipefail
here=$(dirname "$0")
python=$VENV/bin/python
log=$VENV/install.log
: >"$log"

trap 'status=$?; if [ $status -ne 0 ]; then echo "==> failed; the last lines of $log:" >&2; tail -n 25 "$log" >&2; fi' EXIT

step() { # step "what it does" command...
    local start=$SECONDS
    printf '    %-58s' "$1"
    shift
    "$@" >>"$log" 2>&1
    printf ' %4d s\n' $((SECONDS - start))
}
pip() { "$python" -m pip --disable-pip-version-check --no-input "$@"; }
works() { "$python" -c "import $1" >>"$log" 2>&1; }

step 'build tools' pip install -r "$here/build.txt"
step 'torch and torchvision' pip install -r "$here/torch.txt" -c "$here/build.txt"
step 'libraries' pip install -r "$here/runtime.txt" -r "$here/tests.txt" -c "$here/torch.txt" -c "$here/build.txt"
# --no-deps: their own requirements name opencv-python, which needs libGL; runtime.txt holds the rest of them.
step 'mmengine, mmdet, mmsegmentation, mmpretrain' \
    pip install --no-deps $(grep -E '^mm' "$here/openmmlab.txt" | grep -v '^mmcv')

mmcv=$(grep -E '^mmcv' "$here/openmmlab.txt")
# -g0: without the debug information that Python's own flags ask for compiling takes 40 % less time
export MAX_JOBS=$JOBS CFLAGS="${CFLAGS:-} -g0" CXXFLAGS="${CXXFLAGS:-} -g0"
step "$mmcv (the first time it is compiled: about 5 min on two cores)" pip install --no-deps --no-build-isolation "$mmcv"
if ! works mmcv.ops; then
    # a wheel in pip's cache that was built against another torch
    step "$mmcv again: the cached build does not fit this torch" \
        pip install --no-deps --no-build-isolation --no-cache-dir --force-reinstall "$mmcv"
fi

step 'this package' pip install --no-deps --no-build-isolation --editable "$here/.."
step 'check: every import' "$python" -c '
import mmcv.ops, mmdet.apis, mmseg.apis, mmpretrain.apis, mmext_backbones
'
