"""Kills a training again and again, resumes it each time, and compares the end with that of an unbroken one.

python dev/trials/kills.py --kills 50

The training is that of tools/train.py: a small Mask R-CNN on drawn shapes, on the CPU. Each life of it is a process of
its own, forked from this one, which has imported everything. Of three kills one is a SIGKILL at a random moment, one a
SIGKILL inside the writing of a checkpoint, one a SIGTERM. Iteration-based and epoch-based trainings take turns. Their
last checkpoints have to be those of unbroken ones, bit for bit: weights, optimizer, schedules. Exit code 1 otherwise.
"""

import argparse
import importlib.util
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = '1'  # as many threads, as many orders in which sums are taken

import torch
from mmengine.fileio import LocalBackend
from mmengine.runner import Runner

from mmext_backbones.engine import setup
from mmext_backbones.engine.resume.position import find_checkpoint
from mmext_backbones.engine.resume.signals import EXIT_CODE
from mmext_backbones.utils.cli import run_cli
from mmext_backbones.weights.loading import read

ROOT = Path(__file__).parents[2]
WIDTHS = [16, 32, 64, 128]
CONFIG = f"""
_base_ = [{str(ROOT / 'configs' / 'swin_t_maskrcnn_1x.py')!r}]
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8)), drop_path_rate=0.2),
    neck=dict(in_channels={WIDTHS}, out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        mask_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=16),
        mask_head=dict(in_channels=16, conv_out_channels=16)))
"""
EPOCHS = (
    'train_cfg._delete_=True',
    'train_cfg.type=EpochBasedTrainLoop',
    'train_dataloader.sampler.type=DefaultSampler',
)
KINDS = ('moment', 'write', 'term')
NUM_IMAGES, BATCH_SIZE, INTERVAL = 14, 2, 3


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=50, help='how many (default: 50)')
    parser.add_argument('--iterations', type=int, default=42, help='of a training, in sevens (default: 42)')
    parser.add_argument('--workers', type=int, default=0, help='processes that load data (default: 0)')
    parser.add_argument('--seed', type=int, default=0, help='of the moments, and of the trainings')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/trials/kills'), help='emptied first')
    args = parser.parse_args(argv)
    if args.iterations % (NUM_IMAGES // BATCH_SIZE):
        parser.error(f'--iterations {args.iterations}: epochs have {NUM_IMAGES // BATCH_SIZE}; give a multiple of it')

    started = time.time()
    shutil.rmtree(args.work_dir, ignore_errors=True)
    args.work_dir.mkdir(parents=True)
    trial = Trial(args)
    trial.prepare()
    for index in range(1000):
        trial.round(index)
        if trial.kills == args.kills:
            break
    result = {**trial.result, 'seconds': round(time.time() - started)}
    (args.work_dir / 'result.json').write_text(json.dumps(result, indent=2))
    print(json.dumps(result, indent=2))
    return 0 if result['equal'] == result['trainings'] and not result['problems'] else 1


class Trial:
    """The trainings of one trial, and what became of them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.folder = args.work_dir.resolve()
        self.random = random.Random(args.seed)
        self.kills = 0
        self.result = {
            'kills': {},
            'ends': {},  # kind of kill, and the signal or the exit code it ended with: how many
            'trainings': 0,
            'equal': 0,
            'iterations_lost': {},  # kind of kill: how many were done and had to be done again, at most
            'problems': [],
        }

    def prepare(self) -> None:
        """Imports what a training needs, draws the data and runs the unbroken trainings."""
        from mmdet.utils import register_all_modules

        register_all_modules(init_default_scope=False)
        (self.folder / 'config.py').write_text(CONFIG)
        data = self.folder / 'data'
        setup.make_default_shapes = lambda: data
        wait(fork(lambda: draw(data), self.folder / 'data.log'))
        for loop in ('iter', 'epoch'):
            code = self._life(loop, self.folder / f'unbroken_{loop}')[0]
            if code != 0:
                sys.exit((self.folder / f'unbroken_{loop}.log').read_text()[-3000:])

    def round(self, index: int) -> None:
        """One training, killed until it is at its end or no kills are left."""
        loop = ('iter', 'epoch')[index % 2]
        folder = self.folder / f'{index}_{loop}'
        while True:
            kind = KINDS[self.kills % len(KINDS)] if self.kills < self.args.kills else None
            code, done = self._life(loop, folder, kind)
            if kind is None or code == 0:
                break
            self.kills += 1
            self._count(kind, code)
            self._check(folder, kind, code, done)
            print(f'kill {self.kills:>3} of {self.args.kills}: {kind:<6} exit {code:>3}, iteration {done}', flush=True)
        self.result['trainings'] += 1
        if code != 0:
            self.result['problems'].append(f'{folder.name}: ended with {code}: {last_lines(folder)}')
        same = code == 0 and equal(*(path / f'iter_{self.args.iterations}.pth' for path in self._pair(loop, folder)))
        self.result['equal'] += same
        print(f'{folder.name}: {"equal to" if same else "NOT EQUAL TO"} the unbroken training', flush=True)

    def _pair(self, loop: str, folder: Path) -> tuple[Path, Path]:
        return self.folder / f'unbroken_{loop}', folder

    def _count(self, kind: str, code: int) -> None:
        name = signal.Signals(-code).name if code < 0 else str(code)
        for table, key in (('kills', kind), ('ends', f'{kind}: {name}')):
            self.result[table][key] = self.result[table].get(key, 0) + 1

    def _check(self, folder: Path, kind: str, code: int, done: int) -> None:
        """What a kill left behind: every checkpoint whole, and the one to go on from at most an interval back."""
        problems = self.result['problems']
        if code not in {'term': (EXIT_CODE, -signal.SIGTERM)}.get(kind, (-signal.SIGKILL,)):
            problems.append(f'{folder.name}: {kind}: exit code {code}: {last_lines(folder)}')
        said = []
        checkpoint = find_checkpoint(folder, said.append)
        at = read(checkpoint)['meta']['iter'] if checkpoint else 0
        problems += [f'{folder.name}: {line}' for line in said if 'cannot be resumed' in line]
        if done:
            lost = self.result['iterations_lost']
            lost[kind] = max(lost.get(kind, 0), done - at)

    def _life(self, loop: str, folder: Path, kind: str | None = None) -> tuple[int, int]:
        """Starts a training, or goes on with it, and kills it. Its exit code, and how many iterations it had done."""
        per_epoch = NUM_IMAGES // BATCH_SIZE
        length = [f'train_cfg.max_iters={self.args.iterations}', f'train_cfg.val_interval={2 * per_epoch}']
        if loop == 'epoch':
            epochs = self.args.iterations // per_epoch
            length = [*EPOCHS, f'train_cfg.max_epochs={epochs}', 'train_cfg.val_interval=2']
        argv = [str(self.folder / 'config.py'), '--shapes', '--work-dir', str(folder), '--resume']
        argv += ['--seed', str(self.args.seed), '--cfg-options', *length]
        argv += [f'train_dataloader.batch_size={BATCH_SIZE}', f'train_dataloader.num_workers={self.args.workers}']
        argv += [f'train_dataloader.persistent_workers={self.args.workers > 0}', 'default_hooks.logger.interval=1']
        argv += [f'default_hooks.checkpoint.interval={INTERVAL}', 'default_hooks.checkpoint.max_keep_ckpts=2']

        reader, writer = os.pipe()
        moment = self.random.choice(list(INSIDE_WRITE)) if kind == 'write' else None
        number = self.random.randint(1, 3)
        after, fraction = self.random.randint(0, 3 * INTERVAL), self.random.random()

        def train() -> int:
            os.close(reader)
            report_iterations(writer)
            if moment is not None:
                die_inside_write(moment, number)
            return run_cli(load_tool().main, argv)

        pid = fork(train, self.folder / f'{folder.name}.log')
        os.close(writer)
        done, times = 0, [time.time()]
        with open(reader, 'rb', buffering=0) as pipe:
            while byte := pipe.read(8):
                done = int.from_bytes(byte, 'big')
                times.append(time.time())
                if len(times) > after and kind in ('moment', 'term'):
                    # somewhere in the two iterations that follow, or in the start
                    time.sleep(fraction * 2 * (times[-1] - times[-2]) if len(times) > 2 else fraction)
                    os.kill(pid, signal.SIGKILL if kind == 'moment' else signal.SIGTERM)
                    kind = None
        return wait(pid), done


# --------------------------------------------------------------------------------------------------------------------
# In the process of a training


def draw(folder: Path) -> None:
    from mmext_backbones.datasets.shapes.files import make_shapes

    make_shapes(folder, size=64, num_train=NUM_IMAGES, num_val=3)


def load_tool() -> object:
    spec = importlib.util.spec_from_file_location('train', ROOT / 'tools' / 'train.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def report_iterations(writer: int) -> None:
    """Writes to a pipe how many iterations are done: at the start of a training and after each."""
    call_hook = Runner.call_hook

    def reporting(self: Runner, name: str, **kwargs: object) -> None:
        call_hook(self, name, **kwargs)
        if name in ('before_train', 'before_train_iter'):
            os.write(writer, self.iter.to_bytes(8, 'big'))

    Runner.call_hook = reporting


INSIDE_WRITE = {
    # what is called for a checkpoint, and whether it is killed before, in the middle or after
    'half written': (LocalBackend, 'put', 'half'),
    'written': (LocalBackend, 'put', 'after'),
    'renamed': (os, 'replace', 'after'),
    'before the old one goes': (LocalBackend, 'remove', 'before'),
}


def die_inside_write(moment: str, number: int) -> None:
    """Arranges a SIGKILL at a moment of the `number`-th checkpoint that comes by it."""
    owner, name, when = INSIDE_WRITE[moment]
    call = getattr(owner, name)
    count = 0

    def deadly(*args: object) -> object:
        nonlocal count
        count += any('.pth' in str(arg)[-20:] for arg in args if isinstance(arg, (str, Path)))
        if count < number:
            return call(*args)
        if when == 'half':
            Path(args[2]).write_bytes(args[1][: len(args[1]) // 2])
        elif when == 'after':
            call(*args)
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    setattr(owner, name, deadly)


# --------------------------------------------------------------------------------------------------------------------
# Processes and files


def fork(call: Callable[[], int | None], log: Path) -> int:
    """Starts a process that runs a function, its screen in a file; its id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with open(log, 'ab') as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            code = call() or 0
        except SystemExit as end:
            code = end.code
        finally:
            sys.stdout.flush()
            os._exit(code)
    return pid


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def last_lines(folder: Path) -> str:
    return '\n'.join(folder.with_name(f'{folder.name}.log').read_text().splitlines()[-5:])


def equal(one: Path, other: Path) -> bool:
    """Whether two checkpoints have the same weights, optimizer and schedules, bit for bit."""
    first, second = (read(path) for path in (one, other))
    return all(same(first[key], second[key]) for key in ('state_dict', 'optimizer', 'param_schedulers'))


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
