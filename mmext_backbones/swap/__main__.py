"""The command line of the swap: writes a short child of a config, after building and running it once.

python tools/swap_backbone.py my_config.py --backbone elsa_swin_t
python tools/swap_backbone.py mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py --backbone swin_b -o dino_swin_b.py
python -m mmext_backbones.swap my_config.py --backbone maxvit_t --check
"""

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from mmengine.config import Config

from ..config.dialect import refuse_old_config
from ..config.editing import type_name
from ..config.files import full_name, load_config
from ..config.inputs import keep_config_inputs
from ..config.writing import write_child
from ..registry import SCOPE
from ..utils.cli import add_traceback_option, run_cli
from ..utils.console import say, silence_libraries
from ..utils.errors import UserError, first_line
from ..zoo import known_network
from . import DEFAULT, SwapRefused, swap_backbone
from .checks import build_model, check_weights, forward, summarise, table
from .rewiring import find_holder

FORWARD_SIZE = 256  # pixels, of the image the model is run on: DINO chooses 900 queries among its places


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog='swap_backbone', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='a config file, or a name like mmdet::path.py')
    parser.add_argument(
        '--backbone', required=True, metavar='NAME', help='elsa_swin_t, swin_b, maxvit_t, sequencer_s, ...'
    )
    parser.add_argument(
        '-o', '--out', type=Path, metavar='FILE', help='the config to write (CONFIG_NAME.py, in this folder)'
    )
    parser.add_argument(
        '--weights', default=DEFAULT, metavar='ADDRESS', help="the backbone's weights; 'none' for random ones"
    )
    parser.add_argument(
        '--keep-optimizer', action='store_true', help='leave the optimizer and its schedule as they are'
    )
    parser.add_argument('--check', action='store_true', help='only check: build, run, compare; write nothing')
    parser.add_argument('--force', action='store_true', help='overwrite FILE')
    parser.add_argument('--size', type=int, default=512, metavar='PIXELS', help='edge of the image to count costs on')
    add_traceback_option(parser)
    args = parser.parse_args(argv)
    silence_libraries()
    args.config = full_name(args.config)
    try:
        network = known_network(args.backbone)
    except ValueError as error:
        raise UserError(str(error)) from None
    out = args.out or Path(f'{Path(args.config.rpartition("::")[2]).stem}_{args.backbone}.py')
    if not args.check:
        check_out(out, args.config, force=args.force)
    weights = None if args.weights == 'none' else args.weights
    if weights not in (None, DEFAULT):
        check_weights(weights)
    old = load_config(args.config)
    refuse_old_config(old, args.config)
    try:
        if not args.check:
            keep_config_inputs(f'-o {out}', [out], old, [None if weights == DEFAULT else weights])
        new = swap_backbone(old, args.backbone, weights=weights, keep_optimizer=args.keep_optimizer)
    except SwapRefused as error:
        raise UserError(f'{args.config} takes no {args.backbone}: {error}.') from error
    except (ValueError, ImportError) as error:  # what a Python-style config imports is imported at its first use
        raise UserError(f'{args.config}: {error}') from error
    said = None
    if weights not in (None, DEFAULT):
        said = check_weights(weights, find_holder(new.model)['backbone'])
    failure = check(args.config, old, new)
    say('\n'.join(table(summarise(old, args.size), summarise(new, args.size), args.size)))
    if failure:
        say(f'note: not run, because the original does not run here either: {failure}')
    for note in [*notes(old, new), *([said] if said else [])]:
        say(f'note: {note}')
    if args.config.startswith(f'{SCOPE}::'):
        say(f"note: the base is found by its name once {SCOPE} is imported: train with this package's tools.")
    if args.check:
        say(f'{args.config} {"takes" if failure else "runs with"} {args.backbone}; nothing was written.')
        return
    write_child(
        args.config, old, new, out, f'{Path(args.config.rpartition("::")[2]).name} with {network.cls} ({network.arch}).'
    )
    say(f'Written: {out}')


def check_out(out: Path, config: str, *, force: bool) -> None:
    """Whether the new config can be written, before anything is built.

    Raises:
        UserError: if it cannot, or would overwrite a file.
    """
    if out.is_dir():
        raise UserError(f'{out} is a folder: name a file in it with -o.')
    if out.suffix != '.py':
        raise UserError(f'{out} is no name of a config: it has to end in .py.')
    if '::' not in config and out.resolve() == Path(config).resolve():
        raise UserError(f'{out} is the config itself, which the new one inherits: name another file with -o.')
    if out.exists() and not force:
        raise UserError(f'{out} exists already: name another file with -o, or overwrite it with --force.')
    folder = next(parent for parent in out.resolve().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f'{out} cannot be written: {folder} is no folder that you may write to.')


def check(config: str, old: Config, new: Config) -> str | None:
    """Builds the model and runs it once.

    Returns:
        None, or what keeps the original from running here too: an operator without a CPU kernel, a missing file.

    Raises:
        UserError: if the swapped model fails where the original does not.
    """
    failure = _failure(new)
    if failure is None or _failure(old) == failure:
        return failure
    raise UserError(
        f'{config}: the swapped model does not run: {failure}\n'
        'Nothing was written. Some part of it may state the old channels or sizes under a name of its own.'
    )


def _failure(cfg: Config) -> str | None:
    try:
        forward(build_model(cfg), _image_size(cfg))
    except Exception as error:
        return f'{type(error).__name__}: {first_line(error)}'
    return None


def _image_size(cfg: Config) -> tuple[int, int]:
    """Height and width the model is run on: those of its tests where they are fixed, and no larger."""
    loader = cfg.get('test_dataloader')
    dataset = loader.get('dataset') if isinstance(loader, Mapping) else None
    for step in (dataset.get('pipeline') if isinstance(dataset, Mapping) else None) or ():
        scale = step.get('scale')
        fixed = type_name(step) == 'Resize' and isinstance(scale, (list, tuple)) and not step.get('keep_ratio')
        if fixed and max(scale) <= FORWARD_SIZE:
            return scale[1], scale[0]
    return FORWARD_SIZE, FORWARD_SIZE


def notes(old: Config, new: Config) -> list[str]:
    """What a reader of the table may want to know."""
    said = []
    holder = find_holder(new.model)
    if holder['backbone'].get('init_cfg') is None:
        said.append('the backbone starts from random weights: name some with --weights (docs/weights.md).')
    if old.get('load_from') and not new.get('load_from'):
        said.append(f'load_from is gone: {old.load_from} was trained with the old backbone.')
    if old.get('resume') and not new.get('resume'):
        said.append('resume is off: the checkpoints so far are of the old backbone.')
    if new.get('work_dir'):
        said.append(f'work_dir is still {new.work_dir}, where the runs of the original lie: name another one to train.')
    if 'language_model' in new.model:
        said.append(
            'the model was pre-trained on images and text with its old backbone: it has to be again, before it '
            'knows words beyond those of its own training.'
        )
    before, after = ((cfg.get('optim_wrapper') or {}).get('optimizer') for cfg in (old, new))
    if before != after:
        said.append(
            f'{type_name(before)} with a learning rate of {before.get("lr")} became '
            f'{type_name(after)} with {after.lr} (--keep-optimizer keeps it).'
        )
    if new.get('find_unused_parameters') and not old.get('find_unused_parameters'):
        said.append('some maps have no reader, so find_unused_parameters is on.')
    return said


if __name__ == '__main__':
    sys.exit(run_cli(main))
