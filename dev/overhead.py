"""What our runner adds to a training: the same config by mmengine's runner and by tools/train.py, in turn.

python -m dev.overhead [--config mmdet::retinanet/retinanet_r18_fpn_1x_coco.py] [--iters 300] [--rounds 3] [-o FILE]

Each run is a process of its own: a training on drawn shapes with one validation and one checkpoint at its end. What
is counted: the median time of an iteration, as it is logged, without the first line of the log; and the whole run. The
ratios are ours over mmengine's. The losses of both have to be the same; images are not flipped, for our runner draws
that from the number of the batch.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmext_backbones.config.files import load_config
from mmext_backbones.datasets.shapes.config import use_shapes
from mmext_backbones.datasets.shapes.files import make_shapes

ROOT = Path(__file__).parents[1]
STOCK = """
import sys
import mmext_backbones
from mmengine.config import Config
from mmengine.runner import Runner
cfg = Config.fromfile(sys.argv[1])
cfg.work_dir = sys.argv[2]
Runner.from_cfg(cfg).train()
"""
SIDES = {'mmengine': ['-c', STOCK], 'ours': [str(ROOT / 'tools' / 'train.py')]}


def start(cfg: Config, path: Path) -> str:
    """Writes weights that both sides start from."""
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    with contextlib.redirect_stderr(io.StringIO()):  # a line for each of them
        model.init_weights()
    torch.save({'state_dict': model.state_dict()}, path)
    return str(path)


def run(side: str, config: Path, folder: Path) -> dict[str, object]:
    """One training: seconds of an iteration and of all, and its losses."""
    where = [str(folder)] if side == 'mmengine' else ['--work-dir', str(folder)]
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, *SIDES[side], str(config), *where], env=environment, capture_output=True, text=True
    )
    seconds = time.monotonic() - started
    if done.returncode:
        raise RuntimeError(f'{side} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}')
    log = next(folder.glob('*/vis_data/scalars.json'))
    rows = [row for row in map(json.loads, log.read_text().splitlines()) if 'loss' in row]
    times = [row['time'] for row in rows[1:]]
    return {'iteration': statistics.median(times), 'whole': seconds, 'losses': [row['loss'] for row in rows]}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default='mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
    parser.add_argument('--iters', type=int, default=300)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('-o', '--out', type=Path, help='write what was measured there as JSON')
    args = parser.parse_args(argv)
    runs = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_shapes(folder / 'data', num_train=64, num_val=8)
        cfg = load_config(args.config)
        use_shapes(cfg, folder / 'data', iters=args.iters, num_workers=0)
        cfg.randomness = {'seed': 0}
        dataset = cfg.train_dataloader.dataset
        dataset.pipeline = [step for step in dataset.pipeline if step['type'] != 'RandomFlip']
        cfg.train_dataloader.sampler.seed = 0  # otherwise drawn, after what was drawn before it
        cfg.train_cfg.val_interval = args.iters
        cfg.load_from = start(cfg, folder / 'start.pth')  # random numbers are drawn in another order
        cfg.dump(folder / 'config.py')
        for number in range(args.rounds):
            for side in list(SIDES)[:: 1 if number % 2 == 0 else -1]:
                runs[side].append(run(side, folder / 'config.py', folder / f'{number}_{side}'))
                row = runs[side][-1]
                print(f'{side:<9} {row["iteration"]:.3f} s an iteration, {row["whole"]:.1f} s in all', flush=True)
    losses = {tuple(row.pop('losses')) for side in SIDES for row in runs[side]}
    if len(losses) != 1:
        raise RuntimeError(f'the losses differ: {losses}')
    for key in ('iteration', 'whole'):
        ratios = [own[key] / theirs[key] for own, theirs in zip(runs['ours'], runs['mmengine'], strict=True)]
        print(f'{key:<9} {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})')
    if args.out:
        args.out.write_text(json.dumps(runs, indent=1))


if __name__ == '__main__':
    main(sys.argv[1:])
