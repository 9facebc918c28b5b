"""What --strategy, --accumulate, --auto-scale-lr and --launcher make of a config."""

import sys

import pytest
import torch
from mmengine.config import Config

from mmext_backbones.datasets.shapes import files
from mmext_backbones.engine import processes
from mmext_backbones.engine.config_edits import fit_strategy, step_batch, use_accumulation, use_scaled_lr, use_strategy
from mmext_backbones.utils.errors import UserError
from tests.test_engine.edits import edited


def config(**entries):
    return Config(
        {
            'train_dataloader': {'batch_size': 4},
            'optim_wrapper': {'type': 'OptimWrapper', 'optimizer': {'type': 'AdamW', 'lr': 1e-3}},
            'auto_scale_lr': {'base_batch_size': 16, 'enable': True},
            **entries,
        }
    )


def test_learning_rate_counts_processes_and_accumulated_batches():
    cfg = config()
    edited(use_accumulation, cfg, 3)
    assert step_batch(cfg, processes=8) == 96
    edited(use_scaled_lr, cfg, processes=8)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(1e-3 * 96 / 16)
    assert not cfg.auto_scale_lr.enable  # mmengine would scale it once more


@pytest.mark.parametrize(
    ('entries', 'message'),
    [
        ({'auto_scale_lr': None}, 'base_batch_size'),
        ({'train_dataloader': {}}, 'train_dataloader.batch_size'),
        ({'optim_wrapper': {'generator': {}, 'discriminator': {}}}, 'optim_wrapper.optimizer.lr'),
    ],
)
def test_learning_rate_that_cannot_be_scaled(entries, message):
    with pytest.raises(UserError, match=message):
        edited(use_scaled_lr, config(**entries), processes=1)


def test_accumulated_iterations_are_steps():
    cfg = config(
        train_cfg={'type': 'IterBasedTrainLoop', 'max_iters': 100, 'val_interval': 50},
        param_scheduler=[
            {'type': 'LinearLR', 'by_epoch': False, 'begin': 0, 'end': 10, 'start_factor': 0.1},
            {'type': 'MultiStepLR', 'by_epoch': False, 'begin': 10, 'end': 100, 'milestones': [60, 80], 'gamma': 0.1},
            {'type': 'StepLR', 'by_epoch': True, 'step_size': 3},
        ],
        default_hooks={'checkpoint': {'type': 'CheckpointHook', 'by_epoch': False, 'interval': 50}},
        custom_hooks=[{'type': 'EMAHook', 'momentum': 1e-4}, {'type': 'NumClassCheckHook'}],
    )
    edited(use_accumulation, cfg, 4)
    assert cfg.train_cfg == {'type': 'IterBasedTrainLoop', 'max_iters': 400, 'val_interval': 200}
    assert [cfg.param_scheduler[0][key] for key in ('begin', 'end', 'start_factor')] == [0, 40, 0.1]
    assert [cfg.param_scheduler[1][key] for key in ('begin', 'end', 'milestones')] == [40, 400, [240, 320]]
    assert cfg.param_scheduler[2].step_size == 3
    assert cfg.default_hooks.checkpoint.interval == 200
    assert cfg.custom_hooks == [{'type': 'EMAHook', 'momentum': 1e-4, 'interval': 4}, {'type': 'NumClassCheckHook'}]
    with pytest.raises(UserError, match='--accumulate 0'):
        edited(use_accumulation, cfg, 0)


def test_epochs_stay_epochs():
    cfg = config(
        train_cfg={'type': 'EpochBasedTrainLoop', 'max_epochs': 12, 'val_interval': 1},
        param_scheduler=[{'type': 'LinearLR', 'by_epoch': False, 'begin': 0, 'end': 500}],
        default_hooks={'checkpoint': {'type': 'CheckpointHook', 'interval': 1}},
    )
    edited(use_accumulation, cfg, 2)
    assert (cfg.train_cfg.max_epochs, cfg.train_cfg.val_interval, cfg.default_hooks.checkpoint.interval) == (12, 1, 1)
    assert cfg.param_scheduler[0].end == 1000
    assert cfg.optim_wrapper.accumulative_counts == 2


def test_strategies_by_name_and_as_a_base(tmp_path):
    cfg = config()
    edited(use_strategy, cfg, 'fsdp')
    assert (cfg.runner_type, cfg.strategy.type) == ('FlexibleRunner', 'mmext_backbones.FSDPStrategy')
    (tmp_path / 'leaf.py').write_text(
        "_base_ = ['mmext_backbones::swin_t_upernet_160k.py', 'mmext_backbones::_base_/strategies/fsdp.py']"
    )
    pytest.importorskip('mmseg')
    inherited = Config.fromfile(tmp_path / 'leaf.py').strategy
    assert inherited.pop('_scope_') == 'mmext_backbones'  # mmengine's note of where a base is from
    assert inherited == cfg.strategy
    edited(use_strategy, cfg, 'ddp')
    assert 'strategy' not in cfg
    assert cfg.get('runner_type', 'Runner') == 'Runner'


def test_a_test_needs_no_shards():
    cfg = config()
    edited(use_strategy, cfg, 'fsdp')
    edited(fit_strategy, cfg, 'none', train=False)
    assert (cfg.runner_type, cfg.get('strategy')) == ('Runner', None)


@pytest.mark.parametrize('name', ['fsdp', 'deepspeed'])
def test_shards_that_cannot_be(name, monkeypatch):
    cfg = config()
    edited(use_strategy, cfg, name)
    with pytest.raises(UserError, match='shards a model over several processes, and this is one'):
        edited(fit_strategy, cfg, 'none', train=True)
    cfg.custom_hooks = [{'type': 'EMAHook'}]
    with pytest.raises(UserError, match=r'with EMAHook: .*custom_hooks='):
        edited(fit_strategy, cfg, 'pytorch', train=True)


def test_deepspeed_that_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, 'deepspeed', None)
    cfg = config()
    edited(use_strategy, cfg, 'deepspeed')
    with pytest.raises(UserError, match=r'pip install "deepspeed<0\.19".*--strategy fsdp'):
        edited(fit_strategy, cfg, 'pytorch', train=True)


def test_deepspeed_gets_what_the_wrapper_did(monkeypatch):
    for name in ('deepspeed', 'deepspeed.runtime', 'deepspeed.runtime.fp16', 'deepspeed.runtime.fp16.onebit'):
        monkeypatch.setitem(sys.modules, name, torch)  # anything that can be imported
    cfg = config()
    edited(use_strategy, cfg, 'deepspeed')
    cfg.optim_wrapper.update(
        type='AmpOptimWrapper', dtype='bfloat16', clip_grad={'max_norm': 5.0}, loss_scale='dynamic'
    )
    edited(use_accumulation, cfg, 2)
    edited(fit_strategy, cfg, 'pytorch', train=True)
    assert cfg.optim_wrapper == {'type': 'DeepSpeedOptimWrapper', 'optimizer': {'type': 'AdamW', 'lr': 1e-3}}
    assert cfg.strategy.gradient_clipping == 5.0
    assert cfg.strategy.gradient_accumulation_steps == 2
    assert cfg.strategy.bf16 == {'enabled': True}
    assert step_batch(cfg, processes=2) == 16
    cfg.optim_wrapper.clip_grad = {'type': 'value', 'clip_value': 1.0}
    with pytest.raises(UserError, match='2-norm only'):
        edited(fit_strategy, cfg, 'pytorch', train=True)


@pytest.mark.parametrize('launcher', ['pytorch', 'slurm', 'mpi'])
def test_nothing_launched_this_process(launcher, monkeypatch):
    for names in processes.VARIABLES.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=f'--launcher {launcher}: .* is not set'):
        processes.check_launcher(launcher)
    processes.check_launcher('none')
    assert processes.world_size('none') == 1


def test_more_processes_than_gpus(monkeypatch):
    for name, value in zip(processes.VARIABLES['slurm'], ('16', '3', '3', 'node[1-2]'), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, 'get_device', lambda: 'cuda')
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    with pytest.raises(UserError, match='process 3 of this machine has no GPU, 2 can be seen'):
        processes.check_launcher('slurm')
    assert processes.world_size('slurm') == 16


def test_one_process_draws_the_shapes(monkeypatch, tmp_path):
    """The second finds the lock held while the first draws, and the set drawn after it."""
    fcntl = pytest.importorskip('fcntl')
    monkeypatch.chdir(tmp_path)
    held = []

    def draw(path):
        with open(path.parent / '.lock') as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(True)
        return path

    monkeypatch.setattr(files, 'make_shapes', draw)
    path = files.make_default_shapes()
    assert held == [True]
    with open(path.parent / '.lock') as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go
