"""The metadata of an exported file."""

import json
from collections.abc import Mapping
from typing import Any

import torch

from ..version import __version__
from .recording import BackboneWithNeck

PREFIX = 'mmext_backbones.'
PREPROCESSING = ('mean', 'std', 'bgr_to_rgb', 'to_rgb', 'pad_size_divisor')
_PROBE = 256  # pixels: edge of the image that shows the strides


def describe(
    network: BackboneWithNeck, size: tuple[int, int] | None, extra: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Metadata of a file, every value as JSON.

    Args:
        network: Made by `recording.prepare`.
        size: (H, W) that the file is for; None for any.
        extra: More of it: `arch`, and the entries of a config's preprocessor of `PREPROCESSING`.
    """
    with torch.no_grad():
        maps = network(torch.zeros(1, network.backbone.in_channels, _PROBE, _PROBE))
    facts = {
        'version': __version__,
        'backbone': type(network.backbone).__name__,
        'neck': None if network.neck is None else type(network.neck).__name__,
        'in_channels': network.backbone.in_channels,
        'channels': [out.shape[1] for out in maps],
        'strides': [_PROBE // out.shape[2] for out in maps],
        'size': size or 'any',
        **(extra or {}),
    }
    return {PREFIX + key: json.dumps(value) for key, value in facts.items()}
