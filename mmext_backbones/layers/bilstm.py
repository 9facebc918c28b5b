"""The token mixer of Sequencer2D."""

from torch import Tensor, nn

from mmext_backbones.ops import bilstm2d

from .linear import linear

PARAMETERS = [
    f'{kind}_l0{direction}'
    for direction in ('', '_reverse')
    for kind in ('weight_ih', 'weight_hh', 'bias_ih', 'bias_hh')
]


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
        # for their parameters: both run at once, in `ops.bilstm2d`
        self.rnn_v = nn.LSTM(embed_dims, hidden_dims, bidirectional=True)
        self.rnn_h = nn.LSTM(embed_dims, hidden_dims, bidirectional=True)
        self.proj = linear(4 * hidden_dims, embed_dims)
        self.backend = 'auto'

    def forward(self, x: Tensor, norm: nn.LayerNorm | None = None) -> Tensor:
        """The mixture of x, or of norm(x)."""
        x = x if norm is None else norm(x)
        vertical, horizontal = ([getattr(rnn, name) for name in PARAMETERS] for rnn in (self.rnn_v, self.rnn_h))
        return self.proj(bilstm2d(x, vertical, horizontal, backend=self.backend))
