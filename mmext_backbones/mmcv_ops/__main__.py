"""Lists mmcv's operators that torchvision and PyTorch stand in for, and makes them known to other programs.

python -m mmext_backbones.mmcv_ops               # the list
python -m mmext_backbones.mmcv_ops --install     # for programs that do not import this package: mmdet's own tools

--install writes one module into the folder of an mmcv without compiled operators (mmcv-lite); --uninstall removes it.
"""

import argparse
import sys

from ..utils.cli import add_traceback_option, run_cli
from .extension import OPERATORS
from .installing import install, uninstall
from .showing import describe, table


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog='python -m mmext_backbones.mmcv_ops',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument('--install', action='store_true', help='write a forwarding module into the folder of mmcv')
    what.add_argument('--uninstall', action='store_true', help='remove it')
    add_traceback_option(parser)
    args = parser.parse_args(argv)
    if args.install:
        print(install())
    elif args.uninstall:
        print(uninstall())
    else:
        print(describe() or 'mmcv is not installed.', *table(OPERATORS), sep='\n')


if __name__ == '__main__':
    sys.exit(run_cli(main))
