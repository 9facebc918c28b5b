"""ELSA-VOLO: its block against the authors' of ELSA; around it everything is VOLO's."""

import functools
from pathlib import Path

import pytest
import torch

from mmext_backbones.backbones import ELSAVOLO, VOLO
from mmext_backbones.weights.fitting import WeightsError

from .test_contract import SMALL

DATA = Path(__file__).parents[1] / 'data'
# of a whole classifier at kernels of 3, 5 and 7
PARAMETERS = {
    'd1': (26_532_520, 26_672_168, 26_881_640),
    'd2': (58_400_992, 58_721_248, 59_201_632),
    'd3': (85_955_280, 86_382_288, 87_022_800),
    'd4': (191_967_472, 192_722_672, 193_855_472),
    'd5': (293_964_512, 295_097_312, 296_796_512),
}
OF_VOLO = {'d1': 26_632_040, 'd2': 58_678_336, 'd3': 86_325_072, 'd4': 192_961_520, 'd5': 295_455_584}


@functools.cache
def parameters_of_volo(arch):
    with torch.device('meta'):
        return sum(p.numel() for p in VOLO(arch, pyramid=False).parameters())


@pytest.mark.parametrize('arch', PARAMETERS)
@pytest.mark.parametrize(('i', 'kernel_size'), enumerate((3, 5, 7)))
def test_parameter_count(arch, i, kernel_size):
    with torch.device('meta'):
        ours = ELSAVOLO({**ELSAVOLO.ARCHS[arch], 'kernel_size': kernel_size}, pyramid=False)
    assert sum(p.numel() for p in ours.parameters()) - parameters_of_volo(arch) == PARAMETERS[arch][i] - OF_VOLO[arch]


def test_only_the_first_stage_differs_from_volo():
    ours, volo = (set(cls(SMALL[cls]).state_dict()) for cls in (ELSAVOLO, VOLO))
    assert {key.partition('.attn.')[0] for key in ours ^ volo} == {'stages.0.blocks.0', 'stages.0.blocks.1'}
    attn = ELSAVOLO(SMALL[ELSAVOLO]).stages[0].blocks[0].attn
    assert (attn.kernel_size, attn.lam, attn.qkv.bias) == (5, 1.0, None)
    assert tuple(attn.ghost_mul.shape) == tuple(attn.ghost_head.shape) == (32, 5, 5)
    assert attn.ghost_mul.std() > 0.5 > 0.05 > attn.ghost_head.std()


def test_weights_of_volo_are_refused(tmp_path):
    torch.save(VOLO(SMALL[VOLO]).state_dict(), tmp_path / 'volo.pth')
    with pytest.raises(WeightsError, match='holds no weights of a ELSAVOLO: it is a VOLO in the layout of'):
        ELSAVOLO(SMALL[ELSAVOLO]).load_pretrained(str(tmp_path / 'volo.pth'))


@pytest.mark.parametrize('change', [{'kernel_size': 4}, {'kernel_size': 0}, {'group_width': 0}])
def test_bad_arguments_are_named(change):
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=f'{name}={value}: expected'):
        ELSAVOLO({**SMALL[ELSAVOLO], **change})
