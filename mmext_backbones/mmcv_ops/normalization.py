"""The parts of a batch norm between which mmcv's SyncBatchNorm talks to the other processes, as `mmcv._ext` has them.

Each takes maps [N, C, pixels] and works on all but the channels; what it returns of a channel is float32. The semantics
are those of mmcv 2.1.0's kernels, which are for CUDA alone (`csrc/common/cuda/sync_bn_cuda_kernel.cuh`).
"""

import torch
from torch import Tensor

from .precision import widened

__all__ = [
    'sync_bn_backward_data',
    'sync_bn_backward_param',
    'sync_bn_forward_mean',
    'sync_bn_forward_output',
    'sync_bn_forward_var',
]


@torch.no_grad()
def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """The mean of this process's maps [N, C, pixels], written to `mean` [C]."""
    mean.copy_(widened(input).mean((0, 2)))


@torch.no_grad()
def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """The mean square distance from `mean` [C], that of all processes, written to `var` [C]."""
    var.copy_((widened(input) - mean[:, None]).square().mean((0, 2)))


@torch.no_grad()
def sync_bn_forward_output(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    norm: Tensor,
    std: Tensor,
    output: Tensor,
    eps: float,
    momentum: float,
    group_size: int,
) -> None:
    """Normalizes with the statistics of all processes, and follows them.

    Args:
        input: maps [N, C, pixels].
        mean: [C], of all processes.
        var: [C], of all processes.
        weight: [C].
        bias: [C].
        running_mean: [C]; moved towards the mean by `momentum`.
        running_var: [C]; the same, towards the variance without bias.
        norm: [N, C, pixels]; written, the maps before weight and bias.
        std: [C]; written.
        output: [N, C, pixels]; written.
        eps: added to the variance.
        momentum: see above; a number, or a tensor of one.
        group_size: number of processes.
    """
    std.copy_((var + eps).sqrt())
    norm.copy_((widened(input) - mean[:, None]) / std[:, None])
    output.copy_(norm * weight[:, None] + bias[:, None])
    count = input.size(0) * input.size(2) * group_size
    unbiased = var * count / (count - 1) if count > 1 else var
    for running, now in ((running_mean, mean), (running_var, unbiased)):
        running.copy_(momentum * now + (1 - momentum) * running)


@torch.no_grad()
def sync_bn_backward_param(grad_output: Tensor, norm: Tensor, grad_weight: Tensor, grad_bias: Tensor) -> None:
    """This process's gradients of weight and bias, written to `grad_weight` and `grad_bias` [C]."""
    grad = widened(grad_output)
    grad_weight.copy_((grad * norm).sum((0, 2)))
    grad_bias.copy_(grad.sum((0, 2)))


@torch.no_grad()
def sync_bn_backward_data(
    grad_output: Tensor,
    weight: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    norm: Tensor,
    std: Tensor,
    grad_input: Tensor,
) -> None:
    """The gradient of the maps, written to `grad_input`.

    Args:
        grad_output: [N, C, pixels].
        weight: [C].
        grad_weight: [C], the mean over the processes.
        grad_bias: [C], the mean over the processes.
        norm: [N, C, pixels], of the forward.
        std: [C], of the forward.
        grad_input: [N, C, pixels]; written.
    """
    count = grad_output.size(0) * grad_output.size(2)
    through_statistics = (grad_weight[:, None] * norm + grad_bias[:, None]) / count
    grad_input.copy_(weight[:, None] * (widened(grad_output) - through_statistics) / std[:, None])
