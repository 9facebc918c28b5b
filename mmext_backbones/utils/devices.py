"""The devices of torch, by name."""

import torch

from .errors import UserError
from .words import plural

__all__ = ['find_device']


def find_device(device: str | torch.device | None) -> torch.device:
    """The device asked for; of None the GPU if there is one, else the CPU.

    Raises:
        UserError: if there is no such device.
    """
    if device is None:
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        found = torch.device(device)
        torch.empty(0, device='cpu' if found.type in ('cpu', 'cuda') else found)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        raise UserError(f'device {str(device)!r}: expected cpu, cuda, cuda:0 or the like.') from error
    if found.type == 'cuda' and (found.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        seen = plural(count, 'GPU') if count else 'no GPU'
        raise UserError(f'device {str(found)!r}: torch sees {seen} here. Leave it out, or take cpu.')
    return found
