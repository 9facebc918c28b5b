"""The ELSA operator on CUDA devices through Triton kernels (`gpu_kernels.py`), with the softmax inside.

Layout [B, H, W, C], as between the blocks; `v` and the logits may be slices of wider tensors. Three kernels at most for
the gradients, none with atomics: the same inputs give the same bits. Kept for the backward pass are the inputs and
`lse` [B, H, W, heads], the logarithm of the softmax's denominator.

Triton is imported at the first use. In its interpreter (TRITON_INTERPRET=1 before that) the kernels run on the CPU.
"""

import contextlib
from types import ModuleType

import torch
from torch import Tensor

from ..caching import load_once
from ..derivatives import first_order
from ..dispatcher import gradients, register
from ..gpu_compiling import can_compile_ahead, compile_ahead, launch
from ..gpu_support import power_of_two, why_not_on
from ..self_check import Launcher, checked
from ..triton_start import call, or_in_torch
from .taps import ELSATaps

KERNEL = 'elsa'
CAPABILITY = (7, 0)  # of the oldest GPU of NVIDIA
CHUNKS = 64  # of tiles, each with its own sums of the static filters' gradients; on small maps some are empty
CHANNELS = 32  # of a head in a program's blocks, at most
PIXELS = 32  # of a tile, at most
BLOCK_ELEMENTS = 2**13  # of the largest block of a program, at most
THREAD_ELEMENTS = 64  # of it in a thread, at most


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot run on tensors of this kind, or None."""
    return why_not_on(KERNEL, device, dtype, CAPABILITY)


@load_once
def kernels() -> ModuleType:
    """The module of the kernels, which needs Triton."""
    from . import gpu_kernels

    return gpu_kernels


class Blocks:
    """What a launch takes besides its tensors: blocks, tiles, and the number of programs.

    A warp holds at least 256 elements of a block of pixels and channels: with 8 in a thread (16 bytes of half
    precision), none is left to lie along the taps, which a thread is to sum alone.
    """

    def __init__(self, v: Tensor, num_heads: int, kernel_size: int) -> None:
        B, H, W, C = v.shape
        head_dim, row = C // num_heads, power_of_two(kernel_size)
        channels = min(power_of_two(head_dim), CHANNELS)
        widest = row * max(row, channels)  # elements a pixel, of all taps or of one row's values
        pixels = max(1, min(PIXELS, BLOCK_ELEMENTS // widest))
        tile_y = 1 << ((pixels.bit_length() - 1) // 2)  # a square, or twice as wide as high
        tile_x = pixels // tile_y
        self.tiles = B * -(-H // tile_y) * -(-W // tile_x)
        self.parts = num_heads * -(-head_dim // channels)
        self.options = {
            'HEAD_DIM': head_dim, 'K': kernel_size, 'ROW': row, 'D': channels,
            'TILE_Y': tile_y, 'TILE_X': tile_x,
            'num_warps': max(1, pixels * channels // 256, pixels * widest // (32 * THREAD_ELEMENTS)),
        }  # fmt: skip


def _dense(x: Tensor) -> Tensor:
    """`x` with dense channels, copied only if need be."""
    return x if x.stride(3) == 1 else x.contiguous()


def _static(ghost: Tensor | None) -> Tensor | None:
    """[C, k, k] as [k*k, C]: a thread loads neighbouring channels."""
    return None if ghost is None else ghost.flatten(1).mT.contiguous()


def _device(x: Tensor) -> contextlib.AbstractContextManager:
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def _forward(v: Tensor, logits: Tensor, add: Tensor | None, num_heads: int, kernel_size: int) -> tuple[Tensor, Tensor]:
    v, logits, add = _dense(v), _dense(logits), _static(add)
    out, lse = _fake_forward(v, logits, add, num_heads, kernel_size)
    blocks = Blocks(v, num_heads, kernel_size)
    strides = *v.stride()[:3], *logits.stride()[:3]
    with _device(v):
        tensors, numbers = (v, logits, add, out, lse), (*v.shape[1:3], num_heads, *strides)
        launch(kernels().forward, (blocks.tiles * blocks.parts,), tensors, numbers, blocks.options)
    return out, lse


def _backward(
    grad: Tensor,
    v: Tensor,
    logits: Tensor,
    lse: Tensor,
    add: Tensor | None,
    num_heads: int,
    kernel_size: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    grad, v, logits = _dense(grad), _dense(v), _dense(logits)
    grads = _fake_backward(grad, v, logits, lse, add, num_heads, kernel_size, needs)
    needs_v, needs_logits, needs_add = needs
    size, of_grad, of_v, of_logits = (*v.shape[1:3], num_heads), grad.stride()[:3], v.stride()[:3], logits.stride()[:3]
    blocks = Blocks(v, num_heads, kernel_size)
    with _device(v):
        if needs_v:
            tensors, numbers = (grad, logits, lse, _static(add), grads[0]), (*size, *of_grad, *of_logits)
            launch(kernels().backward_values, (blocks.tiles * blocks.parts,), tensors, numbers, blocks.options)
        if needs_logits:
            tensors, numbers = (grad, v, logits, lse, grads[1]), (*size, *of_grad, *of_v, *of_logits)
            launch(kernels().backward_logits, (blocks.tiles * num_heads,), tensors, numbers, blocks.options)
        if needs_add:
            sums = v.new_empty(CHUNKS, *add.shape, dtype=torch.float32)
            tensors, numbers = (grad, v, sums), (len(v), *size, *of_grad, *of_v)
            options = blocks.options | {'CHUNKS': CHUNKS}
            launch(kernels().backward_static, (CHUNKS * kernel_size * blocks.parts,), tensors, numbers, options)
            grads[2].copy_(sums.sum(dim=0))
    return grads


def _compile_ahead(v: Tensor, logits: Tensor, add: Tensor | None, num_heads: int, kernel_size: int) -> None:
    """Compiles what follows in a network, the gradients too."""
    needs = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in (v, logits, add)]

    def run() -> None:
        out, lse = _forward(v[:0], logits[:0], add, num_heads, kernel_size)
        _backward(out, v[:0], logits[:0], lse, add, num_heads, kernel_size, needs)

    key = v.device, v.dtype, logits.dtype, v.shape[3] // num_heads, kernel_size, add is None, *needs
    compile_ahead(KERNEL, key, run)


def _forward_in_torch(v, logits, add, num_heads, kernel_size):
    wide = logits.float().unflatten(3, (num_heads, -1))
    return _in_torch(v, logits, add, num_heads, kernel_size).contiguous(), wide.logsumexp(dim=4)


def _backward_in_torch(grad, v, logits, lse, add, num_heads, kernel_size, needs):
    grads = gradients(lambda *inputs: _in_torch(*inputs, num_heads, kernel_size), (v, logits, add), grad)
    inputs = zip((v, logits, add), grads, needs, strict=True)
    return tuple(g.to(x.dtype).contiguous() if needed else v.new_empty(0) for x, g, needed in inputs)


def _in_torch(v: Tensor, logits: Tensor, add: Tensor | None, num_heads: int, kernel_size: int) -> Tensor:
    B, H, W, _ = v.shape
    filters = logits.permute(0, 3, 1, 2).reshape(B, num_heads, kernel_size**2, H, W)
    return ELSATaps.apply(v.permute(0, 3, 1, 2), filters.softmax(dim=2), None, add, 1).permute(0, 2, 3, 1)


def _kind(v, logits, add, num_heads, kernel_size) -> tuple:
    """What of the arguments the kernels are compiled for."""
    return v.shape[3] // num_heads, kernel_size, logits.dtype, None if add is None else add.dtype


def _sample(v, logits, add, num_heads, kernel_size) -> tuple:
    """Random arguments of the same kind on the CPU, for an odd map of several tiles."""
    generator, (H, W), heads, C = torch.Generator().manual_seed(0), (9, 13), 2, v.shape[3] // num_heads * 2

    def random(like: Tensor, *shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32, device='cpu').to(like.dtype)

    maps = random(v, 2, H, W, C), random(logits, 2, H, W, heads * kernel_size**2)
    return *maps, None if add is None else random(add, C, kernel_size, kernel_size), heads, kernel_size


def _backward_kind(grad, v, logits, lse, add, num_heads, kernel_size, needs) -> tuple:
    return *_kind(v, logits, add, num_heads, kernel_size), *needs


def _backward_sample(grad, v, logits, lse, add, num_heads, kernel_size, needs) -> tuple:
    v, logits, add, heads, kernel_size = _sample(v, logits, add, num_heads, kernel_size)
    lse = logits.float().unflatten(3, (heads, -1)).logsumexp(dim=4)
    return v.cos(), v, logits, lse, add, heads, kernel_size, needs


def _fake_forward(v, logits, add, num_heads, kernel_size):
    return v.new_empty(v.shape), v.new_empty((*v.shape[:3], num_heads), dtype=torch.float32)


def _fake_backward(grad, v, logits, lse, add, num_heads, kernel_size, needs):
    inputs = zip((v, logits, add), needs, strict=True)
    return tuple(x.new_empty(x.shape) if needed else v.new_empty(0) for x, needed in inputs)


_OPTIONS = 'Tensor? add, int num_heads, int kernel_size'
_DEVICES = 'CUDA', 'CPU'  # the latter for the interpreter
FORWARD = Launcher(KERNEL, _forward, _forward_in_torch, _kind, _sample, ('the map', 'lse'))
_GRADIENTS = 'the gradient of v', 'the gradient of logits', 'the gradient of add'
BACKWARD = Launcher(KERNEL, _backward, _backward_in_torch, _backward_kind, _backward_sample, _GRADIENTS)
register(
    'elsa_softmax',
    f'(Tensor v, Tensor logits, {_OPTIONS}) -> (Tensor, Tensor)',
    or_in_torch(checked(FORWARD), _forward_in_torch),
    _fake_forward,
    _DEVICES,
)
register(
    'elsa_softmax_backward',
    f'(Tensor grad, Tensor v, Tensor logits, Tensor lse, {_OPTIONS}, bool[] needs) -> (Tensor, Tensor, Tensor)',
    or_in_torch(checked(BACKWARD), _backward_in_torch),
    _fake_backward,
    _DEVICES,
)


class ELSAGPU(torch.autograd.Function):
    """`v` [B, H, W, C], `logits` [B, H, W, heads * k*k], `add` [C, k, k] or None -> [B, H, W, C]."""

    @staticmethod
    def forward(ctx, v, logits, add, num_heads, kernel_size, by_name):
        out, lse = call(torch.ops.mmext_backbones.elsa_softmax, by_name, v, logits, add, num_heads, kernel_size)
        ctx.save_for_backward(v, logits, lse, add)
        ctx.options, ctx.by_name = (num_heads, kernel_size), by_name
        return out

    @staticmethod
    @first_order
    def backward(ctx, grad):
        needs = list(ctx.needs_input_grad[:3])
        backward = torch.ops.mmext_backbones.elsa_softmax_backward
        grads = call(backward, ctx.by_name, grad, *ctx.saved_tensors, *ctx.options, needs)
        return *(g if needed else None for g, needed in zip(grads, needs, strict=True)), None, None, None


def elsa_gpu(
    v: Tensor, logits: Tensor, add: Tensor | None, num_heads: int, kernel_size: int, by_name: bool = False
) -> Tensor:
    """`ops.elsa` after its checks: `v` [B, C, H, W] and `logits` [B, heads * k * k, H, W] in any memory format, `add`
    [C, k, k] or None -> [B, C, H, W], channels last in memory, in the dtype of `v`.

    `by_name`: whether a person asked for the kernels: PyTorch's form never takes their place (`triton_start.call`)."""
    v, logits = v.permute(0, 2, 3, 1), logits.permute(0, 2, 3, 1)
    if can_compile_ahead(v):
        _compile_ahead(v, logits, add, num_heads, kernel_size)
    return ELSAGPU.apply(v, logits, add, num_heads, kernel_size, by_name).permute(0, 3, 1, 2)
