"""Checkpoints that a training starts from: whole ones to go on, some that fits to start, and nothing in them is run."""

import copy
import math

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn

from mmext_backbones.config.editing import ConfigEditor
from mmext_backbones.engine.config_edits import fit_seed
from mmext_backbones.engine.resume.starting import CheckedStart, check_resume
from mmext_backbones.utils.errors import UserError
from mmext_backbones.weights import checkpoints
from mmext_backbones.weights.fitting import WeightsError, check_values, unwrap


@MODELS.register_module(force=True)
class ToyOfStarting(BaseModel):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 1)

    def forward(self, inputs, mode='tensor'):
        return {'loss': self.b(self.a(torch.stack(inputs))).sum()}


class Careful(CheckedStart, Runner):
    pass


def train(work_dir, load_from=None, resume=False, iters=2):
    cfg = {
        'model': {'type': 'ToyOfStarting'},
        'work_dir': str(work_dir),
        'train_cfg': {'by_epoch': False, 'max_iters': iters},
        'optim_wrapper': {'optimizer': {'type': 'AdamW', 'lr': 0.01}},
        'default_hooks': {'logger': None, 'checkpoint': {'type': 'CheckpointHook', 'interval': 2, 'by_epoch': False}},
        'param_scheduler': [{'type': 'ConstantLR', 'by_epoch': False}],
        'load_from': load_from and str(load_from),
        'resume': resume,
    }
    check_resume(Config(cfg))
    loader = torch.utils.data.DataLoader(
        [{'inputs': torch.ones(2)}] * 2, collate_fn=lambda b: {'inputs': [b[0]['inputs']]}
    )
    runner = Careful(**cfg, train_dataloader=loader, cfg=Config(cfg), experiment_name=str(work_dir))
    runner.train()
    return runner


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('trained')
    train(folder)
    return torch.load(folder / 'iter_2.pth')


def saved(tmp_path, content):
    path = tmp_path / 'changed.pth'
    torch.save(content, path)
    return path


def test_a_whole_checkpoint_goes_on(tmp_path, trained):
    assert train(tmp_path / 'work', saved(tmp_path, trained), resume=True, iters=4).iter == 4


def test_the_config_in_a_checkpoint_is_not_run(tmp_path, trained):
    content = copy.deepcopy(trained)
    content['meta']['config'] = f'open({str(tmp_path / "was_run")!r}, "w").close()'
    assert train(tmp_path / 'work', saved(tmp_path, content), resume=True, iters=3).iter == 3
    assert not (tmp_path / 'was_run').exists()


def first_moments(content):
    return next(iter(content['optimizer']['state'].values()))


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        (lambda c: c.pop('optimizer'), "has no 'optimizer'"),
        (lambda c: c.pop('meta'), "has no 'meta'"),
        (lambda c: c['meta'].update(iter='x'), r"meta\['iter'\] is 'x'"),
        (lambda c: c.update(param_schedulers=3), "'param_schedulers' is a int"),
        (lambda c: c['state_dict'].pop('a.weight'), '1 of 4 tensors are missing'),
        (lambda c: c['optimizer'].update(param_groups=[]), 'cannot be resumed: '),
        (lambda c: first_moments(c).update(exp_avg=torch.zeros(7)), r"exp_avg has the shape \(7,\)"),
        (lambda c: first_moments(c)['exp_avg'].fill_(math.nan), 'exp_avg holds NaN'),
    ],
    ids=['optimizer', 'meta', 'iter', 'schedules', 'weights', 'groups', 'shape', 'NaN'],
)  # fmt: skip
def test_what_is_not_whole_is_not_resumed(tmp_path, trained, change, expected):
    content = copy.deepcopy(trained)
    change(content)
    with pytest.raises(UserError, match=expected) as caught:
        train(tmp_path / 'work', saved(tmp_path, content), resume=True, iters=4)
    assert 'changed.pth' in str(caught.value)


@pytest.mark.parametrize('seed', [-1, 2**32, True, 'x', 1.5])
def test_a_seed_that_is_none(tmp_path, trained, seed):
    content = {**trained, 'meta': {**trained['meta'], 'seed': seed}}
    path = str(saved(tmp_path, content))
    with pytest.raises(UserError, match=f'its seed is {seed}, no integer') as caught:
        fit_seed(ConfigEditor(Config({'resume': True, 'load_from': path})))
    assert 'changed.pth' in str(caught.value)


def test_a_start_needs_something_that_fits(tmp_path, trained, capsys):
    content = {'state_dict': {'a.weight': trained['state_dict']['a.weight']}}
    train(tmp_path / 'work', saved(tmp_path, content))
    assert 'fills 1 of the 4 tensors of the model. Not filled: a.bias' in capsys.readouterr().out
    with pytest.raises(UserError, match='none of its 1 tensors fits'):
        train(tmp_path / 'work', saved(tmp_path, {'state_dict': {'x': torch.ones(2)}}))


@pytest.mark.parametrize(
    ('value', 'why'),
    [
        (torch.tensor([1.0, math.nan]), 'a holds NaN or infinity'),
        (torch.tensor([1, 2]), 'a holds int64 numbers'),
        (torch.tensor([True, False]), 'a holds bool numbers'),
        (torch.ones(2).to_sparse(), 'a is sparse, nested or quantised'),
        (torch.ones(2, device='meta'), 'a has no values'),
        (torch.ones(2, dtype=torch.complex64), 'a holds complex64 numbers'),
    ],
)
def test_values_that_spoil_a_model(value, why):
    with pytest.raises(WeightsError, match=why):
        check_values({'a': value}, 'x.pth', {'a': torch.ones(2)})


def test_values_that_do_not(tmp_path):
    wanted = {'a': torch.ones(2), 'n': torch.ones((), dtype=torch.int64)}
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        check_values({'a': torch.ones(2, dtype=dtype), 'n': torch.ones((), dtype=torch.int64)}, 'x', wanted)
    path = saved(tmp_path, {'state_dict': {'a': torch.tensor(math.inf)}})
    with pytest.raises(UserError, match=r'changed.pth cannot be used: a holds NaN or infinity'):
        checkpoints.check_checkpoint(str(path))
    with pytest.raises(WeightsError, match='among its weights a is a list'):
        unwrap({'state_dict': {'a': [1.0]}}, 'x')
