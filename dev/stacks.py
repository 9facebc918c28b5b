"""Installs each stack in a folder of its own, runs the same short check in it, and writes what came of it.

python dev/stacks.py                       # all of them, one after the other (`make stacks`)
python dev/stacks.py 'torch 2.4' --keep    # some of them; --keep leaves their folders
python dev/stacks.py --list

Results go to docs/compatibility.md, and to mmext_backbones/doctor/stacks.json, which the doctor reads; a stack that was
not run keeps its result and date. Each takes about 6 GB of disk while it is checked, and some minutes.
"""

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / 'docs/compatibility.md'
TABLE = ROOT / 'mmext_backbones/doctor/stacks.json'
MARKS = ('<!-- begin: make stacks -->', '<!-- end: make stacks -->')


class Stack(NamedTuple):
    """Versions that are installed and checked together.

    Attributes:
        name: for the command line and the table.
        python: the interpreter.
        torch: torch, torchvision and numpy; those of requirements/torch.txt when empty.
        pins: folder of requirements files, see requirements/install.sh.
    """

    name: str
    python: str = '3.11'
    torch: tuple[str, ...] = ()
    pins: str = 'requirements'


STACKS = (
    Stack('torch 2.1', pins='requirements/numpy1'),
    Stack('torch 2.4', torch=('torch===2.4.1', 'torchvision==0.19.1', 'numpy==1.26.4'), pins='requirements/numpy1'),
    Stack('torch 2.8', torch=('torch===2.8.0', 'torchvision==0.23.0', 'numpy==2.2.6')),
    Stack('torch 2.13, mmcv compiled', pins='requirements/compiled'),
    Stack('torch 2.14'),
    Stack('torch 2.15', torch=('torch===2.15.0', 'torchvision==0.29.2', 'numpy==2.4.6')),
    Stack('onedl forks', pins='requirements/onedl'),
    Stack('Python 3.10', python='3.10'),
    Stack('Python 3.12', python='3.12'),
    Stack('Python 3.13', python='3.13'),
)


def interpreter(version: str) -> str | None:
    """A Python of this version: on the PATH, or where pyenv keeps them."""
    pyenv = Path(os.environ.get('PYENV_ROOT', Path.home() / '.pyenv')) / 'versions'
    candidates = [shutil.which(f'python{version}'), *map(str, sorted(pyenv.glob(f'{version}.*/bin/python')))]
    for path in filter(None, candidates):
        told = subprocess.run([path, '--version'], capture_output=True, text=True)
        if told.returncode == 0 and told.stdout.startswith(f'Python {version}.'):
            return path
    return None


def build(stack: Stack, folder: Path) -> tuple[float, str]:
    """Installs a stack into `folder`.

    Returns:
        Seconds, and what went wrong: the end of the log, empty if nothing did.
    """
    python = interpreter(stack.python)
    if python is None:
        return 0.0, f'no Python {stack.python} on this machine'
    pins = folder / 'pins'
    shutil.copytree(ROOT / stack.pins, pins, ignore=shutil.ignore_patterns('*.sh', '*.py'))
    if stack.torch:
        (pins / 'torch.txt').write_text('\n'.join(stack.torch) + '\n')
    started = time.time()
    subprocess.run([python, '-m', 'venv', folder / 'venv'], check=True)
    done = subprocess.run(
        ['bash', ROOT / 'requirements/install.sh'], env={**os.environ, 'VENV': str(folder / 'venv'), 'PINS': str(pins)}
    )
    log = (folder / 'venv/install.log').read_text()
    return time.time() - started, '' if done.returncode == 0 else '\n'.join(log.splitlines()[-12:])


def versions(python: Path) -> dict[str, str]:
    code = (
        'import json, platform, torch, torchvision, numpy, mmengine, mmcv, mmdet, mmseg, mmpretrain\n'
        'modules = (torch, torchvision, numpy, mmengine, mmcv, mmdet, mmseg, mmpretrain)\n'
        "print(json.dumps({'python': platform.python_version(), **{m.__name__: m.__version__ for m in modules}}))"
    )
    told = subprocess.run([python, '-c', code], capture_output=True, text=True)
    if told.returncode:
        return {}
    found = json.loads(told.stdout.splitlines()[-1])
    return {name: version.partition('+')[0] for name, version in found.items()}


def examine(stack: Stack, keep: bool, within: Path | None) -> dict[str, Any]:
    """Builds a stack, checks it, removes it."""
    folder = Path(tempfile.mkdtemp(prefix=re.sub(r'\W+', '-', stack.name) + '-', dir=within))
    try:
        seconds, problem = build(stack, folder)
        record: dict[str, Any] = {
            'name': stack.name, 'date': datetime.date.today().isoformat(), 'seconds': round(seconds),
            'versions': {}, 'checks': {}, 'problem': problem,
        }  # fmt: skip
        if not problem:
            python, result = folder / 'venv/bin/python', folder / 'result.json'
            record['versions'] = versions(python)
            subprocess.run([python, ROOT / 'dev/stack_check.py', '--json', result], cwd=ROOT)
            record['checks'] = json.loads(result.read_text()) if result.exists() else {}
        return record
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def shorten(record: dict[str, Any]) -> dict[str, Any]:
    """What the tables keep of a result; what a failed check said is printed, and kept nowhere."""
    checks = record['checks']
    failed = [name for name, check in checks.items() if not check['ok']]
    return {
        **{key: record[key] for key in ('name', 'date', 'seconds', 'versions')},
        'operators': checks.get('imports', {}).get('text', ''),
        'backbones': checks.get('backbones', {}).get('text', ''),
        'failed': failed if checks else ['the installation'],
    }


def write(records: list[dict[str, Any]]) -> None:
    """The table of the doctor, and that of the page between its marks."""
    order = {stack.name: place for place, stack in enumerate(STACKS)}
    records = sorted((record for record in records if record['name'] in order), key=lambda each: order[each['name']])
    TABLE.write_text(json.dumps(records, indent=1) + '\n')
    before, _, rest = PAGE.read_text().partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    PAGE.write_text(f'{before}{MARKS[0]}\n{page(records)}\n{MARKS[1]}{after}')


def page(records: list[dict[str, Any]]) -> str:
    """The stacks as a table in Markdown."""
    libraries = ('python', 'torch', 'torchvision', 'numpy', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain')
    header = ['stack', *libraries, 'operators', 'result', 'networks', 'seconds to install', 'date']
    lines = [f'| {" | ".join(header)} |', '|---' * len(header) + '|']
    for record in records:
        told = [record['versions'].get(name, '?') for name in libraries]
        operators = 'compiled' if 'compiled (' in record['operators'] else 'torchvision, PyTorch'
        result = 'all checks pass' if not record['failed'] else f'**fails**: {", ".join(record["failed"])}'
        cells = [record['name'], *told, operators, result, record['backbones'], str(record['seconds']), record['date']]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [stack.name for stack in STACKS]
    parser.add_argument('names', nargs='*', metavar='STACK', help='which, by name; all when none is named')
    parser.add_argument('--list', action='store_true', help='list the stacks and run nothing')
    parser.add_argument('--keep', action='store_true', help='leave the folders of the environments')
    parser.add_argument(
        '--within', type=Path, metavar='FOLDER', help='where they are made (default: the temporary one)'
    )
    args = parser.parse_args()
    if args.list:
        print('\n'.join(names))
        return 0
    unknown = set(args.names) - set(names)
    if unknown:
        parser.error(f'no such stack: {", ".join(sorted(unknown))}. There are: {", ".join(names)}')
    records = {each['name']: each for each in json.loads(TABLE.read_text())} if TABLE.exists() else {}
    failed = []
    for stack in STACKS:
        if args.names and stack.name not in args.names:
            continue
        print(f'==> {stack.name}', flush=True)
        record = examine(stack, args.keep, args.within)
        records[stack.name] = shortened = shorten(record)
        if shortened['failed']:
            failed.append(stack.name)
        print(f'    {"FAILED " + record["problem"] if shortened["failed"] else "ok"}', flush=True)
        write(list(records.values()))
    print(f'{len(failed)} failed: {", ".join(failed)}' if failed else 'all pass')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
