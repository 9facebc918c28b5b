"""What plugs into mmengine beside the models."""

from .batch_norm import BatchNormMomentumHook
from .hooks import CurvesHook, PredictionsHook
from .random_state import RandomStateHook

__all__ = ['BatchNormMomentumHook', 'CurvesHook', 'PredictionsHook', 'RandomStateHook']
