"""Checks that a swapped model runs, and compares its cost with the one before."""

import copy
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor

from ..analysis.cost import model_cost
from ..config.editing import type_name
from ..utils.errors import UserError
from ..weights.fitting import WeightsError
from ..weights.loading import check_address
from .maps import Map, backbone_maps
from .rewiring import find_holder

__all__ = ['Summary', 'build_model', 'check_weights', 'forward', 'summarise', 'table']


@dataclass(frozen=True)
class Summary:
    """One side of the table; parameters and MACs are the whole model's, or None where they cannot be counted."""

    backbone: str
    maps: list[Map]
    params: int | None
    macs: int | None


def build_model(cfg: Config, device: str = 'cpu') -> BaseModel:
    """The model of a config in eval mode, with random weights: nothing is fetched.

    Raises:
        Exception: whatever the model raises.
    """
    model = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', copy.deepcopy(cfg.data_preprocessor))
    _forget_weights(model)
    with _scope(cfg), torch.device(device):
        model = MODELS.build(model)
    model.eval()
    return model


def check_weights(address: str, backbone: Mapping | None = None) -> str | None:
    """Whether weights can be what a backbone starts from.

    Args:
        address: A file, or an address as in docs/weights.md.
        backbone: Its config; without it, only the form of the address is looked at.

    Returns:
        What is not known before a training: whether an address has the weights, or a file will be there.

    Raises:
        UserError: for an address that is none, or a file that is no weights of this backbone.
    """
    if not address or Path(address).is_dir():
        raise UserError(f'--weights {address!r}: expected a file, or an address as in docs/weights.md.')
    try:
        check_address(address)
        if backbone is None:
            return None
        if '://' in address:
            return f'{address} is fetched when a training starts, and checked then.'
        if not Path(address).is_file():
            return f'there is no file {address} here: a training will look for it, and end if it finds none.'
        with torch.device('meta'):
            built = MODELS.build({**backbone, 'init_cfg': None})
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='.*meta parameter')
            built.load_pretrained(address)
    except (WeightsError, ImportError) as error:
        raise UserError(f'--weights: {error}') from error
    return None


def forward(model: BaseModel, size: tuple[int, int] = (128, 128)) -> Any:
    """One prediction for an image of noise, `size` its height and width in pixels.

    Raises:
        Exception: whatever the model raises.
    """
    in_channels = getattr(getattr(model, 'backbone', model), 'in_channels', 3)
    library = next((cls.__module__.partition('.')[0] for cls in type(model).__mro__ if _known(cls)), None)
    x = torch.randn(1, in_channels, *size)
    with torch.no_grad():
        return model(x, [_sample(model, size)] if library == 'mmdet' else None, mode='predict')


def summarise(cfg: Config, size: int) -> Summary:
    """Counts the model of a config on an image of `size` pixels square; what does not run on shapes stays uncounted."""
    with _scope(cfg):
        backbone = find_holder(cfg.model)['backbone']
        maps = backbone_maps(backbone, backbone.get('in_channels', 3))
    params = macs = None
    try:
        try:
            model = build_model(cfg, 'meta')
        except Exception:
            model = build_model(cfg)  # some constructors read numbers
        params = sum(parameter.numel() for parameter in model.parameters())
        macs = model_cost(model, (size, size)).macs
    except Exception:
        pass  # an operator without shapes, such as deformable convolution
    arch = backbone.get('arch') or backbone.get('depth') or ''
    return Summary(f'{type_name(backbone)} {arch}'.strip(), maps, params, macs)


def table(before: Summary, after: Summary, size: int) -> list[str]:
    """The lines of a table: a row for each thing, a column for each side."""

    def count(number: int | None, unit: float) -> str:
        return 'not counted' if number is None else f'{number / unit:.1f}'

    rows = [('', 'before', 'after')]
    rows.append(('backbone', before.backbone, after.backbone))
    rows.append(('levels', str(len(before.maps)), str(len(after.maps))))
    for place, title in enumerate(('channels', 'strides')):
        rows.append((title, *(', '.join(str(m[place] or '-') for m in side.maps) for side in (before, after))))
    rows.append(('parameters (M)', count(before.params, 1e6), count(after.params, 1e6)))
    rows.append((f'MACs (G) at {size} x {size}', count(before.macs, 1e9), count(after.macs, 1e9)))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return ['  '.join(f'{cell:{width}}' for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _scope(cfg: Config) -> Any:
    scope = cfg.get('default_scope')
    return DefaultScope.overwrite_default_scope(scope) if scope else nullcontext()


def _known(cls: type) -> bool:
    return cls.__module__.partition('.')[0] in ('mmdet', 'mmseg', 'mmpretrain')


def _sample(model: BaseModel, size: tuple[int, int]) -> Any:
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    H, W = size
    metainfo = dict.fromkeys(('ori_shape', 'img_shape', 'pad_shape', 'batch_input_shape'), size)
    sample = DetDataSample(metainfo={**metainfo, 'scale_factor': (1.0, 1.0), 'img_id': 0, 'border': (0, H, 0, W)})
    if hasattr(model, 'roi_head') and not hasattr(model, 'rpn_head'):  # Fast R-CNN reads its proposals from a file
        box: Tensor = torch.tensor([[0.0, 0.0, W / 2, H / 2]])
        sample.proposals = InstanceData(bboxes=box, scores=torch.ones(1))
    return sample


def _forget_weights(node: Any) -> None:
    """No part fetches weights when it is built."""
    if isinstance(node, (list, tuple)):
        for item in node:
            _forget_weights(item)
    elif isinstance(node, Mapping):
        for key, value in node.items():
            named = key in ('pretrained', 'teacher_ckpt') and isinstance(value, str)
            if key == 'pretrained' and value is True:  # timm's
                node[key] = False
            elif named or (key == 'init_cfg' and type_name(value) in ('Pretrained', 'PretrainedInit')):
                node[key] = None
            else:
                _forget_weights(value)
