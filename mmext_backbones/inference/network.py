"""Builds a network that predicts, from a config and a file of weights."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import mmengine
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, TRANSFORMS, DefaultScope
from mmengine.runner import load_state_dict
from torch import Tensor, nn

from ..config.dialect import refuse_old_config
from ..config.editing import type_name
from ..config.files import load_config
from ..config.options import apply_options
from ..config.values import TASKS, check_config
from ..datasets.shapes.config import use_shapes
from ..datasets.shapes.files import default_shapes_dir
from ..engine.evaluation.tta import use_tta
from ..utils.errors import UserError
from ..weights.checkpoints import check_checkpoint, check_match, read_meta, to_model_names
from ..weights.fitting import check_values, unwrap
from ..weights.loading import check_address, read
from .images import ImageReader

__all__ = ['TASKS', 'Network', 'build', 'class_names', 'dataset_of_test', 'read_config']

WHOSE = {  # parts of a network that tell what it is for
    'segmentation': r'(decode_head|auxiliary_head)\.',
    'detection': r'(rpn_head|roi_head|bbox_head|bbox_head_\w+|panoptic_head|mask_head)\.',
    'classification': r'head\.(fc|layers|hidden|norm)\b|(fc|classifier)\.',
}


class Network(NamedTuple):
    """A network that is ready to predict.

    Attributes:
        kind: ``'detection'``, ``'segmentation'`` or ``'classification'``.
        model: In eval mode, on its device.
        read: Reads a picture for `pipeline`.
        pipeline: The config's test pipeline after its first transform, without annotations.
        tta: Whether the pipeline makes several views of a picture.
        classes: Their names.
        palette: Colours (red, green, blue) of the classes; empty if none are known.
        unused: Names of weights that the model has no place for.
    """

    kind: str
    model: nn.Module
    read: ImageReader
    pipeline: Callable[[dict], dict]
    tta: bool
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    unused: list[str]


def read_config(config: str | os.PathLike | Config, *, shapes: bool, options: Mapping[str, Any] | None) -> Config:
    """The config as a prediction needs it.

    Raises:
        UserError: if it cannot be read, or is none of a detector, a segmentor or a classifier with a test pipeline.
    """
    name = config.filename or 'given' if isinstance(config, Config) else os.fspath(config)
    cfg = config.copy() if isinstance(config, Config) else load_config(name)
    refuse_old_config(cfg, name)
    if cfg.get('model') is None:
        raise UserError(f'config {name!r} has no model: is it a part that other configs inherit?')
    check_config(cfg)
    if cfg.get('default_scope') not in TASKS:
        raise UserError(
            f'config {name!r}: default_scope={cfg.get("default_scope")!r}, and only configs of {", ".join(TASKS)} can '
            'predict here.'
        )
    if shapes:
        use_shapes(cfg, default_shapes_dir())
    apply_options(cfg, dict(options or {}))
    check_config(cfg)
    if cfg.get('test_dataloader') is None:
        raise UserError(f'config {name!r} has no test_dataloader, whose pipeline prepares the pictures.')
    return cfg


def build(cfg: Config, weights: str | None, *, device: torch.device, tta: bool, shapes: bool) -> Network:
    """Builds the model, fills it, and takes pipeline and classes from the config.

    Args:
        cfg: From `read_config`; edited if `tta`.
        weights: A file, or an address that mmengine can read (``https://``, ``timm://``, ...); None for random ones.
        device: Where the model runs.
        tta: Predict several views of each picture and merge them.
        shapes: Whether the config was rewritten to the Shapes data, for messages.

    Raises:
        UserError: if the weights cannot be read or are not the model's, or the pipeline or the views cannot be used.
    """
    kind = TASKS[cfg.default_scope]
    if kind == 'classification':
        cfg.model.pop('train_cfg', None)  # mixing of pictures, which changes and tells how they are prepared
    state, meta = ({}, {}) if weights is None else _read_weights(weights)
    has_views = _makes_views(dataset_of_test(cfg).pipeline)  # a test with --tta leaves such a config in its work dir
    if tta and not has_views:
        use_tta(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = revert_sync_batchnorm(MODELS.build(cfg.model))
        read_image, pipeline = _pipeline(dataset_of_test(cfg).pipeline)
        classes, palette = class_names(cfg, meta)
    unused = [] if weights is None else _fill(model, state, weights, kind, shapes)
    return Network(kind, model.to(device).eval(), read_image, pipeline, tta or has_views, classes, palette, unused)


# --------------------------------------------------------------------------------------------------------------------
# Weights


def _read_weights(weights: str) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """The weights by name, and what the file says about its run."""
    state = check_checkpoint(weights)
    if state is not None:
        return state, read_meta(weights)
    check_address(weights)
    content = read(weights)
    state = unwrap(content, weights)
    check_values(state, weights)
    meta = content.get('meta') if isinstance(content, Mapping) else None
    return state, meta if isinstance(meta, Mapping) else {}


def _fill(model: nn.Module, state: dict[str, Tensor], weights: str, kind: str, shapes: bool) -> list[str]:
    """Loads every tensor of the model; answers with the names of weights that it has no place for."""
    try:
        check_match(model, state, weights, shapes)
    except UserError as error:
        other = _made_for(state, kind)
        raise UserError(f'{error}{f" It seems to be of a model for {other}, not {kind}." if other else ""}') from error
    own, _ = to_model_names(model, state, weights)
    target = getattr(model, 'module', model)  # of test-time augmentation
    names = target.state_dict().keys()
    load_state_dict(target, {key: value for key, value in own.items() if key in names}, logger='silent')
    return [key for key in own if key not in names]


def _made_for(state: Mapping[str, Tensor], kind: str) -> str | None:
    """The other kind of model that weights seem to be of."""
    found = [other for other, pattern in WHOSE.items() if any(re.match(pattern, key) for key in state)]
    return found[0] if found and kind not in found else None


# --------------------------------------------------------------------------------------------------------------------
# The pipeline


def dataset_of_test(cfg: Config) -> Any:
    """The test data set inside its wrappers."""
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset or 'datasets' in dataset:
        dataset = dataset['dataset'] if 'dataset' in dataset else dataset['datasets'][0]
    if not dataset.get('pipeline'):
        raise UserError('the test data set of the config has no pipeline, which would prepare the pictures.')
    return dataset


def _makes_views(pipeline: Sequence[Mapping]) -> bool:
    return any(type_name(step) == 'TestTimeAug' for step in pipeline)


def _pipeline(steps: Sequence[Mapping]) -> tuple[ImageReader, Callable[[dict], dict]]:
    """A pipeline in two: its first transform, which reads a file, and the rest without what reads annotations."""
    first, *rest = steps
    if type_name(first) != 'LoadImageFromFile':
        raise UserError(f'the test pipeline of the config begins with {type_name(first)}: expected LoadImageFromFile.')
    # where the config's own data lie matters to no other picture
    first = {key: value for key, value in first.items() if key not in ('backend_args', 'file_client_args')}
    return ImageReader(TRANSFORMS.build(first)), Compose(_without_annotations(rest))


def _without_annotations(steps: Sequence[Mapping]) -> list[dict]:
    kept = []
    for step in steps:
        if re.fullmatch(r'Load\w*Annotations', type_name(step)):
            continue
        if type_name(step) == 'TestTimeAug':
            branches = [_without_annotations(branch) for branch in step['transforms']]
            step = {**step, 'transforms': [branch for branch in branches if branch]}
        kept.append(dict(step))
    return kept


# --------------------------------------------------------------------------------------------------------------------
# The classes


def class_names(cfg: Config, meta: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Names and colours of the classes: those the weights were trained with, else those of the config's data.

    Args:
        cfg: The config.
        meta: What a checkpoint says about its run.

    Raises:
        UserError: if there are no names.
    """
    dataset = dataset_of_test(cfg)
    with DATASETS.switch_scope_and_registry(dataset.get('_scope_') or cfg.default_scope) as registry:
        known = dict(getattr(registry.get(dataset['type']), 'METAINFO', None) or {})
    known |= {key: dataset[key] for key in ('classes', 'palette') if key in dataset}  # of mmpretrain
    known |= dataset.get('metainfo') or {}
    trained = meta.get('dataset_meta') or {key: meta[key] for key in ('CLASSES', 'PALETTE') if key in meta}
    known |= {key.lower(): value for key, value in trained.items() if value is not None}
    classes = known.get('classes')
    if isinstance(classes, str) and os.path.isfile(classes):
        classes = mmengine.list_from_file(classes)
    if not isinstance(classes, Sequence) or isinstance(classes, str) or not classes:
        raise UserError(
            'neither the weights nor the config name the classes. Name them: '
            "--cfg-options test_dataloader.dataset.metainfo.classes=\"['cat','dog']\""
        )
    palette = known.get('palette')
    right = isinstance(palette, Sequence) and len(palette) >= len(classes) and not isinstance(palette, str)
    colours = tuple(tuple(int(part) for part in colour) for colour in palette) if right else ()
    return tuple(map(str, classes)), colours
