"""The views of the ADE20K recipes, and what merging them must leave as it is."""

from copy import deepcopy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, init_default_scope

from tests.conftest import randomize

CONFIGS = Path(__file__).parents[2] / 'configs'
THIN = {'embed_dims': 24, 'depths': (1, 1, 1, 1), 'num_heads': (1, 2, 4, 8)}
WIDTHS = [24, 48, 96, 192]


@pytest.fixture(scope='module')
def segmentor():
    pytest.importorskip('mmseg')
    cfg = Config.fromfile(CONFIGS / 'swin_t_upernet_160k.py')
    init_default_scope('mmseg')
    cfg.model.backbone |= {'arch': THIN, 'init_cfg': None}
    cfg.model.decode_head |= {'in_channels': WIDTHS, 'channels': 16, 'norm_cfg': {'type': 'BN'}}
    cfg.model.auxiliary_head = None
    return randomize(MODELS.build(cfg.model)).eval()


@pytest.fixture
def image(tmp_path):
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), (320, 256), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(tmp_path / 'image.png'), picture)
    cv2.imwrite(str(tmp_path / 'labels.png'), np.zeros((256, 320), np.uint8))
    return {
        'img_path': str(tmp_path / 'image.png'),
        'seg_map_path': str(tmp_path / 'labels.png'),
        'reduce_zero_label': True,
        'seg_fields': [],
    }


def predict(model, pipeline, image):
    init_default_scope('mmseg')
    with torch.no_grad():
        (sample,) = model.test_step(pseudo_collate([Compose(pipeline)(deepcopy(image))]))
    return sample.pred_sem_seg.data


def views(cfg, scales, flips) -> list:
    pipeline = deepcopy(cfg.tta_pipeline)
    pipeline[1].transforms[0] = [{'type': 'Resize', 'scale': scale, 'keep_ratio': True} for scale in scales]
    pipeline[1].transforms[1] = [{'type': 'RandomFlip', 'prob': prob, 'direction': 'horizontal'} for prob in flips]
    return pipeline


def merged(segmentor):
    return MODELS.build({'type': 'mmseg.SegTTAModel', 'module': segmentor})


def test_one_view_is_the_test_without_augmentation(segmentor, image):
    cfg = Config.fromfile(CONFIGS / 'swin_t_upernet_160k.py')
    expected = predict(segmentor, cfg.test_dataloader.dataset.pipeline, image)
    assert len(expected.unique()) > 1
    actual = predict(merged(segmentor), views(cfg, [(2048, 512)], [0.0]), image)
    assert torch.equal(actual, expected)


def test_the_flipped_view_of_a_mirrored_image_is_the_mirror(segmentor, image, tmp_path):
    cfg = Config.fromfile(CONFIGS / 'swin_t_upernet_160k.py')
    expected = predict(segmentor, cfg.test_dataloader.dataset.pipeline, image)
    mirrored = tmp_path / 'mirrored.png'
    cv2.imwrite(str(mirrored), cv2.imread(image['img_path'])[:, ::-1])
    actual = predict(merged(segmentor), views(cfg, [(2048, 512)], [1.0]), image | {'img_path': str(mirrored)})
    assert (actual.flip(-1) == expected).float().mean() > 0.999  # resampling is not mirrored to the last bit


def test_the_six_views_have_the_sizes_of_the_papers(image):
    """(2048 r, 512 r) with the ratio kept: the short side of a 256 x 320 image becomes 512 r, as nothing else binds."""
    pytest.importorskip('mmseg')
    cfg = Config.fromfile(CONFIGS / 'swin_t_upernet_160k.py')
    init_default_scope('mmseg')
    data = Compose(cfg.tta_pipeline)(deepcopy(image))
    sizes = [tuple(view.shape[1:]) for view in data['inputs']]
    ratios = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    expected = [(int(512 * r), int(640 * r)) for r in ratios for _ in range(2)]
    assert sorted(sizes) == sorted(expected)
    assert [view.flip for view in data['data_samples']].count(True) == 6
