"""Builds the network to be exported, from the name of a backbone or a config, and weights."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope
from torch import nn

from ..backbones.base import DenseBackbone
from ..config.files import load_config
from ..config.options import apply_options
from ..swap import SwapRefused
from ..swap.rewiring import find_holder
from ..utils.errors import UserError
from ..weights.checkpoints import check_checkpoint, check_match, to_model_names
from ..weights.fitting import unwrap
from ..weights.loading import read
from ..zoo import backbone_names, build_network, is_config
from .describing import PREPROCESSING
from .recording import BackboneWithNeck

__all__ = ['Parts', 'build_parts', 'load_weights']


@dataclass(frozen=True)
class Parts:
    """A backbone, its neck if that was asked for, and what their config says of them."""

    backbone: nn.Module
    neck: nn.Module | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def build_parts(name: str, *, neck: bool = False, options: Mapping[str, Any] | None = None) -> Parts:
    """Builds them with random weights.

    Args:
        name: `swin_t` or another backbone, or a config as in `config.files.load_config`.
        neck: With the neck of the config.
        options: Arguments of the backbone, or dotted keys of the config, with values.

    Raises:
        UserError: for an unknown name, a config without a neck where one is asked for, or with another backbone.
    """
    options = dict(options or {})
    if not is_config(name):
        if neck and name in backbone_names():
            raise UserError(f'{name} is a backbone alone: for one with a neck name a config, as of a detector.')
        backbone = build_network(name, options)
        return Parts(backbone, None, {'arch': options.get('arch', backbone_names()[name][1])})
    cfg = load_config(name)
    apply_options(cfg, options)
    if not isinstance(cfg.get('model'), Mapping):
        raise UserError(f'config {name!r} has no model: there is nothing to export.')
    try:
        holder = find_holder(cfg.model)
    except SwapRefused as error:
        raise UserError(f'{name}: {error}.') from error
    if neck and not holder.get('neck'):
        raise UserError(f'{name}: its model has no neck. Without --neck the backbone alone is exported.')
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    backbone = ROOT_MODELS.build(holder['backbone'])
    if not isinstance(backbone, DenseBackbone):
        raise UserError(
            f'{name}: its backbone is a {type(backbone).__name__}. Only those of this package are exported; '
            'tools/swap_backbone.py writes the config anew with one of them.'
        )
    arch = holder['backbone'].get('arch', inspect.signature(type(backbone)).parameters['arch'].default)
    preprocessor = holder.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    metadata = {'arch': arch, **{key: preprocessor[key] for key in PREPROCESSING if key in preprocessor}}
    return Parts(backbone, ROOT_MODELS.build(holder['neck']) if neck else None, metadata)


def load_weights(parts: Parts, source: str) -> str:
    """Fills the parts from a checkpoint of the whole model, or the backbone from published weights.

    Args:
        parts: What is filled.
        source: A file, or an address as in docs/weights.md.

    Returns:
        What was loaded, in words.

    Raises:
        UserError: unless every weight is there and fits.
    """
    weights = check_checkpoint(source)  # with the messages of a test; None for an address
    try:
        if parts.neck is None:
            return str(parts.backbone.load_pretrained(source))
        weights = unwrap(read(source), source) if weights is None else weights
        network = BackboneWithNeck(parts.backbone, parts.neck)
        check_match(network, weights, source, shapes=False)
        weights, wanted = to_model_names(network, weights, source)
    except FileNotFoundError as error:
        raise UserError(str(error)) from error
    network.load_state_dict({key: value for key, value in weights.items() if key in network.state_dict()}, strict=False)
    return f'weights      {source}\nloaded       {len(wanted):4}  of backbone and neck'
