"""What the kernels in Triton of all operators ask of a device before they run, and which of them a device is denied."""

import threading

import torch

from .caching import load_once
from .dispatcher import constant_in_graphs
from .triton_start import cannot_start, is_interpreted, no_triton

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
CAPABILITY = (7, 0)  # of the oldest GPU of NVIDIA, for kernels without products
BFLOAT16 = (8, 0)  # the compute capability that multiplies it; Triton 3.0 to 3.2 fails below
PROGRAMS_PER_PROCESSOR = 8  # of kernels that sum over rows, of four warps each
LEAST_TILES = 4  # of a program, whose sums are traffic, too

_refused: dict[tuple[str, torch.dtype, str], str] = {}
_lock = threading.Lock()


def refuse(kernel: str, dtype: torch.dtype, device: torch.device, reason: str) -> bool:
    """From now on this process does without a kernel for a type on a device, whose numbers were found wrong.

    Args:
        kernel: the operator, as in its `why_not`.
        dtype: of the tensors.
        device: where.
        reason: what `why_not` answers.

    Returns:
        Whether it was not refused before, so that a caller tells it once.
    """
    with _lock:
        return _refused.setdefault((kernel, dtype, str(device)), reason) is reason


@constant_in_graphs
def refused(kernel: str, dtype: torch.dtype, device: torch.device) -> str | None:
    """The reason that `refuse` was given, or None."""
    return _refused.get((kernel, dtype, str(device)))


@constant_in_graphs
def why_not_on(kernel: str, device: torch.device, dtype: torch.dtype, capability: tuple[int, int]) -> str | None:
    """Why the kernels of an operator cannot run on tensors of this kind, or None.

    Args:
        kernel: the operator, as in `refuse`.
        device: of the tensors.
        dtype: of the tensors.
        capability: compute capability of the oldest GPU of NVIDIA that Triton compiles them for.
    """
    if dtype not in DTYPES:
        return f'it takes float16, bfloat16 and float32, not {dtype}'
    if (problem := cannot_start(device) or no_triton()) is not None:
        return problem
    if is_interpreted():
        return None
    if device.type != 'cuda':
        return f'it runs on GPUs, not on {device} (there only in the interpreter, with TRITON_INTERPRET=1)'
    if torch.version.hip is None:
        least = max(capability, BFLOAT16) if dtype == torch.bfloat16 else capability
        if (found := capability_of(device)) < least:
            needed, has = ('.'.join(map(str, each)) for each in (least, found))
            return f'Triton needs a GPU of compute capability {needed} for {dtype}; {device} has {has}'
    return refused(kernel, dtype, device)


def why_not_rows(kernel: str, device: torch.device, *dtypes: torch.dtype) -> str | None:
    """`why_not_on` of kernels without products, whose maps are of several types."""
    found = (why_not_on(kernel, device, dtype, CAPABILITY) for dtype in dict.fromkeys(dtypes))
    return next((reason for reason in found if reason is not None), None)


def power_of_two(n: int) -> int:
    """The least that is not less than n."""
    return 1 << (n - 1).bit_length()


def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 1 of what is none."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == 'cuda' else 1


def runs_of(tiles: int, device: torch.device, across: int = 1) -> tuple[int, int]:
    """Programs along the rows of a map that sum over their rows, and the tiles that each takes.

    Args:
        tiles: of rows.
        device: of the map.
        across: programs beside each other, along the channels.
    """
    run = max(LEAST_TILES, -(-tiles // max(1, PROGRAMS_PER_PROCESSOR * processors(device) // across)))
    return -(-tiles // run) or 1, run


@constant_in_graphs
@load_once
def capability_of(device: torch.device) -> tuple[int, int]:
    """Major and minor compute capability of a GPU; (0, 0) of what is none of NVIDIA's, or not there."""
    if device.type != 'cuda' or torch.version.hip is not None or not torch.cuda.is_available():
        return 0, 0
    return torch.cuda.get_device_capability(device)
