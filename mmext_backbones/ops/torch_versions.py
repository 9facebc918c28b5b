"""Equivalents of what torch before 2.5 lacks or spells otherwise.

On a current torch these are its own functions, which its compiler knows.
"""

import functools
from collections.abc import Callable

import torch

__all__ = [
    'TOO_OLD_TO_COMPILE',
    'get_autocast_dtype',
    'has_half_products',
    'is_autocast_enabled',
    'is_compiling',
    'register_fake',
    'register_load_state_dict_pre_hook',
]

# The compiler of 2.1.2 makes other maps of Swin and ELSA-Swin where it keeps sizes open, and fails on Sequencer2D
# (measured, 64 x 96 pixels). That of 2.4.1 gives eager's maps; of Sequencer2D it may refuse open sizes.
TOO_OLD_TO_COMPILE = (
    None
    if hasattr(torch, 'get_autocast_dtype')  # torch 2.4
    else f'torch {torch.__version__} cannot compile this network: take 2.4 or later, or leave it as it is'
)

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


@functools.cache
def has_half_products() -> bool:
    """Whether the CPU multiplies matrices in float16: from torch 2.2 on."""
    try:
        torch.mm(*[torch.zeros(1, 1, dtype=torch.float16, device='cpu')] * 2)
    except RuntimeError:
        return False
    return True


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


def register_load_state_dict_pre_hook(module: torch.nn.Module, hook: Callable) -> None:
    """Registers a function that sees a state dict, and may change it, before the module reads its own tensors of it.

    Args:
        module: That is loaded.
        hook: Called with the module, then as ``Module._load_from_state_dict``. A function at module level, so that the
            module can be pickled.
    """
    if hasattr(module, 'register_load_state_dict_pre_hook'):
        module.register_load_state_dict_pre_hook(hook)
    else:  # before 2.5
        module._register_load_state_dict_pre_hook(hook, with_module=True)
