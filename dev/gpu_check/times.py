"""How long operators and networks take, each form in turns with the others."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dev.benchmark.case import Case as Network
from dev.benchmark.case import Setting, absence, pair
from dev.benchmark.timing import MODES, Pass, interleave, spread
from mmext_backbones.ops import bilstm2d, elsa, product_conv
from mmext_backbones.ops.bilstm2d import torch_lstm

from .operators import DTYPES, Case, cases, tensors_of, windows_case

SIZES = {'swin': (800, 1344), 'elsa_swin': (800, 1344), 'maxvit': (896, 1344), 'sequencer': (798, 1344)}
TINY = {
    'swin': {'embed_dims': 32, 'depths': (1, 2), 'num_heads': (1, 2)},
    'elsa_swin': {'embed_dims': 32, 'depths': (1, 1), 'num_heads': (1, 2), 'group_width': 4},
    'maxvit': {'embed_dims': (32, 64), 'depths': (1, 1), 'stem_dims': 16},
    'sequencer': {'embed_dims': (24, 48, 48, 48), 'depths': (1, 1, 1, 1), 'hidden_dims': (8, 8, 8, 8)},
}
BATCH = 2
Sides = Mapping[str, Callable[..., Tensor]]


def operator_times(dry: bool) -> Iterator[tuple[str, Sides, Case, tuple[str, ...]]]:
    """Name, forms, the case that has the tensors, and the types; the sizes of Swin-T at 800 x 1333 pixels."""
    maps = [(BATCH, 200, 334), (BATCH, 100, 167), (BATCH, 50, 84), (BATCH, 25, 42)] if not dry else [(1, 4, 5)]
    d, wide = (8, 1) if dry else (32, 3)  # channels of a head; heads of the first stage
    for i, map_ in enumerate(maps):
        heads = wide * 2**i
        dtypes = tuple(DTYPES) if i == 0 else ('bf16',)
        for name, options in (('shifted windows', {'shift': 3}), ('grid', {'grid': True})):
            case = _windows(map_, heads, d, 7, **options)
            yield f'{name} of 7, stage {i + 1}', _forms(case), case, dtypes
        if i < 3:
            yield f'filter convolution, stage {i + 1}', CONVOLUTIONS, _filters(map_, heads * d), dtypes
            case = _elsa(map_, heads, d, 3 if dry else 7)
            yield f'elsa, stage {i + 1}', _forms(case), case, dtypes
        if i < 2:
            yield f'norm and perceptron, stage {i + 1}', MLPS, _mlp(map_, heads * d), ('bf16',)
            yield f'bilstm2d, level {i + 1}', LSTMS, _lstm(map_, 8 if dry else 192 * 2**i), ('fp16', 'bf16')
    if not dry:
        yield 'shifted windows of 12, stage 1', _forms(case := _windows(maps[0], 4, d, 12, shift=6)), case, ('bf16',)


def _forms(case: Case) -> Sides:
    return {form: partial(case.run, form) for form in ('gpu', 'torch')}


def _windows(map_, heads: int, d: int, edge: int, shift: int = 0, grid: bool = False) -> Case:
    return windows_case('', map_, d, (edge, edge), shift, grid, not grid, heads)


def _elsa(map_, heads: int, d: int, k: int) -> Case:
    def run(form: str, v: Tensor, logits: Tensor, add: Tensor) -> Tensor:
        v, logits = v.permute(0, 3, 1, 2), logits.permute(0, 3, 1, 2)  # as its layer hands them over
        return elsa(v, logits, None, add, num_heads=heads, kernel_size=k, backend=form)

    C = heads * d
    return Case('', run, [(*map_, C), (*map_, heads * k * k), (C, k, k)], ())


def _filters(map_, C: int) -> Case:
    return Case('product_conv', lambda: None, [(*map_, C), (*map_, C), (C, 4, 7, 7), (C,)], ())


def _dense_conv(q: Tensor, k: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As one product for all groups: blocks of the weight on a diagonal, zeros elsewhere."""
    C, width = weight.shape[:2]
    groups = weight.unflatten(0, (-1, width)).permute(1, 2, 3, 4, 0)  # [width, width, 7, 7, groups]
    blocks = torch.diag_embed(groups).permute(4, 0, 5, 1, 2, 3)  # [groups, width, groups, width, 7, 7]
    product = (q * k).permute(0, 3, 1, 2)
    return F.conv2d(product, blocks.reshape(C, C, *weight.shape[2:]), bias, padding=3).permute(0, 2, 3, 1)


def _nchw_conv(q: Tensor, k: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    product = (q * k).permute(0, 3, 1, 2).contiguous()
    return F.conv2d(product, weight, bias, padding=3, groups=len(weight) // weight.shape[1]).permute(0, 2, 3, 1)


CONVOLUTIONS: Sides = {
    'channels last': partial(product_conv, backend='torch'),
    'channels first': _nchw_conv,
    'block-diagonal': _dense_conv,
}


def _mlp(map_, C: int) -> Case:
    return Case('norm_mlp', lambda: None, [(*map_, C), (C,), (C,), (4 * C, C), (4 * C,), (C, 4 * C), (C,)], ())


MLP_CASE = next(case for case in cases(True) if case.name == 'norm_mlp')
MLPS: Sides = {'recomputed': partial(MLP_CASE.run, 'auto'), 'kept': partial(MLP_CASE.run, 'reference')}


def _lstm(map_, C: int) -> Case:
    h = C // 4
    return Case('bilstm2d', lambda: None, [(*map_, C), *[(4 * h, C), (4 * h, h), (4 * h,), (4 * h,)] * 4], ())


def _two_streams(x: Tensor, *weights: Tensor) -> Tensor:
    return bilstm2d(x, weights[:8], weights[8:], backend='torch')


def _one_stream(x: Tensor, *weights: Tensor) -> Tensor:
    with mock.patch.object(torch_lstm, '_on_two_streams', lambda x, first, second: (first(x), second(x))):
        return _two_streams(x, *weights)


LSTMS: Sides = {'two streams': _two_streams, 'one stream': _one_stream}


def time_operator(
    name: str, sides: Sides, case: Case, dtype: str, device: torch.device, rounds: int, warmup: int
) -> list[dict[str, Any]]:
    """A row for each mode: milliseconds of each form, median and quartiles; why one does not run."""
    tensors = tensors_of(case, DTYPES[dtype], device)
    rows = []
    for mode in MODES:
        passes, errors = {}, {}
        for side, function in sides.items():
            try:
                step = _step(function, tensors, mode)
                step()
            except Exception as error:
                errors[side] = f'{type(error).__name__}: {error}'[:300]
            else:
                passes[side] = step
        rows.append({'name': name, 'dtype': dtype, 'mode': mode, 'errors': errors})
        rows[-1]['ms'] = _milliseconds(passes, rounds, warmup, device)
    return rows


def _step(function: Callable[..., Tensor], tensors: list[Tensor], mode: str) -> Callable[[], object]:
    if mode == 'forward':
        return torch.no_grad()(lambda: function(*tensors))
    leaves = [x.detach().requires_grad_() for x in tensors]
    with torch.no_grad():
        grad = torch.ones_like(function(*tensors))
    return lambda: torch.autograd.grad(function(*leaves), leaves, grad, allow_unused=True)


def _milliseconds(passes, rounds: int, warmup: int, device: torch.device) -> dict[str, list[float]]:
    found = interleave(passes, rounds, warmup, device)
    return {side: [round(1e3 * each, 4) for each in spread(seconds)] for side, seconds in found.items()}


# --------------------------------------------------------------------------------------------------------------------
# Networks


def time_network(
    case: Network,
    dtype: str,
    mode: str,
    compiler: str | None,
    device: torch.device,
    dry: bool,
    rounds: int,
    warmup: int,
) -> list[dict[str, Any]]:
    """Ours beside timm's with the same weights; ELSA-Swin, which timm has not, by itself.

    Args:
        case: of `dev.benchmark`.
        dtype: by autocast.
        mode: of `dev.benchmark.timing`.
        compiler: backend of torch.compile; None: eager, with each kind of recomputation, and peaks of memory.
        device: where.
        dry: at tiny sizes.
        rounds: that count.
        warmup: before them.
    """
    if device.type == 'cuda':
        torch.cuda.empty_cache()  # of the network before
    arch, size = (TINY[case.name], (224, 224)) if dry else (next(iter(case.archs.values())), SIZES[case.name])
    setting = Setting(arch, size, 1 if dry else BATCH)
    timm = [peer for peer in case.peers if peer.name == 'timm' and absence(peer) is None and not peer.refuses(setting)]
    if timm:
        ours, theirs = (module.to(device) for module in pair(case, timm[0], setting))
    else:
        ours, theirs = case.ours(setting, case.peers[0]).to(device), None
    inputs = [x.to(device) for x in case.inputs(setting)]
    row = {'network': case.name, 'size': list(size), 'batch': setting.batch, 'dtype': dtype, 'mode': mode}
    row |= {'compiler': compiler, 'ms': {}, 'peak_mib': {}, 'errors': {}}
    passes = {}
    for side, module in _sides(ours, theirs, mode, compiler).items():
        try:
            passes[side] = made = _Recomputing(module, inputs, mode, dtype, side)
            row['peak_mib'][side] = _peak(made, device)
        except Exception as error:
            passes.pop(side, None)
            row['errors'][side] = f'{type(error).__name__}: {error}'[:300]
    row['ms'] = _milliseconds(passes, rounds, warmup, device)
    return [row]


def _sides(ours: nn.Module, theirs: nn.Module | None, mode: str, compiler: str | None) -> dict[str, nn.Module]:
    if compiler is not None:
        torch.compiler.reset()  # or what was compiled before counts against the limit of recompilations
        sides = {'ours compiled': ours, 'timm compiled': theirs}
        return {side: torch.compile(module, backend=compiler) for side, module in sides.items() if module is not None}
    sides = {'ours': ours}
    if mode != 'forward' and hasattr(ours, 'recompute'):
        sides = {'ours, recompute=True': ours, 'ours, recompute=False': ours}
    return sides if theirs is None else {**sides, 'timm': theirs}


class _Recomputing:
    """A pass of a network, with the recomputation that the name of the side says."""

    def __init__(self, module: nn.Module, inputs: list[Tensor], mode: str, dtype: str, side: str) -> None:
        self.module, self.recompute = module, side.partition('recompute=')[2]
        self.set()
        self.step = Pass(module, inputs, mode, DTYPES[dtype])

    def set(self) -> None:
        if self.recompute:
            self.module.recompute = self.recompute == 'True'

    def __call__(self) -> None:
        self.set()
        self.step()


def _peak(step: Callable[[], object], device: torch.device) -> float | None:
    """MiB beyond what is there before, of a second pass."""
    step()
    if device.type != 'cuda':
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return round((torch.cuda.max_memory_allocated(device) - before) / 2**20, 1)
