"""Fine-tunes a detector on your own pictures with COCO annotations: checks, writes a config, trains, tests, draws.

python tools/finetune_coco.py pictures annotations.json
python tools/finetune_coco.py train train.json --val-images val --val-annotations val.json --weights swin_t.pth
python tools/finetune_coco.py pictures annotations.json --base configs/sequencer_s_retinanet_1x.py --only-config

Everything is written to one folder (--out). The config there is yours to read, change and train again; what the tool
does after writing it are the commands it prints. docs/tutorial.md goes through it.
"""

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault('GOMP_SPINCOUNT', '20000')  # as in train.py

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmext_backbones.config.files import load_config
from mmext_backbones.config.options import add_config_options, option_words
from mmext_backbones.datasets.bad_data.report import check_splits, count_errors, report_lines
from mmext_backbones.datasets.bad_data.runner import MODES
from mmext_backbones.engine.test import test
from mmext_backbones.engine.train import train
from mmext_backbones.finetune import OwnCoco, read_own_coco, write_own_config
from mmext_backbones.utils.cli import add_traceback_option, command_line, run_cli
from mmext_backbones.utils.console import say, silence_libraries
from mmext_backbones.utils.errors import UserError
from mmext_backbones.utils.files import read_path
from mmext_backbones.utils.printable import one_line
from mmext_backbones.utils.words import plural

BASE = 'mmext_backbones::swin_t_maskrcnn_1x.py'


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', help='folder of the images')
    parser.add_argument('annotations', help='COCO file of their boxes, or boxes and masks')
    parser.add_argument('--val-images', help='folder of the validation images (default: IMAGES)')
    parser.add_argument('--val-annotations', help='their COCO file (default: a part of ANNOTATIONS)')
    parser.add_argument('--val-fraction', type=float, default=0.2, help='that part (default: 0.2)')
    parser.add_argument('--base', default=BASE, help=f"a detector's config (default: {BASE})")
    parser.add_argument('--out', default='work_dirs/finetune', help='folder of all results (default: %(default)s)')
    parser.add_argument(
        '--weights', default='default', help="of the backbone: a file or address, 'none', or those of the base"
    )
    parser.add_argument('--boxes', action='store_true', help='learn boxes alone, whatever masks there are')
    parser.add_argument('--batch-size', type=int, default=2, help='images in a training batch (default: 2)')
    parser.add_argument('--epochs', type=int, help='length of the training (default: by the number of images)')
    parser.add_argument('--lr', type=float, help="learning rate (default: the base's in proportion to the batch)")
    parser.add_argument('--size', type=int, help='longer edge of the images in the network (default: by the images)')
    parser.add_argument('--workers', type=int, help='processes that load images (default: by the cores)')
    parser.add_argument('--seed', type=int, default=0, help='of the split and the training (default: 0)')
    parser.add_argument('--device', help='cpu, cuda, cuda:1, ... (default: a GPU if there is one)')
    parser.add_argument('--bad-data', choices=MODES, default='stop', help='what to do with data that cannot be used')
    parser.add_argument('--only-config', action='store_true', help='check the data and write the config, no more')
    parser.add_argument('--resume', action='store_true', help='go on with the training in --out that was stopped')
    add_config_options(parser, 'config entries of the run to override')
    add_traceback_option(parser)
    args = parser.parse_args(argv)
    silence_libraries()
    out = Path(args.out)
    config = out / 'config.py'
    train_command = command_line(
        'tools/train.py', config, '--seed', args.seed, '--bad-data', args.bad_data, *option_words(args.cfg_options)
    )
    if not config.exists():
        prepare(args, out, config, train_command)
    elif not args.resume:
        begun = (out / 'run' / 'last_checkpoint').is_file()
        hint = 'Go on with its training: the same command with --resume' if begun else f'Train it: {train_command}'
        raise UserError(
            f'{config} is there already. {hint}\nFor other data or another base, name another folder with --out.'
        )
    if args.only_config:
        print(f'\nTrain it: {train_command}')
        return
    train_and_test(args, out, config, train_command)


def prepare(args: argparse.Namespace, out: Path, config: Path, train_command: str) -> None:
    """Reads the data, writes the config and checks both."""
    step('Data')
    data = read_own_coco(
        args.images,
        args.annotations,
        out,
        val_images=args.val_images,
        val_annotations=args.val_annotations,
        val_fraction=args.val_fraction,
        masks=False if args.boxes else None,
        seed=args.seed,
    )
    say(f'classes      {len(data.classes)}: {", ".join(map(one_line, data.classes))}')
    for name, part in (('training', data.train), ('validation', data.val)):
        print(f'{name:<12} {plural(part.num_images, "image")}, {part.annotations}')
    for note in data.notes:
        say(f'note         {note}')

    step('Config')
    notes = write_own_config(
        args.base,
        data,
        config,
        weights=args.weights,
        batch_size=args.batch_size,
        epochs=args.epochs,
        lr=args.lr,
        size=args.size,
        num_workers=args.workers,
    )
    print(f'written      {config}')
    for note in notes:
        print(f'             {note}')

    step('Check', command_line('tools/check_dataset.py', config))
    with looking(data) as progress, contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells of every file
        report = check_splits(load_config(str(config)), ('train', 'val'), masks=data.masks, progress=progress)
    print('\n'.join(report_lines(report)).strip())
    if count_errors(report) and args.bad_data == 'stop':
        raise UserError(
            'the data has errors, listed above. Correct them, remove '
            f'{config} and start again, or leave out what cannot be used: --bad-data skip'
        )


def train_and_test(args: argparse.Namespace, out: Path, config: Path, train_command: str) -> None:
    """Trains the config, tests the best checkpoint, and draws what it finds."""
    step('Training', train_command + ' --resume' * args.resume)
    options = {'cfg_options': args.cfg_options, 'bad_data': args.bad_data, 'device': args.device}
    train(str(config), seed=args.seed, resume='auto' if args.resume else None, **options)

    best = sorted((out / 'run').glob('best_*.pth'), key=lambda path: path.stat().st_mtime)
    checkpoint = best[-1] if best else Path(read_path(out / 'run' / 'last_checkpoint'))
    pictures, changed = out / 'pictures', option_words(args.cfg_options)
    more = ('--show-dir', pictures, '--bad-data', args.bad_data, *changed)
    step('Test', command_line('tools/test.py', config, checkpoint, *more))
    test(str(config), str(checkpoint), show_dir=str(pictures), **options)
    infer = command_line('tools/infer.py', config, checkpoint, 'IMAGE', '--out', out / 'inference', *changed)
    print(f'\nYour own pictures: {infer}')


@contextlib.contextmanager
def looking(data: OwnCoco) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for the images that are looked at; gives what `check_splits` calls after each."""
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        tasks = {name: bar.add_task(name, total=getattr(data, name).num_images) for name in ('train', 'val')}
        yield lambda split, done, total: bar.update(tasks[split], completed=done, total=total)


def step(name: str, command: str = '') -> None:
    """A heading, with the command that does the same."""
    print(f'\n== {name}{":  " + command if command else ""}', flush=True)


if __name__ == '__main__':
    sys.exit(run_cli(main))
