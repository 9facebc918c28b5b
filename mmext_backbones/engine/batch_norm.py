"""A hook for the momentum of batch norm in short runs."""

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.nn.modules.batchnorm import _BatchNorm

from ..registry import HOOKS

__all__ = ['BatchNormMomentumHook']


@HOOKS.register_module()
class BatchNormMomentumHook(Hook):
    """Raises the momentum of every batch norm to at least `momentum`, the weight of a batch in its running statistics.

    Networks made for hundreds of thousands of iterations average over hundreds (MaxViT, EfficientNet: 0.01). After a
    few hundred such statistics still hold those of the network's first steps, and evaluation fails though the loss is
    low.

    Args:
        momentum: The least momentum, in torch's sense; 0.1 is torch's own.
    """

    def __init__(self, momentum: float = 0.1) -> None:
        if not 0.0 < momentum <= 1.0:
            raise ValueError(f'momentum={momentum}: expected a number above 0 and at most 1')
        self.momentum = momentum

    def before_train(self, runner: Runner) -> None:
        for module in runner.model.modules():
            if isinstance(module, _BatchNorm) and module.momentum is not None:
                module.momentum = max(module.momentum, self.momentum)
