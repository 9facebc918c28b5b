"""Records a network as one graph: which form each operator takes, and for which sizes."""

import contextlib
import copy
import threading
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError as TorchUserError

from ..backbones.base import DenseBackbone
from ..layers import (
    BiLSTM2D,
    ELSAAttention,
    GlobalAttention,
    Involution,
    LocalAttention,
    OutlookAttention,
    PartitionAttention,
    WindowAttention,
)
from ..ops.window_attention.export import shared_plans

TOO_OLD = f'torch {torch.__version__} is too old to record a network for export: take 2.9 or newer'
try:
    from torch.export import Dim, ExportedProgram, export
    from torch.fx.experimental import _config as fx_config
except ImportError as error:  # before 2.2
    raise ImportError(TOO_OLD) from error

SMALLEST = 33  # pixels: all levels have two rows and columns; PyTorch takes an axis of size 1 for another case
_RECORDED = (1056, 1120)  # 33 x 35 tokens of stride 32: more than one window, which would be another case too
Module = TypeVar('Module', bound=nn.Module)
EXPORTED = (  # modules with a form of that name
    ELSAAttention,
    GlobalAttention,
    Involution,
    LocalAttention,
    OutlookAttention,
    PartitionAttention,
    WindowAttention,
)
_LOCK = threading.Lock()  # PyTorch's switches of a recording are those of the process


class BackboneWithNeck(nn.Module):
    """A backbone and, where there is one, a neck: [B, in_channels, H, W] -> a tuple of maps."""

    def __init__(self, backbone: DenseBackbone, neck: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = self.backbone(x)
        return tuple(maps if self.neck is None else self.neck(maps))

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return self.backbone.in_channels

    @property
    def title(self) -> str:
        """What messages call it."""
        return ' with '.join(type(part).__name__ for part in (self.backbone, self.neck) if part is not None)


def prepare(backbone: nn.Module, neck: nn.Module | None = None) -> BackboneWithNeck:
    """A copy in eval mode that shares all tensors: the modules themselves stay as they are, in any thread.

    Raises:
        TypeError: if `backbone` is none of ours.
        ValueError: unless all is float32 and on the CPU.
    """
    if not isinstance(backbone, DenseBackbone):
        raise TypeError(f'{type(backbone).__name__} is no backbone of mmext_backbones: only those are exported')
    network = shared_copy(BackboneWithNeck(backbone, neck))
    check_float32(network)
    return network


def check_float32(network: nn.Module) -> None:
    """Whether all is float32 and on the CPU.

    Raises:
        ValueError: if not.
    """
    for backbone in (module for module in network.modules() if isinstance(module, DenseBackbone)):
        for name in ('autocast_dtype', 'out_dtype'):
            value = getattr(backbone, name)
            if value not in (None, 'float32'):
                raise ValueError(f'{name}={value!r}: a file computes in float32, build the backbone with {name}=None')
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ValueError(f'{name} is {tensor.dtype}: a file computes in float32, convert the model with .float()')
        if tensor.device.type != 'cpu':
            raise ValueError(f'{name} is on {tensor.device}: move the model with .cpu()')


def record(network: nn.Module, size: tuple[int, int] | None, batch: int | None, *, onnx: bool) -> ExportedProgram:
    """The graph of a network in inference, for one size or for all.

    Args:
        network: Made by `prepare`, or another module of images with `in_channels` and a `title`; it stays as it is.
        size: (H, W) in pixels; None for any from `SMALLEST` on.
        batch: Images of a batch; None for any number.
        onnx: With the operators of `translations`, instead of PyTorch's own alone.

    Raises:
        ValueError: if the network decides by the size of the image, and none was given.
        RuntimeError: where this version of PyTorch cannot record.
    """
    if not hasattr(fx_config, 'backed_size_oblivious'):
        raise RuntimeError(TOO_OLD)
    x = torch.empty(batch or 2, network.in_channels, *(size or _RECORDED))
    axes = {}
    if batch is None:
        axes[0] = Dim('batch', min=1)
    if size is None:
        axes |= {2: Dim('height', min=SMALLEST), 3: Dim('width', min=SMALLEST)}
    network = _in_recordable_forms(shared_copy(network), onnx)
    try:
        with _LOCK, torch.no_grad(), fx_config.patch(backed_size_oblivious=True), shared_plans(), _loops(network, onnx):
            return export(network, (x,), dynamic_shapes=(axes,) if axes else None, strict=False)
    except TorchUserError as error:
        raise ValueError(
            f'{network.title} decides by the size of the image, so that one graph does not serve all sizes: '
            f'{_reason(error)}\nExport it for one size (dynamic=False, --static).'
        ) from error


def shared_copy(network: Module) -> Module:
    """Other modules over the same tensors, in eval mode."""
    tensors = [*network.parameters(), *network.buffers()]
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors}).eval()


def _in_recordable_forms(network: Module, onnx: bool) -> Module:
    for parent in list(network.modules()):
        for name, module in parent.named_children():
            if isinstance(module, EXPORTED):
                module.backend = 'export'
            elif isinstance(module, BiLSTM2D) and onnx:
                from .translations import RecordedBiLSTM2D

                setattr(parent, name, RecordedBiLSTM2D(module))
            elif isinstance(module, BiLSTM2D):
                module.backend = 'torch'
    return network


def _reason(error: TorchUserError) -> str:
    """The first condition that PyTorch names, or its first line."""
    lines = str(error).splitlines()
    return next((line.strip(' -') for line in lines if line.strip().startswith('- ')), lines[0])


@contextlib.contextmanager
def _loops(network: nn.Module, onnx: bool) -> Iterator[None]:
    """Keeps an LSTM of PyTorch a loop, which is unrolled otherwise to the length it was recorded with."""
    if onnx or not any(isinstance(module, BiLSTM2D) for module in network.modules()):
        yield
        return
    try:
        from torch.export._patches import register_lstm_while_loop_decomposition
    except ImportError as error:
        raise RuntimeError(
            f'torch {torch.__version__} writes an LSTM for one length only: export to ONNX, or take a newer torch'
        ) from error
    with register_lstm_while_loop_decomposition():
        yield
