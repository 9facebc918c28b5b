"""Evaluates a checkpoint of a detection, segmentation or classification config, or predictions saved before.

python tools/test.py configs/elsa_swin_t_maskrcnn_1x.py work_dirs/.../iter_310.pth --shapes --out predictions.pkl
python tools/test.py configs/elsa_swin_t_maskrcnn_1x.py --shapes --predictions predictions.pkl

The metrics, also of each class, are left as JSON beside what was tested.
"""

import argparse
import os
import sys

# Read by GNU OpenMP when torch loads it: threads wait for each other awake only briefly. With the default, a second
# busy process on a small machine slows the many short operations of a CPU training down tens of times.
os.environ.setdefault('GOMP_SPINCOUNT', '20000')

try:
    from mmext_backbones.engine.options import TestOptions, add_arguments, options_of
    from mmext_backbones.engine.test import test
    from mmext_backbones.utils.cli import run_cli
except ImportError as error:
    if '--traceback' in sys.argv:
        raise
    print(f'Error: {error}\npython -m mmext_backbones.doctor says what is missing and what helps.', file=sys.stderr)
    sys.exit(2)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, TestOptions)
    parser.add_argument('checkpoint', nargs='?', help='a file written by a training')
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    test(args.config, args.checkpoint, **options_of(TestOptions, args))


if __name__ == '__main__':
    sys.exit(run_cli(main))
