"""Reading the vectors of tests/data whose entries are `case.name`, and the weights that follow from their keys."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tests.conftest import seeded_tensor

DATA = Path(__file__).parent / 'data'


def cases_of(file: str) -> dict[str, dict[str, np.ndarray]]:
    """The entries of each case of a file."""
    cases: dict[str, dict[str, np.ndarray]] = {}
    with np.load(DATA / file) as data:
        for key in data.files:
            case, dot, name = key.rpartition('.')
            if dot:
                cases.setdefault(case, {})[name] = data[key]
    return cases


def weights_of(case: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """The authors' tensors by their names; counters of batch norms are left out."""
    keys = json.loads(str(case['keys']))
    return {key: seeded_tensor(key, tuple(shape)) for key, shape in keys.items() if shape}


def load(module: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """The module with these tensors, reshaped: all of them are used, and all of its own but counters are given."""
    own = module.state_dict()
    missing = [key for key in own if key not in weights and not key.endswith('num_batches_tracked')]
    assert not missing
    module.load_state_dict({key: value.reshape(own[key].shape) for key, value in weights.items()}, strict=False)
    assert set(weights) <= set(own)
    return module.eval()


def tensors(case: dict[str, np.ndarray], *names: str) -> list[Tensor]:
    return [torch.from_numpy(case[name]) for name in names]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()
