"""What plugs into mmengine beside the models."""

from .batch_norm import BatchNormMomentumHook
from .hooks import CurvesHook, PredictionsHook
from .instance_tta import InstanceTTAModel
from .layer_decay import LayerDecayOptimWrapperConstructor
from .predictions import DumpSmallResults
from .random_state import RandomStateHook

__all__ = [
    'BatchNormMomentumHook',
    'CurvesHook',
    'DumpSmallResults',
    'InstanceTTAModel',
    'LayerDecayOptimWrapperConstructor',
    'PredictionsHook',
    'RandomStateHook',
]
