"""What --epochs, --batch-size, --lr and --device make of a config, and of a run."""

import logging

import pytest
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.device import utils as mmengine_device
from mmengine.optim import build_optim_wrapper
from mmengine.runner import BaseLoop, Runner
from torch import nn

from mmext_backbones.config.files import load_config
from mmext_backbones.engine.length_edits import length_note, rate_note, use_batch_size, use_epochs, use_lr
from mmext_backbones.engine.options import TestOptions, TrainOptions
from mmext_backbones.engine.processes import use_device
from mmext_backbones.utils.errors import UserError
from tests.test_engine import toy  # noqa: F401, registers the data
from tests.test_engine.edits import edited


def by_epoch(max_epochs=12, warmup=None, **entries):
    warmup = warmup or {'type': 'LinearLR', 'start_factor': 0.001, 'by_epoch': False, 'begin': 0, 'end': 500}
    decay = {'type': 'MultiStepLR', 'by_epoch': True, 'begin': 0, 'end': 12, 'milestones': [8, 11], 'gamma': 0.1}
    return Config(
        {
            'train_dataloader': {'batch_size': 2, 'batch_sampler': {'type': 'AspectRatioBatchSampler'}},
            'train_cfg': {'type': 'EpochBasedTrainLoop', 'max_epochs': max_epochs, 'val_interval': 1},
            'optim_wrapper': {'type': 'OptimWrapper', 'optimizer': {'type': 'AdamW', 'lr': 1e-4}},
            'param_scheduler': [warmup, decay],
            'default_hooks': {'checkpoint': {'type': 'CheckpointHook', 'interval': 1}},
            'auto_scale_lr': {'enable': False, 'base_batch_size': 16},
            **entries,
        }
    )


def by_iteration(**entries):
    return Config(
        {
            'train_dataloader': {'batch_size': 4, 'dataset': {'type': 'ToyNoise', 'length': 100}},
            'train_cfg': {'type': 'IterBasedTrainLoop', 'max_iters': 160, 'val_interval': 16},
            'optim_wrapper': {'type': 'OptimWrapper', 'optimizer': {'type': 'AdamW', 'lr': 6e-5}},
            'param_scheduler': [
                {'type': 'LinearLR', 'start_factor': 1e-6, 'by_epoch': False, 'begin': 0, 'end': 20},
                {
                    'type': 'CosineAnnealingLR',
                    'by_epoch': False,
                    'begin': 20,
                    'end': 160,
                    'T_max': 140,
                    'eta_min': 6e-7,
                },
                {'type': 'PolyLR', 'by_epoch': False, 'begin': 0, 'end': 160},
            ],
            'default_hooks': {'checkpoint': {'type': 'CheckpointHook', 'by_epoch': False, 'interval': 16}},
            **entries,
        }
    )


@pytest.mark.parametrize(
    ('epochs', 'milestones', 'warmup'), [(6, [4, 5], 250), (24, [16, 22], 500), (3, [2], 125), (1, [], 42)]
)
def test_epochs_of_a_detector(epochs, milestones, warmup):
    cfg = by_epoch()
    edited(use_epochs, cfg, epochs)
    assert cfg.train_cfg == {'type': 'EpochBasedTrainLoop', 'max_epochs': epochs, 'val_interval': 1}
    assert (cfg.param_scheduler[0].end, cfg.param_scheduler[1].end) == (warmup, epochs)
    assert cfg.param_scheduler[1].milestones == milestones
    assert cfg.default_hooks.checkpoint.interval == 1


def test_the_same_length_changes_nothing():
    assert edited(use_epochs, by_epoch(), 12) == []


@pytest.mark.parametrize(('epochs', 'warmup'), [(30, 2), (600, 20), (4, 1), (1, None)])
def test_a_warm_up_in_epochs(epochs, warmup):
    """It never grows, takes at least one epoch, and goes where it would take more than half of the run."""
    cfg = by_epoch(
        300,
        train_cfg={'by_epoch': True, 'max_epochs': 300, 'val_interval': 10},
        param_scheduler=[
            {'type': 'LinearLR', 'by_epoch': True, 'end': 20, 'convert_to_iter_based': True},
            {'type': 'CosineAnnealingLR', 'eta_min': 1e-5, 'by_epoch': True, 'begin': 20},
        ],
        custom_hooks=[{'type': 'PipelineSwitchHook', 'switch_epoch': 280, 'switch_pipeline': []}],
    )
    edited(use_epochs, cfg, epochs)
    *first, last = cfg.param_scheduler
    assert [phase.end for phase in first] == ([warmup] if warmup else [])
    assert last.begin == (warmup or 0)
    assert cfg.custom_hooks[0].switch_epoch == max(1, round(280 * epochs / 300))
    assert cfg.train_cfg.val_interval == {30: 1, 600: 10}.get(epochs, 1)


def test_epochs_of_a_run_that_counts_iterations():
    cfg = by_iteration()
    edited(use_epochs, cfg, 2, processes=5)  # 100 images in batches of 4 on 5 processes
    assert cfg.train_cfg == {'type': 'IterBasedTrainLoop', 'max_iters': 10, 'val_interval': 1}
    assert cfg.default_hooks.checkpoint.interval == 1
    warmup, cosine, poly = cfg.param_scheduler
    assert (warmup.begin, warmup.end) == (0, 2)
    assert (cosine.begin, cosine.end, cosine.T_max) == (2, 10, 8)
    assert (poly.begin, poly.end) == (0, 10)
    cfg = by_iteration()
    edited(use_epochs, cfg, 16)  # 25 iterations each
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (400, 16)
    assert [(phase.begin, phase.end) for phase in cfg.param_scheduler] == [(0, 20), (20, 400), (0, 400)]


def test_epochs_that_cannot_be():
    with pytest.raises(UserError, match='neither max_epochs nor max_iters'):
        edited(use_epochs, by_epoch(train_cfg={'type': 'Mine'}), 3)
    cfg = by_iteration(train_dataloader={'batch_size': 4, 'dataset': {'type': 'ToyNoise', 'length': -1}})
    with pytest.raises(UserError, match='--epochs: the training data cannot be counted'):
        edited(use_epochs, cfg, 3)


@pytest.mark.parametrize(
    ('name', 'epochs'),
    [
        *(('swin_t_maskrcnn_3x', epochs) for epochs in (1, 7, 60)),
        *(('swin_t_in1k', epochs) for epochs in (1, 2, 7, 400)),
        *(('swin_t_upernet_160k', epochs) for epochs in (1, 7)),
    ],
)
def test_every_schedule_can_be_built_and_ends_where_it_did(name, epochs):
    """Where the recipe's rate ends, ends that of the run; mmengine itself builds and steps the schedule."""
    pytest.importorskip({'maskrcnn': 'mmdet', 'in1k': 'mmpretrain', 'upernet': 'mmseg'}[name.split('_')[2]])
    cfg = load_config(f'mmext_backbones::{name}.py')
    cfg.train_dataloader = {'batch_size': 4, 'dataset': {'type': 'ToyNoise', 'length': 160}}
    recipe = cfg.copy()
    edited(use_epochs, cfg, epochs)
    rate = last_rate(cfg, length=40)
    total = cfg.train_cfg.get('max_epochs') or cfg.train_cfg.max_iters / 40
    assert total == epochs
    base = cfg.optim_wrapper.optimizer.lr
    if epochs < 3:  # no time for a decay by epochs
        assert 0 <= rate <= base * (1 + 1e-9)
    elif epochs < 10:  # a cosine by epochs has few steps
        assert rate < 0.55 * base
    else:
        assert rate == pytest.approx(last_rate(recipe, length=40), rel=0.05, abs=2e-3 * base)


class Length(BaseLoop):
    """What a runner asks a loop as it builds schedules."""

    def __init__(self, max_epochs, max_iters, dataloader):
        self.max_epochs, self.max_iters, self.dataloader = max_epochs, max_iters, dataloader

    def run(self):
        raise NotImplementedError


def last_rate(cfg: Config, length: int) -> float:
    """The learning rate of the last step of a run with epochs of a few iterations."""
    wrapper = build_optim_wrapper(
        nn.Linear(1, 1), {'type': 'OptimWrapper', 'optimizer': {'type': 'SGD', 'lr': cfg.optim_wrapper.optimizer.lr}}
    )
    runner = Runner.__new__(Runner)
    epochs = cfg.train_cfg.get('max_epochs')
    steps = epochs * length if epochs else cfg.train_cfg.max_iters
    runner._train_loop = Length(epochs, steps, range(length))
    runner.logger = logging.getLogger('schedules')
    runner.optim_wrapper = wrapper
    phases = runner.build_param_scheduler(cfg.param_scheduler)
    for step in range(steps):
        rate = wrapper.get_lr()['lr'][0]
        for phase in phases:
            if not phase.by_epoch or (epochs and step % length == length - 1):
                phase.step()
    return rate


def test_batch_size_and_what_it_means_for_the_rate():
    cfg = by_epoch()
    changes = edited(use_batch_size, cfg, 4)
    assert [str(change) for change in changes] == ['train_dataloader.batch_size: 2 -> 4']
    assert cfg.optim_wrapper.optimizer.lr == 1e-4
    assert 'stays 0.0001, which is for 16 images a step; this run has 4. In proportion it is 2.5e-05' in rate_note(
        cfg, 2, 16, 1
    )
    assert rate_note(cfg, 2, 16, 4) is None  # 16 a step
    assert length_note(cfg, 2) is None
    cfg = by_iteration()
    edited(use_batch_size, cfg, 2)
    assert 'In proportion it is 3e-05: --lr' in rate_note(cfg, 4, None, 1)
    assert 'stays 160 iterations long and sees 0.5 times the images' in length_note(cfg, 4)
    cfg = by_epoch(train_dataloader={'batch_sampler': {'type': 'Mine', 'batch_size': 2}})
    edited(use_batch_size, cfg, 8)
    assert (cfg.train_dataloader.batch_size, cfg.train_dataloader.batch_sampler.batch_size) == (8, 8)


def test_the_rate_and_what_follows_from_it():
    cfg = by_iteration(auto_scale_lr={'enable': True, 'base_batch_size': 16})
    edited(use_lr, cfg, 6e-4)
    assert cfg.optim_wrapper.optimizer.lr == 6e-4
    assert cfg.param_scheduler[1].eta_min == pytest.approx(6e-6)
    assert not cfg.auto_scale_lr.enable  # it would change what was asked for
    with pytest.raises(UserError, match='several optimizers'):
        edited(use_lr, by_epoch(optim_wrapper={'generator': {}, 'discriminator': {}}), 1e-3)


def test_the_rate_is_multiplied_layer_by_layer():
    """Decay and multipliers of a config are of the rate that was asked for."""
    model = nn.ModuleDict({'backbone': nn.Linear(2, 2), 'head': nn.Linear(2, 2)})
    cfg = by_epoch()
    cfg.optim_wrapper.paramwise_cfg = {'custom_keys': {'backbone': {'lr_mult': 0.1}}}
    edited(use_lr, cfg, 1e-2)
    rates = {group['lr'] for group in build_optim_wrapper(model, cfg.optim_wrapper).param_groups}
    assert sorted(rates) == pytest.approx([1e-3, 1e-2])


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        ({'epochs': 0}, '--epochs 0: expected 1 or more'),
        ({'batch_size': -2}, '--batch-size -2: expected 1 or more'),
        ({'lr': 0.0}, '--lr 0.0: expected a number above 0'),
        ({'lr': float('nan')}, '--lr nan'),
        ({'lr': 1e-3, 'auto_scale_lr': True}, 'leave one of them out'),
        ({'lr': 1e-3, 'cfg_options': {'optim_wrapper.optimizer.lr': 1}}, '--lr and --cfg-options optim_wrapper'),
        ({'epochs': 1, 'cfg_options': {'train_cfg.max_iters': 1}}, '--epochs and --cfg-options train_cfg.max_iters'),
    ],
)
def test_values_that_cannot_be(wrong, message):
    with pytest.raises(UserError, match=message):
        TrainOptions(**wrong)


def test_a_threshold_is_a_score():
    with pytest.raises(UserError, match=r'--threshold 1\.5: expected a score from 0 to 1'):
        TestOptions(threshold=1.5)


def test_a_run_on_the_device_that_was_asked_for(monkeypatch):
    """mmengine, and all that ask it, name the device; afterwards it is its own again."""
    monkeypatch.setattr(mmengine_device, 'DEVICE', 'cuda')
    with use_device('cpu'):
        assert get_device() == 'cpu'
    assert get_device() == 'cuda'
    with pytest.raises(ZeroDivisionError), use_device('cpu'):
        raise ZeroDivisionError
    assert get_device() == 'cuda'
    with use_device(None):
        assert get_device() == 'cuda'


@pytest.mark.parametrize(
    ('device', 'launcher', 'message'),
    [
        ('gpu', 'none', "device 'gpu': expected cpu, cuda"),
        ('cuda:99', 'none', "device 'cuda:99': torch sees"),
        ('cpu:0', 'pytorch', 'each of several processes'),
    ],
)
def test_devices_that_cannot_be(device, launcher, message):
    with pytest.raises(UserError, match=message), use_device(device, launcher):
        pass
