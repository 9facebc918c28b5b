"""Whether both sides compute the same, asked before either is timed."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .case import Case, Peer, Setting, pair
from .timing import Pass

__all__ = ['TOLERANCES', 'Agreement', 'Disagreement', 'NotRun', 'check', 'check_compiled', 'first_pass']

# Largest difference of two tensors over the largest value, in float32. Sums run in other orders on the two sides, over
# thousands of tokens in the gradients of weights.
TOLERANCES = {'outputs': 2e-5, 'gradients': 2e-4}
CUDA_TOLERANCES = {'outputs': 1e-4, 'gradients': 1e-3}
# Under autocast the sides round at different places. Each is held against the peer in float32: the mean deviation of
# ours may be this many times that of the peer's.
AUTOCAST_FACTOR = 3.0
# Largest mean deviation of a compiled network's outputs from its own, uncompiled, in float32. Under autocast both round
# at other places: as far from each other as AUTOCAST_FACTOR times its deviation from float32.
COMPILED_TOLERANCE = 1e-5
# Share of the largest gradient of all under which one is zero but for rounding, as of a bias before a batch norm
# (measured there: 1e-9 to 1e-6; of the gradients that are not zero the smallest: 2e-4).
NEGLIGIBLE = 2e-5


class Disagreement(Exception):
    """The two sides do not compute the same; the text says where and by how much."""


class NotRun(Exception):
    """One of the sides, `side`, does not run; the text says why."""

    def __init__(self, side: str, error: Exception) -> None:
        said = ' '.join(str(error).strip().split('\n')[:2])
        super().__init__(f'{side} does not run: {type(error).__name__}: {said}')
        self.side = side


class Agreement(NamedTuple):
    """How far the two sides differ, relative to the values; None where it was not asked.

    Attributes:
        outputs, gradients: largest differences in float32.
        ours, peer: mean deviations under autocast from the peer's outputs in float32; of different networks from
            their own.
        note: why and where another size was compared, or nothing.
    """

    outputs: float | None = None
    gradients: float | None = None
    ours: float | None = None
    peer: float | None = None
    note: str = ''


def check(case: Case, peer: Peer, setting: Setting, mode: str, dtype: torch.dtype, device: torch.device) -> Agreement:
    """Compare both sides in `mode`, at the setting or, where they differ there by design, at one without padding.

    Raises:
        Disagreement: beyond the tolerance.
    """
    same = peer.convert is not None
    note = ''
    reason = peer.differs(setting)
    if reason:
        setting = peer.agreeing(setting)
        note = f'not comparable numerically at this size ({reason}); equal at {setting.size[0]} x {setting.size[1]}'
    ours, theirs = (module.to(device) for module in pair(case, peer, setting))
    inputs = [tensor.to(device) for tensor in case.inputs(setting)]
    tolerances = CUDA_TOLERANCES if device.type == 'cuda' else TOLERANCES

    def run(side: str, mode: str, dtype: torch.dtype) -> tuple[Pass, list[Tensor]]:
        return first_pass(side, {'ours': ours, 'peer': theirs}[side], inputs, mode, dtype, differentiable=True)

    deviations: list[float] = []
    if dtype != torch.float32:  # first: the statistics of batch norms move in training, and not at the same pace
        for side in ('ours', 'peer'):
            reference = run('peer' if same else side, 'forward', torch.float32)[1]
            deviations.append(_mean(run(side, 'forward', dtype)[1], reference))
        if same and not deviations[0] <= AUTOCAST_FACTOR * deviations[1]:
            raise Disagreement(
                f'under autocast ours deviates by {deviations[0]:.1e} from float32, the peer by {deviations[1]:.1e}: '
                f'expected at most {AUTOCAST_FACTOR:g} times as much'
            )

    if not same:
        return Agreement(None, None, *(deviations or (None, None)), 'two different networks: nothing to compare')

    (mine, a), (other, b) = (run(side, mode, torch.float32) for side in ('ours', 'peer'))
    outputs = _largest(a, b)
    _expect('outputs', outputs, tolerances)
    gradients = None
    if mode == 'forward+backward':
        gradients = _largest(*_gradients(peer, mine, other), negligible=NEGLIGIBLE)
        _expect('gradients', gradients, tolerances)
    return Agreement(outputs, gradients, *(deviations or (None, None)), note)


def first_pass(
    side: str, module: nn.Module, inputs: Sequence[Tensor], mode: str, dtype: torch.dtype, differentiable: bool
) -> tuple[Pass, list[Tensor]]:
    """The pass, done once, and its outputs.

    Raises:
        NotRun: where it fails. Kernels and compilers raise anything.
    """
    try:
        one = Pass(module, inputs, mode, dtype, differentiable)
        return one, one()
    except Exception as error:
        raise NotRun(side, error) from error


def check_compiled(side: str, outs: Sequence[Tensor], eager: Sequence[Tensor], agreement: Agreement) -> None:
    """Compare the outputs of a compiled network with those of the same one before; `agreement` is that of the pair.

    Raises:
        Disagreement: beyond the tolerance.
    """
    deviation = _mean(outs, [out.float() for out in eager])
    autocast = getattr(agreement, side)
    tolerance = COMPILED_TOLERANCE if autocast is None else AUTOCAST_FACTOR * autocast
    if not deviation <= tolerance:
        raise Disagreement(
            f'{side} deviates by {deviation:.1e} from itself when compiled: expected at most {tolerance:.0e}'
        )


def _gradients(peer: Peer, ours: Pass, theirs: Pass) -> tuple[list[Tensor], list[Tensor]]:
    """All gradients of ours, and the peer's brought to our names: conversions reorder, so they fit gradients too."""
    mine = _by_name(ours.module)
    converted: Mapping[str, Tensor] = peer.convert(_by_name(theirs.module), ours.module)
    lacking = mine.keys() - converted.keys()
    if lacking:
        raise Disagreement(f'the peer has no gradient for {sorted(lacking)[0]}')
    names = sorted(mine)
    inputs = [[tensor.grad for tensor in one.inputs] for one in (ours, theirs)]
    return inputs[0] + [mine[name] for name in names], inputs[1] + [converted[name] for name in names]


def _by_name(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}


def _largest(ours: Sequence[Tensor], theirs: Sequence[Tensor], negligible: float = 0.0) -> float:
    shapes = [[tuple(tensor.shape) for tensor in side] for side in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise Disagreement(f'tensors of shapes {shapes[0]} and {shapes[1]}')
    peaks = [(a.abs().max().item(), b.abs().max().item()) for a, b in zip(ours, theirs, strict=True)]
    zero = negligible * max(map(max, peaks))
    differences = [(a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True)]
    return max(
        difference / max(peak)
        for difference, peak in zip(differences, peaks, strict=True)
        if not max(peak) <= zero  # a NaN is compared
    )


def _mean(outs: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    pairs = list(zip(outs, reference, strict=True))
    return max(((a.float() - b).abs().mean() / b.abs().mean()).item() for a, b in pairs)


def _expect(what: str, difference: float, tolerances: Mapping[str, float]) -> None:
    if not difference <= tolerances[what]:  # a NaN does not pass
        raise Disagreement(f'{what} differ by {difference:.1e} relative: expected at most {tolerances[what]:.0e}')
