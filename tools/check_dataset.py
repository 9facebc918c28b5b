"""Looks at all data of a config before it is trained: what a run would stop at or leave out, and what is unusual.

python tools/check_dataset.py configs/swin_t_maskrcnn_1x.py --workers 4
python tools/check_dataset.py configs/swin_t_upernet_160k.py --split train --json report.json

The exit code is 0 where there is no error, 1 where there is one.
"""

import argparse
import contextlib
import io
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmext_backbones.config.dialect import refuse_old_config
from mmext_backbones.config.files import load_config
from mmext_backbones.config.inputs import keep_config_inputs
from mmext_backbones.config.options import add_config_options, apply_options
from mmext_backbones.datasets.bad_data.report import check_splits, count_errors, report_lines, write_report
from mmext_backbones.datasets.bad_data.runner import needs_masks
from mmext_backbones.datasets.shapes.config import use_shapes
from mmext_backbones.datasets.shapes.files import make_default_shapes
from mmext_backbones.utils.cli import add_traceback_option, run_cli
from mmext_backbones.utils.console import silence_libraries
from mmext_backbones.utils.errors import UserError
from mmext_backbones.utils.files import check_place
from mmext_backbones.utils.words import plural

SPLITS = ('train', 'val', 'test')


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a config file, or a name like mmdet::path/inside/its/configs.py')
    parser.add_argument('--split', nargs='+', choices=SPLITS, default=list(SPLITS), help='which data (default: all)')
    parser.add_argument('--json', metavar='FILE', help='write the whole report there')
    parser.add_argument('--workers', type=int, default=0, help='processes that read (default: this one only)')
    parser.add_argument('--fast', action='store_true', help='look at annotations and files without decoding pictures')
    parser.add_argument('--shapes', action='store_true', help="look at the drawn shapes instead of the config's data")
    add_config_options(parser, 'config entries to override')
    add_traceback_option(parser)
    args = parser.parse_args(argv)
    if args.workers < 0:
        raise UserError(f'--workers {args.workers}: expected 0 or more')
    silence_libraries()
    cfg = load_config(args.config)
    refuse_old_config(cfg, args.config)
    if cfg.get('model') is None:
        raise UserError(f'config {args.config!r} has no model: is it a part that other configs inherit?')
    if args.shapes:
        use_shapes(cfg, make_default_shapes())
    apply_options(cfg, args.cfg_options)
    if args.json is not None:
        keep_config_inputs(f'--json {args.json}', [args.json], cfg)
        check_place(f'--json {args.json}', Path(args.json))

    bar = Progress(
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    tasks = {}

    def progress(split: str, done: int, total: int) -> None:
        if split not in tasks:
            tasks[split] = bar.add_task(split, total=total)
        bar.update(tasks[split], completed=done, total=total)

    with bar, contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells of every file it reads
        report = check_splits(
            cfg, args.split, masks=needs_masks(cfg), workers=args.workers, fast=args.fast, progress=progress
        )
    if not report:
        raise UserError(f'config {args.config!r} has none of the data asked for: {", ".join(args.split)}.')
    if args.json is not None:
        write_report(report, args.json)
    errors = count_errors(report)
    print('\n'.join(report_lines(report)))
    print(f'\n{plural(errors, "error")}.' if errors else '\nNo errors.')
    return 1 if errors else 0


if __name__ == '__main__':
    sys.exit(run_cli(main))
