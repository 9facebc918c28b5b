"""Predictions for pictures: boxes, masks, semantic segments and classes, drawn and as JSON.

from mmext_backbones.inference import Predictor

predictor = Predictor('configs/elsa_swin_t_maskrcnn_1x.py', 'weights.pth')
predictor('image.jpg').draw('out.png', threshold=0.3)
"""

from .images import ImageError
from .prediction import Prediction
from .predictor import Predictor

__all__ = ['ImageError', 'Prediction', 'Predictor']
