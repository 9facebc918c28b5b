"""A batch norm that takes single values, and one for tokens."""

from torch import Tensor, nn
from torch.nn import functional as F


class BatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d, [B, C, H, W], which in training takes a single pixel of a single image, too.

    One value has no deviation, and torch refuses it: the statistics kept so far norm it, and stay as they are.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() <= x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class TokenBatchNorm(BatchNorm2d):
    """The same of [B, H, W, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
