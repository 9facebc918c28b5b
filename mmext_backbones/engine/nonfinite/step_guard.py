"""Optimizer wrappers that check losses and gradients before they step.

A step with one non-finite gradient spoils every weight, and the loss that is logged tells it only afterwards. `guard`
gives a wrapper of mmengine's a class that checks between the backward pass and the step, and leaves the step out.

What it costs: one reduction over the gradients (it reads each once) and one wait for the device at each step, before
the optimizer is queued. mmengine waits a moment later anyway, where it logs the losses, so on a GPU what is lost is the
time the optimizer's kernels take to be queued; with `clip_grad` mmengine waits at the same place, and nothing is lost.
Iterations that only accumulate gradients do not wait. Under a loss scaler the gradients are not looked at here: the
scaler does, and leaves the step out itself.

How an overflow of float16 is told from a divergence: with a loss scaler, non-finite gradients of a finite loss are how
the scaler finds its scale. They are a fault only if the scale has collapsed: below 1 at `MAX_COLLAPSED` overflows, or
`MAX_OVERFLOWS` of them without a step between. A loss that is not finite itself is always a fault: no scale mends it.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import all_reduce, get_world_size
from mmengine.optim import ApexOptimWrapper, OptimWrapper, OptimWrapperDict
from torch import Tensor

__all__ = ['StepGuard', 'guard']

MAX_COLLAPSED = 3
MAX_OVERFLOWS = 30  # 65536, the usual first scale, is below 1 after 17


class StepGuard:
    """Mixed into the class of an optimizer wrapper by `guard`.

    Attributes:
        fault: What was wrong at the last update: ``'loss'``, ``'gradient'``, ``'scale'`` (of a loss scaler), or None.
        losses: Scalars of the backward passes since the update before, as they were before the loss scaler.
        updated: Whether there was an update, or one left out, since `begin`.
        overflowed: The loss scale that the last update overflowed at, or None.
    """

    fault: str | None
    losses: list[Tensor]
    updated: bool
    overflowed: float | None

    def begin(self) -> None:
        """Before an iteration."""
        if self.updated:
            self.losses = []
        self.fault, self.updated, self.overflowed = None, False, None

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        self.losses.append(loss.detach())
        super().backward(loss, **kwargs)

    def step(self, **kwargs: Any) -> None:
        self.updated = True
        scaler = loss_scaler(self)
        gradients = [] if scaler or not _owns_gradients(self) else _gradients(self.optimizer)
        self.fault = find_fault(self.losses, gradients)
        if self.fault is not None:
            return
        if scaler is None:
            super().step(**kwargs)
        else:
            self._scaled_step(scaler, **kwargs)

    def _scaled_step(self, scaler: Any, **kwargs: Any) -> None:
        # a fused optimizer is called at every step and leaves it out itself: there the scale has to be asked for
        fused = getattr(self.optimizer, '_step_supports_amp_scaling', False)
        before = scaler.get_scale() if fused else None
        self._stepped = False
        super().step(**kwargs)
        if scaler.get_scale() >= before if fused else self._stepped:
            self._overflows = 0
            return
        scale = scaler.get_scale()
        self.overflowed = scale
        self._overflows += 1
        self._collapsed = self._collapsed + 1 if scale < 1 else 0
        if self._collapsed >= MAX_COLLAPSED or self._overflows >= MAX_OVERFLOWS:
            self.fault = 'scale'


def guard(optim_wrapper: Any) -> list[StepGuard]:
    """Makes the wrapper of a run check before it steps, in place; those inside, if it is a dict of them."""
    wrappers = optim_wrapper.values() if isinstance(optim_wrapper, OptimWrapperDict) else [optim_wrapper]
    return [wrapper if isinstance(wrapper, StepGuard) else _guarded(wrapper) for wrapper in wrappers]


def _guarded(wrapper: Any) -> StepGuard:
    cls = type(wrapper)
    wrapper.__class__ = type(cls.__name__, (StepGuard, cls), {})
    wrapper.losses, wrapper.updated = [], False
    wrapper._overflows, wrapper._collapsed, wrapper._stepped = 0, 0, False
    wrapper.begin()
    if loss_scaler(wrapper) is not None:

        def note(*_: Any) -> None:
            wrapper._stepped = True

        wrapper.optimizer.register_step_post_hook(note)
    return wrapper


def loss_scaler(wrapper: Any) -> Any:
    """The `GradScaler` of a wrapper for mixed precision, or None."""
    scaler = getattr(wrapper, 'loss_scaler', None)
    return scaler if scaler is not None and scaler.is_enabled() else None


def can_skip(wrapper: Any) -> bool:
    """Whether leaving out a step of the wrapper leaves nothing behind; DeepSpeed's engine counts them itself."""
    return isinstance(wrapper, OptimWrapper)


def _owns_gradients(wrapper: Any) -> bool:
    """Apex scales the loss by itself, and engines keep the gradients elsewhere: there the loss alone is checked."""
    return can_skip(wrapper) and not isinstance(wrapper, ApexOptimWrapper)


def _gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return list(_parts(param.grad for group in optimizer.param_groups for param in group['params']))


def _parts(gradients: Iterator[Tensor | None]) -> Iterator[Tensor]:
    """Dense local tensors with at least one element."""
    for grad in gradients:
        if grad is None:
            continue
        grad = grad.to_local() if hasattr(grad, 'to_local') else grad
        grad = grad.coalesce().values() if grad.is_sparse else grad
        if grad.numel():
            yield grad


def find_fault(losses: list[Tensor], gradients: list[Tensor]) -> str | None:
    """``'loss'`` or ``'gradient'`` if one of them is not finite in any process.

    Waits for the device once, and once more where it seems so of a gradient.
    """
    bad_loss, bad_gradient = _non_finite(losses, _norms(gradients))
    if bad_gradient and not bad_loss:
        # Euclidean norms are the fastest look, but their squares overflow from about 1e19 on
        bad_gradient = _non_finite((), torch._foreach_norm(gradients, ord=math.inf) if gradients else ())[1]
    return 'loss' if bad_loss else 'gradient' if bad_gradient else None


def _norms(gradients: list[Tensor]) -> Sequence[Tensor]:
    """Of each gradient its Euclidean norm or its square: finite where the gradient is, unless it is very large."""
    if not gradients or any(grad.device.type != 'cpu' for grad in gradients):
        return torch._foreach_norm(gradients) if gradients else ()
    flat = [grad.reshape(-1) for grad in gradients]  # on the CPU a scalar product takes half the time of a norm
    return [torch.dot(each, each) if each.dtype == torch.float32 else torch.linalg.vector_norm(each) for each in flat]


def _non_finite(losses: Sequence[Tensor], norms: Sequence[Tensor]) -> tuple[bool, bool]:
    """Whether any loss and any norm is not finite, in any process: all leave out the step, or none."""
    device = next((value.device for value in (*losses, *norms)), torch.device(get_device()))
    flags = torch.stack([_any_non_finite(values, device) for values in (losses, norms)])
    if get_world_size() > 1:
        all_reduce(flags, 'max')
    bad_loss, bad_gradient = flags.tolist()
    return bool(bad_loss), bool(bad_gradient)


def _any_non_finite(values: Sequence[Tensor], device: torch.device) -> Tensor:
    """A byte on `device`."""
    if not values:
        return torch.zeros((), dtype=torch.uint8, device=device)
    stacked = torch.stack([value.detach().to(device, torch.float32).reshape(()) for value in values])
    return (~stacked.isfinite()).any().to(torch.uint8)
