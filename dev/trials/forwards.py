"""Random forward and backward passes of small networks of every family.

Draws arch, options, image, type, memory layout and mode; every map must be finite and of the right shape and type,
every gradient finite; and in a share of the cases, maps and gradients must be those of float64 with the same weights.
Over the whole run memory, threads, open files and what functions cache must stay where they were after the warm-up.

python dev/trials/forwards.py --number 10000 --json work_dirs/forwards.json
python dev/trials/forwards.py --case 4711
"""

import argparse
import contextlib
import copy
import json
import math
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.logging import MMLogger
from resources import Usage, caches, usage
from torch import Tensor

from mmext_backbones.backbones import ELSAVOLO, VOLO, ELSASwin, MaxViT, Sequencer2D, SwinTransformer
from mmext_backbones.backbones.base import DenseBackbone

FAMILIES = {cls.__name__: cls for cls in (SwinTransformer, ELSASwin, MaxViT, Sequencer2D, VOLO, ELSAVOLO)}
BATCH_NORMS = ('MaxViT', 'VOLO', 'ELSAVOLO')
# how a case computes -> the type of the network and its input, the type of torch's autocast around it, and how far an
# output may be from float64, relative to the largest element: a few dozen roundings of the type. Of the gradient, all
# parameters as one vector, ten times that
PRECISIONS = {
    'float32': (torch.float32, None, 1e-3),
    'float64': (torch.float64, None, 1e-9),
    'bfloat16': (torch.bfloat16, None, 0.25),
    'float16': (torch.float16, None, 0.04),
    'autocast_dtype': (torch.float32, None, 0.25),
    'autocast bfloat16': (torch.float32, torch.bfloat16, 0.25),
    'autocast float16': (torch.float32, torch.float16, 0.04),
}
LAYOUTS = ('contiguous', 'channels_last', 'transposed', 'strided', 'expanded', 'offset')
MODES = ('eval', 'inference', 'train', 'backward')
TRAINING = ('train', 'backward')
COMPARED = 0.3  # of the cases that draw nothing at random themselves
CHECKPOINTS = 20  # times that the process is looked at
MEMORY = 48.0  # MiB that may be added after the warm-up: the allocator's fragments


class Case(NamedTuple):
    family: str
    options: dict[str, Any]
    size: tuple[int, int]
    batch: int
    precision: str
    layout: str
    mode: str
    compared: bool
    seed: int


class Sample(NamedTuple):
    """The process after so many cases."""

    number: int
    held: Usage
    caches: dict[str, tuple[int, int | None]]


# --------------------------------------------------------------------------------------------------------------------
# Drawing


def draw(seed: int, index: int) -> Case:
    """The case that follows from two numbers."""
    rng = random.Random(f'{seed} {index}')
    family = rng.choice(list(FAMILIES))
    depths = [rng.choice((1, 1, 2)) for _ in range(4)]
    mode = rng.choice(MODES)
    options = {
        'arch': _arch(rng, family, depths),
        'in_channels': rng.choice((1, 3, 3, 3, 4, 8, 16)),
        'out_indices': tuple(sorted(rng.sample(range(4), rng.randint(1, 4)))),
        'drop_path_rate': rng.choice((0.0, 0.1, 0.5)),
        'with_cp': rng.random() < 0.4,
        'recompute': rng.choice((True, False, 'auto')),
    }
    if rng.random() < 0.2:
        options['frozen_stages'] = rng.randint(0, 1)
    _own_options(rng, family, options)
    precision = rng.choice(list(PRECISIONS))
    if precision == 'autocast_dtype':
        options['autocast_dtype'] = 'bfloat16'
    if rng.random() < 0.15:
        options['out_dtype'] = rng.choice(('float32', 'bfloat16', 'float16'))
    size = (_edge(rng), _edge(rng))
    batch = rng.choice((1, 1, 2, 3, 5)) if math.prod(size) < 128**2 else 1
    if family == 'MaxViT' and mode in TRAINING and not options['norm_eval']:
        batch += 1  # batch norm refuses to learn from a single value a channel
    layout = rng.choice(LAYOUTS)
    compared = rng.random() < COMPARED
    if mode in TRAINING:
        few = family in BATCH_NORMS and not options['norm_eval'] and _few_values(size, batch, layout)
        if few and mode == 'backward' and 'float16' in precision.split():
            mode = 'train'  # gradients through the norms of equal values leave its range, without a scaled loss
        drawn_inside = options['drop_path_rate'] or options.get('drop_rate')
        compared = compared and not few and not drawn_inside
    return Case(family, options, size, batch, precision, layout, mode, compared, rng.randrange(2**31))


def _few_values(size: tuple[int, int], batch: int, layout: str) -> bool:
    """Whether batch norms divide by the deviation of (nearly) equal values."""
    return layout == 'expanded' or batch * math.prod(-(-edge // 32) for edge in size) < 16


def _edge(rng: random.Random) -> int:
    """Pixels, mostly few, now and then 1 or several hundred."""
    return rng.choice(
        (1, rng.randint(1, 40), rng.randint(1, 100), rng.randint(1, 100), round(2 ** rng.uniform(0, 8.5)))
    )


def _arch(rng: random.Random, family: str, depths: list[int]) -> dict[str, Any]:
    if family == 'MaxViT':
        return {'embed_dims': rng.choice(((32, 32, 64, 64), (32, 64, 64, 96))), 'depths': depths, 'stem_dims': 32}
    if family == 'Sequencer2D':
        widths = rng.choice(((16, 24, 24, 24), (8, 16, 16, 16)))
        return {'embed_dims': widths, 'depths': depths, 'hidden_dims': [rng.choice((3, 4, 8)) for _ in depths]}
    if 'VOLO' in family:
        widths, heads = rng.choice((((16, 32, 32, 32), (2, 4, 4, 4)), ((24, 24, 24, 24), (3, 1, 2, 3))))
        arch = {'embed_dims': widths, 'depths': depths, 'num_heads': heads, 'mlp_ratio': rng.choice((2, 3, 4))}
        arch['stem_dims'] = rng.choice((4, 8))
        return arch | ({'kernel_size': rng.choice((3, 5)), 'group_width': 8} if family == 'ELSAVOLO' else {})
    heads = rng.choice(((1, 2, 4, 8), (2, 2, 2, 2), (1, 1, 1, 1)))
    arch = {'embed_dims': rng.choice((8, 16)), 'depths': depths, 'num_heads': heads}
    return arch | ({'group_width': rng.choice((2, 4))} if family == 'ELSASwin' else {})


def _own_options(rng: random.Random, family: str, options: dict[str, Any]) -> None:
    if family in ('SwinTransformer', 'ELSASwin'):
        options['window_size'] = rng.choice((2, 4, 7, 7, 8, 12))
        options['shift_single_window'] = rng.random() < 0.5
        options['drop_rate'], options['attn_drop_rate'] = rng.choice(((0.0, 0.0), (0.0, 0.0), (0.1, 0.1)))
    elif family == 'MaxViT':
        options['window_size'] = rng.choice((3, 7, 7, 12, 'scaled'))
        options['out_norm'], options['norm_eval'] = rng.random() < 0.3, rng.random() < 0.3
    elif 'VOLO' in family:
        options['window_size'] = rng.choice((None, None, 2, 7, 14))
        options['pos_embed_size'] = rng.choice((1, 3, 14))
        options['norm_eval'] = rng.random() < 0.3
    else:
        options['patch_size'] = rng.choice((2, 8, 8))


# --------------------------------------------------------------------------------------------------------------------
# Running


def image(case: Case, generator: torch.Generator) -> Tensor:
    """[B, C, H, W] in the type and the layout of the case."""
    B, C, (H, W) = case.batch, case.options['in_channels'], case.size

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(PRECISIONS[case.precision][0])

    if case.layout == 'channels_last':
        return normal(B, C, H, W).contiguous(memory_format=torch.channels_last)
    if case.layout == 'transposed':
        return normal(B, C, W, H).transpose(2, 3)
    if case.layout == 'strided':
        return normal(B, C + 1, 2 * H, W + 3)[:, 1:, ::2, 2 : W + 2]
    if case.layout == 'expanded':
        return normal(1, C, H, W).expand(B, C, H, W)
    if case.layout == 'offset':  # not where vector instructions like to read
        return normal(B * C * H * W + 1)[1:].view(B, C, H, W)
    return normal(B, C, H, W)


def run(case: Case) -> list[str]:
    """What is wrong with a case; nothing if all is well."""
    torch.manual_seed(case.seed)
    dtype, autocast, tolerance = PRECISIONS[case.precision]
    model: DenseBackbone = FAMILIES[case.family](**case.options).to(dtype).train(case.mode in TRAINING)
    exact = copy.deepcopy(model).double() if case.compared else None
    x = image(case, torch.Generator().manual_seed(case.seed))
    kept = x.clone()
    modes = {'eval': torch.no_grad, 'inference': torch.inference_mode}
    with modes.get(case.mode, contextlib.nullcontext)(), _autocast(autocast):
        outs = model(x)
    faults = _maps(case, model, outs)
    if not torch.equal(x, kept):
        faults.append('the input was written to')
    if case.mode == 'backward':
        faults += _backward(model, outs)
    if exact is not None and not faults:
        if model.out_dtype is not None:  # maps and their gradients are rounded to it
            tolerance = max(tolerance, 16 * torch.finfo(getattr(torch, model.out_dtype)).eps)
        exact.autocast_dtype, exact.out_dtype = None, None
        with contextlib.nullcontext() if case.mode == 'backward' else torch.no_grad():
            expected = exact(x.double().contiguous())
        faults = _compare_maps(case, outs, expected, tolerance)
        if case.mode == 'backward':
            _backward(exact, expected)
            faults += _compare_gradients(model, exact, 10 * tolerance)
    return faults


def _backward(model: DenseBackbone, outs: tuple[Tensor, ...]) -> list[str]:
    """Gradients of a mean with a weight of its own for every element, so that none cancels."""
    loss = sum((out.double() * torch.linspace(-1, 1, out.numel()).view_as(out)).mean() for out in outs)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trained:
        return ['gradients where all is frozen'] * loss.requires_grad
    loss.backward()
    faults = [f'{name} has no gradient' for name, parameter in trained.items() if parameter.grad is None]
    for name, parameter in trained.items():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            faults.append(f'the gradient of {name} is not finite')
    return faults


def _autocast(dtype: torch.dtype | None) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext() if dtype is None else torch.autocast('cpu', dtype)


def _maps(case: Case, model: DenseBackbone, outs: tuple[Tensor, ...]) -> list[str]:
    faults = []
    expected = [
        (case.batch, C, *(math.ceil(edge / stride) for edge in case.size))
        for C, stride in zip(model.out_channels, model.out_strides, strict=True)
    ]
    shapes = [tuple(out.shape) for out in outs]
    if shapes != expected:
        faults.append(f'shapes {shapes}: expected {expected}')
    dtype = model.out_dtype or (None if case.precision.startswith('autocast ') else case.precision)
    for i, out in zip(case.options['out_indices'], outs, strict=True):
        if dtype is not None and out.dtype is not getattr(torch, dtype):
            faults.append(f'map {i} is {out.dtype}: expected {dtype}')
        if not out.isfinite().all():
            faults.append(f'map {i} is not finite')
        if not out.is_contiguous():
            faults.append(f'map {i} is not contiguous')
    return faults


def _compare_maps(case: Case, outs: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> list[str]:
    faults = []
    for i, out, right in zip(case.options['out_indices'], outs, expected, strict=True):
        error = ((out.double() - right).abs().max() / right.abs().max().clamp_min(1e-3)).item()
        if not error <= tolerance:
            faults.append(f'map {i} is {error:.2g} of its largest element off: expected at most {tolerance:.2g}')
    return faults


def _compare_gradients(model: DenseBackbone, exact: DenseBackbone, tolerance: float) -> list[str]:
    pairs = [
        (p.grad.double(), q.grad)
        for p, q in zip(model.parameters(), exact.parameters(), strict=True)
        if p.requires_grad
    ]
    if not pairs:
        return []
    error = math.sqrt(
        sum((p - q).square().sum().item() for p, q in pairs) / sum(q.square().sum().item() for _, q in pairs)
    )
    return (
        [] if error <= tolerance else [f'the gradient is {error:.2g} of its norm off: expected at most {tolerance:.2g}']
    )


def trial(number: int, seed: int, *, show: bool = True) -> dict[str, Any]:
    """Runs that many cases, and looks at the process now and then."""
    started, failures, counts, samples = time.monotonic(), [], Counter(), []
    every = max(1, number // CHECKPOINTS)
    for index in range(number):
        case = draw(seed, index)
        try:
            faults = run(case)
        except Exception as error:
            faults = [f'{type(error).__name__}: {error}'.partition('\n')[0]]
        counts.update((case.family, case.precision, case.layout, case.mode))
        counts['with_cp'] += case.options['with_cp'] and case.mode == 'backward'
        counts['compared'] += case.compared
        if faults:
            failures.append({'case': index, 'faults': faults, **case._asdict()})
            if show:
                print(f'\n{index}: {case}\n    ' + '\n    '.join(faults), file=sys.stderr)
        if (index + 1) % every == 0:
            held = usage()
            samples.append(Sample(index + 1, held, caches('mmext_backbones')))
            if show:
                print(
                    f'{index + 1:6d}  {time.monotonic() - started:6.0f} s  {held.resident:6.1f} MiB  '
                    f'{held.threads} threads  {held.files} files  {held.tensors} tensors  {len(failures)} failures',
                    flush=True,
                )
    return {
        'number': number,
        'seed': seed,
        'seconds': round(time.monotonic() - started, 1),
        'failures': failures,
        'leaks': leaked(samples),
        'counts': dict(sorted(counts.items())),
        'samples': [(done, *held) for done, held, _ in samples],
        'caches': samples[-1][2],
    }


def leaked(samples: list[Sample]) -> list[str]:
    """What grew between the warm-up, the first fifth of the samples, and the end."""
    first, warm, cached = samples[len(samples) // 5]
    number, last, cached_last = samples[-1]
    room = sum(most for _, most in cached_last.values() if most is not None)  # tensors that may be kept on purpose
    leaks = [
        f'{what}: {before} after {first} cases, {after} after {number}'
        for what, before, after, allowed in (
            ('resident MiB', round(warm.resident, 1), round(last.resident, 1), MEMORY),
            ('threads', warm.threads, last.threads, 0),
            ('open files', warm.files, last.files, 0),
            ('tensors', warm.tensors, last.tensors, room),
        )
        if after > before + allowed
    ]
    for name, (entries, most) in cached_last.items():
        before = cached.get(name, (0, most))[0]
        if most is None and entries > before:
            leaks.append(f'{name}: {before} entries after {first} cases, {entries} after {number}, and no limit')
    return leaks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--number', type=int, default=10000, help='of cases (10000)')
    parser.add_argument('--seed', type=int, default=0, help='of every random choice')
    parser.add_argument('--case', type=int, metavar='INDEX', help='run this one alone, and show what it is')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the result there')
    args = parser.parse_args()
    MMLogger.get_instance('mmext_backbones', log_level='ERROR')
    if args.case is not None:
        case = draw(args.seed, args.case)
        print(case)
        faults = run(case)
        print('\n'.join(faults) or 'all is well')
        return int(bool(faults))
    result = trial(args.number, args.seed)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1, default=str))
    for name, (size, most) in sorted(result['caches'].items()):
        print(f'    {name}: {size} entries of at most {most if most is not None else "any number"}')
    print('\n'.join(result['leaks']))
    print(f'{len(result["failures"])} of {args.number} cases failed; {len(result["leaks"])} things grew')
    return int(bool(result['failures'] or result['leaks']))


if __name__ == '__main__':
    sys.exit(main())
