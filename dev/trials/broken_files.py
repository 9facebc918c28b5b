"""Breaks checkpoints and configs in random ways and gives them to the tools: each run ends as it should.

python dev/trials/broken_files.py --cases 300 --seed 0 -o broken_files.json

Each case is one file with one fault, given to one consumer: a backbone's init_cfg, load_from, --resume, tools/test.py,
tools/convert_weights.py, the swap tool, tools/replay.py; or a config, given to tools/train.py, tools/test.py or the
swap tool. A case runs in a process of its own, forked from this one, under a time limit. It ends well if

- it is refused: exit code 2, one message that names the file, the key or the component at fault, no traceback; or
- it is taken: exit code 0, where the fault may be harmless (half precision, a config value that means something else).

It fails if there is a traceback, no message, or one that names nothing; if it hangs or crashes; if anything that was
there before is written to by a run that is refused, or the file itself by any run; if anything in a pickle was run; or
if a file is taken that no run should take.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

import breaking_configs
import torch
from breaking_checkpoints import FAULTS, RESUME_FAULTS, Fault, Marker

from mmext_backbones.utils.cli import run_cli

ROOT = Path(__file__).parents[2]
THIN = {'embed_dims': 24, 'depths': (1, 1, 1, 1), 'num_heads': (1, 2, 4, 8)}
CONFIG = f"""
_base_ = ['mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py']
model = dict(backbone=dict(_delete_=True, type='mmext_backbones.SwinTransformer', arch={THIN}, out_indices=(3,)),
             head=dict(in_channels=192))
"""
MEMORY = 24 * 2**30  # address space of a case, so that a huge number in a config ends in an error
LIMIT = 90  # seconds
# a class with its module, the name of a type, a key of the config, an entry of it
COMPONENT = r"\b[A-Z]\w+ \(\w+\.[\w.]+\)|type='|config key \S|Its entry: "
DUMPED = 'work/good.py'  # its config
SWAP = ('--backbone', 'swin_t')
GOOD = ('refused', 'taken')
WRITTEN = ('out.txt', 'err.txt', 'log.txt', 'training.lock')


class Case(NamedTuple):
    """A fault for a consumer.

    Attributes:
        number: Of the case; its random numbers follow from it and the seed.
        consumer: A key of `CONSUMERS`.
        fault: The name of the fault.
    """

    number: int
    consumer: str
    fault: str


# --------------------------------------------------------------------------------------------------------------------
# Who is given the file. Each runs in the folder of the case, which has good.py, good.pth and its data.


def tool(name: str) -> Callable[[list[str]], int | None]:
    spec = importlib.util.spec_from_file_location(f'tool_{name}', ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def init_cfg(file: str) -> int:
    from mmext_backbones.backbones import SwinTransformer

    def main(argv: list[str]) -> None:
        SwinTransformer(THIN, out_indices=(3,), init_cfg={'type': 'Pretrained', 'checkpoint': file}).init_weights()

    return run_cli(main, [file])


CONSUMERS: dict[str, Callable[[str], int]] = {
    'init_cfg': init_cfg,
    'load_from': lambda file: run_cli(tool('train'), ['good.py', '--cfg-options', f'load_from={file}']),
    'resume': lambda file: run_cli(tool('train'), ['good.py', '--resume', file]),
    'test': lambda file: run_cli(tool('test'), ['good.py', file]),
    'convert': lambda file: run_cli(tool('convert_weights'), [file, 'new.pth']),
    'swap': lambda file: run_cli(tool('swap_backbone'), ['good.py', *SWAP, '--weights', file, '--check']),
    'replay': lambda file: run_cli(tool('replay'), [file]),
    'train a config': lambda file: run_cli(tool('train'), [file, '--work-dir', 'work']),
    'test a config': lambda file: run_cli(tool('test'), [file, 'good.pth', '--work-dir', 'work']),
    'swap a config': lambda file: run_cli(tool('swap_backbone'), [file, *SWAP, '--weights', 'none', '-o', 'new.py']),
}  # fmt: skip
OF_CHECKPOINTS = ('init_cfg', 'load_from', 'resume', 'test', 'convert', 'swap', 'replay')
OF_CONFIGS = ('train a config', 'test a config', 'swap a config')
LOOSE = ('load_from', 'convert')  # take what does not fill the model: a start from other weights is allowed


def cases(number: int, seed: int) -> list[Case]:
    """Checkpoints and configs in turn: every pair of a consumer and a fault of weights, before any comes again."""
    rng = random.Random(seed)
    texts, values = list(breaking_configs.TEXTS), ['value']
    found, weights = [], []
    while len(found) < number:
        if not weights:
            weights = [(consumer, name) for name in FAULTS for consumer in OF_CHECKPOINTS]
            weights += [('resume', name) for name in RESUME_FAULTS] * 2
            rng.shuffle(weights)
        if len(found) % 2:
            found.append(weights.pop())
        else:
            consumer = rng.choices(OF_CONFIGS, (3, 1, 1))[0]
            found.append((consumer, rng.choice(texts if rng.random() < 0.35 else values)))
    return [Case(index, *pair) for index, pair in enumerate(found)]


# --------------------------------------------------------------------------------------------------------------------
# One case


def break_file(
    case: Case, rng: random.Random, good: dict[str, Any], cfg: dict[str, Any]
) -> tuple[Path, str, list[str]]:
    """Writes the file: its path, what was done, and what a message may name instead of it."""
    folder = Path('case')
    folder.mkdir()
    if case.consumer in OF_CHECKPOINTS:
        fault = {**FAULTS, **RESUME_FAULTS}[case.fault]
        path = folder / f'broken{fault.suffix}'
        fault.apply(rng, good, path)
        return path, case.fault, []
    if case.fault != 'value':
        path = breaking_configs.TEXTS[case.fault](rng, breaking_configs.text_of(cfg), folder)
        return path, case.fault, ['case']
    changed, key, how = breaking_configs.mutate(rng, cfg)
    path = folder / 'case.py'
    path.write_text(breaking_configs.text_of(changed))
    return path, f'{key}: {how}', [part for part in key.split('.') if not part.isdigit()]


def run(case: Case, seed: int, good: dict[str, Any], cfg: dict[str, Any]) -> dict[str, Any]:
    """In the process of the case, in its folder."""
    rng = random.Random(f'{seed} {case.number}')
    torch.manual_seed(0)
    Marker.path = os.path.abspath('was_run')
    path, what, names = break_file(case, rng, good, cfg)
    before = hashes()
    ended, code = 'returned', None
    with (
        open('out.txt', 'w') as out,
        open('err.txt', 'w') as err,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            code = CONSUMERS[case.consumer](str(path))
        except SystemExit as error:  # argparse
            code = error.code
        except BaseException:
            ended = 'traceback'
            traceback.print_exc()
    message = Path('err.txt').read_text()
    result = {'what': what, 'code': code, 'message': message[-3000:]}
    fault = FAULTS.get(case.fault) or RESUME_FAULTS.get(case.fault)
    result['end'] = verdict(case, fault, ended, code, message, before, hashes(), [path.stem, *names])
    return result


def verdict(
    case: Case,
    fault: Fault | None,
    ended: str,
    code: int | None,
    message: str,
    before: dict,
    after: dict,
    names: list[str],
) -> str:
    """One of `GOOD`, or what is wrong."""
    if os.path.exists('was_run'):
        return 'ran what a pickle says'
    inputs = {key: value for key, value in before.items() if key.startswith('case/')}
    kept = inputs if code == 0 else before
    if any(after.get(key) != value for key, value in kept.items()):
        return 'overwrote a file'
    if ended == 'traceback' or 'Traceback (most recent call last)' in message:
        return 'traceback'
    if code == 0:
        if fault is None:
            return 'taken'
        may = fault.harmless or (fault.loose and case.consumer in LOOSE)
        may = may or (case.consumer != 'resume' and case.fault in RESUME_FAULTS)
        return 'taken' if may else 'took what it should not'
    if code != 2 or 'rror: ' not in message:
        return f'ended with {code} and no message'
    said = message.partition('rror: ')[2]
    if not any(name.lower() in said.lower() for name in names) and not re.search(COMPONENT, said):
        return 'named nothing'
    return 'refused'


def hashes() -> dict[str, str]:
    """Of everything in the folder but what this trial writes, and what mmengine notes of a run that it begins."""
    found = {}
    for path in sorted(Path('.').rglob('*')):
        if path.is_file() and not path.is_symlink() and path.name not in WRITTEN and path.as_posix() != DUMPED:
            found[path.as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


# --------------------------------------------------------------------------------------------------------------------
# Processes


def forked(work: Callable[[], Any], folder: Path, limit: float) -> Any:
    """What `work` returns in a forked process in `folder`; a text if it hangs or crashes."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(read)
            os.chdir(folder)
            os.setsid()
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            log = os.open('log.txt', os.O_CREAT | os.O_WRONLY)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.write(write, json.dumps(work()).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(write)
    signal.signal(signal.SIGALRM, lambda *_: os.killpg(pid, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, limit)
    chunks = []
    while chunk := os.read(read, 65536):
        chunks.append(chunk)
    signal.setitimer(signal.ITIMER_REAL, 0)
    os.close(read)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == 0:
        return json.loads(b''.join(chunks))
    log = folder / 'log.txt'
    return f'exit {status}: {log.read_text(errors="replace")[-1500:] if log.exists() else ""}'


@contextlib.contextmanager
def base_folder(prefix: str, fill: Callable[[], None]) -> Iterator[Path]:
    """A folder that `fill` has filled, as its working directory, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix=prefix) as top:
        base = Path(top) / 'base'
        base.mkdir()
        failure = forked(fill, base, 300)
        if failure is not None:
            raise RuntimeError(f'the good files cannot be made: {failure}')
        (base / 'log.txt').unlink()
        yield base


def in_a_copy(base: Path, work: Callable[[], dict[str, Any]], limit: float) -> dict[str, Any]:
    """What `work` finds in a copy of the folder, and its seconds; how it ended if it hangs or crashes."""
    folder = base.with_name('case')
    shutil.copytree(base, folder)
    started = time.time()
    result = forked(work, folder, limit)
    seconds = time.time() - started
    if isinstance(result, str):
        result = {'end': 'hung' if seconds >= limit else 'crashed', 'message': result}
    shutil.rmtree(folder)
    return {**result, 'seconds': round(seconds, 1)}


def prepare() -> None:
    """good.py, good.pth (a checkpoint of a training, to be resumed), its data, and outputs that are to stay."""
    from mmext_backbones.config.files import load_config
    from mmext_backbones.config.options import KNOWN_KEYS
    from mmext_backbones.datasets.shapes.config import use_shapes
    from mmext_backbones.datasets.shapes.files import make_shapes
    from mmext_backbones.utils.console import silence_libraries

    silence_libraries()
    make_shapes(Path('made'), size=32, num_train=4, num_val=2)
    Path('source.py').write_text(CONFIG)
    cfg = load_config('source.py')
    use_shapes(cfg, Path('made'), iters=2)
    cfg.train_cfg.val_interval = 10
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].update(num_workers=0, persistent_workers=False, batch_size=2)
    cfg.work_dir = 'work'
    # what no run reads, such as a pipeline by a name of its own, hides what is broken in it
    plain = {key: value for key, value in json.loads(json.dumps(cfg.to_dict())).items() if key in KNOWN_KEYS}
    Path('good.json').write_text(json.dumps(plain))
    Path('good.py').write_text(breaking_configs.text_of(plain))
    code = run_cli(tool('train'), ['good.py', '--seed', '0', '--cfg-options', 'train_cfg.max_iters=1'])
    assert code == 0, 'the good config does not train'
    shutil.copy('work/iter_1.pth', 'good.pth')
    Path('converted.pth').write_text('an output of before')
    Path('swapped.py').write_text('# an output of before\n')


def run_all(chosen: list[Case], seed: int, limit: float, say: Callable[[str], None]) -> list[dict[str, Any]]:
    results = []
    with base_folder('broken_files_', prepare) as base:
        good = torch.load(base / 'good.pth')
        cfg = json.loads((base / 'good.json').read_text())
        for case in chosen:
            result = in_a_copy(base, lambda case=case: run(case, seed, good, cfg), limit)
            results.append({**case._asdict(), 'what': case.fault, **result})
            say(f'{len(results)}/{len(chosen)}  {case.consumer}: {results[-1]["what"]}: {result["end"]}')
    return results


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--cases', type=int, default=300)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--only', type=int, nargs='+', metavar='NUMBER', help='run these cases alone')
    parser.add_argument('--limit', type=float, default=LIMIT, help='seconds for a case')
    parser.add_argument('-o', '--out', type=Path, help='write the results there as JSON')
    args = parser.parse_args(argv)
    if args.out is not None and args.out.exists():
        parser.error(f'{args.out} exists already')
    import mmpretrain.models  # noqa: F401  once, before the forks

    chosen = cases(args.cases, args.seed)
    if args.only:
        chosen = [case for case in cases(max(args.cases, *args.only) + 1, args.seed) if case.number in args.only]
    results = run_all(chosen, args.seed, args.limit, lambda text: print(text, flush=True))
    bad = [each for each in results if each['end'] not in GOOD]
    for each in bad:
        print(f'\ncase {each["number"]}, {each["consumer"]}, {each["what"]}: {each["end"]}\n{each["message"][-1200:]}')
    counts = Counter((each['consumer'], each['end']) for each in results)
    print()
    for (consumer, end), count in sorted(counts.items()):
        print(f'{consumer:16} {end:28} {count:4}')
    print(f'{len(results)} cases, {len(bad)} failed, the longest took {max(each["seconds"] for each in results)} s')
    if args.out is not None:
        args.out.write_text(json.dumps({'seed': args.seed, 'results': results}, indent=1))
    return bool(bad)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
