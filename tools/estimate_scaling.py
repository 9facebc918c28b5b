"""Memory and speed of a training, estimated without a GPU.

    python tools/estimate_scaling.py configs/swin_l_maskrcnn_1x.py --batch 2 --size 800 1344 --amp --with-cp 0 1
    python tools/estimate_scaling.py configs/swin_l_maskrcnn_1x.py --batch 2 --size 800 1344 --strategy fsdp --gpus 16

What is counted, and what is not: docs/scaling.md. Nothing is computed but shapes; a row takes about ten seconds.
"""

import argparse
import sys
from pathlib import Path

from mmext_backbones.analysis.estimate_table import ROWS, Recipe, replace_table, table
from mmext_backbones.utils.cli import add_traceback_option, run_cli, square
from mmext_backbones.utils.console import silence_libraries
from mmext_backbones.utils.errors import UserError

DOCS = Path(__file__).parents[1] / 'docs' / 'scaling.md'


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', nargs='?', help='a config file, or a name like mmdet::path/inside/its/configs.py')
    parser.add_argument('--batch', type=int, default=2, help='images a process')
    parser.add_argument(
        '--size', type=int, nargs=2, metavar=('H', 'W'), help='of an image in pixels; one number for a square'
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision in bfloat16')
    parser.add_argument(
        '--with-cp',
        type=int,
        nargs='*',
        metavar='STAGE',
        help='recompute these stages of the backbone, or all',
    )
    parser.add_argument('--strategy', choices=['ddp', 'fsdp'], default='ddp')
    parser.add_argument('--gpus', type=int, default=8, help='processes in all')
    parser.add_argument('--docs', action='store_true', help=f'renew the table in {DOCS.name} instead')
    add_traceback_option(parser)
    args = parser.parse_args(square(argv))
    silence_libraries()
    if args.docs:
        DOCS.write_text(replace_table(DOCS.read_text(), table(ROWS)))
        return
    if args.config is None or args.size is None:
        raise UserError('name a config and the --size of its images, e.g. --size 800 1344; or use --docs.')
    with_cp = False if args.with_cp is None else tuple(args.with_cp) or True
    recipe = Recipe(args.config, args.batch, tuple(args.size), args.amp, with_cp, args.strategy, args.gpus)
    print(table([recipe]))


if __name__ == '__main__':
    sys.exit(run_cli(main))
