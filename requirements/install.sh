#!/usr/bin/env bash
# Fill the environment $VENV from the pinned files beside this script. Called by `make env` and by dev/stacks.py.
# Quick where everything is there already. On failure it shows the end of the log and leaves the rest to the next run.
#
#   PINS=folder   its torch.txt and openmmlab.txt instead of those here, its runtime.txt beside the one here;
#                 with mmcv instead of mmcv-lite in its openmmlab.txt, mmcv is compiled
#   JOBS=n        compiler processes for that
set -euo pipefail
export PIP_NO_COMPILE=1 # Python compiles what it imports, a small part of what is installed
here=$(cd "$(dirname "$0")" && pwd)
pins=${PINS:-$here}
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
file() { if [ -f "$pins/$1" ]; then echo "$pins/$1"; else echo "$here/$1"; fi; }

torch=$(file torch.txt)
openmmlab=$(file openmmlab.txt)
"$python" "$here/pins.py" "$here/runtime.txt" "$here/tests.txt" "$pins/runtime.txt" >"$VENV/libraries.txt"

step 'torch and torchvision' pip install -r "$torch" -c "$VENV/libraries.txt"
step 'libraries' pip install -r "$VENV/libraries.txt" -c "$torch"

# --no-deps: their own requirements name opencv-python, which needs libGL; runtime.txt holds the rest of them
mmcv=$(grep -E '^mmcv==' "$openmmlab" || true)
others=$(grep -E '^[a-z]' "$openmmlab" | grep -v '^mmcv==')
if [ -n "$mmcv" ]; then # the two are one package: what the other one left would be found
    pip uninstall -y mmcv-lite >>"$log" 2>&1
    rm -f "$VENV"/lib/python*/site-packages/mmcv/_ext.py
else
    pip uninstall -y mmcv >>"$log" 2>&1
fi
step 'OpenMMLab' pip install --no-deps $others
if [ -n "$mmcv" ]; then
    # -g0: without the debug information that Python's own flags ask for compiling takes 40 % less time
    export MAX_JOBS=${JOBS:-2} CFLAGS="${CFLAGS:-} -g0" CXXFLAGS="${CXXFLAGS:-} -g0"
    step "$mmcv (compiled the first time: 6 to 16 min on two cores)" \
        pip install --no-deps --no-build-isolation "$mmcv"
    if ! works mmcv._ext; then
        # a wheel in pip's cache that was built against another torch
        step "$mmcv again: the cached build does not fit this torch" \
            pip install --no-deps --no-build-isolation --no-cache-dir --force-reinstall "$mmcv"
    fi
fi

step 'this package' pip install --no-deps --editable "$here/.."
[ -n "$mmcv" ] || step "mmcv's operators: torchvision and PyTorch" "$python" -m mmext_backbones.mmcv_ops --install
step 'check: every import' "$python" -c '
import mmcv.ops, mmdet.apis, mmseg.apis, mmpretrain.apis, mmext_backbones
'
