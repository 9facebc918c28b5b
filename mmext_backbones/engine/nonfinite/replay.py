"""Runs a saved batch again and finds the module that first gives a value that is not finite.

First with a look at what goes into and comes out of every module, forwards and backwards; then, if a gradient was at
fault, with autograd's anomaly detection, which names the operation and the line. Both runs draw the random numbers of
the original one. No step is taken.

Under the look at modules the backbones run module by module, without what they fuse otherwise; a fault of a fused
operation alone is found by the second run, which looks at the loss and the gradients only.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from torch import Tensor, nn

from ...utils.errors import UserError
from ...utils.printable import one_line
from ...weights.fitting import unwrap
from ...weights.loading import read_file
from ..resume.random_state import set_random_state
from .saved_batch import image_paths, read_batch, tensors
from .saved_config import checked_model, scope_of

__all__ = ['Replay', 'replay']

AMP_DTYPES = (None, 'float16', 'bfloat16', 'float32', 'float64')


@dataclass
class Replay:
    """What a replay found.

    Attributes:
        path: The file of the batch.
        iteration: When it was met.
        images: Its files.
        first: The first place with a value that is not finite, in words; None if there was none.
        module: The name of the module there, as in ``model.named_modules()``, or None.
        operation: The operation that autograd's anomaly detection names, with its line, or None.
        losses: The losses of this run.
    """

    path: str
    iteration: int
    images: list[str]
    first: str | None = None
    module: str | None = None
    operation: str | None = None
    losses: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = [
            ('batch', f'{self.path}, iteration {self.iteration}'),
            ('images', ', '.join(map(one_line, self.images)) or 'unknown'),
        ]
        rows.append(('losses', ', '.join(f'{name}={value:g}' for name, value in self.losses.items()) or 'none reached'))
        rows.append(('first', self.first or 'every value is finite this time: the fault depends on what is not in the '
                     'file, such as the device or the order of sums'))  # fmt: skip
        if self.operation:
            rows.append(('operation', self.operation))
        return '\n'.join(f'{name:10} {text}' for name, text in rows)


def replay(path: str, device: str | None = None) -> Replay:
    """Runs a batch that `NonFiniteHook` saved.

    Args:
        path: The file.
        device: Where to run it; where it was met, if that is here, when None.

    Raises:
        UserError: if the file or its weights cannot be read, or its config names anything but registered parts of
            models.
    """
    saved = read_batch(path)
    _check(saved, path)
    device = device or (saved['device'] if saved['device'] != 'cuda' or torch.cuda.is_available() else 'cpu')
    with _scope(scope_of(saved['config'])):
        model = _build(checked_model(saved['config']), saved, Path(path)).to(device)
        found = Replay(str(path), saved['iteration'], image_paths(saved['data_batch']))
        found.first = _before_any_module(model, saved, found.images)
        trace = _Trace(model)
        with trace:
            losses, step_error = _run(model, saved, device)
        found.losses = losses
        if found.first is None:
            found.first, found.module = trace.first, trace.module
        if found.first is None or trace.backwards or step_error is not None:
            model.zero_grad()
            with torch.autograd.set_detect_anomaly(True), warnings.catch_warnings(record=True) as said:
                warnings.simplefilter('always')
                losses, step_error = _run(model, saved, device)
            found.operation = _operation(step_error, said)
            found.first = found.first or _after_all(model, losses, step_error)
    return found


@contextmanager
def _scope(name: str | None) -> Iterator[None]:
    """The scope of the config's library, whose modules are imported."""
    if name is None:
        yield
        return
    init_default_scope(name)
    with DefaultScope.overwrite_default_scope(name):
        yield


def _check(saved: dict[str, Any], path: str) -> None:
    """A saved batch may come from anywhere: what a run takes from it besides data and config is of these kinds."""
    try:
        set_random_state(saved['random_state'])
        name = saved['weights']
        sound = name is None or (isinstance(name, str) and Path(name).name == name)  # beside it, nowhere else
        sound &= isinstance(saved['iteration'], int) and saved['amp_dtype'] in AMP_DTYPES
        sound &= bool(re.fullmatch(r'[a-z]+', saved['device'])) and isinstance(saved['amp'], bool)
        sound &= isinstance(saved['loss_scale'], (int, float))
        image_paths(saved['data_batch'])
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        sound = False
        reason = f': {type(error).__name__}: {error}'
    else:
        reason = ''
    if not sound:
        raise UserError(f'{path} is no saved batch as a training leaves it, or it is damaged{reason}')


def _build(model_cfg: dict[str, Any], saved: dict[str, Any], path: Path) -> nn.Module:
    """The model of the config with the weights of the moment, in the mode of a training."""
    if saved['weights'] is None:
        raise UserError(f'{path} has no weights: no process of the run had all of them.')
    weights = path.parent / saved['weights']
    if not weights.is_file():
        raise UserError(f'{path} needs the weights beside it, {weights}, which are not there.')
    state = unwrap(read_file(str(weights), 'cpu'), str(weights))
    model = MODELS.build(ConfigDict(model_cfg))
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise UserError(f'{weights} does not fit the model of its config: {", ".join([*missing, *unexpected][:3])} ...')
    return model.train()


def _before_any_module(model: nn.Module, saved: dict[str, Any], images: list[str]) -> str | None:
    """A value that is not finite before the model ran: in a weight, or in an image."""
    for name, tensor in model.state_dict().items():
        if not bool(tensor.isfinite().all()):
            return f'the weight {name}, before the batch was run: an earlier step spoilt it'
    found = tensors(saved['data_batch'])
    for index, image in enumerate(found):
        if not bool(image.isfinite().all()):
            name = images[index] if len(images) == len(found) else f'number {index}'
            return f'the image {name}, as the data pipeline gives it'
    return None


class _BackwardOnly(OptimWrapper):
    """Runs the backward pass of a train step and keeps its loss; no step is taken."""

    def __init__(self, model: nn.Module, autocast: AbstractContextManager, scale: float) -> None:
        super().__init__(torch.optim.SGD(model.parameters(), lr=0.0))
        self._autocast, self._scale = autocast, scale

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with self._autocast:
            yield

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        if loss.requires_grad:
            super().backward(loss * self._scale, **kwargs)

    def step(self, **kwargs: Any) -> None:
        return

    def zero_grad(self, **kwargs: Any) -> None:
        return


def _run(model: nn.Module, saved: dict[str, Any], device: str) -> tuple[dict[str, float], Exception | None]:
    """One train step without the step: the losses, and the error that ended it, if one did."""
    autocast = nullcontext()
    if saved['amp']:
        dtype = getattr(torch, saved['amp_dtype']) if saved['amp_dtype'] else None
        autocast = torch.autocast(device, dtype)
    set_random_state(saved['random_state'])
    try:
        outputs = model.train_step(saved['data_batch'], _BackwardOnly(model, autocast, saved['loss_scale']))
    except (RuntimeError, ValueError, AssertionError) as error:  # anomaly detection, and heads that check their input
        return {}, error
    return {name: torch.as_tensor(value).item() for name, value in outputs.items() if _is_number(value)}, None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)


def _operation(error: Exception | None, said: list[warnings.WarningMessage]) -> str | None:
    """From anomaly detection: ``'SqrtBackward0, from model.py line 12: x.sqrt()'``."""
    match = re.search(r"Function '(\w+)' returned nan", str(error or ''))
    if match is None:
        return None
    text = next((str(warning.message) for warning in said if 'forward call' in str(warning.message)), '')
    places = re.findall(r'File "([^"]+)", line (\d+), in \S+\n\s+(.+)', text)
    own = [place for place in places if '/torch/' not in place[0]]
    where = f', from {own[-1][0]} line {own[-1][1]}: {own[-1][2].strip()}' if own else ''
    return f'{match.group(1)}{where}'


def _after_all(model: nn.Module, losses: dict[str, float], error: Exception | None) -> str | None:
    """What only the run without hooks shows."""
    bad = [name for name, value in losses.items() if not torch.tensor(value).isfinite()]
    if bad:
        return f'the loss {bad[0]}; no module gives such a value when it is looked at, so a fused operation does'
    for name, param in model.named_parameters():
        if param.grad is not None and not bool(param.grad.isfinite().all()):
            return f'the gradient of {name}; no module gives such a value when it is looked at'
    return f'nowhere yet, but the run fails: {type(error).__name__}: {error}' if error else None


class _Trace:
    """Looks at what goes into and comes out of each module, and at the gradients on their way back.

    Attributes:
        first: The first value that is not finite, in words.
        module: The name of the module that gave it.
        backwards: Whether it was a gradient.
    """

    def __init__(self, model: nn.Module) -> None:
        self.first: str | None = None
        self.module: str | None = None
        self.backwards = False
        self._model = model
        self._handles: list[Any] = []
        self._readers: dict[int, list[str]] = {}  # id of a tensor -> the modules that read it
        self._given: dict[int, str] = {}  # id of a tensor -> the module that gives it
        self._alive: list[Tensor] = []  # so that ids stay unique

    def __enter__(self) -> '_Trace':
        for name, module in self._model.named_modules():
            label = f'{name or "the model"} ({type(module).__name__})'
            before = module.register_forward_pre_hook(self._before(name, label), with_kwargs=True)
            self._handles += [before, module.register_forward_hook(self._after(name, label))]
        for name, param in self._model.named_parameters():
            if param.requires_grad:
                self._handles.append(param.register_hook(self._parameter(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._alive.clear()

    def _before(self, name: str, label: str) -> Any:
        def look(module: nn.Module, args: tuple, kwargs: dict) -> None:
            for tensor in _floats((args, kwargs)):
                if not bool(tensor.isfinite().all()):
                    self._note(f'what goes into {label}: computed around it, in no module of its own', name)
                self._watch(tensor)
                self._readers.setdefault(id(tensor), []).append(label)

        return look

    def _after(self, name: str, label: str) -> Any:
        def look(module: nn.Module, args: tuple, output: Any) -> None:
            for tensor in _floats(output):
                if not bool(tensor.isfinite().all()):
                    self._note(f'the output of {label}', name)
                self._watch(tensor)
                self._given.setdefault(id(tensor), label)

        return look

    def _parameter(self, name: str) -> Any:
        module = name.rpartition('.')[0]

        def look(grad: Tensor) -> None:
            if not bool(grad.isfinite().all()):
                self._note(f'the gradient of the weight {name}', module, backwards=True)

        return look

    def _watch(self, tensor: Tensor) -> None:
        key = id(tensor)
        if key in self._readers or key in self._given:
            return
        self._alive.append(tensor)
        if not tensor.requires_grad:
            return

        def look(grad: Tensor) -> None:
            if self.first is None and not bool(grad.isfinite().all()):
                readers, giver = self._readers.get(key, []), self._given.get(key)
                if readers:
                    what = f'the gradient that {readers[-1]} gives back to its input'
                else:
                    what = f'the gradient of the output of {giver}: computed after it, in no module of its own'
                module = (readers[-1] if readers else giver).partition(' (')[0]
                self._note(what, module, backwards=True)

        self._handles.append(tensor.register_hook(look))

    def _note(self, what: str, module: str, backwards: bool = False) -> None:
        if self.first is None:
            self.first, self.module, self.backwards = what, module, backwards


def _floats(node: Any) -> Iterator[Tensor]:
    """Every tensor of floats in a nest of tuples, lists and dicts."""
    if isinstance(node, Tensor):
        if node.is_floating_point():
            yield node
    elif isinstance(node, (tuple, list)):
        for child in node:
            yield from _floats(child)
    elif isinstance(node, dict):
        for child in node.values():
            yield from _floats(child)
