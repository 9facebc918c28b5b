"""Outputs and gradients of mmcv's operators as compiled: tests/data/mmcv_ops.npz."""

from pathlib import Path

import numpy as np
import torch

DATA = np.load(Path(__file__).parents[1] / 'data' / 'mmcv_ops.npz')


def vectors(case):
    """The tensors of a case, by name."""
    return {name.split('/')[1]: torch.from_numpy(DATA[name]) for name in DATA.files if name.startswith(f'{case}/')}
