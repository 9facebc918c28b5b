"""Trains a detection, segmentation or classification config.

python tools/train.py configs/elsa_swin_t_maskrcnn_1x.py --shapes

SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 end a training in good order: it finishes the iteration, writes a checkpoint and
exits with code 75; the same command with --resume goes on from there. A second signal stops it at once.
"""

import argparse
import os
import sys

# Read by GNU OpenMP when torch loads it: threads wait for each other awake only briefly. With the default, a second
# busy process on a small machine slows the many short operations of a CPU training down tens of times.
os.environ.setdefault('GOMP_SPINCOUNT', '20000')

try:
    from mmext_backbones.engine.options import TrainOptions, add_arguments, options_of
    from mmext_backbones.engine.train import train
    from mmext_backbones.utils.cli import run_cli
except ImportError as error:
    if '--traceback' in sys.argv:
        raise
    print(f'Error: {error}\npython -m mmext_backbones.doctor says what is missing and what helps.', file=sys.stderr)
    sys.exit(2)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, TrainOptions)
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    train(args.config, **options_of(TrainOptions, args))


if __name__ == '__main__':
    sys.exit(run_cli(main))
