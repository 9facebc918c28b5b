"""A hook that keeps non-finite losses and gradients away from the weights, and the batch at fault for a replay."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.dist import get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from ...registry import HOOKS
from ...utils.cli import command_line
from ...utils.errors import UserError
from ...utils.files import read_path
from ...utils.printable import one_line
from ..resume.random_state import random_state
from .saved_batch import image_paths, save_whole, tensors
from .step_guard import StepGuard, can_skip, guard, loss_scaler

__all__ = ['NonFiniteError', 'NonFiniteHook']

ACTIONS = ('stop', 'skip')
FOLDER = 'nonfinite'
MAX_KEPT = 64  # batches of one update that are kept, where steps are taken that no guard sees
SHOWN = 8  # names of images in a message


class NonFiniteError(UserError):
    """A training met a loss or gradients that are not finite, and took no step."""


class _Seen(NamedTuple):
    """What an iteration began with."""

    iteration: int
    batch: Any
    random_state: dict[str, Any]


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Takes no step on a loss or on gradients that are not finite, and says which images gave them.

    The batch, the random state and the weights of that moment are left in ``<work dir>/nonfinite/`` for
    ``tools/replay.py``. See `step_guard` for what is checked, when, and what it costs. The buffers of the model (the
    running statistics of batch norm) are copied before each update, as a bad image spoils them in the forward pass;
    they are set back together with the step that is left out.

    Args:
        action: ``'stop'`` ends the training with a message; ``'skip'`` leaves the step out and goes on.
        max_skips: Steps that may be left out in one run; the next one ends it.
        max_saved: Batches that are saved in one run.
    """

    priority = 'HIGHEST'  # before the hooks that log, average or save

    def __init__(self, action: str = 'stop', max_skips: int = 10, max_saved: int = 3) -> None:
        if action not in ACTIONS:
            raise ValueError(f'action={action!r}: expected one of {", ".join(ACTIONS)}')
        for name, value in (('max_skips', max_skips), ('max_saved', max_saved)):
            if not isinstance(value, int) or value < 0:
                raise ValueError(f'{name}={value!r}: expected an integer, 0 or more')
        self.action = action
        self.max_skips = max_skips
        self.max_saved = max_saved
        self.skipped: list[int] = []
        self.saved: list[Path] = []
        self._guards: list[StepGuard] = []
        self._seen: list[_Seen] = []
        self._buffers: dict[str, torch.Tensor] = {}
        self._kept: dict[str, torch.Tensor] = {}
        self._weights: str | None = None  # the file of the weights as they are now, if there is one

    # ----------------------------------------------------------------------------------------------------------------
    # What mmengine calls

    def state_dict(self) -> dict[str, list]:
        """What counts towards the limits, also in a run that is resumed."""
        return {'skipped': list(self.skipped), 'saved': [str(path) for path in self.saved]}

    def load_state_dict(self, state: dict[str, list]) -> None:
        """Inverse of `state_dict`."""
        self.skipped, self.saved = list(state['skipped']), [Path(path) for path in state['saved']]

    def before_train(self, runner: Runner) -> None:
        self._guards = guard(runner.optim_wrapper)
        self._buffers = _buffers(_bare(runner.model))
        self._kept = {name: buffer.clone() for name, buffer in self._buffers.items()}

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        for each in self._guards:
            each.begin()
        if not self._seen and self._buffers:
            torch._foreach_copy_(list(self._kept.values()), list(self._buffers.values()))
        self._seen = [*self._seen[-MAX_KEPT:], _Seen(runner.iter + 1, data_batch, random_state())]

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        for each in self._guards:
            if each.overflowed is not None:
                runner.logger.info(
                    f'Iteration {runner.iter + 1}: gradients overflow float16. The step is left out and the loss scale '
                    f'is {each.overflowed:g} now; this is how the scale is found.'
                )
        faulty = next((each for each in self._guards if each.fault is not None), None)
        if faulty is not None:
            self._report(runner, faulty, _numbers(outputs))
            for name in [name for name, value in _numbers(outputs).items() if not math.isfinite(value)]:
                del outputs[name]  # the means of the log are over the steps that were taken
        if any(each.updated for each in self._guards):
            self._seen = []
            if faulty is None:
                self._weights = None

    # ----------------------------------------------------------------------------------------------------------------
    # A fault

    def _report(self, runner: Runner, faulty: StepGuard, values: dict[str, float]) -> None:
        """Saves, says, goes on or stops.

        Raises:
            NonFiniteError: to stop.
        """
        iteration = runner.iter + 1
        self._restore()
        seen, what = self._at_fault(faulty)
        paths = [self._save(runner, faulty, each, values if each is self._seen[-1] else {}) for each in seen]
        lines = [_headline(faulty, iteration, what, values)]
        images = [path for each in seen for path in _worst_images(each.batch)]
        if images:
            more = f', and {len(images) - SHOWN} more' if len(images) > SHOWN else ''
            lines.append(f'Images: {", ".join(map(one_line, images[:SHOWN]))}{more}')
        saved = [path for path in paths if path is not None]
        if saved:
            lines.append(f'Which module gives the first such value: {command_line("tools/replay.py", saved[0])}')
        may_skip = can_skip(faulty) and faulty.fault != 'scale'
        if self.action == 'skip' and may_skip:
            self.skipped.append(iteration)
            if len(self.skipped) <= self.max_skips:
                lines[0] += f' Left out: {len(self.skipped)} of at most {self.max_skips}.'
                runner.logger.warning('\n'.join(lines))
                return
            lines.append(f'It is one more than the {self.max_skips} steps that may be left out (max_skips).')
        elif may_skip:
            lines.append('To leave such steps out and go on: --on-nonfinite skip. ' + _remedy(runner, faulty.fault))
        else:
            lines.append(_remedy(runner, faulty.fault))
        raise NonFiniteError('\n'.join(lines))

    def _at_fault(self, faulty: StepGuard) -> tuple[list[_Seen], list[float]]:
        """The iterations since the update before that may have done it, and their losses."""
        losses = [float(loss) for loss in faulty.losses]
        if faulty.fault != 'loss' or len(losses) != len(self._seen):
            return self._seen, losses
        pairs = [(seen, loss) for seen, loss in zip(self._seen, losses, strict=True) if not math.isfinite(loss)]
        return [seen for seen, _ in pairs], [loss for _, loss in pairs]  # none: it was another process

    def _restore(self) -> None:
        if self._buffers:
            with torch.no_grad():
                torch._foreach_copy_(list(self._buffers.values()), list(self._kept.values()))

    def _save(self, runner: Runner, faulty: StepGuard, seen: _Seen, values: dict[str, float]) -> Path | None:
        if len(self.saved) >= self.max_saved:
            return None
        rank = f'_rank{get_rank()}' if get_world_size() > 1 else ''
        path = Path(runner.work_dir) / FOLDER / f'iter_{seen.iteration}{rank}.pth'
        scaler = loss_scaler(faulty)
        content = {
            'iteration': seen.iteration,
            'fault': faulty.fault,
            'losses': values or {'loss': [float(loss) for loss in faulty.losses]},
            'images': image_paths(seen.batch),
            'data_batch': seen.batch,
            'random_state': seen.random_state,
            'weights': self._save_weights(runner, path.parent),
            'config': runner.cfg.to_dict(),
            'device': str(next(_bare(runner.model).parameters()).device.type),
            'amp': scaler is not None or hasattr(faulty, 'cast_dtype'),
            'amp_dtype': str(getattr(faulty, 'cast_dtype', None) or '').removeprefix('torch.') or None,
            'loss_scale': scaler.get_scale() if scaler is not None else 1.0,
        }
        save_whole(content, path)
        self.saved.append(path)
        return path

    def _save_weights(self, runner: Runner, folder: Path) -> str | None:
        """Name of the file of the weights beside the batch; they are the same until the next step that is taken."""
        if self._weights is None and not _sharded(runner.model):
            name = f'weights_before_iter_{runner.iter + 1}.pth'
            if is_main_process():
                state = {key: value.detach().cpu() for key, value in _bare(runner.model).state_dict().items()}
                save_whole({'state_dict': state, 'meta': {'iter': runner.iter}}, folder / name)
            self._weights = name
        return self._weights


def _headline(faulty: StepGuard, iteration: int, losses: Sequence[float], values: dict[str, float]) -> str:
    kept = 'No step was taken: the weights are as they were before.'
    if faulty.fault == 'scale':
        return (
            f'the loss scale of mixed precision has collapsed to {faulty.overflowed:g} by iteration {iteration}: the '
            'gradients are not finite at any scale, so this is no overflow of float16 but a divergence. No step was '
            'taken since the last that was finite.'
        )
    if faulty.fault == 'gradient':
        finite = f' (the loss is: {", ".join(f"{loss:g}" for loss in losses)})' if losses else ''
        return f'the gradients are not finite at iteration {iteration}{finite}. {kept}'
    terms = [f'{name}={value:g}' for name, value in values.items() if not math.isfinite(value)]
    terms = terms or [f'loss={loss:g}' for loss in losses] or ['in another process']
    return f'the loss is not finite at iteration {iteration}: {", ".join(terms)}. {kept}'


def _remedy(runner: Runner, fault: str) -> str:
    start = 'If the images are sound, lower the learning rate or lengthen its warm-up'
    if fault != 'loss':
        start += ', or clip the gradients (optim_wrapper.clip_grad.max_norm)'
    last = read_path(Path(runner.work_dir) / 'last_checkpoint')
    if last:
        return f'{start}; go on from {last} with --resume.'
    return f'{start}.'


def _worst_images(batch: Any) -> list[str]:
    """The images that are not finite themselves, where there are some; else all of the batch."""
    paths, images = image_paths(batch), tensors(batch)
    if len(paths) == len(images):
        bad = [path for path, image in zip(paths, images, strict=True) if not bool(image.isfinite().all())]
        if bad:
            return [f'{path} (its pixels are not finite)' for path in bad]
    return paths


def _numbers(outputs: dict | None) -> dict[str, float]:
    """What a train step returned, where it is numbers."""
    values = {}
    for name, value in (outputs or {}).items():
        if isinstance(value, (int, float)) or (isinstance(value, torch.Tensor) and value.numel() == 1):
            values[name] = float(value.detach() if isinstance(value, torch.Tensor) else value)
    return values


def _bare(model: nn.Module) -> nn.Module:
    while is_model_wrapper(model):
        model = model.module
    return model


def _sharded(model: nn.Module) -> bool:
    """Whether no process has all the weights."""
    return any('FullyShardedDataParallel' in cls.__name__ or 'DeepSpeed' in cls.__name__ for cls in type(model).__mro__)


def _buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a forward pass may change of the state: not the buffers that are computed again at each start."""
    if _sharded(model):
        return {}
    state = model.state_dict()
    return {name: buffer for name, buffer in model.named_buffers() if name in state and buffer.numel()}
