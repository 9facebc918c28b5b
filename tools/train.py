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
os.environ.setdefault('GOMP_SPINCOUNT', '5000')

try:
    from mmext_backbones.engine.runs import add_options, train
    from mmext_backbones.engine.scaling import STRATEGY_NAMES
    from mmext_backbones.engine.tracking import TRACKERS
    from mmext_backbones.utils.cli import run_cli
except ImportError as error:
    if '--traceback' in sys.argv:
        raise
    print(f'Error: {error}\npython -m mmext_backbones.doctor says what is missing and what helps.', file=sys.stderr)
    sys.exit(2)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument(
        '--resume', nargs='?', const='auto', metavar='CHECKPOINT', help='go on from this, or from the last checkpoint'
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision (needs a GPU)')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate to the batch of a step')
    parser.add_argument('--strategy', choices=STRATEGY_NAMES, help='how processes share a model, see docs/scaling.md')
    parser.add_argument('--accumulate', type=int, default=1, metavar='N', help='step the optimizer every N batches')
    parser.add_argument('--seed', type=int, help='of every random choice')
    parser.add_argument(
        '--on-nonfinite',
        choices=['stop', 'skip'],
        help='after a loss or gradients that are not finite: stop with a message (default), or leave out the step',
    )
    parser.add_argument(
        '--track',
        nargs='+',
        choices=TRACKERS,
        help='follow the training there (default: tensorboard, where it is installed), see docs/visualization.md',
    )
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    train(
        args.config,
        shapes=args.shapes,
        work_dir=args.work_dir,
        resume=args.resume,
        amp=args.amp,
        bf16=args.bf16,
        cfg_options=args.cfg_options,
        launcher=args.launcher,
        bad_data=args.bad_data,
        auto_scale_lr=args.auto_scale_lr,
        seed=args.seed,
        strategy=args.strategy,
        accumulate=args.accumulate,
        on_nonfinite=args.on_nonfinite,
        track=args.track,
    )


if __name__ == '__main__':
    sys.exit(run_cli(main))
