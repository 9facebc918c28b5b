"""The rows of a comparison, one after another."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from . import memory
from .agreement import Agreement, Disagreement, NotRun, check, check_compiled, first_pass
from .case import Case, Peer, Setting, absence, pair
from .roofline import Ceilings, floor_seconds, measure_ceilings
from .timing import DTYPES, Spread, flusher, interleave, spread

__all__ = ['LeftOut', 'Options', 'Row', 'compare', 'compile_modes']

FORMS = {'eager': (False, False), 'both compiled': (True, True), 'peer compiled': (False, True)}


class Options(NamedTuple):
    """What is asked of every case.

    Attributes:
        arch: name, or None for the first of each case.
        sizes: heights and widths in pixels, or empty for each case's own.
        peers: names, or empty for each case's default.
        compile: backend or mode of torch.compile, or None: eager only.
    """

    arch: str | None = None
    sizes: Sequence[tuple[int, int]] = ()
    batch: int = 1
    peers: Sequence[str] = ()
    modes: Sequence[str] = ('forward', 'forward+backward')
    dtypes: Sequence[str] = ('fp32',)
    device: torch.device = torch.device('cpu')
    rounds: int = 7
    warmup: int = 2
    compile: str | None = None
    memory: bool = True


@dataclass
class Row:
    """One comparison; seconds of every round on either side, `floor` and `memory` where they were asked for."""

    case: str
    title: str
    peer: str
    arch: str
    part: str
    batch: int
    size: tuple[int, int]
    mode: str
    dtype: str
    form: str
    seconds: dict[str, list[float]]
    agreement: Agreement
    memory: dict[str, float] | None = None
    floor: float | None = None
    notes: list[str] = field(default_factory=list)

    def time(self, side: str) -> Spread:
        return spread(self.seconds[side])

    @property
    def ratio(self) -> Spread:
        """peer / ours, round by round."""
        return spread([b / a for a, b in zip(self.seconds['ours'], self.seconds['peer'], strict=True)])

    def to_dict(self) -> dict[str, Any]:
        """Every sample and what is printed of them, ready for JSON."""
        found = asdict(self) | {'agreement': self.agreement._asdict()}
        found |= {side: self.time(side)._asdict() for side in ('ours', 'peer')}
        found |= {'ratio': self.ratio._asdict(), 'tie': self.ratio.tie}
        if self.floor is not None:
            found['share_of_floor'] = {side: self.floor / self.time(side).median for side in ('ours', 'peer')}
        return found


@dataclass
class LeftOut:
    """What was asked for and not timed; `failed`: it should have been."""

    what: str
    reason: str
    failed: bool = False


def compare(cases: Sequence[Case], options: Options) -> Iterator[Row | LeftOut]:
    """Time every case against its peers."""
    ceilings: dict[str, Ceilings] = {}
    for case in cases:
        arch = options.arch or next(iter(case.archs))
        peers = [peer for peer in case.peers if (peer.name in options.peers if options.peers else peer.by_default)]
        if not peers:
            yield LeftOut(case.name, f'it has none of the peers named, but {", ".join(one.name for one in case.peers)}')
        for peer in peers:
            reason = absence(peer)
            if reason:
                yield LeftOut(f'{case.name} against {peer.name}', reason)
                continue
            for size in options.sizes or [case.size]:
                for part in case.parts(case.archs[arch]):
                    setting = Setting(case.archs[arch], tuple(size), options.batch, part)
                    yield from _rows(case, peer, arch, setting, options, ceilings)


def compile_modes() -> list[str]:
    """The modes of torch.compile, which are those of its own backend."""
    import torch._inductor

    return list(torch._inductor.list_mode_options())


def _rows(
    case: Case, peer: Peer, arch: str, setting: Setting, options: Options, ceilings: dict[str, Ceilings]
) -> Iterator[Row | LeftOut]:
    what = ' '.join(filter(None, (case.name, setting.part, 'against', peer.name)))
    what += f' at {setting.size[0]} x {setting.size[1]}'
    reason = peer.refuses(setting)
    if reason:
        yield LeftOut(what, reason)
        return
    for dtype in options.dtypes:
        try:
            agreements = {
                mode: check(case, peer, setting, mode, DTYPES[dtype], options.device) for mode in options.modes
            }
        except Disagreement as error:
            yield LeftOut(f'{what}, {dtype}', f'the two disagree: {error}', failed=True)
            continue
        except NotRun as error:
            yield LeftOut(f'{what}, {dtype}', str(error), failed=error.side == 'ours')
            continue
        sides = [module.to(options.device) for module in pair(case, peer, setting)]
        for mode in options.modes:
            if options.compile:  # or the limit of recompilations is reached, and the rest runs uncompiled
                torch._dynamo.reset()
            for form in FORMS if options.compile else ('eager',):
                try:
                    seconds, floor = _time(case, setting, sides, mode, dtype, form, agreements[mode], options, ceilings)
                except Disagreement as error:
                    yield LeftOut(f'{what}, {mode}, {dtype}, {form}', str(error), failed=True)
                    continue
                except NotRun as error:
                    yield LeftOut(f'{what}, {mode}, {dtype}, {form}', str(error), failed=error.side == 'ours')
                    continue
                row = Row(
                    case.name, case.title, peer.name, arch, setting.part, setting.batch, setting.size, mode, dtype,
                    form, seconds, agreements[mode], floor=floor,
                )  # fmt: skip
                row.notes += [agreements[mode].note] if agreements[mode].note else []
                if options.memory and form == 'eager':
                    row.memory = _peaks(row, setting, options.device)
                yield row


def _time(
    case: Case,
    setting: Setting,
    sides: Sequence[nn.Module],
    mode: str,
    dtype: str,
    form: str,
    agreement: Agreement,
    options: Options,
    ceilings: dict[str, Ceilings],
) -> tuple[dict[str, list[float]], float | None]:
    """Seconds of both sides, and the floor under an operator's."""
    inputs = [tensor.to(options.device) for tensor in case.inputs(setting)]
    passes = {}
    for side, module, compiled in zip(memory.SIDES, sides, FORMS[form], strict=True):
        task = inputs, mode, DTYPES[dtype], case.differentiable
        passes[side], outs = first_pass(side, module, *task)
        if compiled:
            kind = 'mode' if options.compile in compile_modes() else 'backend'
            module = torch.compile(module, dynamic=False, **{kind: options.compile})
            passes[side], compiled_outs = first_pass(side, module, *task)
            check_compiled(side, compiled_outs, outs, agreement)
    flush, floor = None, None
    if case.work is not None:
        flush = flusher(options.device)
        if dtype not in ceilings:
            ceilings[dtype] = measure_ceilings(options.device, DTYPES[dtype])
        work = case.work(setting, DTYPES[dtype])
        floor = floor_seconds(work, ceilings[dtype], mode == 'forward+backward')
    return interleave(passes, options.rounds, options.warmup, options.device, flush), floor


def _peaks(row: Row, setting: Setting, device: torch.device) -> dict[str, float] | None:
    reason = memory.why_not(device)
    if reason:
        row.notes.append(f'no memory: {reason}')
        return None
    task = row.case, row.peer, row.arch, setting
    return {side: memory.peak(*task, side, row.mode, row.dtype, device.type) for side in memory.SIDES}
