"""Runs a batch again that gave a loss or gradients that are not finite, and says which module gives them first.

python tools/replay.py work_dirs/elsa_swin_t_maskrcnn_1x/nonfinite/iter_1200.pth
"""

import argparse
import sys

from mmext_backbones.engine.nonfinite.replay import replay
from mmext_backbones.utils.cli import add_traceback_option, run_cli
from mmext_backbones.utils.console import say


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('file', help='an iter_N.pth that a training left in <work dir>/nonfinite')
    parser.add_argument('--device', help='where to run it (default: as in the training, where that is here)')
    add_traceback_option(parser)
    args = parser.parse_args(argv)
    say(replay(args.file, args.device))


if __name__ == '__main__':
    sys.exit(run_cli(main))
