"""The token mixer of Sequencer2D."""

import torch
from torch import Tensor, nn

from .linear import linear


class BiLSTM2D(nn.Module):
    """Two bidirectional LSTMs, one along columns and one along rows: [B, H, W, C] -> [B, H, W, C] for any H, W.

    Every column and every row is a sequence of its own; both LSTMs read the same input, and one linear layer joins
    their four directions. Padding is a token like any other: what the batch pads at the right and bottom enters the
    backward directions first, so an image's features depend a little on the sizes of its neighbours in the batch.

    Under autocast an LSTM runs in the autocast type only where the backend has a kernel for it, else in float32.

    Source: Tatsunami and Taki, "Sequencer" (arXiv 2205.01972), section 3.2.

    Args:
        embed_dims: C.
        hidden_dims: width of the state of each direction.
    """

    def __init__(self, embed_dims: int, hidden_dims: int) -> None:
        super().__init__()
        self.rnn_v = LSTM(embed_dims, hidden_dims)
        self.rnn_h = LSTM(embed_dims, hidden_dims)
        self.proj = linear(4 * hidden_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        # time first, as the kernels want it: each axis is copied once
        v = self.rnn_v(x.transpose(0, 1).reshape(H, B * W, C)).view(H, B, W, -1).transpose(0, 1)
        h = self.rnn_h(x.permute(2, 0, 1, 3).reshape(W, B * H, C)).view(W, B, H, -1).permute(1, 2, 0, 3)
        return self.proj(torch.cat((v, h), dim=-1))  # [B, H, W, 4 * hidden_dims]: down, up, right, left


class LSTM(nn.LSTM):
    """One bidirectional layer on sequences [T, B, C] -> [T, B, 2 * hidden_dims], zero states at both ends.

    The arithmetic is that of nn.LSTM in training mode whenever a gradient may be asked for: cuDNN has no backward
    otherwise, and frozen stages are in eval mode. Without dropout the two modes are equal.
    """

    def __init__(self, embed_dims: int, hidden_dims: int) -> None:
        super().__init__(embed_dims, hidden_dims, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        mode = self.training
        self.training = torch.is_grad_enabled()
        try:
            autocast = device != 'meta' and torch.is_autocast_enabled(device)  # torch refuses the question for meta
            if autocast and not _has_lstm(x.device, torch.get_autocast_dtype(device)):
                with torch.autocast(device, enabled=False):
                    return super().forward(x.float())[0]
            return super().forward(x)[0]
        finally:
            self.training = mode


def _has_lstm(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the LSTM of `device` has a fused kernel for `dtype`, forward and backward."""
    if device.type != 'cuda' or not torch.backends.cudnn.is_available():
        return False  # oneDNN: float16 has no backward, bfloat16 depends on the processor
    if dtype == torch.bfloat16:
        return torch.backends.cudnn.version() >= 91300 and torch.cuda.get_device_capability(device)[0] >= 8
    return dtype == torch.float16
