"""The grouped convolution of the product of two maps, from which ELSA reads the logits of its filters.

    out[b, y, x, c] = bias[c] + sum_(d, i, j) weight[c, d, i, j] * (q * k)[b, y + i - r, x + j - r, d of c's group]

`d` runs over the channels of a group, `i` and `j` over the kernel_size = 2 r + 1 taps of either axis. Outside the map
the product is zero.

Source: Zhou et al., "ELSA" (arXiv 2112.12786), section 3.2 (Hadamard attention).
"""

import torch.nn.functional as F
from torch import Tensor

from ..backends import check_devices, choose
from ..c_kernels import REALS
from ..derivatives import TRANSFORMED, is_transformed
from ..torch_versions import is_autocast_enabled
from .cpu import GROUPS, KERNEL_SIZE, ProductConvCPU
from .cpu import why_not as cpu_why_not

FORMS = ('cpu', 'torch', 'reference')


def product_conv(q: Tensor, k: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str = 'auto') -> Tensor:
    """Convolve q * k (formula above).

    Args:
        q: a map, [B, H, W, C], any H and W.
        k: another of the same shape.
        weight: [C, channels of a group, kernel_size, kernel_size], kernel_size odd.
        bias: [C] or None.
        backend: 'cpu' (the kernel: groups of 4 or 8 channels, 7 x 7 taps, float32 and float64, not under autocast; it
            never holds the product, for the backward pass neither), 'torch' or 'reference' (torch's convolution, any
            device), or 'auto', see `ops.backends`.

    Returns:
        [B, H, W, C] in the dtype of `q`; under autocast as of a convolution.

    Raises:
        ValueError: for shapes or backends that do not fit.
        RuntimeError: where a backend is asked for by name and cannot run; the reason is in the message.
    """
    _check(q, k, weight, bias)
    if choose('product_conv', backend, FORMS, _why_not, q, k, weight, bias) == 'cpu':
        return ProductConvCPU.apply(q, k, weight, bias)
    return product_conv_reference(q, k, weight, bias)


def product_conv_reference(q: Tensor, k: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The formula by torch's convolution; shapes as in `product_conv`, no checks."""
    product = (q * k).permute(0, 3, 1, 2)
    groups, padding = len(weight) // weight.shape[1], weight.shape[2] // 2
    return F.conv2d(product, weight, bias, padding=padding, groups=groups).permute(0, 2, 3, 1)


def _why_not(form: str, q: Tensor, k: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    """Why a form cannot run on these tensors, or None."""
    if form != 'cpu':
        return None
    if is_transformed():
        return TRANSFORMED
    if q.device.type != 'cpu':
        return f'it runs on the CPU, the tensors are on {q.device}'
    dtypes = {tensor.dtype for tensor in (q, k, weight, bias) if tensor is not None}
    if len(dtypes) > 1 or q.dtype not in REALS:
        return f'it computes in float32 or float64, the tensors are {", ".join(sorted(map(str, dtypes)))}'
    if is_autocast_enabled('cpu'):
        return 'under autocast the convolution is in the lower precision'
    if weight.shape[1] not in GROUPS or weight.shape[2:] != KERNEL_SIZE:
        return f'it has groups of 4 or 8 channels and 7 x 7 taps, weight has shape {tuple(weight.shape)}'
    return 'the map is empty' if q.numel() == 0 else cpu_why_not()


def _check(q: Tensor, k: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_devices(q=q, k=k, weight=weight, bias=bias)
    if q.dim() != 4 or q.shape != k.shape:
        raise ValueError(f'q and k have shapes {tuple(q.shape)} and {tuple(k.shape)}: expected [B, H, W, C] of both')
    shape, C = tuple(weight.shape), q.shape[3]
    if len(shape) != 4 or shape[0] != C or not shape[1] or C % shape[1] or shape[2] != shape[3] or shape[2] % 2 == 0:
        raise ValueError(f'weight has shape {shape}: expected ({C}, a divisor of {C}, kernel_size, kernel_size), odd')
    if bias is not None and tuple(bias.shape) != (C,):
        raise ValueError(f'bias has shape {tuple(bias.shape)}: expected ({C},)')
