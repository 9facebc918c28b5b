"""What dev/swap_survey.py does with one config: reads it, builds a model of it, runs a small step on the CPU."""

import contextlib
import copy
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SIZES = (128, 256, 512)  # pixels, height and width of the images; the next where the original takes none so small
TOO_SMALL = re.compile('small|size|out of range')  # in what the original says of an image
INSTALLED = re.compile(r'/[^\s"\']*?/(?=(mmcv|mmdet|mmseg|mmpretrain)/)')
BATCH = 2  # one is too few for a batch norm after global pooling
REGIONS = 32  # of interest, an image, that a box or mask head is trained on at most
SEED = 0


def configs_dir(library: str) -> Path:
    """Where a library installs its configs."""
    return Path(importlib.util.find_spec(library).submodule_search_locations[0]) / '.mim' / 'configs'


def configs_of(library: str) -> list[str]:
    """Its configs outside ``_base_``, sorted, relative to their folder."""
    root = configs_dir(library)
    paths = (path.relative_to(root) for path in root.rglob('*.py'))
    return sorted(str(path) for path in paths if '_base_' not in path.parts)


def load(library: str, config: str) -> Any:
    from mmengine.config import Config

    return Config.fromfile(configs_dir(library) / config)


def one_line(error: BaseException) -> str:
    """Type and text of an error, without line breaks and without where things are installed or were compiled."""
    text = f'{type(error).__name__}: {" ".join(str(error).split())}'
    return INSTALLED.sub('', text)[:400]


# --------------------------------------------------------------------------------------------------------------------
# What a config says of its model


def with_backbone(model: Mapping) -> Mapping:
    """The part that has the backbone: the model, or the detector inside a tracker or a semi-supervised method."""
    inner = model.get('detector')
    return inner if 'backbone' not in model and isinstance(inner, Mapping) else model


def described(model: Mapping) -> dict[str, Any]:
    """Types of a model, its backbone and its first head; how many levels the backbone hands on."""
    part = with_backbone(model)
    backbone = part.get('backbone')
    backbone = backbone if isinstance(backbone, Mapping) else {}
    heads = [part[name] for name in ('decode_head', 'panoptic_head', 'bbox_head', 'roi_head', 'head') if part.get(name)]
    head = heads[0] if heads else {}
    head = head[-1] if isinstance(head, (list, tuple)) else head
    return {
        'backbone': type_name(backbone.get('type')),
        'levels': levels(backbone),
        'model': type_name(model.get('type')),
        'head': type_name(head.get('type')),
    }


def levels(backbone: Mapping) -> int:
    """How many maps a backbone returns, as its config says; four where it says nothing, which is what most do."""
    if backbone.get('out_indices') is not None:
        indices = backbone['out_indices']
        return len(indices) if isinstance(indices, (list, tuple)) else 1
    return backbone.get('num_stages', 4)


def type_name(kind: Any) -> str | None:
    return kind if isinstance(kind, str) or kind is None else kind.__name__


# --------------------------------------------------------------------------------------------------------------------
# Building and running


class Swapped:
    """A config before and after the swap.

    Args:
        original: the config as installed.
        cfg: what the swap made of it.
        library: mmdet or mmseg.

    Attributes:
        key: of the model after the swap; the same for configs that differ in data or schedule alone.
    """

    def __init__(self, original: Any, cfg: Any, library: str) -> None:
        self.original = original
        self.cfg = cfg
        self.library = library
        model = {name: value for name, value in cfg.model.items() if name not in ('data_preprocessor', 'test_cfg')}
        self.key = hashlib.sha256(json.dumps(model, sort_keys=True, default=str).encode()).hexdigest()[:12]

    def run(self) -> dict[str, str]:
        """The strongest step that the original manages, on the swapped model; see the survey's page.

        Returns:
            ``outcome``: ran, failed or no reference; ``level``, the step; ``reason``, the error of the swapped model;
            ``remark``, why stronger steps were left out.
        """
        remark = {}
        nested = with_backbone(self.cfg.model) is not self.cfg.model
        for level in STEPS:
            if level == 'loss of the detector' and not nested:
                continue
            for size in SIZES:
                error = self._error(level, self.cfg, size)
                if error is None:
                    return {'outcome': 'ran', 'level': level, **remark}
                reference = self._error(level, self.original, size)
                if reference is None:
                    return {'outcome': 'failed', 'level': level, 'reason': error, **remark}
                if not TOO_SMALL.search(reference):
                    break
            remark = {'remark': f'original, {level}: {reference}'}
        return {'outcome': 'no reference', 'reason': reference}

    def _error(self, level: str, cfg: Any, size: int) -> str | None:
        try:
            with _environment(cfg, self.library):
                STEPS[level](_plain(cfg.model, size), self.library, size)
        except Exception as error:
            return one_line(error)
        return None


@contextlib.contextmanager
def _environment(cfg: Any, library: str) -> Iterator[None]:
    """Its registry, a seed, the first epoch, and the folder that paths to further configs start from."""
    from mmengine.logging import MessageHub
    from mmengine.registry import DefaultScope

    here = os.getcwd()
    os.chdir(configs_dir(library).parent)
    torch.manual_seed(SEED)
    MessageHub.get_current_instance().update_info('epoch', 0)
    try:
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or library):
            yield
    finally:
        os.chdir(here)


def _plain(model: Mapping, size: int) -> Any:
    """The model's config without weights from elsewhere, and without padding to the size of a crop."""
    from mmengine.config import ConfigDict

    model = ConfigDict(copy.deepcopy(model))
    for part in (model, with_backbone(model)):
        part.pop('pretrained', None)
        for name in part:
            if name.endswith('_ckpt'):
                part[name] = None
        preprocessor = part.get('data_preprocessor')
        if preprocessor:
            preprocessor.pop('batch_augments', None)
            preprocessor.pop('size_divisor', None)
            if 'size' in preprocessor or part.get('decode_head'):
                preprocessor['size'] = (size, size)
    _simplify(model)
    return model


def _simplify(node: Any) -> None:
    """No weights from elsewhere, no norms that need a process group, fewer regions for the heads of two stages."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if not isinstance(value, Mapping):
                continue
            if key == 'init_cfg' and value.get('type') == 'Pretrained':
                node[key] = None
            elif value.get('type') in ('SyncBN', 'MMSyncBN'):
                value['type'] = 'BN'
            elif key == 'sampler' and 'num' in value:
                value['num'] = min(value['num'], REGIONS)
        node = list(node.values())
    for value in node if isinstance(node, (list, tuple)) else ():
        _simplify(value)


def build(model: Mapping) -> nn.Module:
    """The model with the random weights that training would start from."""
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS

    model = revert_sync_batchnorm(MODELS.build(model))  # some are in no config
    model.init_weights()
    return model


def loss_step(cfg: Mapping, library: str, size: int) -> None:
    """All losses of the model on one batch."""
    model = build(cfg)
    model.train()
    losses = _call(model, cfg, library, size, 'loss')
    if not any(isinstance(value, Tensor) or value for value in losses.values()):
        raise RuntimeError('the model returns no loss')


def detector_loss_step(cfg: Mapping, library: str, size: int) -> None:
    """All losses of the detector inside a tracker or a semi-supervised method."""
    detector = with_backbone(cfg)
    detector.setdefault('data_preprocessor', {'type': 'DetDataPreprocessor', 'pad_size_divisor': 32})
    loss_step(detector, library, size)


def forward_step(cfg: Mapping, library: str, size: int) -> None:
    """One pass of the whole model, without losses."""
    model = build(cfg)
    model.eval()
    _call(model, cfg, library, size, 'tensor')


def feature_step(cfg: Mapping, library: str, size: int) -> None:
    """The backbone and the neck."""
    part = with_backbone(cfg)
    x = torch.rand(BATCH, part['backbone'].get('in_channels', 3), size, size)
    necks = part.get('neck') or []
    for piece in (part['backbone'], *(necks if isinstance(necks, (list, tuple)) else [necks])):
        module = build(piece)
        module.eval()  # which returns None for some
        with torch.no_grad():
            x = module(x)


STEPS = {
    'loss': loss_step,
    'loss of the detector': detector_loss_step,
    'forward': forward_step,
    'features': feature_step,
}


def _call(model: nn.Module, cfg: Mapping, library: str, size: int, mode: str) -> Any:
    data = model.data_preprocessor(batch(cfg, library, size), mode == 'loss')
    with torch.no_grad():
        return model(**data, mode=mode)


# --------------------------------------------------------------------------------------------------------------------
# Random data


def batch(cfg: Mapping, library: str, size: int) -> dict:
    """Random images with the labels that the model may ask for."""
    if library == 'mmseg':
        return segmentation_batch(size, len((cfg.get('data_preprocessor') or {}).get('mean') or 'rgb'))
    if cfg['type'].endswith('Video') or (with_backbone(cfg) is not cfg and not cfg['type'].endswith('Teacher')):
        return video_batch(size)
    roi_head = cfg.get('roi_head') or {}
    asks = {name: value for name, value in cfg.items() if name != 'data_preprocessor'}
    return detection_batch(
        size,
        with_masks='mask' in str(asks).lower(),
        semantic_stride=8 if roi_head.get('semantic_head') else 1,  # hybrid task cascades learn them at an eighth
    )


def detection_batch(size: int, *, with_masks: bool, semantic_stride: int) -> dict:
    """Images with three boxes of class 0, masks, semantic labels, nothing to ignore, proposals, and a class."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData, PixelData

    shape = (size, size)
    metainfo = {
        'img_shape': shape,
        'ori_shape': shape,
        'scale_factor': (1.0, 1.0),
        'flip': False,
        'flip_direction': None,
        'border': [0, size, 0, size],
    }
    boxes = torch.tensor([[0.06, 0.06, 0.31, 0.38], [0.23, 0.31, 0.86, 0.94], [0.47, 0.03, 0.97, 0.47]]) * size
    masks = torch.zeros(len(boxes), *shape, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    labels = torch.zeros(len(boxes), dtype=torch.long)
    semantic = torch.zeros(1, size // semantic_stride, size // semantic_stride, dtype=torch.long)
    inputs, samples = [], []
    for i in range(BATCH):
        sample = DetDataSample(metainfo={'img_id': i, **metainfo})
        sample.gt_instances = InstanceData(bboxes=boxes.clone(), labels=labels.clone())
        if with_masks:
            sample.gt_instances.masks = BitmapMasks(masks.numpy().copy(), *shape)
        sample.ignored_instances = InstanceData(bboxes=boxes[:0], labels=labels[:0])
        sample.gt_sem_seg = PixelData(sem_seg=semantic.clone())
        sample.proposals = InstanceData(bboxes=boxes + 2, scores=torch.ones(len(boxes)))
        sample.gt_label = labels[:1]
        inputs.append(torch.randint(256, (3, *shape), dtype=torch.uint8))
        samples.append(sample)
    return {'inputs': inputs, 'data_samples': samples}


def video_batch(size: int) -> dict:
    """A video of two frames, with boxes and masks that carry identities."""
    from mmdet.testing import demo_track_inputs

    return demo_track_inputs(
        num_frames=2, key_frames_inds=[0], image_shapes=(3, size, size), num_items=[3, 3], with_mask=True
    )


def segmentation_batch(size: int, channels: int = 3) -> dict:
    """Images, two of them stacked for the detection of changes, with a class 0 or 1 a pixel, its edges and a depth."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    shape = (size, size)
    labels = torch.zeros(1, *shape, dtype=torch.long)
    labels[:, size // 4 : size // 2, : size // 2] = 1
    inputs, samples = [], []
    for _ in range(BATCH):
        sample = SegDataSample(metainfo={'img_shape': shape, 'ori_shape': shape, 'pad_shape': shape, 'flip': False})
        sample.gt_sem_seg = PixelData(data=labels.clone())
        sample.gt_edge_map = PixelData(data=labels.clone())
        sample.gt_depth_map = PixelData(data=labels.float())
        inputs.append(torch.randint(256, (channels, *shape), dtype=torch.uint8))
        samples.append(sample)
    return {'inputs': inputs, 'data_samples': samples}


if __name__ == '__main__':
    raise SystemExit(f'{__doc__}\nIt is a part of dev/swap_survey.py and does nothing by itself: see its --help.')
