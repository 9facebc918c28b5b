"""ELSASwin against the authors' outputs and the published parameter counts."""

import pytest
import torch

from mmext_backbones.backbones import ELSASwin
from mmext_backbones.weights import elsa_swin as weights
from tests.test_backbones.test_swin import check_vectors

PARAMETERS = {'tiny': 28_373_322, 'small': 52_106_970, 'base': 91_659_256}


@pytest.mark.parametrize('arch', PARAMETERS)
def test_parameter_count(arch):
    with torch.device('meta'):
        model = ELSASwin(arch)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[arch]


def test_agrees_with_the_authors():
    check_vectors(ELSASwin('tiny'), weights.from_authors, 'elsa_swin_t_dense.npz')
