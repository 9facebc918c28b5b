"""The token mixers that the Sequencer paper compares with its own, on torch's recurrent layers."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from .linear import linear

CELLS = {'lstm': nn.LSTM, 'gru': nn.GRU, 'rnn': nn.RNN}  # the last with tanh
UNIONS = ('cat', 'add', 'vertical', 'horizontal')


class Recurrent2D(nn.Module):
    """Recurrences along columns, rows or both, then one linear layer: [B, H, W, C] -> [B, H, W, C] for any H, W.

    With the defaults it is `BiLSTM2D`, by other means: its parameters have the same names.

    Source: Tatsunami and Taki, "Sequencer" (arXiv 2205.01972), section 4.3, and the authors' code.

    Args:
        embed_dims: C.
        hidden_dims: width of the state of each direction.
        cell: a key of `CELLS`.
        bidirectional: walk each line in both senses, not downwards and rightwards alone.
        union: of `UNIONS`: the states of both axes side by side, their sum, or one axis alone.
        projection: end in the linear layer. Without it the states are the output, and must be C wide.

    Raises:
        ValueError: for another `cell` or `union`, or states of another width than C without a projection.
    """

    def __init__(
        self,
        embed_dims: int,
        hidden_dims: int,
        *,
        cell: str = 'lstm',
        bidirectional: bool = True,
        union: str = 'cat',
        projection: bool = True,
    ) -> None:
        if cell not in CELLS:
            raise ValueError(f'cell={cell!r}: expected one of {", ".join(CELLS)}')
        if union not in UNIONS:
            raise ValueError(f'union={union!r}: expected one of {", ".join(UNIONS)}')
        width = hidden_dims * (2 if bidirectional else 1) * (2 if union == 'cat' else 1)
        if not projection and width != embed_dims:
            raise ValueError(
                f'projection=False: expected states as wide as the map, {embed_dims} channels; '
                f'hidden_dims={hidden_dims} make {width}'
            )
        super().__init__()
        self.union = union
        options = {'bidirectional': bidirectional, 'batch_first': True}
        self.rnn_v = None if union == 'horizontal' else CELLS[cell](embed_dims, hidden_dims, **options)
        self.rnn_h = None if union == 'vertical' else CELLS[cell](embed_dims, hidden_dims, **options)
        self.proj = linear(width, embed_dims) if projection else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        axes = []  # [B, H, W, one or two directions]
        if self.rnn_v is not None:
            axes.append(along_rows(self.rnn_v, x.transpose(1, 2)).transpose(1, 2))
        if self.rnn_h is not None:
            axes.append(along_rows(self.rnn_h, x))
        return self.proj(sum(axes) if self.union == 'add' else torch.cat(axes, dim=-1))


class RecurrentSequence(nn.Module):
    """One bidirectional LSTM over all tokens, row after row: [B, H, W, C] -> [B, H, W, C], the vanilla Sequencer's.

    The last token of a row is followed by the first of the next. It walks H * W steps, where `BiLSTM2D` walks H and W.

    Args:
        embed_dims: C, twice the width of the state of a direction.
    """

    def __init__(self, embed_dims: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(embed_dims, embed_dims // 2, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[1:3]
        return along_rows(self.rnn, x.flatten(1, 2)[:, None]).unflatten(2, (H, W)).squeeze(1)


def along_rows(rnn: nn.RNNBase, x: Tensor) -> Tensor:
    """The states [B, H, W, one or two directions] of each row of x [B, H, W, C], a sequence of its own.

    Autocast is off inside: not every device has the recurrences in half precision, with a backward pass. cuDNN has none
    of a layer in eval mode, where frozen stages are: torch's own kernels run there.
    """
    sequences = x.flatten(0, 1).to(rnn.weight_ih_l0.dtype)
    differentiable = rnn.training or not torch.is_grad_enabled()
    autocast_off = nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
    with autocast_off, nullcontext() if differentiable else torch.backends.cudnn.flags(enabled=False):
        states = rnn(sequences)[0]
    return states.unflatten(0, x.shape[:2]).to(x.dtype)
