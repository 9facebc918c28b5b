"""The type that the operators compute in."""

import torch
from torch import Tensor


def widened(x: Tensor) -> Tensor:
    """x in float32 where it is of a type with fewer bits, to be rounded once at the end; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()
