"""A predictor without a network, and runs without a training."""

import time
from pathlib import Path

import numpy as np

from mmext_backbones.inference import Prediction
from mmext_backbones.utils.errors import UserError


class FakePredictor:
    """Finds three boxes of scores 0.9, 0.5 and 0.1 on every picture, and takes `pause` seconds for everything.

    Weights whose path says that they are broken do not fit.
    """

    pause = 0.3  # seconds

    def __init__(self, config, weights, tta=False):
        time.sleep(self.pause)
        if 'broken' in str(weights):
            raise UserError(f'weights {weights!r} do not fit.')

    def __call__(self, image):
        time.sleep(self.pause)
        H, W = image.shape[:2]
        edges = np.array([[0.1, 0.1, 0.4, 0.5], [0.5, 0.2, 0.9, 0.6], [0.2, 0.6, 0.5, 0.9]])
        return Prediction(
            kind='detection',
            size=(H, W),
            classes=('circle', 'square', '<b>bold</b>'),
            boxes=np.float32(edges * [W, H, W, H]),
            scores=np.float32([0.9, 0.5, 0.1]),
            labels=np.array([0, 1, 2]),
            seconds=self.pause,
            image=image,
        )


def make_run(root: Path, name: str) -> Path:
    """What a training of two iterations leaves, and the path of its checkpoint."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / 'config.py').write_text('model = dict()\n')
    weights = folder / 'iter_2.pth'
    weights.write_bytes(b'')
    (folder / 'last_checkpoint').write_text(str(weights))
    return weights
