"""Focal losses and their gradients, as `mmcv._ext` has them; mmcv has them for CUDA alone.

The focal loss (arXiv 1708.02002) of a probability p of the right answer is -alpha (1 - p)^gamma log p:

- sigmoid: each class has a probability p = sigmoid(x) of its own. The class of the target gives
  -alpha (1 - p)^gamma log p, each other one -(1 - alpha) p^gamma log(1 - p).
- softmax: p is that of the class of the target alone, and every row has the factor alpha.

The semantics are those of mmcv 2.1.0's kernels (`csrc/common/cuda/sigmoid_focal_loss_cuda_kernel.cuh` and
`softmax_focal_loss_cuda_kernel.cuh`). Logarithms of a sigmoid are taken of x itself, so large ones stay exact where the
kernels stop at the smallest float. Half types are computed in float32 and rounded once.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .precision import widened

__all__ = [
    'sigmoid_focal_loss_backward',
    'sigmoid_focal_loss_forward',
    'softmax_focal_loss_backward',
    'softmax_focal_loss_forward',
]


def _of_rows(weight: Tensor, target: Tensor) -> Tensor:
    """The weight of each row's class, [N], or one for all; rows of no class (the background) have 1."""
    if weight.numel() == 0:
        return widened(weight).new_ones(())
    known = (target >= 0) & (target < len(weight))
    return torch.where(known, widened(weight)[target.clamp(0, len(weight) - 1)], 1.0)


def _is_target(input: Tensor, target: Tensor) -> Tensor:
    """Whether an element is of its row's class; a target behind the last class is the background."""
    return torch.arange(input.size(1), device=input.device) == target[:, None]


@torch.no_grad()
def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """The sigmoid focal loss of every element.

    Args:
        input: logits [N, classes].
        target: classes [N], from 0; one that is no class is the background.
        weight: of the classes, [classes], or empty.
        output: [N, classes]; written.
        gamma: see above.
        alpha: see above.
    """
    x = widened(input)
    p = x.sigmoid()
    right = alpha * (1 - p) ** gamma * -logsigmoid(x)
    wrong = (1 - alpha) * p**gamma * -logsigmoid(-x)
    output.copy_(torch.where(_is_target(x, target), right, wrong) * _of_rows(weight, target)[..., None])


@torch.no_grad()
def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """The derivative of every element of the loss to its logit, written to `grad_input`; see the forward."""
    x = widened(input)
    p = x.sigmoid()
    right = -alpha * (1 - p) ** gamma * (1 - p - gamma * p * logsigmoid(x))
    wrong = (1 - alpha) * p**gamma * (p - gamma * (1 - p) * logsigmoid(-x))
    grad_input.copy_(torch.where(_is_target(x, target), right, wrong) * _of_rows(weight, target)[..., None])


@torch.no_grad()
def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """The softmax focal loss of every row.

    Args:
        input: probabilities [N, classes], each row the softmax of its logits.
        target: classes [N], from 0; a row whose target is none has no loss.
        weight: of the classes, [classes], or empty.
        output: [N]; written.
        gamma: see above.
        alpha: see above.
    """
    p = _of_target(widened(input), target)
    log_p = p.clamp(min=torch.finfo(torch.float32).tiny).log()
    loss = -alpha * (1 - p) ** gamma * log_p * _of_rows(weight, target)
    output.copy_(torch.where(_is_class(input, target), loss, 0.0))


@torch.no_grad()
def softmax_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """The derivatives of each row's loss to its logits, written to `grad_input`; see the forward.

    Args:
        input: as of the forward.
        target: as of the forward.
        weight: as of the forward.
        buff: [N]; written, the derivative to the logarithm of the target's probability.
        grad_input: [N, classes]; written.
        gamma: see above.
        alpha: see above.
    """
    softmax = widened(input)
    p = _of_target(softmax, target)
    log_p = p.clamp(min=torch.finfo(torch.float32).tiny).log()
    # at p = 1 and gamma < 1 the power is infinite, and what it is multiplied by 0
    power = torch.where(p < 1, (1 - p) ** (gamma - 1), 0.0)
    slope = alpha * (gamma * power * p * log_p - (1 - p) ** gamma) * _of_rows(weight, target)
    slope = torch.where(_is_class(input, target), slope, 0.0)
    buff.copy_(slope)
    grad_input.copy_(slope[:, None] * (_is_target(softmax, target).to(softmax) - softmax))


def _is_class(input: Tensor, target: Tensor) -> Tensor:
    return (target >= 0) & (target < input.size(1))


def _of_target(softmax: Tensor, target: Tensor) -> Tensor:
    return softmax.gather(1, target.clamp(0, softmax.size(1) - 1)[:, None])[:, 0]
