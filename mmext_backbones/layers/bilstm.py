"""The token mixer of Sequencer2D."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmext_backbones.ops import bilstm2d
from mmext_backbones.ops.bilstm2d import lstm

from . import fused
from .linear import linear

PARAMETERS = [
    f'{kind}_l0{direction}'
    for direction in ('', '_reverse')
    for kind in ('weight_ih', 'weight_hh', 'bias_ih', 'bias_hh')
]


class LSTMParameters(nn.Module):
    """What a bidirectional nn.LSTM of one layer holds, by the same names and with the same initialisation.

    It is no nn.LSTM because torch.compile stops at those, even where they only hold parameters. Called on sequences
    [N, T, C] it gives the states [N, T, 2h]; `BiLSTM2D` calls it where somebody listens, and else reads its tensors.

    Args:
        input_size: channels of a token.
        hidden_size: h, width of the state of each direction.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        bound = hidden_size**-0.5
        for name, shape in zip(PARAMETERS, [(input_size,), (hidden_size,), (), ()] * 2, strict=True):
            self.register_parameter(name, nn.Parameter(torch.empty(4 * hidden_size, *shape).uniform_(-bound, bound)))
        self.flatten_parameters()
        self.register_load_state_dict_post_hook(_flatten)  # `assign=True` puts other tensors in their place

    def forward(self, x: Tensor) -> Tensor:
        return lstm(x, self.tensors())

    def tensors(self) -> list[Tensor]:
        """In nn.LSTM's order."""
        return [getattr(self, name) for name in PARAMETERS]

    def flatten_parameters(self) -> None:
        """Lay the parameters out as one piece of memory on CUDA: cuDNN would copy them at every call, and warn."""
        parameters = self.tensors()
        if not all(parameter.is_cuda and isinstance(parameter, nn.Parameter) for parameter in parameters):
            return
        with torch.device('meta'):
            lstm = nn.LSTM(self.input_size, self.hidden_size, bidirectional=True)
        for name, parameter in zip(PARAMETERS, parameters, strict=True):
            setattr(lstm, name, parameter)
        lstm.flatten_parameters()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> 'LSTMParameters':
        """torch's hook for every change of device or dtype, which takes the piece apart."""
        super()._apply(fn, recurse)
        self.flatten_parameters()
        return self

    def extra_repr(self) -> str:
        return f'{self.input_size}, {self.hidden_size}'


def _flatten(module: LSTMParameters, incompatible_keys: NamedTuple) -> None:
    module.flatten_parameters()


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
        # both run at once, in `ops.bilstm2d`, but where hooks are to see what each takes and gives
        self.rnn_v = LSTMParameters(embed_dims, hidden_dims)
        self.rnn_h = LSTMParameters(embed_dims, hidden_dims)
        self.proj = linear(4 * hidden_dims, embed_dims)
        self.backend = 'auto'

    @fused.in_block_by(fused.bilstm)
    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.states(x))

    def states(self, x: Tensor) -> Tensor:
        """The states of both LSTMs in both directions, [B, H, W, 4 * hidden_dims]."""
        if x.is_meta or not fused.has_hooks(self.rnn_v, self.rnn_h):  # of shapes one node is enough
            return bilstm2d(x, self.rnn_v.tensors(), self.rnn_h.tensors(), backend=self.backend)
        v = self.rnn_v(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(x), x.shape[2])).transpose(1, 2)
        h = self.rnn_h(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return torch.cat((v, h), dim=-1)
