"""What plugs into mmengine beside the models."""

from .batch_norm import BatchNormMomentumHook
from .hooks import CurvesHook, PredictionsHook
from .instance_tta import InstanceTTAModel
from .layer_decay import LayerDecayOptimWrapperConstructor
from .predictions import DumpSmallResults
from .random_state import RandomStateHook
from .strategies import FSDPStrategy, wrap_blocks

__all__ = [
    'BatchNormMomentumHook',
    'CurvesHook',
    'DumpSmallResults',
    'FSDPStrategy',
    'InstanceTTAModel',
    'LayerDecayOptimWrapperConstructor',
    'PredictionsHook',
    'RandomStateHook',
    'wrap_blocks',
]
