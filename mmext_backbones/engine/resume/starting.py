"""Checks of the checkpoint that a run starts from, which mmengine does not make.

mmengine loads what fits and logs the rest, takes the place in the training for granted, and runs the text of the config
that a checkpoint carries, to look up a number of GPUs. Here a training that goes on needs a whole checkpoint, one that
starts from weights needs at least some that fit, and nothing that a checkpoint carries is run.
"""

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process

from ...utils.console import say
from ...utils.errors import UserError, first_line
from ...weights.checkpoints import check_match, to_model_names
from ...weights.fitting import unwrap
from ...weights.loading import read_file

__all__ = ['CheckedStart', 'check_resume', 'why_no_resume']

REMEDY = 'To start from its weights alone: --cfg-options load_from={path}, without --resume.'


def check_resume(cfg: Config) -> None:
    """Looks into the checkpoint that a training is to go on from, before anything is built.

    Raises:
        UserError: if it does not say where the training was.
    """
    path = cfg.get('load_from')
    if not cfg.get('resume') or not isinstance(path, str) or '://' in path or Path(path).is_dir():
        return  # a folder is DeepSpeed's, which knows how to read it
    why = why_no_resume(read_file(path, 'cpu', mmap=True), schedules=bool(cfg.get('param_scheduler')))
    if why is not None:
        raise _no_resume(path, why)


def why_no_resume(content: Any, *, schedules: bool) -> str | None:
    """Why a training cannot go on from what a checkpoint holds; None if it can.

    Args:
        content: Of the file.
        schedules: Whether the training has schedules, whose state is to be there.
    """
    if not isinstance(content, Mapping):
        return f'it holds a {type(content).__name__}, and not the state of a training'
    optimizer = 'optim_wrapper' if 'optim_wrapper' in content else 'optimizer'  # the former by strategies
    parts: dict[str, type | tuple[type, ...]] = {'meta': Mapping, 'message_hub': Mapping, optimizer: Mapping}
    if schedules:
        parts['param_schedulers'] = (list, Mapping)
    for part, kind in parts.items():
        if part not in content:
            return f'it has no {part!r}: it holds weights, but not the state of a training'
        if not isinstance(content[part], kind):
            return f'its {part!r} is a {type(content[part]).__name__}'
    for key in ('iter', 'epoch'):
        value = content['meta'].get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            return f'its meta[{key!r}] is {value!r}: expected where the training was, 0 or more'
    return None


def _no_resume(path: str, why: str) -> UserError:
    return UserError(f'checkpoint {path!r} cannot be resumed: {why}.\n{REMEDY.format(path=path)}')


class CheckedStart:
    """For a Runner class: looks at what a checkpoint gave."""

    testing = False

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        if fn_name == 'after_load_checkpoint' and isinstance(kwargs['checkpoint'].get('meta'), Mapping):
            kwargs['checkpoint']['meta'].pop('config', None)  # mmengine would run it
        super().call_hook(fn_name, **kwargs)

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> Any:
        if '://' not in filename:
            weights = unwrap(read_file(filename, 'cpu', mmap=True), filename)
            if self._resume:
                check_match(self.model, weights, filename, shapes=False)
            else:
                self._check_some(weights, filename)
                self._warn_of_own_folder(filename)
        return super().load_checkpoint(filename, *args, **kwargs)

    def _check_some(self, weights: dict[str, torch.Tensor], path: str) -> None:
        """A start needs some weights that fit; how many did is said, for the others start from random values."""
        weights, wanted = to_model_names(self.model, weights, path)
        fit = [key for key, value in wanted.items() if key in weights and weights[key].shape == value.shape]
        if not fit:
            raise UserError(
                f'load_from={path!r}: none of its {len(weights)} tensors fits one of the {len(wanted)} of the model '
                f'({next(iter(weights))}, ... instead of {next(iter(wanted))}, ...).'
            )
        if len(fit) < len(wanted) and is_main_process():
            lost = [key for key in wanted if key not in fit]
            say(
                f'load_from={path}: fills {len(fit)} of the {len(wanted)} tensors of the model. Not filled: '
                f'{", ".join(lost[:3])}{", ..." if len(lost) > 3 else ""}'
            )

    def _warn_of_own_folder(self, path: str) -> None:
        """A training names its checkpoints as any other does: it would replace what it starts from."""
        same = os.path.realpath(os.path.dirname(path)) == os.path.realpath(self.work_dir)
        if same and not self.testing and is_main_process():
            say(
                f'load_from={path} lies in the work dir, whose checkpoints this training replaces. To go on with the '
                'one before: --resume. To keep it: another --work-dir.'
            )

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        _explained(filename, lambda: super(CheckedStart, self).resume(filename, *args, **kwargs))
        wrappers = self.optim_wrapper.values() if hasattr(self.optim_wrapper, 'values') else [self.optim_wrapper]
        for wrapper in wrappers:
            _check_moments(filename, getattr(wrapper, 'optimizer', None))


def _explained(path: str, resume: Callable[[], None]) -> None:
    try:
        resume()
    except (UserError, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # whatever mmengine and torch stumble over in it
        line = first_line(error)
        raise _no_resume(path, f'{type(error).__name__}: {line[:300]}') from error


def _check_moments(path: str, optimizer: torch.optim.Optimizer | None) -> None:
    """torch loads the state of an optimizer without a look at its shapes."""
    for param, state in optimizer.state.items() if optimizer is not None else ():
        for name, value in state.items() if isinstance(state, Mapping) else [('state', state)]:
            if not isinstance(value, (torch.Tensor, int, float, type(None))):
                raise _no_resume(path, f"its optimizer's {name} is a {type(value).__name__}")
            if isinstance(value, torch.Tensor) and value.dim() and value.numel() not in (1, math.prod(param.shape)):
                shapes = f'{tuple(value.shape)} for a parameter of {tuple(param.shape)}'
                raise _no_resume(path, f"its optimizer's {name} has the shape {shapes}")
            if isinstance(value, torch.Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
                raise _no_resume(path, f"its optimizer's {name} holds NaN or infinity")
