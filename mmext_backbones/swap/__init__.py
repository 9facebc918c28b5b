"""Any config of mmdet, mmsegmentation or mmpretrain with one of our backbones in place of its own."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope

from ..config.editing import type_name
from ..config.values import TASKS
from ..zoo import Network, known_network
from .backbone_config import backbone_config
from .optimizer import fit_optimizer
from .rewiring import SwapRefused, find_holder, levels_of, network_maps, out_indices_for, refuse_unfit, rewire, trim

__all__ = ['DEFAULT', 'SwapRefused', 'swap_backbone']

DEFAULT = 'default'


def swap_backbone(cfg: Config, name: str, *, weights: str | None = DEFAULT, keep_optimizer: bool = False) -> Config:
    """The config with another backbone, and all that depends on it.

    What changes: the backbone; the channels, levels and strides that necks and heads state; weights of the old backbone
    (`pretrained`, `load_from`, `resume`), and its layers in `activation_checkpointing`; mean and std of the images; SGD
    becomes AdamW, and what the new family does not decay is not decayed; `find_unused_parameters`, where a map has no
    reader.

    Args:
        cfg: A config with a model; it stays as it is.
        name: `elsa_swin_t` and the like, see `zoo.known_network`.
        weights: A file or address as in docs/weights.md; None starts from random weights. The default are the
            network's published ImageNet weights (none for ELSA-Swin, whose weights stand on no hub).
        keep_optimizer: Leave the optimizer and its schedule as they are.

    Returns:
        A new config.

    Raises:
        SwapRefused: if the model takes no such backbone, with the reason.
        ValueError: for an unknown name, or a config without a model.
    """
    network = known_network(name)
    if not isinstance(cfg.get('model'), Mapping):
        raise ValueError('the config has no model: is it a part that other configs inherit?')
    for key in ('optim_wrapper', 'auto_scale_lr', 'model_wrapper_cfg'):
        if not isinstance(cfg.get(key), (Mapping, type(None))):
            raise ValueError(f'{key}={cfg[key]!r}: expected a dict')
    cfg = copy.deepcopy(cfg)
    scope = cfg.get('default_scope')
    if not isinstance(scope, (str, type(None))):
        raise ValueError(f'default_scope={scope!r}: expected the name of a library, such as mmdet')
    with DefaultScope.overwrite_default_scope(scope) if scope else nullcontext():
        _swap(cfg, network, weights, keep_optimizer)
    return cfg


def task_of(cfg: Config, holder: Mapping) -> str:
    """Detection, segmentation or classification."""
    if type_name(holder).endswith(('EncoderDecoder', 'DepthEstimator')) or 'decode_head' in holder:
        return 'segmentation'
    if type_name(holder) in ('ImageClassifier', 'TimmClassifier', 'HuggingFaceClassifier'):
        return 'classification'
    return TASKS.get(cfg.get('default_scope'), 'detection')


def _swap(cfg: Config, network: Network, weights: str | None, keep_optimizer: bool) -> None:
    holder = find_holder(cfg.model)
    refuse_unfit(holder)
    old = levels_of(holder)
    old_backbone = holder['backbone']
    indices = out_indices_for(old)
    kept = trim(holder, indices)
    old = [old[indices.index(i)] for i in kept]
    if weights == DEFAULT:
        weights = network.weights
    in_channels = old_backbone.get('in_channels', 3)
    in_channels = in_channels if isinstance(in_channels, int) else 3
    task = task_of(cfg, holder)
    with_cp = _forget_layers(cfg) or bool(old_backbone.get('with_cp'))
    backbone = ConfigDict(backbone_config(network, task, kept, weights, in_channels, with_cp))
    holder['backbone'] = backbone
    new = network_maps(backbone)
    if old[0].stride is None and holder.get('neck') is None:
        holder['neck'] = ConfigDict(type='GlobalAveragePooling')
        new = [new[-1]._replace(stride=None)]
        necks, holder['neck'] = holder['neck'], None
        all_used = rewire(holder, old, new)
        holder['neck'] = necks
    else:
        all_used = rewire(holder, old, new)
    if not all_used:
        cfg.find_unused_parameters = True
        if cfg.get('model_wrapper_cfg') is not None:  # mmengine asks this one alone then
            cfg.model_wrapper_cfg.find_unused_parameters = True
    _forget_weights(cfg, holder)
    if in_channels == 3:
        _fit_images(cfg, network)
    with torch.device('meta'):
        built = MODELS.build({**backbone, 'init_cfg': None})
    fit_optimizer(cfg, task, built, keep=keep_optimizer)


def _forget_weights(cfg: Config, holder: Mapping) -> None:
    """Weights that were trained with the old backbone."""
    for model in (cfg.model, holder):
        for key in ('pretrained', 'init_cfg'):
            if model.get(key) is not None:
                model[key] = None
    if cfg.get('load_from') is not None:
        cfg.load_from = None
    if cfg.get('resume'):
        cfg.resume = False


def _forget_layers(cfg: Config) -> bool:
    """Whether layers of the old backbone were checkpointed by name; their names go."""
    named = cfg.get('activation_checkpointing') or []
    named = [named] if isinstance(named, str) else list(named)
    kept = [name for name in named if 'backbone' not in name.split('.')]
    if len(kept) < len(named):
        cfg.activation_checkpointing = kept
    return len(kept) < len(named)


def _fit_images(cfg: Config, network: Network) -> None:
    """Mean and std that the weights expect, channels in the order RGB: where the config normalises, else in the model.

    Pipelines of earlier versions normalise images themselves; once is enough.
    """
    steps = [node for node in _dicts(cfg._cfg_dict) if type_name(node) == 'Normalize' and node.get('mean') is not None]
    preprocessors = list(_preprocessors(cfg.model)) or list(_preprocessors(cfg))
    if steps:
        preprocessors = [config for config in preprocessors if config.get('mean') is not None]
    for config in (*steps, *preprocessors):
        unit = 255 if max(config.get('std') or network.std) < 1 else 1  # libraries of augmentations count from 0 to 1
        mean, std = ([value / unit for value in values] for values in (network.mean, network.std))
        if list(config.get('mean') or ()) != mean or list(config.get('std') or ()) != std:
            config.update(mean=mean, std=std)
        if unit == 255:
            continue
        config.pop('rgb_to_bgr', None)
        other = 'to_rgb' in config or type_name(config) in ('', 'ClsDataPreprocessor', 'Normalize')
        config['to_rgb' if other else 'bgr_to_rgb'] = True


def _dicts(node: Any) -> Iterator[ConfigDict]:
    """Every dict inside a config, outermost first."""
    if isinstance(node, Mapping):
        yield node
        node = list(node.values())
    for child in node if isinstance(node, (list, tuple)) else ():
        yield from _dicts(child)


def _preprocessors(node: Any) -> Iterator[ConfigDict]:
    """The innermost `data_preprocessor` dicts of a model, or of a config without its model."""
    for key, value in node.items():
        if not isinstance(value, Mapping) or (isinstance(node, Config) and key != 'data_preprocessor'):
            continue
        inner = list(_preprocessors(value))
        if key == 'data_preprocessor' and not inner:
            yield value
        else:
            yield from inner
