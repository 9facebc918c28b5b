"""What plugs into mmengine beside the models."""

from .hooks import CurvesHook, PredictionsHook

__all__ = ['CurvesHook', 'PredictionsHook']
