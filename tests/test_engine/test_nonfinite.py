"""Losses and gradients that are not finite: no step is taken on them, and a replay finds where they came from."""

import functools
import itertools
import math
import sys
import types

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn
from torch.utils.data import DataLoader

from mmext_backbones.engine.nonfinite import saved_batch
from mmext_backbones.engine.nonfinite.hook import NonFiniteError, NonFiniteHook
from mmext_backbones.engine.nonfinite.replay import replay
from mmext_backbones.engine.nonfinite.step_guard import MAX_COLLAPSED, find_fault, guard
from mmext_backbones.utils.errors import UserError


class _SpoilGradient(torch.autograd.Function):
    """The identity, whose gradient is NaN where the input is beyond 50."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return torch.where((x > 50).any(), math.nan, grad)


class Spoiler(nn.Module):
    def forward(self, x):
        return _SpoilGradient.apply(x)


class Exponential(nn.Module):
    def forward(self, x):
        return x.exp()


@MODELS.register_module(force=True)
class ToyOfNonFinite(BaseModel):
    """`kind` is what stands between two linear layers; a batch norm has statistics that a bad image would spoil."""

    def __init__(self, kind: str = 'plain') -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1, affine=False)
        self.first = nn.Linear(4, 4)
        self.between = {'plain': nn.Identity, 'gradient': Spoiler, 'exp': Exponential}[kind]()
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(4, 1)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(4))
            self.first.bias.zero_()

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = torch.stack(inputs).flatten(1)
        self.norm(x[:, None])  # its statistics alone matter here
        x = self.last(self.drop(self.between(self.first(x))))
        return {'loss_a': x.square().mean(), 'loss_b': x.abs().mean()}


GOOD, BAD = 0.5, 9e9


def samples(values):
    """A [1, 2, 2] image for each value, with a path."""
    return [
        {
            'inputs': torch.full((1, 2, 2), value) + torch.arange(4.0).view(1, 2, 2) / 8,
            'data_samples': BaseDataElement(metainfo={'img_path': f'{index}.png'}),
        }
        for index, value in enumerate(values)
    ]


class Watch(Hook):
    """The weights after every iteration."""

    def __init__(self):
        self.states = []

    def before_train(self, runner):
        self.after_train_iter(runner, 0)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.states.append({key: value.clone() for key, value in runner.model.state_dict().items()})
        self.outputs = outputs


def run(tmp_path, values, kind='plain', hook=None, optim_wrapper=None, batch_size=1, flexible=False):
    """A training of one epoch; the hooks, and the error that ended it, if one did."""
    watch, hook = Watch(), hook or NonFiniteHook()
    loader = DataLoader(samples(values), batch_size=batch_size, collate_fn=pack)
    cfg = {
        'model': {'type': 'ToyOfNonFinite', 'kind': kind},
        'work_dir': str(tmp_path),
        'train_cfg': {'by_epoch': True, 'max_epochs': 1},
        'optim_wrapper': optim_wrapper or {'optimizer': {'type': 'SGD', 'lr': 0.01}},
        'default_hooks': {'checkpoint': None, 'logger': None},
        'randomness': {'seed': 0},
    }
    from mmengine.runner import FlexibleRunner

    runner = (FlexibleRunner if flexible else Runner)(
        **cfg, train_dataloader=loader, custom_hooks=[hook, watch], cfg=Config(cfg), experiment_name=str(tmp_path)
    )
    try:
        runner.train()
    except NonFiniteError as error:
        return hook, watch, str(error)
    return hook, watch, None


def pack(batch):
    return {key: [each[key] for each in batch] for key in batch[0]}


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize('flexible', [False, True], ids=['Runner', 'FlexibleRunner'])
def test_nan_in_an_image_stops_before_the_weights_are_spoilt(tmp_path, flexible):
    hook, watch, error = run(tmp_path, [GOOD, GOOD, math.nan, GOOD], batch_size=1, flexible=flexible)
    assert 'the loss is not finite at iteration 3: ' in error
    assert 'loss_a=nan' in error
    assert 'Images: 2.png (its pixels are not finite)' in error
    assert '--on-nonfinite skip' in error
    assert len(watch.states) == 3  # before, and after two steps
    assert not same(watch.states[0], watch.states[2])

    (path,) = hook.saved
    assert path == tmp_path / 'nonfinite' / 'iter_3.pth'
    assert f'tools/replay.py {path}' in error
    saved = torch.load(path.parent / saved_batch.read_batch(path)['weights'])
    assert same(saved['state_dict'], watch.states[2])  # the statistics of batch norm as well

    found = replay(str(path))
    assert found.first == 'the image 2.png, as the data pipeline gives it'
    assert found.images == ['2.png']
    assert math.isnan(found.losses['loss_a'])


@pytest.mark.parametrize('clip', [None, {'max_norm': 1.0}], ids=['', 'clip_grad'])
def test_skipped_steps_leave_weights_and_statistics(tmp_path, clip):
    optim_wrapper = {'optimizer': {'type': 'AdamW', 'lr': 0.1, 'weight_decay': 0.5}, 'clip_grad': clip}
    hook, watch, error = run(
        tmp_path, [GOOD, math.inf, GOOD, math.nan, GOOD], hook=NonFiniteHook('skip'), optim_wrapper=optim_wrapper
    )
    assert error is None
    assert hook.skipped == [2, 4]
    states = watch.states
    assert [same(a, b) for a, b in itertools.pairwise(states)] == [False, True, False, True, False]
    assert all(value.isfinite().all() for value in states[-1].values())
    assert [path.name for path in hook.saved] == ['iter_2.pth', 'iter_4.pth']


def test_skips_and_files_are_bounded(tmp_path):
    _hook, watch, error = run(tmp_path, [math.nan] * 6, hook=NonFiniteHook('skip', max_skips=3, max_saved=2))
    assert 'iteration 4' in error
    assert 'one more than the 3 steps' in error
    assert all(same(watch.states[0], state) for state in watch.states)
    # the weights did not change: one file of them serves both batches
    assert sorted(path.name for path in (tmp_path / 'nonfinite').iterdir()) == [
        'iter_1.pth', 'iter_2.pth', 'weights_before_iter_1.pth',
    ]  # fmt: skip


def test_infinite_loss_of_finite_images(tmp_path):
    hook, _watch, error = run(tmp_path, [GOOD, 100.0], kind='exp')
    assert 'the loss is not finite at iteration 2' in error
    assert 'loss_a=' in error
    assert 'Images: 1.png' in error
    assert 'pixels' not in error
    found = replay(str(hook.saved[0]))
    assert found.module == 'between'
    assert found.first == 'the output of between (Exponential)'


def test_gradient_alone(tmp_path):
    hook, watch, error = run(tmp_path, [GOOD, GOOD, 60.0], kind='gradient')
    assert 'the gradients are not finite at iteration 3 (the loss is: ' in error
    assert 'clip the gradients' in error
    assert len(watch.states) == 3
    found = replay(str(hook.saved[0]))
    assert found.module == 'between'
    assert found.first == 'the gradient that between (Spoiler) gives back to its input'
    assert found.operation.startswith('_SpoilGradientBackward, from ')
    assert 'test_nonfinite.py' in found.operation
    assert all(math.isfinite(value) for value in found.losses.values())


def test_a_replay_draws_the_same_random_numbers(tmp_path):
    """Dropout decides what the loss is; the replay has the one of the training."""
    hook, _watch, _error = run(tmp_path, [GOOD, GOOD, 60.0], kind='gradient')
    saved = saved_batch.read_batch(hook.saved[0])
    torch.manual_seed(99)
    assert replay(str(hook.saved[0])).losses['loss'] == pytest.approx(sum(saved['losses'].values()) / 2, rel=1e-6)


def test_the_one_batch_of_an_accumulated_update_is_named(tmp_path):
    optim_wrapper = {'optimizer': {'type': 'SGD', 'lr': 0.01}, 'accumulative_counts': 3}
    values = [GOOD, GOOD, GOOD, GOOD, math.nan, GOOD, GOOD, GOOD, GOOD]
    hook, watch, error = run(tmp_path, values, hook=NonFiniteHook('skip'), optim_wrapper=optim_wrapper)
    assert error is None
    assert hook.skipped == [6]  # where the step would have been
    assert [path.name for path in hook.saved] == ['iter_5.pth']
    weights = [state['last.weight'] for state in watch.states]
    changed = [not torch.equal(a, b) for a, b in itertools.pairwise(weights)]
    assert changed == [False, False, True, False, False, False, False, False, True]
    assert all(value.isfinite().all() for value in watch.states[-1].values())


def test_skipped_values_stay_out_of_the_log(tmp_path):
    _hook, watch, _error = run(tmp_path, [GOOD, math.nan], hook=NonFiniteHook('skip'))
    assert watch.outputs == {}


# --------------------------------------------------------------------------------------------------------------------
# Mixed precision


@pytest.fixture
def amp(monkeypatch):
    """mmengine's own wrapper, which refuses to be built without a GPU, with torch's scaler for the CPU."""
    from mmengine.optim.optimizer import amp_optimizer_wrapper as module

    if not hasattr(torch.amp, 'GradScaler'):
        pytest.skip('torch before 2.3 has no scaler of gradients for the CPU')
    monkeypatch.setattr(module, 'is_cuda_available', lambda: True)
    monkeypatch.setattr(module, 'GradScaler', functools.partial(torch.amp.GradScaler, 'cpu'))

    def build(parameters, **scaler):
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        wrapper = module.AmpOptimWrapper(optimizer=optimizer, loss_scale={'growth_interval': 2, **scaler})
        (guarded,) = guard(wrapper)
        return guarded

    return build


def update(wrapper, loss):
    wrapper.begin()
    wrapper.update_params(loss)
    return wrapper.fault


def test_an_overflow_is_no_divergence(amp):
    weight = nn.Parameter(torch.ones(()))
    wrapper = amp([weight], init_scale=2.0**127)
    # the gradient 4 overflows at this scale and fits at a quarter of it
    assert update(wrapper, weight * 4) is None
    assert wrapper.overflowed == 2.0**126
    assert weight == 1
    assert update(wrapper, weight * 4) is None
    assert update(wrapper, weight * 4) is None
    assert wrapper.overflowed is None
    assert weight.item() == pytest.approx(0.6)


def test_a_loss_that_is_not_finite_is_a_fault_at_any_scale(amp):
    weight = nn.Parameter(torch.ones(()))
    wrapper = amp([weight], init_scale=8.0)
    assert update(wrapper, weight * math.nan) == 'loss'
    assert weight == 1
    assert wrapper.loss_scaler.get_scale() == 8
    assert update(wrapper, weight * 1) is None  # and the scaler is ready for the next step
    assert weight.item() == pytest.approx(0.9)


def test_a_scale_that_collapses_is_a_divergence(amp):
    weight = nn.Parameter(torch.ones(()))
    wrapper = amp([weight], init_scale=2.0)
    spoilt = torch.tensor(60.0)

    def loss():
        return _SpoilGradient.apply(weight * spoilt)

    faults = [update(wrapper, loss()) for _ in range(1 + MAX_COLLAPSED)]
    assert faults == [None] * MAX_COLLAPSED + ['scale']
    assert weight == 1


def test_a_fused_optimizer_under_a_scaler(amp):
    weight = nn.Parameter(torch.ones(()))
    wrapper = amp([weight], init_scale=2.0**127)
    wrapper.optimizer._step_supports_amp_scaling = False
    fused = torch.optim.SGD([weight], lr=0.1, fused=True)
    wrapper.optimizer = fused
    assert update(wrapper, weight * 4) is None
    assert wrapper.overflowed == 2.0**126
    assert weight == 1


def test_collapse_ends_the_training_even_where_steps_may_be_skipped(tmp_path, amp, monkeypatch):
    optim_wrapper = {
        'type': 'AmpOptimWrapper',
        'optimizer': {'type': 'SGD', 'lr': 0.1},
        'loss_scale': {'init_scale': 2.0},
    }
    from mmengine.optim.optimizer import amp_optimizer_wrapper as module

    if not hasattr(torch.amp, 'GradScaler'):
        pytest.skip('torch before 2.3 has no scaler of gradients for the CPU')
    monkeypatch.setattr(module.AmpOptimWrapper, 'optim_context', OptimWrapper.optim_context)
    _hook, watch, error = run(
        tmp_path, [60.0] * 9, kind='gradient', hook=NonFiniteHook('skip'), optim_wrapper=optim_wrapper
    )
    assert 'the loss scale of mixed precision has collapsed to 0.125 by iteration 4' in error
    assert 'no overflow of float16 but a divergence' in error
    assert torch.equal(watch.states[0]['last.weight'], watch.states[-1]['last.weight'])


# --------------------------------------------------------------------------------------------------------------------
# The parts


def test_find_fault():
    good, nan, inf = torch.ones(3), torch.tensor([1.0, math.nan]), torch.tensor([-math.inf])
    large = torch.tensor([3e38, 3e38])  # its Euclidean norm is not finite
    assert find_fault([torch.ones(())], [good, large]) is None
    assert find_fault([torch.ones(())], [good, nan]) == 'gradient'
    assert find_fault([torch.ones(())], [good, inf, torch.ones(2, dtype=torch.float16)]) == 'gradient'
    for dtype in (torch.float64, torch.bfloat16):
        kinds = [torch.ones((), dtype=dtype), torch.ones(2, 3, 4, 5, dtype=dtype).to(memory_format=torch.channels_last)]
        assert find_fault([torch.ones(())], [good, *kinds]) is None
        kinds[1][1, 2, 3, 4] = math.nan
        assert find_fault([torch.ones(())], [good, *kinds]) == 'gradient'
    assert find_fault([torch.tensor(math.inf)], [good]) == 'loss'
    assert find_fault([torch.tensor(math.nan)], [nan]) == 'loss'
    assert find_fault([], []) is None


TWO = """
import math, os, torch
from mmext_backbones.engine.nonfinite.step_guard import find_fault
rank = int(os.fork() == 0)
torch.distributed.init_process_group('gloo', init_method='file://meeting', rank=rank, world_size=2)
bad = [torch.tensor([math.nan if rank == 1 else 1.0])]
good = [torch.ones(1)]
found = [find_fault(bad, good), find_fault(good, bad), find_fault(good, good)]
open(str(rank), 'w').write(repr(found))
torch.distributed.destroy_process_group()
if rank == 0:
    assert os.wait()[1] == 0
"""


def test_a_fault_of_one_process_is_one_of_all(tmp_path, fresh):
    done = fresh().run(TWO.replace('meeting', str(tmp_path / 'meeting')), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for rank in ('0', '1'):
        assert (tmp_path / rank).read_text() == "['loss', 'gradient', None]"


def test_the_whole_step_waits_once(monkeypatch):
    """One transfer to the host for each update, none where gradients are only accumulated."""
    model = nn.Linear(4, 4)
    (wrapper,) = guard(OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), accumulative_counts=2))
    wrapper.initialize_count_status(model, 0, 4)
    waits = []
    for name in ('item', 'tolist', '__bool__', '__float__'):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, f=original, n=name: waits.append(n) or f(self))
    for _ in range(2):
        wrapper.begin()
        wrapper.update_params(model(torch.ones(1, 4)).sum())
        waits.append('|')
    assert waits == ['|', 'tolist', '|']


def test_registered_and_added_to_every_training():
    from mmext_backbones.engine import config_edits

    hook = HOOKS.build({'type': config_edits.NONFINITE_HOOK, 'action': 'skip'})
    assert isinstance(hook, NonFiniteHook)
    with pytest.raises(ValueError, match="action='ignore': expected one of stop, skip"):
        HOOKS.build({'type': config_edits.NONFINITE_HOOK, 'action': 'ignore'})
    with pytest.raises(ValueError, match='max_skips=-1'):
        NonFiniteHook(max_skips=-1)


class Evil:
    def __reduce__(self):
        return print, ('run',)


def test_reading_runs_nothing(tmp_path, capsys):
    path = tmp_path / 'evil.pth'
    torch.save({'data_batch': Evil()}, path)
    with pytest.raises(UserError, match=r'refers to (builtins|__builtin__).print'):
        replay(str(path))
    assert capsys.readouterr().out == ''
    torch.save({'state_dict': {}}, path)
    with pytest.raises(UserError, match="no saved batch: it has no 'iteration'"):
        replay(str(path))
    torch.save({'data_batch': torch.nn.Linear(1, 1)}, path)  # of an installed package, and no part of a batch
    with pytest.raises(UserError, match=r'refers to torch.nn.modules.linear.Linear, and a saved batch holds tensors'):
        replay(str(path))
    torch.jit.script(torch.nn.Linear(1, 1)).save(path)
    with pytest.raises(UserError, match='is not read: it is a TorchScript archive'):
        replay(str(path))
    path.write_bytes(b'cut')
    with pytest.raises(UserError, match='cannot be read'):
        replay(str(path))
    with pytest.raises(UserError, match='no such file'):
        replay(str(tmp_path / 'absent.pth'))


def test_samples_of_a_detector_are_read_safely(tmp_path):
    pytest.importorskip('mmdet')
    import numpy as np
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks, PolygonMasks
    from mmengine.structures import InstanceData, PixelData

    sample = DetDataSample(metainfo={'img_path': 'a.png', 'scale_factor': (np.float64(0.5), 1.0)})
    sample.gt_instances = InstanceData(
        bboxes=HorizontalBoxes(torch.ones(1, 4)), masks=BitmapMasks(np.ones((1, 4, 4), np.uint8), 4, 4)
    )
    # an empty array refers to the type bytes
    sample.ignored_instances = InstanceData(masks=BitmapMasks(np.zeros((0, 4, 4), np.uint8), 4, 4))
    sample.proposals = InstanceData(masks=PolygonMasks([[np.ones(6)]], 4, 4))
    sample.gt_sem_seg = PixelData(data=torch.zeros(1, 4, 4))
    path = tmp_path / 'batch.pth'
    content = {'iteration': 1, 'random_state': {}, 'weights': None, 'config': {}}
    saved_batch.save_whole({**content, 'data_batch': {'data_samples': [sample]}}, path)
    (read,) = saved_batch.read_batch(path)['data_batch']['data_samples']
    assert saved_batch.image_paths(read) == ['a.png']
    assert read.gt_instances.masks.masks.sum() == 16
    assert read.proposals.masks.areas.shape == (1,)
    assert read.gt_sem_seg.data.shape == (1, 4, 4)


@pytest.mark.parametrize('kind', ['imported', 'not listed'])
def test_only_listed_parts_are_made(tmp_path, kind, monkeypatch):
    """A file cannot have a module imported by naming it, nor make another class of the toolboxes."""
    from mmengine.structures import BaseDataElement

    class Sample(BaseDataElement):
        pass

    module, name = {'imported': ('mmdet.testing', 'Sample'), 'not listed': ('mmengine.structures.more', 'Sample')}[kind]
    Sample.__module__, Sample.__qualname__ = module, name
    monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(Sample=Sample))
    torch.save({'data_batch': Sample()}, tmp_path / 'x.pth')
    if kind == 'imported':
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf'refers to {module}.Sample, and a saved batch holds tensors'):
        saved_batch.read_batch(tmp_path / 'x.pth')


def test_every_part_is_what_it_is_named():
    parts = saved_batch._parts()
    assert {'mmengine.structures.pixel_data.PixelData'} <= parts.keys()
    for name, cls in parts.items():
        assert (cls.__module__, cls.__qualname__) == tuple(name.rsplit('.', 1))
        assert not hasattr(cls, '__setstate__')  # which would be code of its own, called with what a file says


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / 'batch.pth'
    saved_batch.save_whole({'x': 1}, path)
    with pytest.raises(Exception, match='pickle'):
        saved_batch.save_whole({'x': lambda: None}, path)
    assert torch.load(path) == {'x': 1}
    assert list(tmp_path.iterdir()) == [path]
