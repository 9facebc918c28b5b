"""The token mixer of Sequencer2D."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmext_backbones.ops import bilstm2d

from .linear import linear


class LSTMParameters(nn.Module):
    """What a bidirectional nn.LSTM of one layer holds, by the same names and with the same initialisation.

    Not an nn.LSTM, because compilers stop at those, whatever is done with them.

    Args:
        input_size: channels of a token.
        hidden_size: h, width of the state of each direction.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        for direction in ('', '_reverse'):
            for kind, shape in (
                ('weight_ih', (input_size,)),
                ('weight_hh', (hidden_size,)),
                ('bias_ih', ()),
                ('bias_hh', ()),
            ):
                self.register_parameter(f'{kind}_l0{direction}', nn.Parameter(torch.empty(4 * hidden_size, *shape)))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden_size**-0.5), hidden_size**-0.5)
        self.flatten_parameters()

    def flatten_parameters(self) -> None:
        """On CUDA, lay the parameters out as one piece of memory, which cuDNN would make at every call."""
        if not self.weight_ih_l0.is_cuda:
            return
        with torch.device('meta'):
            lstm = nn.LSTM(self.input_size, self.hidden_size, bidirectional=True)
        for name, parameter in self.named_parameters():
            setattr(lstm, name, parameter)
        lstm.flatten_parameters()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> 'LSTMParameters':
        """Every change of device or type ends here; it takes the piece apart."""
        super()._apply(fn, recurse)
        self.flatten_parameters()
        return self

    def extra_repr(self) -> str:
        return f'{self.input_size}, {self.hidden_size}'


class BiLSTM2D(nn.Module):
    """Two bidirectional LSTMs, one along columns and one along rows: [B, H, W, C] -> [B, H, W, C] for any H, W.

    Every column and every row is a sequence of its own; both LSTMs read the same input, and one linear layer joins
    their four directions. Padding is a token like any other: what the batch pads at the right and bottom enters the
    backward directions first, so an image's features depend a little on the sizes of its neighbours in the batch.

    Source: Tatsunami and Taki, "Sequencer" (arXiv 2205.01972), section 3.2.

    Args:
        embed_dims: C.
        hidden_dims: width of the state of each direction.
    """

    def __init__(self, embed_dims: int, hidden_dims: int) -> None:
        super().__init__()
        # both run at once, in `ops.bilstm2d`
        self.rnn_v = LSTMParameters(embed_dims, hidden_dims)
        self.rnn_h = LSTMParameters(embed_dims, hidden_dims)
        self.proj = linear(4 * hidden_dims, embed_dims)
        self.backend = 'auto'

    def forward(self, x: Tensor, norm: nn.LayerNorm | None = None) -> Tensor:
        """The mixture of x, or of norm(x)."""
        x = x if norm is None else norm(x)
        vertical, horizontal = (list(rnn.parameters()) for rnn in (self.rnn_v, self.rnn_h))
        return self.proj(bilstm2d(x, vertical, horizontal, backend=self.backend))
