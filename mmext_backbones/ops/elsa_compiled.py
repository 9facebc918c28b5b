"""The ELSA operator on the CPU through a compiled kernel (`elsa_cpu.c`), where a C compiler is at hand.

The kernel is plain C without a header of Python or PyTorch: compiling takes about a second, once per machine, at the
first use; nothing is compiled at install, and without a compiler the loop over the taps does the work. The library is
kept in the user's cache folder under the hash of all that went into it (source, compiler, flags, processor).

Layout [B, H, W, C], as between the blocks; formula, accumulation and gradients as written in the C file.
"""

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SOURCE = Path(__file__).with_name('elsa_cpu.c')
FLAGS = ('-std=gnu11', '-O3', '-march=native', '-mprefer-vector-width=512', '-fopenmp', '-fPIC')
PORTABLE_FLAGS = ('-std=gnu11', '-O3', '-fopenmp', '-fPIC')  # for compilers that do not know the others
CHUNKS = 32  # of rows, each with its own sums of the static filters' gradients
REALS = {torch.float32: 'float', torch.float64: 'double'}

logger = logging.getLogger('mmext_backbones')


class _Shape(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            'batch', 'height', 'width', 'channels', 'heads', 'kernel_size', 'dilation', 'v_stride', 'threads'
        )
    ]  # fmt: skip


def unavailable() -> str | None:
    """Why the kernel cannot run here, or None. The first call on a machine compiles it."""
    return _reason()


# What `torch.compiler.assume_constant_result` sets, without the compiler it imports: traced code takes the answer as is
unavailable._dynamo_marked_constant = True


@functools.cache
def _reason() -> str | None:
    try:
        for real in REALS.values():
            _library(real)
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        logger.info('The compiled ELSA kernel cannot be used: %s', error)
        return str(error)
    return None


@functools.cache
def _library(real: str) -> ctypes.CDLL:
    compiler = os.environ.get('CC') or 'cc'
    if shutil.which(compiler) is None:
        raise RuntimeError(f'no C compiler: {compiler!r} is not on the PATH')
    try:
        path = _build(compiler, FLAGS, real)
    except RuntimeError:
        path = _build(compiler, PORTABLE_FLAGS, real)
    # OpenMP is not linked: PyTorch has its own copy of the runtime open for all, and two would fight over the cores
    library = ctypes.CDLL(str(path))
    for function, pointers in (('elsa_forward', 5), ('elsa_backward_filters', 7), ('elsa_backward_value', 5)):
        chunks = [ctypes.c_int64] if function == 'elsa_backward_filters' else []
        getattr(library, function).argtypes = [ctypes.POINTER(_Shape), *[ctypes.c_void_p] * pointers, *chunks]
        getattr(library, function).restype = None
    return library


def _build(compiler: str, flags: tuple[str, ...], real: str) -> Path:
    """The path of the library, compiled unless it is there."""
    parts = (SOURCE.read_text(), _run(compiler, '--version'), flags, real, platform.machine(), _processor())
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    folder = Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'mmext_backbones'
    path = folder / f'elsa_{real}_{key}.so'
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:  # then moved: another process never sees half a file
        objects, made = Path(scratch, 'elsa.o'), Path(scratch, 'elsa.so')
        _run(compiler, *flags, f'-DREAL={real}', '-c', str(SOURCE), '-o', str(objects))
        _run(compiler, '-shared', str(objects), '-o', str(made))
        os.replace(made, path)
    return path


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ['no message']
        raise RuntimeError(f'{" ".join(command[:2])} ... failed: {said[0]}')
    return done.stdout


def _processor() -> str:
    """What tells processors apart that share a home folder."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(('flags', 'Features'))), platform.processor())


def _shape(v: Tensor, attn: Tensor, kernel_size: int, dilation: int) -> _Shape:
    B, H, W, C = v.shape
    threads = torch.get_num_threads()
    return _Shape(B, H, W, C, attn.shape[3], kernel_size, dilation, v.stride(2), threads)


def _tokens(v: Tensor) -> Tensor:
    """`v` [B, H, W, C] with dense channels and one distance from each token to the next, copied only if need be."""
    _, H, W, _ = v.shape
    step = v.stride(2)
    even = v.stride(3) == 1 and v.stride(1) == W * step and v.stride(0) == H * W * step
    return v if even else v.contiguous()


def _pointers(*tensors: Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _forward(v: Tensor, attn: Tensor, mul: Tensor | None, add: Tensor, kernel_size: int, dilation: int) -> Tensor:
    v, attn = _tokens(v), attn.contiguous()
    mul, add = None if mul is None else mul.contiguous(), add.contiguous()
    out = v.new_empty(v.shape)
    shape = _shape(v, attn, kernel_size, dilation)
    _library(REALS[v.dtype]).elsa_forward(ctypes.byref(shape), *_pointers(v, attn, mul, add, out))
    return out


def _backward(
    grad: Tensor, v: Tensor, attn: Tensor, mul: Tensor | None, add: Tensor, kernel_size: int, dilation: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad, v, attn = grad.contiguous(), _tokens(v), attn.contiguous()
    mul, add = None if mul is None else mul.contiguous(), add.contiguous()
    library, shape = _library(REALS[v.dtype]), _shape(v, attn, kernel_size, dilation)

    grad_v = v.new_empty(v.shape)
    library.elsa_backward_value(ctypes.byref(shape), *_pointers(grad, attn, mul, add, grad_v))

    chunks = min(CHUNKS, v.shape[0] * v.shape[1])
    grad_attn = torch.zeros_like(attn)
    sums_mul = None if mul is None else v.new_zeros(chunks, *add.shape)
    sums_add = v.new_zeros(chunks, *add.shape)
    pointers = _pointers(v, attn, mul, grad, grad_attn, sums_mul, sums_add)
    library.elsa_backward_filters(ctypes.byref(shape), *pointers, chunks)
    grad_mul = v.new_empty(0) if mul is None else sums_mul.sum(dim=0)
    return grad_v, grad_attn, grad_mul, sums_add.sum(dim=0)


def _fake_forward(v, attn, mul, add, kernel_size, dilation):
    return v.new_empty(v.shape)


def _fake_backward(grad, v, attn, mul, add, kernel_size, dilation):
    grad_mul = v.new_empty(0) if mul is None else v.new_empty(add.shape)
    return v.new_empty(v.shape), attn.new_empty(attn.shape), grad_mul, v.new_empty(add.shape)


# Operators of the dispatcher: compilers and exporters see one node. `torch.library.custom_op` would do the same,
# but its first call imports 100 MB of compiler.
_LIBRARY = torch.library.Library('mmext_backbones', 'FRAGMENT')
_LIBRARY.define('elsa(Tensor v, Tensor attn, Tensor? mul, Tensor add, int kernel_size, int dilation) -> Tensor')
_LIBRARY.define(
    'elsa_backward(Tensor grad, Tensor v, Tensor attn, Tensor? mul, Tensor add, int kernel_size, int dilation)'
    ' -> (Tensor, Tensor, Tensor, Tensor)'
)
for _name, _function, _fake in (('elsa', _forward, _fake_forward), ('elsa_backward', _backward, _fake_backward)):
    _LIBRARY.impl(_name, _function, 'CPU')
    torch.library.register_fake(f'mmext_backbones::{_name}', _fake, lib=_LIBRARY)


class ELSACompiled(torch.autograd.Function):
    """The sum over the taps, all in one of float32 and float64.

    `v` [B, H, W, C], `attn` [B, H, W, heads, k*k], `mul` (None: ones) and `add` [k*k, C] -> [B, H, W, C].
    """

    @staticmethod
    def forward(ctx, v, attn, mul, add, kernel_size, dilation):
        ctx.save_for_backward(v, attn, mul, add)
        ctx.options = kernel_size, dilation
        return torch.ops.mmext_backbones.elsa(v, attn, mul, add, kernel_size, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        v, attn, mul, add = ctx.saved_tensors
        grads = torch.ops.mmext_backbones.elsa_backward(grad, v, attn, mul, add, *ctx.options)
        return grads[0], grads[1], None if mul is None else grads[2], grads[3], None, None


def elsa_compiled(
    v: Tensor, logits: Tensor, mul: Tensor | None, add: Tensor | None, num_heads: int, kernel_size: int, dilation: int
) -> Tensor:
    """`ops.elsa` after its checks: `v` [B, C, H, W] and `logits` [B, heads * k * k, H, W] in any memory format, `mul`
    and `add` [C, k, k] or None -> [B, C, H, W], channels last in memory, in the dtype of `v`."""
    dtype, taps = torch.promote_types(v.dtype, torch.float32), kernel_size**2
    autocast_off = contextlib.nullcontext() if v.is_meta else torch.autocast(v.device.type, enabled=False)
    with autocast_off:
        attn = logits.to(dtype).permute(0, 2, 3, 1).unflatten(3, (num_heads, taps)).softmax(dim=4)
        mul = None if mul is None else mul.to(dtype).flatten(1).mT
        add = attn.new_zeros(taps, v.shape[1]) if add is None else add.to(dtype).flatten(1).mT
        out = ELSACompiled.apply(v.to(dtype).permute(0, 2, 3, 1), attn, mul, add, kernel_size, dilation)
    return out.permute(0, 3, 1, 2).to(v.dtype)
