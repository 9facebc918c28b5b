"""Builds the model of a config, fills it from a file of weights, and gathers what its file is to say of it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from torch import nn

from ..export.whole.resizing import describe_resize
from .network import Network, build, dataset_of_test, read_config

__all__ = ['Loaded', 'described', 'load_model']


class Loaded(NamedTuple):
    """A model that is ready to be exported.

    Attributes:
        model: In eval mode, on the CPU.
        metadata: ``classes``, ``palette``, ``resize`` and ``weights_sha256`` of it, and ``arch`` of its backbone.
        notes: What a person should know of it, in sentences.
    """

    model: nn.Module
    metadata: dict[str, Any]
    notes: list[str]


def load_model(config: str, weights: str | None, options: Mapping[str, Any] | None = None) -> Loaded:
    """Builds and fills it.

    Args:
        config: A config file, or a name such as ``mmdet::retinanet/retinanet_r50_fpn_1x_coco.py``.
        weights: A checkpoint of the whole model, or an address of one; None for random ones.
        options: Dotted keys of the config, with values.

    Raises:
        UserError: if the config or the weights cannot be read, or do not fit each other.
    """
    cfg = read_config(config, shapes=False, options=options)
    network = build(cfg, weights, device=torch.device('cpu'), tta=False, shapes=False)
    loaded = described(network, cfg, weights)
    if weights is None:
        loaded.notes.append('no weights were named, so the file holds random ones')
    return loaded


def described(network: Network, cfg: Config, weights: str | None) -> Loaded:
    """A network that was built from a config, with what its file is to say."""
    resize = describe_resize(dataset_of_test(cfg).pipeline)
    metadata = {
        'classes': network.classes,
        'palette': network.palette,
        'resize': resize.entry,
        'weights_sha256': _checksum(weights),
    }
    arch = (cfg.model.get('backbone') or {}).get('arch')
    notes = [] if resize.note is None else [resize.note]
    return Loaded(network.model, metadata | ({} if arch is None else {'arch': arch}), notes)


def _checksum(weights: str | None) -> str | None:
    """Of a file; None for an address."""
    if weights is None or not Path(weights).is_file():
        return None
    with Path(weights).open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
