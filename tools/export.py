"""Writes a backbone, a backbone and its neck, or a whole model as a file, and runs the file beside the network.

    python tools/export.py swin_t timm://swin_tiny_patch4_window7_224.ms_in1k --format onnx
    python tools/export.py configs/elsa_swin_t_maskrcnn_1x.py work_dirs/.../epoch_12.pth --format onnx --neck
    python tools/export.py configs/maxvit_t_maskrcnn_1x.py --format torch --size 800 1344 --static --out maxvit_t.pt2
    python tools/export.py configs/swin_t_maskrcnn_1x.py work_dirs/.../epoch_12.pth --whole

A file is for images of any size, unless --static. It is run at three sizes, two of which no window divides, and refused
(exit code 1, kept as NAME.differs) where a map differs by more than 1e-4 of its largest value. With --whole it takes
pictures, answers with boxes, masks, segments or scores, and is compared with the model's own predictions; predict.py,
copied beside it, runs it without PyTorch. What is exported, what is not, and what was measured: docs/export.md.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console

from mmext_backbones.config.options import add_config_options
from mmext_backbones.utils.cli import add_traceback_option, command_line, run_cli, square
from mmext_backbones.utils.console import say, silence_libraries
from mmext_backbones.utils.errors import UserError
from mmext_backbones.utils.words import plural

try:
    from mmext_backbones.export import Exported, ExportedWhole, ParityError, export_onnx, export_torch, export_whole
    from mmext_backbones.export.building import build_parts, load_weights
    from mmext_backbones.export.checking import speed, table
    from mmext_backbones.export.whole.checking import row_table
    from mmext_backbones.export.writing import check_packages
    from mmext_backbones.inference.loading import load_model
    from mmext_backbones.runtime import copy_runtime
except ImportError as error:
    if '--traceback' in sys.argv:
        raise
    print(f'Error: {error}', file=sys.stderr)
    sys.exit(2)

SUFFIXES = {'onnx': '.onnx', 'torch': '.pt2'}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('network', help='a backbone like swin_t, a config file, or a name like mmdet::path.py')
    parser.add_argument(
        'weights', nargs='?', help='a checkpoint of the whole model, or published weights of the backbone'
    )
    parser.add_argument('--format', choices=SUFFIXES, help='of the file; with --whole it is onnx')
    parser.add_argument('--whole', action='store_true', help='from the picture to boxes, masks, segments or scores')
    parser.add_argument('--raw', action='store_true', help='with --whole: the file takes images that are normalised')
    parser.add_argument('--check', choices=['openvino'], help='with --whole: run the file there, too')
    parser.add_argument('--neck', action='store_true', help="with the config's neck, such as an FPN")
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        default=(224, 224),
        metavar=('H', 'W'),
        help='in pixels, one number for a square: the first it is run at, the only one with --static (default: 224)',
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument('--dynamic', action='store_true', help='for images of any size (default)')
    kind.add_argument('--static', action='store_true', help='for images of SIZE alone')
    parser.add_argument('--batch', type=int, help='images of a batch of --format torch (1); ONNX files take any')
    parser.add_argument(
        '-o', '--out', type=Path, help='the file (default: NETWORK.onnx or NETWORK.pt2, in this folder)'
    )
    parser.add_argument('--force', action='store_true', help='overwrite the file')
    parser.add_argument('--speed', action='store_true', help='also time the file beside the network, in turn')
    add_config_options(parser, 'arguments of the backbone, or entries of the config to override')
    add_traceback_option(parser)
    args = parser.parse_args(square(argv))
    silence_libraries()
    warnings.filterwarnings('ignore', category=FutureWarning)  # torch's exporters warn of torch
    args.format = args.format or ('onnx' if args.whole else None)
    out = args.out or Path(Path(args.network.rpartition('::')[2]).stem + SUFFIXES.get(args.format, ''))
    check_arguments(args, out)
    export = load_whole(args) if args.whole else load_parts(args)
    try:
        with Console(stderr=True).status('recording, writing and running the file; minutes for the largest networks'):
            made = export(out, size=tuple(args.size), dynamic=not args.static)
    except ParityError as error:
        print(f'Error: {error}', file=sys.stderr)
        return 1
    except RuntimeError as error:
        raise UserError(f'{args.network} cannot be exported here: {error}') from error
    say('\n'.join(row_table(made.rows) if args.whole else table(made.differences)))
    for key, value in made.metadata.items():
        say(f'{key} = {value}')
    say(f'{out}: {out.stat().st_size / 2**20:.1f} MiB, {made.nodes} nodes, written in {made.seconds:.0f} s')
    if args.whole:
        say(runtime_beside(out))
    if args.speed:
        x = torch.randn(args.batch or 1, made.network.in_channels, *args.size)
        ours, theirs = speed(made.network, made.run, x)
        say(
            f'{"x".join(map(str, x.shape))}, {plural(torch.get_num_threads(), "thread")}: eager {ours * 1e3:.0f} ms, '
            f'file {theirs * 1e3:.0f} ms, ratio {ours / theirs:.2f} (medians of 7, in turn; rough)'
        )
    return 0


def load_parts(args: argparse.Namespace) -> Callable[..., Exported]:
    """What exports a backbone, or one with its neck."""
    parts = build_parts(args.network, neck=args.neck, options=args.cfg_options)
    if args.weights:
        say(load_weights(parts, args.weights))
    else:
        say('note: no weights were named, so the file holds random ones.')
    export = export_onnx if args.format == 'onnx' else partial(export_torch, batch=args.batch or 1)
    return partial(export, parts.backbone, neck=parts.neck, metadata=parts.metadata)


def load_whole(args: argparse.Namespace) -> Callable[..., ExportedWhole]:
    """What exports a whole model."""
    loaded = load_model(args.network, args.weights, args.cfg_options)
    for note in loaded.notes:
        say(f'note: {note}.')
    return partial(
        export_whole, loaded.model, raw=args.raw, openvino=args.check == 'openvino', metadata=loaded.metadata
    )


def runtime_beside(out: Path) -> str:
    """Puts `predict.py` beside a file that is written already: whatever fails here ends nothing."""
    try:
        script = copy_runtime(out.resolve().parent)
    except (UserError, OSError) as error:
        return f'note: predict.py, which runs the file without PyTorch, was not copied: {error}'
    return f'{command_line(os.path.relpath(script), out, "PICTURES")} runs it without PyTorch'


def check_arguments(args: argparse.Namespace, out: Path) -> None:
    """What can be told before anything is built."""
    of_parts = [name for name in ('neck', 'batch', 'speed') if getattr(args, name)]
    if args.whole and (of_parts or args.format != 'onnx'):
        raise UserError(f'--{of_parts[0] if of_parts else "format torch"} is for backbones, not for --whole.')
    if not args.whole and (args.raw or args.check):
        raise UserError(f'--{"raw" if args.raw else "check"} is for --whole.')
    if args.format is None:
        raise UserError('--format is missing: onnx or torch, or --whole.')
    if args.check and find_spec('openvino') is None:
        raise UserError('--check openvino needs openvino: pip install openvino')
    if args.format == 'onnx':
        try:
            check_packages()
        except ImportError as error:
            raise UserError(str(error)) from error
        if args.batch is not None:
            raise UserError('--batch is for --format torch: an ONNX file takes any number of images.')
    if out.suffix != SUFFIXES[args.format]:
        raise UserError(f'{out} has to end in {SUFFIXES[args.format]} for --format {args.format}.')
    if out.exists() and not args.force:
        raise UserError(f'{out} exists already: name another file with --out, or overwrite it with --force.')
    if not out.resolve().parent.is_dir() or not os.access(out.resolve().parent, os.W_OK):
        raise UserError(f'{out} cannot be written: {out.resolve().parent} is no folder that you may write to.')


if __name__ == '__main__':
    sys.exit(run_cli(main))
