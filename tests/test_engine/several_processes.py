"""What test_strategies.py runs in processes of their own: a tiny Swin that learns, under any strategy."""

import datetime
import functools
import os
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import all_reduce, get_rank
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from torch import nn
from torch.utils.data import Dataset

from mmext_backbones.backbones import ELSASwin, MaxViT, Sequencer2D, SwinTransformer
from mmext_backbones.config.editing import ConfigEditor
from mmext_backbones.engine.config_edits import INTERRUPTION_HOOKS, fit_processes
from mmext_backbones.engine.runner import build_runner
from tests.conftest import skip_waits

SWIN = {'embed_dims': 16, 'depths': (2, 2), 'num_heads': (1, 2)}
SEQUENCER = {'embed_dims': (16, 32), 'depths': (1, 1), 'hidden_dims': (4, 8)}
BACKBONES = {
    'SwinTransformer': functools.partial(SwinTransformer, SWIN, window_size=2),
    'ELSASwin': functools.partial(ELSASwin, {**SWIN, 'group_width': 4}, window_size=2),
    'MaxViT': functools.partial(MaxViT, {'embed_dims': (32, 32), 'depths': (1, 1), 'stem_dims': 16}, norm_eval=True),
    'Sequencer2D': functools.partial(
        Sequencer2D, {'embed_dims': (16, 32), 'depths': (1, 1), 'hidden_dims': (4, 8)}, pyramid=False
    ),
}
IMAGES = 64


@DATASETS.register_module()
class NoiseImages(Dataset):
    """Noise around a level that is to be found; the same for every process and call."""

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        level = torch.randn((), generator=generator)
        return {'image': level + 0.1 * torch.randn(3, 16, 16, generator=generator), 'target': level}


@MODELS.register_module()
class Regressor(BaseModel):
    """A number for each image, the mean of a linear map of the last features."""

    def __init__(self, with_cp: bool | tuple[int, ...] = False, backbone: str = 'SwinTransformer') -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = BACKBONES[backbone](out_indices=(1,), drop_path_rate=0.0, with_cp=with_cp)
        self.head = nn.Conv2d(self.backbone.out_channels[0], 1, 1)

    def forward(self, image: torch.Tensor, target: torch.Tensor, mode: str) -> dict | torch.Tensor:
        coarse = self.backbone(image)[-1]
        out = self.head(coarse).mean((1, 2, 3))
        return {'loss': ((out - target) ** 2).mean()} if mode == 'loss' else out


class KeepLosses(Hook):
    """The mean loss of all processes, an iteration each."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        loss = outputs['loss'].detach().clone()
        all_reduce(loss, 'mean')
        self.losses.append(float(loss))


def config(work_dir: Path, *, batch: int, iters: int, launcher: str, accumulate: int = 1, **entries) -> Config:
    return Config(
        {
            'work_dir': str(work_dir),
            'train_dataloader': {
                'dataset': {'type': 'NoiseImages'},
                'batch_size': batch,
                'collate_fn': {'type': 'default_collate'},
                'sampler': {'type': 'DefaultSampler', 'shuffle': False},
            },
            'train_cfg': {'by_epoch': False, 'max_iters': iters},
            'optim_wrapper': {
                'type': 'OptimWrapper',
                'optimizer': {'type': 'AdamW', 'lr': 2e-3, 'eps': 1e-4, 'weight_decay': 0.05},
                'accumulative_counts': accumulate,
                'clip_grad': {'max_norm': 0.05},
                'paramwise_cfg': {'custom_keys': {'blocks.1.norm1': {'decay_mult': 0.0, 'lr_mult': 0.5}}},
            },
            'param_scheduler': [{'type': 'LinearLR', 'start_factor': 0.1, 'by_epoch': False, 'begin': 0, 'end': 10}],
            'default_hooks': {'checkpoint': {'type': 'CheckpointHook', 'by_epoch': False, 'interval': 10}},
            'custom_hooks': [{'type': name} for name in INTERRUPTION_HOOKS],  # as in every run of the tools
            'env_cfg': {'dist_cfg': {'backend': 'gloo'}},
            'randomness': {'seed': 3},
            'launcher': launcher,
            **entries,
        }
    )


def run(
    work_dir: Path, *, batch: int, iters: int = 20, launcher: str = 'none', model: dict | None = None, **entries
) -> dict:
    """Trains; the losses, and the weights of the last checkpoint."""
    cfg = config(work_dir, batch=batch, iters=iters, launcher=launcher, **entries)
    fit_processes(ConfigEditor(cfg), launcher)
    cfg.model = {'type': 'Regressor', **(model or {})}
    runner = build_runner(cfg)
    keep = KeepLosses()
    runner.register_hook(keep)
    runner.train()
    return {'losses': keep.losses, 'checkpoint': str(work_dir / f'iter_{iters}.pth')}


def worker(rank: int, size: int, port: int, jobs: dict[str, dict], out: str) -> None:
    """One of several processes: runs every job one after the other, and the first process writes down what came."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR='127.0.0.1')
    os.environ['MASTER_PORT'] = str(port)
    skip_waits()
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', timeout=datetime.timedelta(seconds=60))
    results = {}
    for name, job in jobs.items():
        results[name] = run(Path(out) / name, launcher='pytorch', **job)
    if get_rank() == 0:
        torch.save(results, Path(out) / 'results.pth')
    torch.distributed.destroy_process_group()
