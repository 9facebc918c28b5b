"""Converts published weights to our layout, or trained Swin weights back to another one.

    python tools/convert_weights.py swin_tiny_patch4_window7_224.pth swin_t.safetensors
    python tools/convert_weights.py work_dirs/swin_t_maskrcnn_1x/epoch_12.pth swin_t_mmdet.pth --to mmdet

IN is a file or an address (https://, timm://, hf://) of any recognised layout; OUT ends in .pth or .safetensors. What
stands beside a detector's or segmentor's backbone (neck, heads) is kept as it is; what a backbone does not have (the
last norm and the head of a classifier, buffers that are built anew) is dropped, and named. OUT is written in whole or
not at all.
"""

import argparse
import sys
from collections.abc import Sequence

from mmext_backbones.utils.cli import add_traceback_option, run_cli
from mmext_backbones.utils.console import say
from mmext_backbones.weights.converting import TARGETS, convert_file


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='IN', help='weights of any recognised layout')
    parser.add_argument('target', metavar='OUT', help='a file that ends in .pth or .safetensors')
    parser.add_argument('--to', choices=list(TARGETS), default='ours', help='layout to write (default: ours)')
    parser.add_argument('--prefix', help='of several networks in IN, write the one under this prefix, as in teacher.')
    parser.add_argument('--force', action='store_true', help='replace OUT if it is there')
    add_traceback_option(parser)
    args = parser.parse_args(argv)
    say(convert_file(args.source, args.target, to=args.to, force=args.force, prefix=args.prefix))


if __name__ == '__main__':
    sys.exit(run_cli(main))
