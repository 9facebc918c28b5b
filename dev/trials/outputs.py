"""Tells the tools to write where what they read lies, by every name that it has: nothing of it may change.

python dev/trials/outputs.py --cases 200 --seed 0 -o outputs.json

A case is one command of a tool. What it is told to write to is a file or a folder that it reads: as it is called, from
the root, on a detour, through a link to it or to its folder, or as a hard link. It runs
in a process of its own, forked from this one, in a folder of its own with a config and its base, a checkpoint,
predictions, a work dir, and drawn shapes. It ends well if every file that was there is as it was, and the command

- is refused: exit code 2 and a message, no traceback; or
- has done its work beside the inputs: exit code 0.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

from broken_files import base_folder, in_a_copy, tool
from kills import CONFIG

from mmext_backbones.utils.cli import run_cli

LIMIT = 240.0  # seconds
GOOD = ('refused', 'beside')
OWN = ('out.txt', 'err.txt', 'log.txt')
BASE, CONFIG_FILE, WEIGHTS, PREDICTIONS = 'base.py', 'config.py', 'weights.pth', 'predictions.pkl'
TRAIN, VAL, ANNOTATIONS = 'made/train', 'made/val', 'made/annotations/instances_val.json'
LEARNT, SEEN = f'{TRAIN}/000000.png', f'{VAL}/000000.png'


class Command(NamedTuple):
    """A command that reads and writes.

    Attributes:
        tool: Its file in tools/.
        arguments: `{}` is what it is told to write to.
        targets: Files and folders that it reads.
    """

    tool: str
    arguments: tuple[str, ...]
    targets: tuple[str, ...]


TEST = ('config.py', WEIGHTS)
COMMANDS = [  # every option that names an output, with what its command reads, whatever its suffix
    Command('test', (*TEST, '--out', '{}'), (WEIGHTS, CONFIG_FILE, BASE, ANNOTATIONS, VAL, TRAIN, 'made')),
    Command('test', (*TEST, '--show-dir', '{}'), (VAL, TRAIN, 'made', '.', 'run', SEEN)),
    Command('test', (*TEST, '--work-dir', '{}'), ('.', 'made', VAL, 'run')),
    Command('test', ('config.py', '--predictions', PREDICTIONS, '--out', '{}'), (PREDICTIONS, ANNOTATIONS)),
    Command('infer', (*TEST, SEEN, '--out', '{}'), (VAL, 'made', '.', SEEN, WEIGHTS)),
    Command('infer', (*TEST, SEEN, '--out', '{}', '--overwrite'), (VAL, 'made', '.', 'run', SEEN, CONFIG_FILE)),
    Command('infer', (*TEST, 'shown/pictures', '--out', '{}', '--overwrite'), ('shown', 'shown/pictures')),
    Command('infer', (*TEST, 'shown/pictures', '--out', '{}', '--save-crop'), ('shown', 'shown/pictures')),
    Command('convert_weights', (WEIGHTS, '{}', '--force'), (WEIGHTS,)),
    Command('convert_weights', (WEIGHTS, '{}'), (WEIGHTS, 'made', LEARNT)),
    Command('swap_backbone', ('config.py', '--backbone', 'swin_t', '-o', '{}', '--force'), (CONFIG_FILE, BASE)),
    Command('swap_backbone', ('config.py', '--backbone', 'swin_t', '-o', '{}'), (CONFIG_FILE, BASE, 'made')),
    Command(
        'swap_backbone',
        ('config.py', '--backbone', 'swin_t', '--weights', WEIGHTS, '-o', '{}', '--force'),
        (WEIGHTS, CONFIG_FILE),
    ),
    Command(
        'export',
        ('config.py', WEIGHTS, '--format', 'torch', '--size', '64', '64', '--static', '-o', '{}', '--force'),
        (WEIGHTS, CONFIG_FILE, 'made'),
    ),
    Command('check_dataset', ('config.py', '--json', '{}'), (ANNOTATIONS, CONFIG_FILE, BASE, SEEN, 'made')),
    Command('finetune_coco', (VAL, ANNOTATIONS, '--only-config', '--out', '{}'), ('made', VAL, '.', ANNOTATIONS)),
    Command(
        'finetune_coco',
        (VAL, ANNOTATIONS, '--only-config', '--base', CONFIG_FILE, '--out', '{}'),
        ('.', 'run', 'made'),
    ),
    Command('visualize', ('data', 'config.py', '--out', '{}'), (LEARNT, CONFIG_FILE, 'made')),
    Command('visualize', ('predictions', *TEST, '--out', '{}'), (SEEN, WEIGHTS, ANNOTATIONS)),
    Command('visualize', ('curves', 'run', '--out', '{}'), ('run', 'run/curves.json', 'run/config.py')),
    Command('make_shapes', ('--out', '{}', '--train', '2', '--val', '2', '--size', '32'), ('made', '.', 'run')),
    Command('train', ('config.py', '--work-dir', '{}'), ('.', 'made', 'run', CONFIG_FILE)),
    Command('train', ('config.py', '--work-dir', '{}', '--cfg-options', f'load_from={WEIGHTS}'), ('.',)),
    Command('train', ('run/config.py', '--work-dir', '{}'), ('run',)),
]


# --------------------------------------------------------------------------------------------------------------------
# Names of a file or a folder. Each makes what it needs in the folder of the case


def detour(target: Path) -> str:
    return f'{target.parent}/../{Path.cwd().name}/{target}' if target.parent == Path('.') else f'made/../{target}'


def link(target: Path) -> str:
    name = Path('links') / f'another{target.suffix}'
    name.symlink_to(target.absolute())
    return str(name)


def folder_link(target: Path) -> str:
    name = Path('links') / 'folder'
    name.symlink_to(target.parent.absolute())
    return str(name / target.name)


def second_name(target: Path) -> str:
    if target.is_dir():
        return link(target)
    name = Path('links') / f'second{target.suffix}'
    os.link(target, name)
    return str(name)


NAMES: dict[str, Callable[[Path], str]] = {
    'as it is called': str,
    'from the root': lambda target: str(target.absolute()),
    'on a detour': detour,
    'a link to it': link,
    'a link to its folder': folder_link,
    'a second name': second_name,
}


# --------------------------------------------------------------------------------------------------------------------
# One case


class Case(NamedTuple):
    """A command, what it is told to write to, and the kind of name that is given for it."""

    number: int
    command: Command
    target: str
    name: str


def cases(number: int, seed: int) -> list[Case]:
    """Every command with every target in turn, before any comes again; names at random."""
    rng, found, left = random.Random(seed), [], []
    while len(found) < number:
        if not left:
            left = [(command, target) for command in COMMANDS for target in command.targets]
            rng.shuffle(left)
        found.append(Case(len(found), *left.pop(), rng.choice(list(NAMES))))
    return found


def contents() -> dict[str, str]:
    """Hashes of all files of the case, but what this trial writes itself."""
    files = [path for path in sorted(Path('.').rglob('*')) if path.is_file() and not path.is_symlink()]
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name not in OWN and path.parts[0] != 'links'  # what another name of a file names may change
    }


def run(case: Case) -> dict[str, object]:
    """In the process of the case, in its folder."""
    Path('links').mkdir()
    written = NAMES[case.name](Path(case.target))
    argv = [argument.format(written) for argument in case.command.arguments]
    before, code, ended = contents(), None, 'returned'
    if case.command.tool == 'train':  # another training in a work dir replaces what one before left
        before = {name: content for name, content in before.items() if not name.startswith('run/')}
    with (
        open('out.txt', 'w') as out,
        open('err.txt', 'w') as err,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            code = run_cli(tool(case.command.tool), argv)
        except SystemExit as error:  # of the parser
            code = error.code
        except BaseException:
            ended = 'traceback'
            traceback.print_exc()
    message = Path('err.txt').read_text()
    end = verdict(ended, code, message, before, contents())
    return {'command': [case.command.tool, *argv], 'code': code, 'end': end, 'message': message[-2000:]}


def verdict(ended: str, code: int | None, message: str, before: dict[str, str], after: dict[str, str]) -> str:
    """One of `GOOD`, or what is wrong."""
    lost = [name for name, content in before.items() if after.get(name) != content]
    if lost:
        return f'changed {", ".join(lost)}'
    if ended == 'traceback' or 'Traceback (most recent call last)' in message:
        return 'traceback'
    if code == 0:
        return 'beside'
    return 'refused' if code == 2 and 'rror: ' in message else f'ended with {code} and no message'


def prepare() -> None:
    """What the commands read, in the folder of this process."""
    from mmext_backbones.config.files import load_config
    from mmext_backbones.datasets.shapes.config import use_shapes
    from mmext_backbones.datasets.shapes.files import make_shapes
    from mmext_backbones.utils.console import silence_libraries

    silence_libraries()
    make_shapes(Path('made'), size=64, num_train=3, num_val=2)
    Path('source.py').write_text(CONFIG)
    cfg = load_config('source.py')
    use_shapes(cfg, Path('made'), size=64, iters=1, batch_size=1, num_workers=0)
    cfg.dump(BASE)
    Path('source.py').unlink()
    Path(CONFIG_FILE).write_text(f"_base_ = ['{BASE}']\n")
    assert run_cli(tool('train'), [CONFIG_FILE, '--work-dir', 'run']) == 0, 'the good config does not train'
    shutil.copy('run/iter_1.pth', WEIGHTS)
    assert run_cli(tool('test'), [*TEST, '--out', PREDICTIONS, '--work-dir', 'tested']) == 0
    shutil.rmtree('tested')
    for results in Path('.').glob('weights.config.*'):  # each test of it writes them anew
        results.unlink()
    Path('shown/pictures').mkdir(parents=True)
    shutil.copy(SEEN, 'shown/pictures')


def run_all(chosen: Sequence[Case]) -> list[dict[str, object]]:
    results = []
    with base_folder('outputs_', prepare) as base:
        for case in chosen:
            command = [case.command.tool, *case.command.arguments]
            result = in_a_copy(base, lambda case=case: run(case), LIMIT)
            results.append(
                {'number': case.number, 'target': case.target, 'name': case.name, 'command': command, **result}
            )
            print(f'{len(results)}/{len(chosen)}  {" ".join(results[-1]["command"])}: {result["end"]}', flush=True)
    return results


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--cases', type=int, default=200)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--only', type=int, nargs='+', metavar='NUMBER', help='run these cases alone')
    parser.add_argument('-o', '--out', type=Path, help='write the results there as JSON')
    args = parser.parse_args(argv)
    if args.out is not None and args.out.exists():
        parser.error(f'{args.out} exists already')
    import mmdet.apis  # noqa: F401  once, before the forks

    chosen = cases(max(args.only) + 1 if args.only else args.cases, args.seed)
    results = run_all([case for case in chosen if not args.only or case.number in args.only])
    bad = [each for each in results if each['end'] not in GOOD]
    for each in bad:
        print(f'\ncase {each["number"]}, {" ".join(each["command"])}: {each["end"]}\n{each["message"][-1200:]}')
    for (name, end), count in sorted(Counter((each['command'][0], each['end']) for each in results).items()):
        print(f'{name:16} {end:28} {count:4}')
    print(f'{len(results)} cases, {len(bad)} failed')
    if args.out is not None:
        args.out.write_text(json.dumps({'seed': args.seed, 'results': results}, indent=1))
    return bool(bad)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
