"""What torch before 2.4 lacks or spells otherwise, under the names of current versions.

On a current torch these are its own functions, which its compiler knows.

HALF_PRODUCTS: whether the CPU multiplies matrices in float16; 2.1 does not.
"""

from collections.abc import Callable

import torch

__all__ = ['HALF_PRODUCTS', 'get_autocast_dtype', 'is_autocast_enabled', 'is_compiling', 'register_fake']

if hasattr(torch.compiler, 'is_compiling'):
    is_compiling = torch.compiler.is_compiling
else:  # before 2.3
    from torch._utils import is_compiling

if hasattr(torch, 'get_autocast_dtype'):
    is_autocast_enabled, get_autocast_dtype = torch.is_autocast_enabled, torch.get_autocast_dtype
else:  # before 2.4: a function a device

    def is_autocast_enabled(device: str) -> bool:
        """Whether autocast is on for a type of device, ``'cpu'`` or ``'cuda'``; no other one has it here."""
        if device == 'cpu':
            return torch.is_autocast_cpu_enabled()
        return device == 'cuda' and torch.is_autocast_enabled()

    def get_autocast_dtype(device: str) -> torch.dtype:
        """What autocast computes in on a type of device, ``'cpu'`` or ``'cuda'``."""
        return torch.get_autocast_cpu_dtype() if device == 'cpu' else torch.get_autocast_gpu_dtype()


try:
    torch.mm(*[torch.zeros(1, 1, dtype=torch.float16, device='cpu')] * 2)
    HALF_PRODUCTS = True
except RuntimeError:
    HALF_PRODUCTS = False


def register_fake(name: str, fake: Callable, library: torch.library.Library) -> None:
    """Tells the dispatcher how to compute shapes and types of an operator's results.

    Args:
        name: of the operator, without its namespace.
        fake: returns tensors of the results' shapes and types, for tensors without data.
        library: that defines the operator.
    """
    if hasattr(torch.library, 'register_fake'):
        torch.library.register_fake(f'{library.ns}::{name}', fake, lib=library)
    else:  # before 2.4
        library.impl(name, fake, 'Meta')
