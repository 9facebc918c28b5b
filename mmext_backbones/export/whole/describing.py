"""What a file of a whole model says about itself: for this package, and in the words of other tools."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ...backbones.base import DenseBackbone
from ...version import __version__
from ..describing import PREFIX
from .network import WholeNetwork
from .task import as_written

__all__ = ['describe_whole']

VERSION = 1  # of the JSON
TASKS = {  # in the words of ultralytics and of openvino-model-api
    'detection': ('detect', 'SSD'),
    'instance segmentation': ('segment', 'MaskRCNN'),
    'semantic segmentation': ('semantic', 'Segmentation'),
    'classification': ('classify', 'Classification'),
}


def describe_whole(
    network: WholeNetwork, image: str, size: tuple[int, int] | None, known: Mapping[str, Any], opset: int
) -> dict[str, str]:
    """Metadata of a file.

    Args:
        network: What is exported.
        image: Name of the input.
        size: (H, W) that the file is for; None for any.
        known: ``classes``, ``palette``, ``resize`` and ``weights_sha256``, and ``arch`` of the backbone, as far as they
            are known.
        opset: Of the file.
    """
    whole = {
        'version': VERSION,
        'task': network.task.task,
        'classes': list(known.get('classes') or ()),
        'palette': [list(colour) for colour in known.get('palette') or ()],
        'input': _input(network, image),
        'resize': known.get('resize'),
        **network.task.settings(),
        'precision': 'float32',
        'weights_sha256': known.get('weights_sha256'),
        'torch': torch.__version__,
        'opset': opset,
    }
    facts = {
        'version': __version__,
        **_parts(network.task.maps.backbone, network.task.maps.neck),
        'in_channels': network.in_channels,
        'size': size or 'any',
        **({'arch': known['arch']} if 'arch' in known else {}),
        'whole': whole,
    }
    return {PREFIX + key: json.dumps(value) for key, value in facts.items()} | _for_others(whole, size)


def _input(network: WholeNetwork, image: str) -> dict[str, Any]:
    preprocessing = network.preprocessing
    return {
        'name': image,
        'channels': 'RGB' if preprocessing.raw and preprocessing.to_rgb else 'BGR',
        'range': None if preprocessing.raw else [0, 255],
        'raw': preprocessing.raw,
        'mean': as_written(preprocessing.mean),
        'std': as_written(preprocessing.std),
        'to_rgb': preprocessing.to_rgb,
        'size_divisor': preprocessing.divisor,
    }


def _parts(backbone: nn.Module, neck: nn.Module | None) -> dict[str, Any]:
    parts: dict[str, Any] = {
        'backbone': type(backbone).__name__,
        'neck': None if neck is None else type(neck).__name__,
    }
    if isinstance(backbone, DenseBackbone):
        parts |= {'channels': list(backbone.out_channels), 'strides': list(backbone.out_strides)}
    return parts


def _for_others(whole: Mapping[str, Any], size: tuple[int, int] | None) -> dict[str, str]:
    """The keys that ultralytics and openvino-model-api read."""
    of_ultralytics, of_model_api = TASKS[whole['task']]
    names = dict(enumerate(whole['classes']))
    divisor = whole['input']['size_divisor']
    resize = whole['resize'] or {}
    facts = {
        'task': of_ultralytics,
        'names': str(names),
        'stride': str(divisor),
        'batch': '1',
        'imgsz': str(list(size)) if size else 'dynamic',
    }
    raw = whole['input']['raw']
    model_info = {
        'model_type': of_model_api,
        'labels': ' '.join(name.replace(' ', '_') for name in whole['classes']),
        'mean_values': '0.0 0.0 0.0',  # inside of the file
        'scale_values': '1.0 1.0 1.0',
        'reverse_input_channels': str(raw and whole['input']['to_rgb']),
        'resize_type': 'crop' if 'crop' in resize else 'fit_to_window' if resize.get('keep_ratio') else 'standard',
        'pad_value': '0',
    }
    for ours, theirs in (('score_thr', 'confidence_threshold'), ('iou_thr', 'iou_threshold')):
        if ours in whole:
            model_info[theirs] = str(whole[ours])
    return facts | {f'model_info {key}': value for key, value in model_info.items()}
