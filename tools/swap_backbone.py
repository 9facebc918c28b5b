"""See `mmext_backbones.swap.__main__`: the same as `python -m mmext_backbones.swap`."""

import sys

from mmext_backbones.swap.__main__ import main
from mmext_backbones.utils.cli import run_cli

if __name__ == '__main__':
    sys.exit(run_cli(main))
