"""A long training on the Shapes data with two loader processes, whose resident memory must stay flat.

Memory, threads, open files and Python objects of the training process, and the memory of every loader process, are
sampled all along, validations and checkpoints included. After the warm-up, the first quarter, no process may grow by
more than 3 %, and over the second half none may grow by more than 4 KiB an iteration (the slope of a line through the
samples).

python dev/trials/soak.py --iters 2000 --json work_dirs/soak.json
"""

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from resources import children, resident, slope

from mmext_backbones.engine.train import train
from mmext_backbones.utils.cli import add_traceback_option, run_cli
from mmext_backbones.utils.errors import UserError

ROOT = Path(__file__).parents[2]
GROWTH = 0.03  # of a process, from the end of the warm-up to the end: medians of eight samples
SLOPE = 4.0  # KiB an iteration, over the second half
SAMPLES = 100
VALIDATIONS = 8

THIN = {'embed_dims': 16, 'depths': (1, 1, 1, 1), 'num_heads': (1, 2, 4, 8), 'group_width': 4}
WIDTHS = [16, 32, 64, 128]
BACKBONE = f"dict(_delete_=True, type='mmext_backbones.ELSASwin', arch={THIN}, drop_path_rate=0.1)"
CONFIGS = {
    'detection': f"""
_base_ = [{str(ROOT / 'configs' / 'elsa_swin_t_maskrcnn_1x.py')!r}]
model = dict(
    backbone={BACKBONE},
    neck=dict(in_channels={WIDTHS}, out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        mask_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=32),
        mask_head=dict(in_channels=16, conv_out_channels=16, num_convs=1)))
""",
    'segmentation': f"""
_base_ = [{str(ROOT / 'configs' / 'elsa_swin_t_upernet_160k.py')!r}]
model = dict(
    backbone={BACKBONE},
    decode_head=dict(in_channels={WIDTHS}, channels=16),
    auxiliary_head=dict(in_channels=64, channels=16))
""",
}


class Sample(NamedTuple):
    """The run after so many iterations: MiB of the training process and, by their ids, of the loaders; counts."""

    iteration: int
    main: float
    loaders: dict[int, float]
    threads: int
    files: int
    objects: int


@HOOKS.register_module(force=True)  # this file may be read twice
class MemoryTrace(Hook):
    """Samples the processes of a training; the samples of the last run stay in `samples`."""

    samples: ClassVar[list[Sample]] = []
    priority = 'VERY_LOW'

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self.samples.clear()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if not self.every_n_train_iters(runner, self.interval):
            return
        loaders = {pid: round(resident(pid), 2) for pid in children(os.getpid())}
        counts = len(os.listdir('/proc/self/task')), len(os.listdir('/proc/self/fd')), len(gc.get_objects())
        self.samples.append(Sample(runner.iter + 1, round(resident(), 2), loaders, *counts))


def soak(task: str, iters: int, work_dir: Path, seed: int, num_workers: int = 2) -> list[Sample]:
    """Trains a thin network, and returns the samples."""
    config = work_dir / f'{task}.py'
    config.write_text(CONFIGS[task])
    options = {
        'train_cfg.max_iters': iters,
        'train_cfg.val_interval': max(1, iters // VALIDATIONS),
        'train_dataloader.batch_size': 2,
        'train_dataloader.num_workers': num_workers,
        'train_dataloader.persistent_workers': num_workers > 0,
        'default_hooks.logger.interval': max(1, iters // 20),
        'default_hooks.checkpoint.interval': max(1, iters // VALIDATIONS),
        'default_hooks.checkpoint.max_keep_ckpts': 2,
        'custom_hooks': [{'type': 'MemoryTrace', 'interval': max(1, iters // SAMPLES)}],
    }
    train(str(config), shapes=True, work_dir=str(work_dir / 'run'), cfg_options=options, seed=seed)
    return list(MemoryTrace.samples)


def judge(samples: list[Sample]) -> tuple[list[str], dict[str, dict[str, float]]]:
    """What is not flat, and the figures of every process that lived from the warm-up to the end."""
    warm, half = len(samples) // 4, len(samples) // 2
    traces = {'training': [sample.main for sample in samples]}
    loaders = set.intersection(*(set(sample.loaders) for sample in samples[warm:]))
    traces |= {f'loader {pid}': [sample.loaders.get(pid, 0.0) for sample in samples] for pid in sorted(loaders)}
    figures, faults = {}, []
    for name, trace in traces.items():
        before, after = (statistics.median(part) for part in (trace[warm : warm + 8], trace[-8:]))
        per_iter = slope([sample.iteration for sample in samples[half:]], [1024 * mib for mib in trace[half:]])
        growth = after / before - 1
        figures[name] = {'warm_mib': before, 'last_mib': after, 'growth': growth, 'kib_per_iter': per_iter}
        if growth > GROWTH:
            faults.append(
                f'{name}: {before:.1f} -> {after:.1f} MiB, {growth:.1%} after the warm-up (limit {GROWTH:.0%})'
            )
        if per_iter > SLOPE:
            faults.append(f'{name}: {per_iter:.2f} KiB an iteration over the second half (limit {SLOPE})')
    for what in ('threads', 'files'):  # the fewest of some samples: batches on their way hold files, too
        counts = [getattr(sample, what) for sample in samples]
        first, last = min(counts[warm : warm + 8]), min(counts[-8:])
        if last > first:
            faults.append(f'{what}: {first} after the warm-up, {last} at the end')
    return faults, figures


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--task', choices=CONFIGS, default='detection')
    parser.add_argument('--iters', type=int, default=2000)
    parser.add_argument('--workers', type=int, default=2, help='loader processes')
    parser.add_argument('--seed', type=int, default=0, help='of every random choice')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the result there')
    add_traceback_option(parser)
    args = parser.parse_args(argv)
    if not Path('/proc/self/status').exists():
        raise UserError('memory is read from /proc/self, which is Linux')
    if args.iters < 40:
        raise UserError(f'--iters {args.iters}: expected at least 40, or nothing can be said of growth')
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        samples = soak(args.task, args.iters, Path(folder), args.seed, args.workers)
    faults, figures = judge(samples)
    result: dict[str, Any] = {
        **vars(args),
        'seconds': round(time.monotonic() - started, 1),
        'faults': faults,
        'figures': figures,
        'samples': [sample._asdict() for sample in samples],
    }
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1, default=str))
    for name, at in figures.items():
        print(
            f'{name}: {at["warm_mib"]:.1f} MiB after the warm-up, {at["last_mib"]:.1f} at the end '
            f'({at["growth"]:+.2%}), {at["kib_per_iter"]:+.2f} KiB an iteration over the second half'
        )
    print('\n'.join(faults) or f'flat over {args.iters} iterations')
    return int(bool(faults))


if __name__ == '__main__':
    sys.exit(run_cli(main))
