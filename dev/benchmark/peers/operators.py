"""Single layers of ours and of others, on maps of the sizes that they meet in a network.

A layer takes and returns a map [B, H, W, C], with its projections; the ELSA operator takes values and filter logits
[B, C, H, W], in the memory layout that its layer hands it. Nothing is warm in a cache: each call is preceded by a pass
over other memory (`timing`).
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from mmext_backbones.layers import WindowAttention
from mmext_backbones.ops import elsa

from ..case import WINDOW, Peer, Setting
from ..roofline import Work, attention_work, elsa_work
from .standalone import mmdet_swin

KERNEL_SIZE = 7


def stage_of(setting: Setting) -> int:
    """`stage 2 shifted` -> 2."""
    return int(setting.part.split()[1])


def kind_of(setting: Setting) -> str:
    """`stage 2 shifted` -> shifted."""
    return setting.part.split()[2]


def stages_by(kinds: Sequence[str] = ('',), leave_out: int = 0):
    """Names of the parts: every stage in every kind, but for the last `leave_out` stages."""

    def parts(arch: Mapping[str, Any]) -> list[str]:
        stages = range(len(arch['depths']) - leave_out)
        return [f'stage {i} {kind}'.strip() for i in stages for kind in kinds]

    return parts


def channels_of(setting: Setting) -> int:
    dims = setting.arch['embed_dims']
    return dims[stage_of(setting)] if isinstance(dims, Sequence) else dims * 2 ** stage_of(setting)


def heads_of(setting: Setting) -> int:
    return setting.arch['num_heads'][stage_of(setting)]


def map_size(setting: Setting) -> tuple[int, int]:
    """Height and width of the stage's map in tokens."""
    stride = 4 * 2 ** stage_of(setting)
    return tuple(-(-edge // stride) for edge in setting.size)


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def map_inputs(setting: Setting) -> tuple[Tensor]:
    return (random(setting.batch, *map_size(setting), channels_of(setting)),)


def renamed(*pairs: tuple[str, str]):
    """A `Peer.convert` that replaces parts of the keys; an index into a table is no weight."""

    def convert(tensors: Mapping[str, Tensor], ours: nn.Module) -> dict[str, Tensor]:
        result = {}
        for key, tensor in tensors.items():
            for old, new in pairs:
                key = key.replace(old, new)
            if not key.endswith('relative_position_index'):
                result[key] = tensor
        return result

    return convert


# ---------------------------------------------------------------------------------------------------------------------
# The ELSA operator


class Elsa(nn.Module):
    """The operator with a ghost head of its own: (v, logits) -> [B, C, H, W]."""

    def __init__(self, channels: int, num_heads: int, backend: str) -> None:
        super().__init__()
        self.num_heads, self.backend = num_heads, backend
        self.ghost = nn.Parameter(torch.zeros(channels, KERNEL_SIZE, KERNEL_SIZE))

    def forward(self, v: Tensor, logits: Tensor) -> Tensor:
        return elsa(
            v, logits, ghost_add=self.ghost, num_heads=self.num_heads, kernel_size=KERNEL_SIZE, backend=self.backend
        )


def elsa_inputs(setting: Setting) -> tuple[Tensor, Tensor]:
    H, W = map_size(setting)
    v = random(setting.batch, H, W, channels_of(setting))
    logits = random(setting.batch, H, W, heads_of(setting) * KERNEL_SIZE**2, seed=2)
    return v.permute(0, 3, 1, 2), logits.permute(0, 3, 1, 2)


def our_elsa(setting: Setting, peer: Peer) -> nn.Module:
    return Elsa(channels_of(setting), heads_of(setting), 'auto')


def elsa_floor(setting: Setting, dtype: torch.dtype) -> Work:
    sizes = setting.batch, *map_size(setting), channels_of(setting), heads_of(setting)
    return elsa_work(*sizes, KERNEL_SIZE, dtype.itemsize)


def elsa_form(name: str, backend: str) -> Peer:
    def build(setting: Setting) -> nn.Module:
        return Elsa(channels_of(setting), heads_of(setting), backend)

    return Peer(name, lambda: None, build, renamed())


ELSA_OP_PEERS = (elsa_form('unfold', 'reference'),)

# ---------------------------------------------------------------------------------------------------------------------
# Window attention of Swin


def shift_of(setting: Setting) -> int:
    return WINDOW // 2 if kind_of(setting) == 'shifted' else 0


def our_window_attention(setting: Setting, peer: Peer) -> nn.Module:
    return WindowAttention(
        channels_of(setting), heads_of(setting), WINDOW, shift_size=shift_of(setting), **peer.options
    )


class MMDetWindows(nn.Module):
    """mmdet's layer, which takes tokens [B, H * W, C] and the size of the map."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1, 2), x.shape[1:3]).view(x.shape)


def mmdet_windows(setting: Setting) -> nn.Module:
    layer = mmdet_swin().ShiftWindowMSA(channels_of(setting), heads_of(setting), WINDOW, shift_size=shift_of(setting))
    return MMDetWindows(layer)


def torchvision_windows(setting: Setting) -> nn.Module:
    cls = import_module('torchvision.models.swin_transformer').ShiftedWindowAttention
    return cls(channels_of(setting), [WINDOW] * 2, [shift_of(setting)] * 2, heads_of(setting))


def one_axis_shifts(setting: Setting) -> str | None:
    H, W = map_size(setting)
    if shift_of(setting) and (H > WINDOW) != (W > WINDOW):
        return 'it shifts a map that is one window high or wide along the other axis only'
    return None


def two_windows(setting: Setting) -> Setting:
    """One map of more than one window each way."""
    edge = 2 * WINDOW * 4 * 2 ** stage_of(setting)
    return setting._replace(size=(edge, edge), batch=1)


def window_floor(setting: Setting, dtype: torch.dtype) -> Work:
    sizes = setting.batch, *map_size(setting), channels_of(setting), heads_of(setting)
    return attention_work(*sizes, WINDOW, dtype.itemsize)


WINDOW_PEERS = (
    Peer('mmdet', mmdet_swin, mmdet_windows, renamed(('layer.w_msa.', ''))),
    Peer(
        'torchvision',
        lambda: import_module('torchvision'),
        torchvision_windows,
        renamed(),
        options={'shift_single_window': False},
        differs=one_axis_shifts,
        agreeing=two_windows,
    ),
)
