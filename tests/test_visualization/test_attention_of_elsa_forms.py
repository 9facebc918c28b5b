"""The weights in the pictures are those of the module for every form of ELSA's attention."""

import pytest
import torch

from mmext_backbones.backbones import LocalSwin
from mmext_backbones.layers import ELSAAttention
from mmext_backbones.visualization.attention_maps import token_attention
from mmext_backbones.visualization.networks import record

ARCH = {'embed_dims': 16, 'depths': (1, 1), 'num_heads': (2, 4)}
FORMS = {
    'full': {'lam': 2.0, 'gamma': 0.5},
    'factors': {'lam': 1.0, 'gamma': 0.0},
    'strict': {'gamma': 0.0, 'strict': True},
    'dilated': {'dilation': 2, 'scale': None},
}


@pytest.mark.parametrize('form', FORMS)
def test_weights_times_values_are_the_output_of_the_module(form):
    torch.manual_seed(0)
    backbone = LocalSwin(ARCH, mixer='elsa', out_indices=(0, 1))
    backbone.stages[0].blocks[0].attn = ELSAAttention(16, 2, 5, 4, **FORMS[form])
    backbone = backbone.double().eval().requires_grad_(False)
    (call,) = record(backbone, torch.randn(1, 3, 39, 46, dtype=torch.float64), [backbone.stages[0].blocks[0].attn])
    for token in [(0, 0), (4, 6), (9, 11)]:
        attention = token_attention(call, *token)
        assert attention.error < 1e-9
        torch.testing.assert_close(
            attention.weights.sum(dim=(1, 2)) + attention.beyond, torch.ones(2, dtype=torch.float64)
        )
