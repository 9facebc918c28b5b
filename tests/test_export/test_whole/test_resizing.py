"""The resize of a test pipeline in the words of a file's metadata."""

import re

import pytest

from mmext_backbones.config.files import load_config
from mmext_backbones.export.whole.resizing import describe_resize

LOAD, PACK = {'type': 'LoadImageFromFile'}, {'type': 'PackDetInputs', 'meta_keys': ('img_id',)}
CV2 = {'interpolation': 'bilinear', 'backend': 'cv2'}
CROP = {'type': 'CenterCrop', 'crop_size': 224}
EDGE = {'type': 'ResizeEdge', 'scale': 256, 'edge': 'short', 'backend': 'pillow', 'interpolation': 'bicubic'}
OF_EDGE = {'short_edge': 256, 'interpolation': 'bicubic', 'backend': 'pillow'}


def described(*steps):
    return describe_resize([LOAD, *steps, {'type': 'mmdet.LoadAnnotations'}, PACK])


@pytest.mark.parametrize(
    ('steps', 'entry'),
    [
        ([], None),
        (
            [{'type': 'Resize', 'scale': (1333, 800), 'keep_ratio': True}],
            {'scale': [1333, 800], 'keep_ratio': True, **CV2},
        ),
        ([{'type': 'mmdet.Resize', 'scale': [640, 480]}], {'scale': [640, 480], 'keep_ratio': False, **CV2}),
        (
            [{'type': 'mmseg.Resize', 'scale': 512, 'interpolation': 'bicubic', 'backend': 'pillow'}],
            {'scale': [512, 512], 'keep_ratio': False, 'interpolation': 'bicubic', 'backend': 'pillow'},
        ),
        ([EDGE, CROP], {**OF_EDGE, 'crop': 224}),
        ([EDGE, {**CROP, 'crop_size': (224, 224)}], {**OF_EDGE, 'crop': 224}),
        ([{'type': 'ResizeEdge', 'scale': 256, 'backend': None}], {'short_edge': 256, **CV2}),
        ([CROP], {'crop': 224}),
    ],
)
def test_what_is_known(steps, entry):
    assert described(*steps) == (entry, None)


@pytest.mark.parametrize(
    ('steps', 'note'),
    [
        ([{'type': 'Resize', 'scale_factor': 0.5}], r'\(Resize\) cannot be described: scale_factor=0.5'),
        ([{**EDGE, 'edge': 'long'}, CROP], r"\(ResizeEdge, CenterCrop\) .*: edge='long': known is the short one"),
        ([EDGE, {**CROP, 'crop_size': (224, 192)}], r'crop_size=\(224, 192\): known is a square'),
        ([EDGE, {**CROP, 'auto_pad': True}], 'auto_pad fills smaller images up'),
        ([CROP, EDGE], 'known are Resize alone, ResizeEdge, CenterCrop, and a CenterCrop after a ResizeEdge'),
        ([{'type': 'Resize', 'scale': 9}] * 2, 'known are Resize alone'),
        ([{'type': 'ResizeShortestEdge', 'scale': 800}], 'the test pipeline also has ResizeShortestEdge'),
        ([{'type': 'mine.Resize', 'scale': (9, 9)}], 'also has mine.Resize, which no file repeats'),
    ],
)
def test_what_is_not_known_has_no_entry_and_says_why(steps, note):
    entry, said = described(*steps)
    assert entry is None
    assert re.search(note, said)


def test_other_transforms_beside_a_known_one_are_noted():
    entry, note = described({'type': 'Resize', 'scale': (896, 896)}, {'type': 'Pad', 'size': (896, 896)})
    assert entry['scale'] == [896, 896]
    assert note == 'the test pipeline also has Pad, which no file repeats'


def test_classes_for_names():
    processing = pytest.importorskip('mmcv.transforms.processing')

    class Resize:
        pass

    assert described({'type': processing.Resize, 'scale': 9}).entry == {'scale': [9, 9], 'keep_ratio': False, **CV2}
    assert described({'type': Resize, 'scale': 9}).entry is None


@pytest.mark.parametrize(
    ('config', 'entry'),
    [
        ('swin_t_in1k', {'short_edge': 248, 'interpolation': 'bicubic', 'backend': 'pillow', 'crop': 224}),
        ('swin_t_upernet_160k', {'scale': [2048, 512], 'keep_ratio': True, **CV2}),
        ('swin_t_maskrcnn_1x', {'scale': [1333, 800], 'keep_ratio': True, **CV2}),
    ],
)
def test_of_our_configs(config, entry):
    assert describe_resize(load_config(config).test_dataloader.dataset.pipeline) == (entry, None)
