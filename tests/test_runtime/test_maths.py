"""What predict.py computes itself is what mmcv, mmdet, mmseg, Pillow and pycocotools compute."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mmext_backbones.runtime import predict

SIZES = [(61, 97), (97, 61), (200, 33), (64, 64), (17, 300), (5, 7)]


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


# --------------------------------------------------------------------------------------------------------------------
# Resizing

RULES = [
    {'scale': [133, 80], 'keep_ratio': True, 'interpolation': 'bilinear', 'backend': 'cv2'},
    {'scale': [80, 133], 'keep_ratio': True},
    {'scale': 48, 'keep_ratio': True, 'interpolation': 'bicubic'},
    {'scale': [50, 40], 'keep_ratio': False},
    {'scale': 38, 'keep_ratio': False, 'interpolation': 'bicubic', 'backend': 'pillow'},
    {'scale': [70, 90], 'keep_ratio': True, 'interpolation': 'bilinear', 'backend': 'pillow'},
    {'scale': [50, 40], 'interpolation': 'area'},
]


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('rule', RULES, ids=str)
def test_as_the_resize_of_mmcv(rule, size):
    pytest.importorskip('mmcv')
    from mmcv.transforms import Resize

    image = picture(*size)
    scale = rule['scale'] if isinstance(rule['scale'], int) else tuple(rule['scale'])
    expected = Resize(**{**rule, 'scale': scale})({'img': image})['img']
    np.testing.assert_array_equal(predict.resize_picture(image, rule), expected)


@pytest.mark.parametrize('size', [*SIZES, (33, 34), (500, 375)], ids=str)
@pytest.mark.parametrize(
    'rule',
    [
        {'short_edge': 35, 'crop': 31, 'interpolation': 'bicubic', 'backend': 'pillow'},
        {'short_edge': 35, 'interpolation': 'bilinear', 'backend': 'cv2'},
        {'short_edge': 32, 'crop': 32},
        {'crop': 30},
        {'crop': [20, 31]},
    ],
    ids=str,
)
def test_as_the_transforms_of_classifiers(rule, size):
    pytest.importorskip('mmpretrain')
    from mmcv.transforms import CenterCrop
    from mmpretrain.datasets.transforms import ResizeEdge

    image, results = picture(*size), {'img': picture(*size)}
    how = {key: rule[key] for key in ('interpolation', 'backend') if key in rule}
    if 'short_edge' in rule:
        results = ResizeEdge(rule['short_edge'], edge='short', **how)(results)
    if 'crop' in rule:
        results = CenterCrop(rule['crop'] if isinstance(rule['crop'], int) else tuple(rule['crop']))(results)
    np.testing.assert_array_equal(predict.resize_picture(image, rule), results['img'])


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
def test_the_pixels_of_pillow_without_it(interpolation):
    from PIL import Image

    rng = np.random.default_rng(3)
    kind = getattr(Image.Resampling, interpolation.upper())
    for seed in range(40):
        before, size = rng.integers(1, 90, 2), tuple(rng.integers(1, 90, 2).tolist())
        image = picture(*before, seed) // 200 * 255 if seed % 2 else picture(*before, seed)  # and overshoots
        expected = np.asarray(Image.fromarray(image).resize(size, kind))
        np.testing.assert_array_equal(predict._resized(image, size, interpolation, 'pillow'), expected)


def test_no_rule_leaves_a_picture_alone():
    image = picture(8, 9)
    assert predict.resize_picture(image, None) is image


def test_a_rule_that_is_not_known():
    with pytest.raises(predict.PredictError, match="'lanczos' of 'pillow'"):
        predict.resize_picture(picture(8, 9), {'scale': 5, 'interpolation': 'lanczos', 'backend': 'pillow'})


def test_a_picture_of_which_nothing_is_left():
    with pytest.raises(predict.PictureError, match='too narrow'):
        predict.resize_picture(picture(1, 900), {'scale': [90, 60], 'keep_ratio': True})


# --------------------------------------------------------------------------------------------------------------------
# Masks


def boxes_on(height: int, width: int, count: int) -> np.ndarray:
    """Random ones, some over the border, and the awkward: without an area, thinner than a pixel, on whole pixels."""
    rng = np.random.default_rng(4)
    low = rng.uniform(-0.2, 0.8, (count, 2))
    corners = np.stack([low, np.maximum(low + rng.uniform(0, 0.8, (count, 2)), 0.1)], axis=1) * (width, height)
    awkward = [[3, 4, 3, 9], [3.5, 4.5, 3.5, 4.5], [5, 6, 5.2, 40], [2, 2, 16, 30], [0, 0, width, height]]
    return np.float32([*corners.reshape(-1, 4), *awkward])


@pytest.mark.parametrize('size', [(40, 60), (133, 71)], ids=str)
@pytest.mark.filterwarnings('ignore:To copy construct')  # of mmdet
@pytest.mark.parametrize('kind', ['noise', 'smooth', 'saturated', 'half'])
def test_masks_are_pasted_as_in_mmdet(size, kind):
    pytest.importorskip('mmdet')
    from mmdet.models.roi_heads.mask_heads import FCNMaskHead
    from mmengine.config import ConfigDict

    boxes = boxes_on(*size, 30)
    masks = np.random.default_rng(5).random((len(boxes), 28, 28), np.float32)
    if kind == 'smooth':
        masks = np.float32(torch.nn.functional.avg_pool2d(torch.from_numpy(masks)[None], 9, 1, 4)[0])
    if kind == 'saturated':
        masks = masks.round()
    if kind == 'half':  # every pixel on the threshold
        masks[:] = 0.5
    factors = np.float32([0.75, 0.8])  # of the width and the height
    head = FCNMaskHead(num_convs=0, num_classes=1, class_agnostic=True)
    expected = head._predict_by_feat_single(
        torch.from_numpy(masks)[:, None],
        torch.from_numpy(boxes * np.tile(factors, 2)),
        torch.zeros(len(boxes), dtype=torch.long),
        {'ori_shape': size, 'scale_factor': tuple(factors.tolist())},
        ConfigDict(mask_thr_binary=0.5),
        rescale=True,
        activate_map=True,
    )
    scaled = boxes * np.tile(factors, 2) / np.tile(factors, 2)  # as mmdet rounds
    pasted = predict.paste_masks(masks, scaled, size, 0.5)
    assert pasted.any()
    np.testing.assert_array_equal(pasted, expected.numpy())


def test_run_lengths_are_those_of_pycocotools():
    coder = pytest.importorskip('pycocotools.mask')
    rng = np.random.default_rng(6)
    masks = [rng.random((h, w)) < share for h, w in ((1, 1), (7, 5), (90, 130)) for share in (0.0, 0.02, 0.5, 1.0)]
    masks.append(np.zeros((3000, 2), bool))
    masks[-1][1000:2800, 1] = True  # long runs
    for mask in masks:
        expected = coder.encode(np.asfortranarray(mask, np.uint8))
        assert predict.encode_mask(mask) == {'size': list(mask.shape), 'counts': expected['counts'].decode()}


# --------------------------------------------------------------------------------------------------------------------
# Segments


@pytest.mark.filterwarnings('ignore:When align_corners')  # of mmseg
@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('classes', [1, 5, 300])
@pytest.mark.parametrize('size', [(61, 97), (20, 24), (64, 40), (1, 3)], ids=str)
def test_segments_are_those_of_mmseg(size, classes, align_corners):
    pytest.importorskip('mmseg')
    from mmengine.structures import PixelData
    from mmseg.models.segmentors import BaseSegmentor
    from mmseg.models.utils import resize
    from mmseg.structures import SegDataSample

    padded, seen = (48, 64), (41, 63)
    logits = torch.randn(1, classes, 12, 16, generator=torch.Generator().manual_seed(7))
    sample = SegDataSample(metainfo={'ori_shape': size, 'padding_size': [0, 1, 0, 7]})
    segmentor = SimpleNamespace(align_corners=align_corners, decode_head=SimpleNamespace(threshold=0.4))
    whole = resize(logits, padded, mode='bilinear', align_corners=align_corners)
    (sample,) = BaseSegmentor.postprocess_result(segmentor, whole, [sample])
    assert isinstance(sample.pred_sem_seg, PixelData)
    expected = sample.pred_sem_seg.data[0].numpy()
    labels = predict.label_pixels(logits[0].numpy(), padded, seen, size, align_corners=align_corners, threshold=0.4)
    assert labels.dtype == (np.int32 if classes > 256 else np.uint8)
    np.testing.assert_array_equal(labels, expected)
