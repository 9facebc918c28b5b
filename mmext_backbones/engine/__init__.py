"""What plugs into mmengine beside the models."""

from .batch_norm import BatchNormMomentumHook
from .checkpoint_files import WholeCheckpointHook
from .evaluation.instance_tta import InstanceTTAModel
from .evaluation.predictions import DumpSmallResults
from .hooks import CurvesHook, PredictionsHook
from .layer_decay import LayerDecayOptimWrapperConstructor
from .nonfinite.hook import NonFiniteHook
from .preemption import PreemptionHook
from .random_state import RandomStateHook
from .resuming import PositionHook
from .strategies import FSDPStrategy, wrap_blocks

__all__ = [
    'BatchNormMomentumHook',
    'CurvesHook',
    'DumpSmallResults',
    'FSDPStrategy',
    'InstanceTTAModel',
    'LayerDecayOptimWrapperConstructor',
    'NonFiniteHook',
    'PositionHook',
    'PredictionsHook',
    'PreemptionHook',
    'RandomStateHook',
    'WholeCheckpointHook',
    'wrap_blocks',
]
