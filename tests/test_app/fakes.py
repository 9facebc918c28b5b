"""A predictor that answers at once: what it finds follows from the picture's size."""

import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np

from mmext_backbones.errors import UserError


class FakePrediction(SimpleNamespace):
    """As `inference.Prediction`: three boxes, of scores 0.9, 0.5 and 0.1."""

    def drawn(self, threshold: float = 0.3) -> np.ndarray:
        image = self.image.copy()
        for box, score in zip(self.boxes, self.scores, strict=True):
            if score >= threshold:
                x1, y1, x2, y2 = (int(edge) for edge in box)
                cv2.rectangle(image, (x1, y1), (x2, y2), (230, 57, 70), 3)
        return image


class FakePredictor:
    """Takes `pause` seconds for everything; weights whose path says that they are broken do not fit."""

    pause = 0.3  # seconds

    def __init__(self, config, weights, tta=False):
        time.sleep(self.pause)
        if 'broken' in str(weights):
            raise UserError(f'weights {weights!r} do not fit.')

    def __call__(self, image):
        time.sleep(self.pause)
        H, W = image.shape[:2]
        edges = np.array([[0.1, 0.1, 0.4, 0.5], [0.5, 0.2, 0.9, 0.6], [0.2, 0.6, 0.5, 0.9]])
        return FakePrediction(
            kind='detection',
            image=image,
            classes=('circle', 'square', '<b>bold</b>'),
            boxes=edges * [W, H, W, H],
            scores=np.array([0.9, 0.5, 0.1]),
            labels=np.array([0, 1, 2]),
            masks=None,
            segmentation=None,
            seconds=self.pause,
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
