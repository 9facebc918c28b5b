"""What plugs into mmengine beside the models."""

from .batch_norm import BatchNormMomentumHook
from .hooks import CurvesHook, PredictionsHook

__all__ = ['BatchNormMomentumHook', 'CurvesHook', 'PredictionsHook']
