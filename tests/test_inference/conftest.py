"""Tiny networks and pictures that the tests of inference share."""

import pytest
import torch

from mmext_backbones.datasets.shapes.files import make_shapes
from tests.test_inference import networks

LIBRARY = {'detection': 'mmdet', 'segmentation': 'mmseg', 'classification': 'mmpretrain'}


@pytest.fixture(scope='session')
def shapes_dir(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield make_shapes(tmp_path_factory.mktemp('shapes') / 'made', size=64, num_train=4, num_val=3)
    torch.set_num_threads(threads)


@pytest.fixture(scope='session')
def made(tmp_path_factory, shapes_dir):
    """By task: the paths of a config and of weights."""
    folder, found = tmp_path_factory.mktemp('networks'), {}

    def get(task: str) -> tuple[str, str]:
        pytest.importorskip(LIBRARY[task])
        if task not in found:
            found[task] = networks.make(task, folder, shapes_dir)
        return found[task]

    return get


@pytest.fixture(scope='session')
def predictors(made):
    """By task and whether views are merged: a predictor on the CPU."""
    from mmext_backbones.inference import Predictor

    found = {}

    def get(task: str, tta: bool = False) -> Predictor:
        if (task, tta) not in found:
            found[task, tta] = Predictor(*made(task), device='cpu', tta=tta)
        return found[task, tta]

    return get


@pytest.fixture(scope='session')
def pictures(shapes_dir):
    """Paths of the three validation pictures."""
    return sorted((shapes_dir / 'val').glob('*.png'))
