"""See `mmext_backbones.app.serving`: a web page that tries trained models on pictures."""

import os
import sys

os.environ.setdefault('GOMP_SPINCOUNT', '20000')  # see tools/train.py

from mmext_backbones.app.serving import main
from mmext_backbones.utils.cli import run_cli

if __name__ == '__main__':
    sys.exit(run_cli(main))
