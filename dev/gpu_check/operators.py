"""The operators: what is compiled, and what is compared with the formula."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmext_backbones.ops import bilstm2d, elsa, global_attention, outlook, product_conv, window_attention
from mmext_backbones.ops.elsa import gpu as elsa_gpu
from mmext_backbones.ops.gpu_compiling import compile_ahead
from mmext_backbones.ops.gpu_support import why_not_rows
from mmext_backbones.ops.layer_norm import gpu as norm_gpu
from mmext_backbones.ops.mlp import norm_mlp
from mmext_backbones.ops.norm_gelu import gpu as gelu_gpu
from mmext_backbones.ops.self_check import TOLERANCES
from mmext_backbones.ops.window_attention import gpu as windows_gpu

DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}
HEADS = 2
MLP = {'eps': 1e-6}


class Case(NamedTuple):
    """An operator on an odd map.

    Attributes:
        name: as printed.
        run: from a form and tensors to the result.
        shapes: of the tensors.
        forms: that are compared with the formula.
        rounds: factor of the tolerance, where what was rounded is rounded again and again.
        options: of window attention.
        why_not: from device and type, why the kernels in Triton refuse it, or None.
    """

    name: str
    run: Callable[..., Tensor]
    shapes: Sequence[tuple[int, ...]]
    forms: Sequence[str]
    rounds: float = 1
    options: Mapping[str, Any] = MappingProxyType({})
    why_not: Callable[[torch.device, torch.dtype], str | None] = lambda device, dtype: None


def cases(dry: bool) -> list[Case]:
    """Every operator; where there are kernels in Triton each kind of them."""
    d = 16 if dry else 32
    C, k = HEADS * d, 3 if dry else 7
    map_ = (1, 5, 6) if dry else (3, 37, 50)
    windows = [
        windows_case('window attention', map_, d, (7, 7), 0, False, True),
        windows_case('window attention, shifted', map_, d, (7, 7), 3, False, True),
        windows_case('window attention, padding hidden', map_, d, (7, 7), 3, False, False),
        windows_case('window attention, whole', (1, 7, 14), d, (7, 7), 3, False, True),
        windows_case('grid attention', map_, d, (7, 7), 0, True, False),
    ]
    if not dry:
        for edge in (10, 12, 16):
            windows.append(windows_case(f'window attention, {edge}', map_, d, (edge, edge), edge // 2, False, True))
            windows.append(windows_case(f'grid attention, {edge}', map_, d, (edge, edge), 0, True, False))
        windows.append(windows_case('window attention, runs', (2, 203, 210), d, (7, 7), 3, False, True))
    B, H, W = map_
    lstm = [(4 * 8, C), (4 * 8, 8), (4 * 8,), (4 * 8,)] * 4
    return [
        *windows,
        Case(
            'elsa',
            _elsa(k),
            [(B, C, H, W), (B, HEADS * k * k, H, W), (C, k, k)],
            ('gpu', 'torch'),
            why_not=elsa_gpu.why_not,
        ),
        Case(
            'product_conv',
            lambda form, *x: product_conv(*x, backend=form),
            [(*map_, C), (*map_, C), (C, 4, 7, 7), (C,)],
            ('torch',),
        ),
        Case(
            'bilstm2d',
            lambda form, x, *weights: bilstm2d(x, weights[:8], weights[8:], backend=form),
            [(*map_, C), *lstm],
            ('torch',),
            8,
        ),
        Case(
            'outlook',
            lambda form, *x: outlook(*x, num_heads=HEADS, backend=form),
            [(*map_, C), (B, -(-H // 2), -(-W // 2), HEADS * 81)],
            ('torch',),
        ),
        Case(
            'global attention',
            lambda form, x: global_attention(x, num_heads=HEADS, scale=d**-0.5, backend=form),
            [(*map_, 3 * C)],
            ('torch',),
        ),
        Case('norm_mlp', _mlp, [(*map_, C), (C,), (C,), (4 * C, C), (4 * C,), (C, 4 * C), (C,)], ('auto',), 4),
        *(
            Case(
                f'layer_norm, {channels}',
                _norm,
                [(*map_, channels), (channels,), (channels,)],
                ('gpu', 'torch'),
                why_not=partial(why_not_rows, norm_gpu.KERNEL),
            )
            for channels in ((C, 45) if dry else (96, 45, 768, 1536))
        ),
        *(
            Case(
                f'gelu, {kind}',
                partial(_gelu, kind),
                [(*map_, 200)],
                ('gpu', 'torch'),
                why_not=partial(why_not_rows, gelu_gpu.KERNEL),
            )
            for kind in ('none', 'tanh')
        ),
    ]


def windows_case(name, map_, d, window, shift, grid, padded, heads=HEADS) -> Case:
    """Window attention on a map (images, height, width) with heads of d channels."""
    N, C = math.prod(window), heads * d
    options = {'num_heads': heads, 'window_size': window, 'scale': d**-0.5, 'shift_size': shift, 'grid': grid}

    def run(form: str, qkv: Tensor, bias: Tensor, padding: Tensor | None = None) -> Tensor:
        if form == 'gpu':  # on the CPU in the interpreter, too
            return windows_gpu.window_attention_gpu(qkv, bias, padding=padding, **options)
        return window_attention(qkv, bias, padding=padding, **options, backend=form)

    shapes = [(*map_, 3 * C), (heads, N, N), *([(3 * C,)] if padded else [])]
    return Case(name, run, shapes, ('gpu', 'torch'), 1, options, partial(windows_gpu.why_not, head_dim=d, tokens=N))


def _elsa(k: int) -> Callable[..., Tensor]:
    return lambda form, v, logits, add: elsa(v, logits, None, add, num_heads=HEADS, kernel_size=k, backend=form)


class _ByKernel(torch.autograd.Function):
    """A norm, or without weights a GELU, whose passes are kernels; x is added to the output of a norm."""

    @staticmethod
    def forward(ctx, approximate, x, *params):
        ctx.save_for_backward(x, *params)
        ctx.approximate = approximate
        if not params:
            return F.gelu(x, approximate=approximate)
        return x + norm_gpu.forward(x, *params, MLP['eps'], x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, *params = ctx.saved_tensors
        if params:
            return None, *norm_gpu.backward(grad, x, *params, MLP['eps'], skip=grad, again=False)[1:]
        grad = grad.clone(memory_format=torch.contiguous_format)
        gelu_gpu.gelu_backward_sum_(grad, x.contiguous(), ctx.approximate)
        return None, grad


def _norm(form: str, x: Tensor, *params: Tensor) -> Tensor:
    """x and its norm, by PyTorch as under autocast."""
    if form == 'gpu':
        return _ByKernel.apply('none', x, *params)
    wide = [each.to(torch.promote_types(x.dtype, torch.float32)) for each in (x, *params)]
    return x + F.layer_norm(wide[0], x.shape[-1:], *wide[1:], MLP['eps']).to(x.dtype)


def _gelu(kind: str, form: str, x: Tensor) -> Tensor:
    return _ByKernel.apply(kind, x) if form == 'gpu' else F.gelu(x, approximate=kind)


def _mlp(form: str, x: Tensor, *weights: Tensor) -> Tensor:
    """The perceptron with its norm; 'reference' is the formula."""
    if form != 'reference':
        return norm_mlp(x, *weights, **MLP)
    y = F.layer_norm(x, x.shape[-1:], *weights[:2], MLP['eps'])
    return F.linear(F.gelu(F.linear(y, *weights[2:4])), *weights[4:])


def tensors_of(case: Case, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Random numbers; weights of products are scaled, so that results stay near one."""
    generator = torch.Generator().manual_seed(0)
    scaled = case.name in ('product_conv', 'bilstm2d', 'norm_mlp')
    tensors = []
    for i, shape in enumerate(case.shapes):
        scale = math.prod(shape[1:]) ** -0.5 if scaled and i else 1
        tensors.append((torch.randn(shape, generator=generator) * scale).to(device, dtype))
    return tensors


def with_gradients(case: Case, form: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The result, and the gradient of each tensor."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = case.run(form, *leaves)
    grad = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=out.device).view(out.shape).to(out.dtype)
    grads = torch.autograd.grad(out, leaves, grad, allow_unused=True)
    return [out.detach(), *(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True))]


def check(case: Case, dtype: str, device: torch.device) -> list[dict[str, Any]]:
    """A row for each form: largest errors of result and gradients, of the largest element of each.

    A form that the GPU is refused is neither right nor wrong: its row says why.
    """
    inputs = tensors_of(case, DTYPES[dtype], device)
    expected = with_gradients(case, 'reference', [x.cpu().double() for x in inputs])
    allowed = case.rounds * TOLERANCES[DTYPES[dtype]]
    rows = []
    for form in case.forms:
        row = {'operator': case.name, 'form': form, 'dtype': dtype, 'allowed': allowed}
        refused = case.why_not(device, DTYPES[dtype]) if form == 'gpu' else None
        if refused is not None:
            rows.append({**row, 'right': None, 'refused': refused})
            continue
        try:
            actual = with_gradients(case, form, inputs)
        except Exception as error:  # one form fails, the next is asked
            row |= {'right': False, 'error': f'{type(error).__name__}: {error}'[:300]}
        else:
            errors = [_error(a, e) for a, e in zip(actual, expected, strict=True)]
            row |= {'right': all(each <= allowed for each in errors), 'errors': errors}
        rows.append(row)
    return rows


def _error(actual: Tensor, expected: Tensor) -> float:
    largest = expected.abs().max().item() or 1.0
    return (actual.cpu().double() - expected).abs().max().item() / largest


# --------------------------------------------------------------------------------------------------------------------
# Compiling


def compile_all(chosen: Sequence[Case], dtypes: Sequence[str], device: torch.device) -> dict[str, Any]:
    """Compiles the kernels of all cases, side by side where Triton can."""
    errors: list[str] = []
    began = time.monotonic()

    def run() -> None:
        for name, compile_one in _launches(chosen, dtypes, device):
            try:
                compile_one()
            except Exception as error:
                errors.append(f'{name}: {type(error).__name__}: {error}'[:300])

    failed = compile_ahead('gpu_check', (str(device), *dtypes), run)
    errors += [f'{type(error).__name__}: {error}'[:300] for error in failed]
    return {'seconds': round(time.monotonic() - began, 1), 'errors': errors}


def _launches(
    chosen: Sequence[Case], dtypes: Sequence[str], device: torch.device
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Forward and backward launches on maps of no images."""
    for case in (each for each in chosen if 'gpu' in each.forms):
        for dtype in (each for each in dtypes if case.why_not(device, DTYPES[each]) is None):
            inputs = tensors_of(case, DTYPES[dtype], device)
            empty = [x[:0] if i < (2 if case.name == 'elsa' else 1) else x for i, x in enumerate(inputs)]
            yield f'{case.name}, {dtype}', lambda case=case, empty=empty: _launch(case, empty)


def _launch(case: Case, empty: Sequence[Tensor]) -> None:
    if case.name == 'elsa':
        v, logits, add = empty
        v, logits, k = v.permute(0, 2, 3, 1), logits.permute(0, 2, 3, 1), add.shape[-1]
        out, lse = elsa_gpu._forward(v, logits, add, HEADS, k)
        elsa_gpu._backward(out, v, logits, lse, add, HEADS, k, [True] * 3)
        return
    if case.name.startswith('layer_norm'):
        x, weight, bias = empty[0].flatten(0, -2), *empty[1:]
        y = norm_gpu._forward(x, weight, bias, MLP['eps'], x.dtype)
        norm_gpu._backward(y, x, weight, bias, y, MLP['eps'], False)
        return
    if case.name.startswith('gelu'):
        x = empty[0].flatten(0, -2)
        gelu_gpu._backward(x, x, case.name.endswith('tanh'), True)
        return
    qkv, bias, padding = (*empty, None)[:3]
    values = [case.options[name] for name in ('num_heads', 'window_size', 'scale', 'shift_size', 'grid')]
    out = windows_gpu._forward(qkv, bias, padding, *values)
    windows_gpu._backward(out, qkv, bias, padding, *values)
