"""The hook that lets batch norms follow a short run."""

from types import SimpleNamespace

import pytest
from mmengine.registry import HOOKS
from torch import nn


def test_low_momenta_rise_and_others_stay():
    norms = [nn.BatchNorm2d(2, momentum=m) for m in (0.01, 0.1, 0.3, None)]
    hook = HOOKS.build({'type': 'mmext_backbones.BatchNormMomentumHook'})
    hook.before_train(SimpleNamespace(model=nn.Sequential(*norms, nn.Linear(2, 2))))
    assert [norm.momentum for norm in norms] == [0.1, 0.1, 0.3, None]


@pytest.mark.parametrize('momentum', [0.0, 1.5])
def test_momentum_out_of_range_is_named(momentum):
    with pytest.raises(ValueError, match=f'momentum={momentum}'):
        HOOKS.build({'type': 'mmext_backbones.BatchNormMomentumHook', 'momentum': momentum})
