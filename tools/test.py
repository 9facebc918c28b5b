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
os.environ.setdefault('GOMP_SPINCOUNT', '5000')

try:
    from mmext_backbones.engine.runs import add_options, test
    from mmext_backbones.utils.cli import run_cli
except ImportError as error:
    if '--traceback' in sys.argv:
        raise
    print(f'Error: {error}\npython -m mmext_backbones.doctor says what is missing and what helps.', file=sys.stderr)
    sys.exit(2)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument('checkpoint', nargs='?', help='a file written by a training')
    parser.add_argument(
        '--predictions', metavar='FILE', help='evaluate these instead: what --out wrote, or COCO results (.pkl, .json)'
    )
    parser.add_argument(
        '--out', help='save all predictions: NAME.pkl, NAME.json (COCO detectors) or a folder of PNGs (segmentors)'
    )
    parser.add_argument('--tta', action='store_true', help='predict several views of each picture and merge them')
    parser.add_argument('--show-dir', help='write one picture of ground truth and prediction per image there')
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    test(
        args.config,
        args.checkpoint,
        predictions=args.predictions,
        out=args.out,
        shapes=args.shapes,
        tta=args.tta,
        show_dir=args.show_dir,
        work_dir=args.work_dir,
        bf16=args.bf16,
        cfg_options=args.cfg_options,
        launcher=args.launcher,
        bad_data=args.bad_data,
    )


if __name__ == '__main__':
    sys.exit(run_cli(main))
