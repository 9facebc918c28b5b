"""Checks and times everything on the GPU at hand; needs torch, Triton and this checkout alone.

python -m dev.gpu_check --json gpu.json          # also: python dev/gpu_check --json gpu.json
python -m dev.gpu_check --page gpu.json          # writes the table of docs/performance.md
python -m dev.gpu_check --dry --json dry.json    # all of it on a CPU in Triton's interpreter, at tiny sizes
"""

import os
import sys
from pathlib import Path

if not __package__:  # started by its path
    sys.path[0] = str(Path(__file__).parents[2])
if '--dry' in sys.argv:  # Triton asks when it is imported
    os.environ['TRITON_INTERPRET'] = '1'

from dev.gpu_check.stand_in import stand_in

stand_in()

from dev.gpu_check.command import main  # noqa: E402
from mmext_backbones.utils.cli import run_cli  # noqa: E402

if __name__ == '__main__':
    sys.exit(run_cli(main))
