"""The kernels in Triton against the formulas of their operators: what `doctor` runs on a GPU.

Forward and backward passes of each in float32, float16 and bfloat16, on small odd maps: windows that are whole, shifted
and padded, a grid, and ELSA's filters.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..ops import elsa, window_attention
from ..ops.elsa import gpu as elsa_gpu
from ..ops.triton_start import failures
from ..ops.window_attention import gpu as windows_gpu

# of the largest element. float32: sums in another order, of TF32 where PyTorch's products are; the others are rounded
# several times to 2^-12 and 2^-9
TOLERANCES = {torch.float32: 5e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}
HEADS, HEAD_DIM, WINDOW, KERNEL = 2, 32, (7, 7), 7
C = HEADS * HEAD_DIM


def check_kernels(device: torch.device) -> list[str]:
    """Runs every kernel that takes the device; returns what was found equal, one item an operator, form and type.

    Raises:
        RuntimeError: naming operator, type and tensor, where a kernel cannot run or gives other numbers.
    """
    checked = []
    for name, (kernel, formula, shapes) in CASES.items():
        for dtype in TOLERANCES:
            why = _why_not(name, device, dtype)
            if why is not None:
                raise RuntimeError(f'{name} in {dtype}: {why}')
            generator = torch.Generator().manual_seed(0)
            tensors = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
            _compare(f'{name} in {dtype}', kernel, formula, tensors, TOLERANCES[dtype])
            if failures():  # PyTorch took over
                raise RuntimeError(f'{name} in {dtype}: {failures()[-1]}')
            checked.append(f'{name} in {dtype}')
    return checked


def _compare(name: str, kernel: Callable, formula: Callable, tensors: Sequence[Tensor], tolerance: float) -> None:
    results = []
    for function, dtype in ((kernel, tensors[0].dtype), (formula, torch.float32)):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in tensors]
        out = function(*leaves)
        grad = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape).to(out.dtype)
        results.append([out, *torch.autograd.grad(out, leaves, grad)])
    for i, (actual, expected) in enumerate(zip(*results, strict=True)):
        error = (actual.float() - expected).abs().max() / expected.abs().max()
        if not error <= tolerance:
            what = f'the gradient of argument {i}' if i else 'the output'
            raise RuntimeError(f'{name}: {what} is wrong, by {error:.1e} of its largest element')


def _why_not(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    if name == 'elsa':
        return elsa_gpu.why_not(device, dtype)
    return windows_gpu.why_not(device, dtype, HEAD_DIM, WINDOW[0] * WINDOW[1])


def _windows(size: tuple[int, int], shift_size: int = 0, grid: bool = False, padding: bool = False) -> tuple:
    """The kernel, the formula and the shapes of their tensors."""
    options = {'num_heads': HEADS, 'window_size': WINDOW, 'scale': HEAD_DIM**-0.5, 'shift_size': shift_size}
    options['grid'] = grid
    N = WINDOW[0] * WINDOW[1]
    shapes = [(1, *size, 3 * C), (HEADS, N, N), *([(3 * C,)] if padding else [])]
    return (
        lambda qkv, bias, padding=None: windows_gpu.window_attention_gpu(qkv, bias, padding=padding, **options),
        lambda qkv, bias, padding=None: window_attention(qkv, bias, padding=padding, **options, backend='reference'),
        shapes,
    )


def _filters(backend: str) -> Callable[..., Tensor]:
    return lambda v, logits, add: elsa(v, logits, None, add, num_heads=HEADS, kernel_size=KERNEL, backend=backend)


CASES = {
    'window attention': _windows((14, 14)),
    'window attention, shifted and padded': _windows((9, 12), shift_size=3, padding=True),
    'grid attention': _windows((9, 12), grid=True),
    'elsa': (
        _filters('gpu'),
        _filters('reference'),
        [(1, C, 9, 11), (1, HEADS * KERNEL**2, 9, 11), (C, KERNEL, KERNEL)],
    ),
}
