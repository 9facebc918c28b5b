"""A model with its preprocessing: from the picture to the named outputs."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..recording import check_float32, shared_copy
from .kinds import build_task
from .refusing import Unsupported, refuse_settings
from .task import Task

__all__ = ['Preprocessing', 'WholeNetwork', 'whole_network']

PREPROCESSORS = ('ClsDataPreprocessor', 'DetDataPreprocessor', 'ImgDataPreprocessor', 'SegDataPreProcessor')


class Preprocessing(nn.Module):
    """What a data preprocessor of the libraries does in a test: channels flipped, normalised, padded.

    Args:
        preprocessor: One of `PREPROCESSORS`.
        raw: The images come flipped and normalised already.

    Attributes:
        to_rgb: Whether channels are flipped.
        divisor: Of the height and the width after padding.
        pad_value: Of the pixels that are added, after normalising.
    """

    def __init__(self, preprocessor: nn.Module, raw: bool = False) -> None:
        super().__init__()
        if type(preprocessor).__name__ not in PREPROCESSORS:
            raise Unsupported(f'data_preprocessor is a {type(preprocessor).__name__}', PREPROCESSORS)
        self.raw = raw
        known = vars(preprocessor)
        self.to_rgb = any(known.get(name) for name in ('_channel_conversion', 'channel_conversion', 'to_rgb'))
        padding: Mapping[str, Any] = known.get('test_cfg') or {}  # of mmseg's
        refuse_settings('data_preprocessor', padding, {'size': None})
        self.divisor = int(known.get('pad_size_divisor') or padding.get('size_divisor') or 1)
        self.pad_value = float(known.get('pad_value', known.get('pad_val', 0)))
        mean, std = (getattr(preprocessor, name, torch.tensor(value)) for name, value in (('mean', 0.0), ('std', 1.0)))
        for name, value in (('mean', mean), ('std', std)):
            self.register_buffer(name, value.detach().float().reshape(-1).expand(3).reshape(3, 1, 1).clone())

    def normalised(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] of 0 to 255 -> as the network was trained with."""
        return ((image.flip(1) if self.to_rgb else image) - self.mean) / self.std

    def forward(self, image: Tensor) -> Tensor:
        x = image if self.raw else self.normalised(image)
        H, W = x.shape[2:]
        if self.divisor == 1:
            return x
        return F.pad(x, (0, -W % self.divisor, 0, -H % self.divisor), value=self.pad_value)


class WholeNetwork(nn.Module):
    """[B, 3, H, W] -> the outputs of a task.

    Args:
        preprocessing: Of the images.
        task: What follows.
        title: What messages call the network.

    Attributes:
        outputs: Their names, in the order of what `forward` returns.
    """

    in_channels = 3

    def __init__(self, preprocessing: Preprocessing, task: Task, title: str) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.task = task
        self.title = title
        self.outputs = task.outputs

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.task(self.preprocessing(image), image.shape[2:])


def whole_network(model: nn.Module, raw: bool = False) -> WholeNetwork:
    """A model as a function of pictures, with what its `predict` does after its heads.

    Args:
        model: A built detector, segmentor or classifier; it stays as it is, its tensors are shared.
        raw: The images come flipped and normalised already, as mmdeploy's SDK gives them.

    Returns:
        A module in eval mode: images [B, 3, H, W] float32, blue, green, red from 0 to 255 -> tensors named by
        `WholeNetwork.outputs`.

    Raises:
        UserError: for heads or settings that are not known, by name.
        ValueError: unless all is float32 and on the CPU.
    """
    model = shared_copy(model)
    task = build_task(model)
    network = WholeNetwork(Preprocessing(model.data_preprocessor, raw), task, type(model).__name__).eval()
    check_float32(network)
    return network
