"""Draws a backbone as it is built: its stages, blocks and outputs, with the maps of one image.

    python -m dev.architecture swin_s --size 512 512 -o swin_s.svg
    python -m dev.architecture maxvit_b -o maxvit_b.png
    python -m dev.architecture --docs    # the drawings and tables of docs/backbones anew

Nothing is computed but shapes: a drawing takes a second.
"""

import argparse
import sys
from pathlib import Path

from mmext_backbones.utils.cli import add_traceback_option, run_cli, square
from mmext_backbones.utils.console import silence_libraries
from mmext_backbones.utils.errors import UserError

from .drawing import write_drawing
from .pages import SIZE, build, renew, title_of
from .tracing import trace

DOCS = Path(__file__).parents[2] / 'docs' / 'backbones'


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('backbone', nargs='?', help='a backbone like swin_t')
    parser.add_argument(
        '--size', type=int, nargs=2, default=SIZE, metavar=('H', 'W'), help='of the image in pixels (800 1280)'
    )
    parser.add_argument('-o', '--out', type=Path, metavar='FILE', help='.svg or .png (default: BACKBONE.svg)')
    parser.add_argument('--docs', action='store_true', help='renew the pages of docs/backbones instead')
    add_traceback_option(parser)
    args = parser.parse_args(square(argv))
    silence_libraries()
    if args.docs:
        for path in renew(DOCS):
            print(f'Written: {path}')
        return
    if args.backbone is None:
        raise UserError('name a backbone, e.g. swin_t; or use --docs.')
    out = args.out or Path(f'{args.backbone}.svg')
    if out.suffix not in ('.svg', '.png'):
        raise UserError(f'-o {out}: expected a name that ends in .svg or .png')
    if not out.resolve().parent.is_dir():
        raise UserError(f'-o {out}: there is no folder {out.parent}')
    backbone = build(args.backbone)
    try:
        architecture = trace(backbone, args.size)
    except ValueError as error:
        raise UserError(f'--size: {error}') from error
    said = 'Replaced' if out.exists() else 'Written'
    write_drawing(architecture, title_of(args.backbone), out)
    print(f'{said}: {out}')


if __name__ == '__main__':
    sys.exit(run_cli(main))
