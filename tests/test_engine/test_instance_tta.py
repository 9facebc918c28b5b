"""Test-time augmentation with masks: identities, and agreement with a computation written out here."""

import copy
import weakref
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData

from mmext_backbones.engine.evaluation.instance_tta import META_KEYS, InstanceTTAModel

pytest.importorskip('mmdet')
torchvision = pytest.importorskip('torchvision')

ROOT = Path(__file__).parents[2]
H, W, CLASSES, WIDTH = 96, 128, 3, 16
SCORE_THR, IOU, KEPT = 0.02, 0.5, 10
TTA = {'nms': {'type': 'nms', 'iou_threshold': IOU}, 'max_per_img': KEPT}
MODELS_WITH_MASKS = {
    'mask': 'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'cascade': 'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py',
    'htc': 'mmdet::htc/htc_r50_fpn_1x_coco.py',
}
kinds = pytest.mark.parametrize('kind', list(MODELS_WITH_MASKS))
PLAIN = [[{'type': 'RandomFlip', 'prob': 0.0}]]


def flips(*directions: str) -> list[dict]:
    return [{'type': 'RandomFlip', 'prob': 1.0, 'direction': direction} for direction in directions]


def shrink(cfg: Config) -> dict:
    """A network of 16 channels on a Swin of one block a stage; few classes, low thresholds, few boxes."""
    model = copy.deepcopy(cfg.model)
    arch = {'embed_dims': WIDTH, 'depths': (1, 1, 1, 1), 'num_heads': (1, 2, 4, 8)}
    model.backbone = {'type': 'mmext_backbones.SwinTransformer', 'arch': arch}
    model.neck.update(in_channels=[WIDTH * 2**i for i in range(4)], out_channels=WIDTH)
    model.rpn_head.update(in_channels=WIDTH, feat_channels=WIDTH)
    for key in ('bbox_roi_extractor', 'mask_roi_extractor', 'semantic_roi_extractor'):
        if key in model.roi_head:
            model.roi_head[key].out_channels = WIDTH
    for key in ('bbox_head', 'mask_head'):
        heads = model.roi_head.get(key, [])
        for head in heads if isinstance(heads, list) else [heads]:
            head.update(in_channels=WIDTH, num_classes=CLASSES)
            head.update({'fc_out_channels': WIDTH} if key == 'bbox_head' else {'conv_out_channels': WIDTH})
    if 'semantic_head' in model.roi_head:
        model.roi_head.semantic_head.update(in_channels=WIDTH, conv_out_channels=WIDTH)
    model.train_cfg = None
    model.test_cfg.rpn.update(nms_pre=100, max_per_img=40)
    model.test_cfg.rcnn.update(score_thr=SCORE_THR, max_per_img=KEPT)
    return model


def build(cfg: dict, seed: int = 0) -> torch.nn.Module:
    """With random weights that tell boxes, classes and pixels apart."""
    init_default_scope('mmdet')
    torch.manual_seed(seed)
    model = MODELS.build(copy.deepcopy(cfg)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = {'rpn_cls': 0.1, 'rpn_reg': 0.02, 'fc_cls': 0.5, 'fc_reg': 0.1, 'conv_logits': 1.0}
            module, _, kind = name.rpartition('.')
            if kind == 'weight' and module.rpartition('.')[2] in spread:
                parameter.normal_(std=spread[module.rpartition('.')[2]])
    return model


@pytest.fixture(scope='module')
def models():
    made = {}

    def get(kind: str) -> torch.nn.Module:
        if kind not in made:
            made[kind] = build(shrink(get_config(MODELS_WITH_MASKS[kind])))
        return made[kind]

    return get


def image(seed: int = 0) -> np.ndarray:
    """Coarse random patches, uint8 [H, W, 3]."""
    patches = np.random.default_rng(seed).integers(0, 256, (H // 8, W // 8, 3), dtype=np.uint8)
    return patches.repeat(8, axis=0).repeat(8, axis=1)


def views_of(images: list[np.ndarray], *steps: list[dict], meta_keys: tuple = META_KEYS) -> dict:
    """What a loader gives: lists of views of lists of images, made by the transforms a config would name."""
    from mmdet.registry import TRANSFORMS

    init_default_scope('mmdet')
    pack = [{'type': 'PackDetInputs', 'meta_keys': meta_keys}]
    augment = TRANSFORMS.build({'type': 'TestTimeAug', 'transforms': [*copy.deepcopy(list(steps)), pack]})
    packed = []
    for index, one in enumerate(images):
        height, width = one.shape[:2]
        shape = {'img_shape': (height, width), 'ori_shape': (height, width)}
        packed.append(augment({'img': one, 'img_id': index, 'img_path': '', **shape}))
    return {key: [list(view) for view in zip(*(one[key] for one in packed), strict=True)] for key in packed[0]}


def resizes(*scales: tuple[int, int]) -> list[dict]:
    return [{'type': 'Resize', 'scale': scale, 'keep_ratio': True} for scale in scales]


SAME = resizes((W, H))


def plain(model: torch.nn.Module, images: list[np.ndarray], *steps: list[dict]) -> list[InstanceData]:
    data = views_of(images, *steps)
    with torch.no_grad():
        samples = model.test_step({key: value[0] for key, value in data.items()})
    return [sample.pred_instances for sample in samples]


def augmented(model: torch.nn.Module, images: list[np.ndarray], *steps: list[dict]) -> list[InstanceData]:
    return [sample.pred_instances for sample in InstanceTTAModel(model, TTA).test_step(views_of(images, *steps))]


def assert_same(got: InstanceData, expected: InstanceData, pixels: float = 1e-3) -> None:
    """Equal but for the rounding of coordinates, and of mask pixels on the threshold."""
    assert len(got) == len(expected) > 3
    assert got.labels.tolist() == expected.labels.tolist()
    torch.testing.assert_close(got.scores, expected.scores, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.bboxes, expected.bboxes, atol=1e-3, rtol=0)
    assert 0.01 < expected.masks.float().mean() < 0.9  # nor empty nor full
    assert (got.masks != expected.masks).float().mean() <= pixels


# --------------------------------------------------------------------------------------------------------------------
# Identities


@kinds
@pytest.mark.parametrize('scale', [(W, H), (500, 131)], ids=['same', 'resized'])
def test_one_view_is_no_augmentation_to_the_bit(kind, scale, models):
    images = [image(0), image(1)]
    expected = plain(models(kind), images, resizes(scale), *PLAIN)
    other_nms = {'nms': {'type': 'nms', 'iou_threshold': 0.1}, 'max_per_img': 3}
    for tta_cfg in (TTA, other_nms):  # there is nothing to merge
        samples = InstanceTTAModel(models(kind), tta_cfg).test_step(views_of(images, resizes(scale), *PLAIN))
        for sample, one in zip(samples, expected, strict=True):
            assert len(one) > 3
            for key in ('bboxes', 'scores', 'labels', 'masks'):
                assert torch.equal(sample.pred_instances[key], one[key])


@kinds
@pytest.mark.parametrize('scale', [(W, H), (500, 131)], ids=['same', 'resized'])
def test_merging_one_view_changes_nothing(kind, scale, models):
    """The same, where the view goes through the merge; its NMS works on coordinates of another size."""
    data = views_of([image(0), image(1)], resizes(scale), *PLAIN)
    view = {key: value[0] for key, value in data.items()}
    with torch.no_grad():
        merged = InstanceTTAModel(models(kind), TTA)._merge_instances([view])
    expected = plain(models(kind), [image(0), image(1)], resizes(scale), *PLAIN)
    for sample, one in zip(merged, expected, strict=True):
        assert_same(sample.pred_instances, one, pixels=0 if scale == (W, H) else 1e-3)


@kinds
@pytest.mark.parametrize(('direction', 'axes'), [('horizontal', (1,)), ('vertical', (0,)), ('diagonal', (0, 1))])
def test_flipped_view_of_a_mirrored_image_is_the_mirrored_prediction(kind, direction, axes, models):
    """The view is the plain image to the pixel, padded alike (below and right), so only rounding may differ.

    108 x 140: no multiple of 32, so that a flip about the padded edge would be noticed.
    """
    wide = np.pad(image(), ((0, 12), (0, 12), (0, 0)), mode='reflect')
    height, width = wide.shape[:2]
    mirrored = np.ascontiguousarray(np.flip(wide, axes))
    same = resizes((width, height))
    (got,) = augmented(models(kind), [mirrored], same, flips(direction))
    (expected,) = plain(models(kind), [wide], same, *PLAIN)
    x0, y0, x1, y1 = expected.bboxes.unbind(1)
    if 1 in axes:
        x0, x1 = width - x1, width - x0
    if 0 in axes:
        y0, y1 = height - y1, height - y0
    expected.bboxes = torch.stack([x0, y0, x1, y1], dim=1)
    expected.masks = expected.masks.flip([axis + 1 for axis in axes])
    assert_same(got, expected)


def test_a_batch_is_its_images(models):
    """Of another size each: padding of the batch is more than of the image alone, so scores are near, not equal."""
    images = [image(0), image(1)]
    steps = ([*SAME, *resizes((160, 120))], flips('horizontal'))
    for got, one in zip(augmented(models('mask'), images, *steps), images, strict=True):
        assert_same(got, augmented(models('mask'), [one], *steps)[0])


# --------------------------------------------------------------------------------------------------------------------
# Agreement with a slow computation


def undo(boxes: torch.Tensor, sample) -> torch.Tensor:
    """Boxes [N, 4] of a view in the original image."""
    height, width = sample.img_shape
    x0, y0, x1, y1 = boxes.unbind(1)
    if sample.flip and sample.flip_direction in ('horizontal', 'diagonal'):
        x0, x1 = width - x1, width - x0
    if sample.flip and sample.flip_direction in ('vertical', 'diagonal'):
        y0, y1 = height - y1, height - y0
    sx, sy = sample.scale_factor
    return torch.stack([x0 / sx, y0 / sy, x1 / sx, y1 / sy], dim=1)


def redo(boxes: torch.Tensor, sample) -> torch.Tensor:
    """Boxes [N, 4] of the original image in a view."""
    height, width = sample.img_shape
    sx, sy = sample.scale_factor
    x0, y0, x1, y1 = boxes[:, 0] * sx, boxes[:, 1] * sy, boxes[:, 2] * sx, boxes[:, 3] * sy
    if sample.flip and sample.flip_direction in ('horizontal', 'diagonal'):
        x0, x1 = width - x1, width - x0
    if sample.flip and sample.flip_direction in ('vertical', 'diagonal'):
        y0, y1 = height - y1, height - y0
    return torch.stack([x0, y0, x1, y1], dim=1)


def decode(rois: torch.Tensor, deltas: torch.Tensor, stds: list[float], shape: tuple[int, int]) -> torch.Tensor:
    """Boxes [N, 4] from regions [N, 4] and what is regressed of centre and logarithm of size [N, 4]."""
    deltas = deltas * torch.tensor(stds)
    size = rois[:, 2:] - rois[:, :2]
    centre = (rois[:, :2] + rois[:, 2:]) / 2 + deltas[:, :2] * size
    size = size * deltas[:, 2:].clamp(-np.log(1000 / 16), np.log(1000 / 16)).exp()
    boxes = torch.cat([centre - size / 2, centre + size / 2], dim=1)
    return torch.minimum(boxes.clamp(min=0), torch.tensor([shape[1], shape[0], shape[1], shape[0]]))


def regions(boxes: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros(len(boxes), 1), boxes], dim=1)


def stages_of(part) -> list:
    return list(part) if isinstance(part, torch.nn.ModuleList) else [part]


def features_of(model: torch.nn.Module, inputs: torch.Tensor, sample) -> tuple:
    data = model.data_preprocessor({'inputs': [inputs], 'data_samples': [copy.deepcopy(sample)]})
    return model.extract_feat(data['inputs']), data['data_samples']


def slow_boxes(model: torch.nn.Module, inputs: torch.Tensor, sample) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every class of every proposal of a view as a box of the original image: boxes [M, 4], scores, labels [M]."""
    x, samples = features_of(model, inputs, sample)
    rois = model.rpn_head.predict(x, samples, rescale=False)[0].bboxes
    heads, extractors = (stages_of(getattr(model.roi_head, f'bbox_{part}')) for part in ('head', 'roi_extractor'))
    logits = []
    for stage, (head, extractor) in enumerate(zip(heads, extractors, strict=True)):
        cls_score, deltas = head(extractor(x[:4], regions(rois)))
        logits.append(cls_score)
        stds = list(head.bbox_coder.stds)
        if stage + 1 < len(heads):  # one box for all classes is refined
            rois = decode(rois, deltas, stds, sample.img_shape)
    probabilities = (sum(logits) / len(logits)).softmax(dim=1)
    found = []
    for label in range(CLASSES):
        mine = deltas if deltas.shape[1] == 4 else deltas[:, 4 * label : 4 * label + 4]
        boxes = undo(decode(rois, mine, stds, sample.img_shape), sample)
        found.append((boxes, probabilities[:, label], torch.full((len(boxes),), label)))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def slow_masks(model: torch.nn.Module, inputs: torch.Tensor, sample, boxes: torch.Tensor, labels: torch.Tensor) -> list:
    """Probabilities [N, 28, 28] of boxes of the original image, seen in a view: an entry a stage."""
    x, _ = features_of(model, inputs, sample)
    heads, extractors = (stages_of(getattr(model.roi_head, f'mask_{part}')) for part in ('head', 'roi_extractor'))
    masks = []
    for head, extractor in zip(heads, extractors, strict=True):
        logits = head(extractor(x[:4], regions(redo(boxes, sample))))
        mask = logits[torch.arange(len(boxes)), labels].sigmoid().numpy()
        if sample.flip and sample.flip_direction in ('horizontal', 'diagonal'):
            mask = mask[:, :, ::-1]
        if sample.flip and sample.flip_direction in ('vertical', 'diagonal'):
            mask = mask[:, ::-1]
        masks.append(mask)
    return masks


def paste(mask: np.ndarray, box: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """A mask [h, w] that spans a box, read between its cells at each pixel of the image; nothing lies outside."""
    h, w = mask.shape
    padded = np.pad(mask, 1).astype(np.float64)

    def places(edge: int, low: float, high: float, cells: int) -> tuple[np.ndarray, np.ndarray]:
        at = ((np.arange(edge) + 0.5 - low) / (high - low) * cells - 0.5).clip(-1, cells) + 1
        first = np.floor(at).astype(int).clip(0, cells)
        return first, at - first

    (r, a), (c, b) = places(H, box[1], box[3], h), places(W, box[0], box[2], w)
    a, b, r, c = a[:, None], b[None], r[:, None], c[None]
    value = (1 - a) * ((1 - b) * padded[r, c] + b * padded[r, c + 1])
    value += a * ((1 - b) * padded[r + 1, c] + b * padded[r + 1, c + 1])
    return value >= threshold


@pytest.mark.parametrize('kind', ['mask', 'cascade'])
@pytest.mark.parametrize(
    'steps',
    [
        (SAME, [*PLAIN[0], *flips('horizontal')]),
        (resizes((160, 120), (100, 90)), [*PLAIN[0], *flips('vertical', 'diagonal')]),
    ],
    ids=['flip', 'scales-and-flips'],
)
def test_views_agree_with_a_slow_merge(kind, steps, models):
    model = models(kind)
    data = views_of([image(3)], *steps)
    (sample,) = InstanceTTAModel(model, TTA).test_step(data)
    got = sample.pred_instances

    views = [(data['inputs'][i][0], data['data_samples'][i][0]) for i in range(len(data['inputs']))]
    with torch.no_grad():
        boxes, scores, labels = (torch.cat(p) for p in zip(*(slow_boxes(model, *v) for v in views), strict=True))
        likely = scores > SCORE_THR
        boxes, scores, labels = boxes[likely], scores[likely], labels[likely]
        keep = torchvision.ops.batched_nms(boxes, scores, labels, IOU)[:KEPT]
        assert len(keep) < int(likely.sum())
        boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
        masks = [slow_masks(model, *view, boxes, labels) for view in views]
    mean = np.mean(masks, axis=(0, 1))
    spread = np.ptp(np.mean(masks, axis=1), axis=0).mean()
    assert spread > 0.01  # the views do not see the same, so leaving one out would show
    pasted = torch.from_numpy(np.stack([paste(*pair) for pair in zip(mean, boxes.numpy(), strict=True)]))
    assert_same(got, InstanceData(bboxes=boxes, scores=scores, labels=labels, masks=pasted))


def test_without_masks_boxes_merge_as_in_mmdet():
    from mmdet.models.test_time_augs import DetTTAModel
    from mmengine.config import ConfigDict

    model = build(shrink(get_config('mmdet::_base_/models/faster-rcnn_r50_fpn.py')))
    data = views_of([image(0), image(1)], resizes((W, H), (160, 120)), [*PLAIN[0], *flips('horizontal')])
    with torch.no_grad():
        expected = DetTTAModel(ConfigDict(TTA), module=model).test_step(copy.deepcopy(data))
    for got, one in zip(InstanceTTAModel(model, TTA).test_step(data), expected, strict=True):
        assert len(one.pred_instances) > 3
        for key in ('bboxes', 'scores', 'labels'):
            assert torch.equal(got.pred_instances[key], one.pred_instances[key])


# --------------------------------------------------------------------------------------------------------------------
# Edges


@kinds
def test_nothing_found(kind):
    cfg = shrink(get_config(MODELS_WITH_MASKS[kind]))
    cfg.test_cfg.rcnn.score_thr = 1.0
    (got,) = augmented(build(cfg), [image()], SAME, flips('horizontal', 'vertical'))
    assert [got[key].shape for key in ('bboxes', 'scores', 'labels')] == [(0, 4), (0,), (0,)]
    assert got.masks.shape == (0, H, W)
    assert got.masks.dtype == torch.bool


def test_an_image_where_a_view_proposes_nothing(models, monkeypatch):
    """The raw boxes of such a view have another width; the merge is that of the other view."""
    model = models('mask')
    (expected,) = augmented(model, [image()], SAME, flips('horizontal'))
    predict, calls = model.rpn_head.predict, []

    def first_only(*args, **kwargs):
        results = predict(*args, **kwargs)
        calls.append(1)
        return results if len(calls) == 1 else [one[:0] for one in results]

    monkeypatch.setattr(model.rpn_head, 'predict', first_only)
    (got,) = augmented(model, [image()], SAME, flips('horizontal', 'vertical'))
    assert torch.equal(got.bboxes, expected.bboxes)


def test_feature_maps_of_one_view_at_a_time(models, monkeypatch):
    model = models('cascade')
    extract, alive = model.extract_feat, []

    def counted(inputs):
        assert not [ref for ref in alive if ref() is not None]
        maps = extract(inputs)
        alive.extend(weakref.ref(one) for one in maps)
        return maps

    monkeypatch.setattr(model, 'extract_feat', counted)
    # grad mode on, as outside a runner
    augmented(model, [image()], resizes((W, H), (160, 120)), [*PLAIN[0], *flips('horizontal')])
    assert len(alive) == 2 * 4 * 5  # two passes, four views, five levels
    assert not [ref for ref in alive if ref() is not None]


def test_registered_without_custom_imports():
    init_default_scope('mmdet')
    cfg = {'type': 'mmext_backbones.InstanceTTAModel', 'tta_cfg': TTA}
    model = MODELS.build({**cfg, 'module': shrink(get_config(MODELS_WITH_MASKS['mask']))})
    assert type(model) is InstanceTTAModel
    assert type(model.module).__name__ == 'MaskRCNN'


@pytest.mark.parametrize(
    ('steps', 'keys', 'missing'),
    [
        ((SAME, *PLAIN), META_KEYS[:5], 'flip, flip_direction'),
        ((*PLAIN,), META_KEYS, 'scale_factor'),
        ((SAME, *PLAIN), META_KEYS[5:], 'ori_shape, img_shape, scale_factor'),
    ],
)
def test_views_that_hide_their_geometry(steps, keys, missing, models):
    data = views_of([image()], *steps, meta_keys=keys)
    with pytest.raises(ValueError, match=f'do not say their {missing}: .*PackDetInputs with meta_keys='):
        InstanceTTAModel(models('mask'), TTA).test_step(data)


def test_unknown_direction(models):
    data = views_of([image()], SAME, flips('horizontal'))
    data['data_samples'][0][0].set_metainfo({'flip_direction': 'sideways'})
    with pytest.raises(ValueError, match="flip_direction='sideways': expected one of"):
        InstanceTTAModel(models('mask'), TTA).test_step(data)


@pytest.mark.parametrize('tta_cfg', [{'nms': TTA['nms']}, {**TTA, 'score_thr': 0.1}])
def test_wrong_tta_cfg(tta_cfg, models):
    with pytest.raises(ValueError, match='expected the keys nms and max_per_img'):
        InstanceTTAModel(models('mask'), tta_cfg)


def test_masks_of_one_stage_are_refused():
    with torch.device('meta'):
        init_default_scope('mmdet')
        solo = MODELS.build({**get_config('mmdet::solo/solo_r50_fpn_1x_coco.py').model, 'train_cfg': None})
    with pytest.raises(ValueError, match=r'^SOLO predicts masks in another way'):
        InstanceTTAModel(solo, TTA)


def test_a_head_that_redefines_the_prediction_is_refused():
    with torch.device('meta'):
        init_default_scope('mmdet')
        cfg = get_config('mmdet::ms_rcnn/ms-rcnn_r50_fpn_1x_coco.py').model
        scoring = MODELS.build({**cfg, 'train_cfg': None})
    with pytest.raises(ValueError, match=r'^MaskScoringRCNN with MaskScoringRoIHead predicts masks in another way'):
        InstanceTTAModel(scoring, TTA)


def test_masks_that_only_the_results_show_are_refused():
    from mmdet.structures import DetDataSample

    with torch.device('meta'):
        init_default_scope('mmdet')
        cfg = get_config('mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py').model
        cfg.backbone.init_cfg = None
        model = InstanceTTAModel(MODELS.build({**cfg, 'train_cfg': None}), TTA)
    sample = DetDataSample(metainfo={'flip': False})
    sample.pred_instances = InstanceData(masks=torch.zeros(1, 4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r'^RTMDet predicts masks in another way'):
        model.merge_preds([[sample, sample]])


# --------------------------------------------------------------------------------------------------------------------
# The config


def test_config_makes_six_views(tmp_path):
    from mmcv.transforms import Compose

    cfg = Config.fromfile(ROOT / 'configs' / '_base_' / 'tta' / 'coco_instance_ms_flip.py')
    assert cfg.tta_pipeline[1].transforms[-1][0].meta_keys == META_KEYS
    init_default_scope('mmdet')
    cv2.imwrite(str(tmp_path / 'image.png'), image())
    box = {'bbox': [8, 16, 40, 48], 'bbox_label': 1, 'mask': [[8, 16, 40, 16, 40, 48]], 'ignore_flag': 0}
    data = Compose(cfg.tta_pipeline)({'img_path': str(tmp_path / 'image.png'), 'img_id': 0, 'instances': [box]})
    seen = [(sample.img_shape, sample.flip) for sample in data['data_samples']]
    sizes = [(800, 1067), (640, 853), (1000, 1333)]
    assert seen == [(size, flip) for size in sizes for flip in (False, True)]
    for sample in data['data_samples']:  # the truth stays that of the image
        assert sample.gt_instances.bboxes.tensor.tolist() == [box['bbox']]
    wanted = MODELS.build({**cfg.tta_model, 'module': shrink(get_config(MODELS_WITH_MASKS['mask']))})
    assert wanted.tta_cfg['max_per_img'] == 100
