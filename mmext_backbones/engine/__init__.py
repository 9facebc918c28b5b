"""What plugs into mmengine beside the models."""

from .batch_norm import BatchNormMomentumHook
from .evaluation.exported import ExportedModel
from .evaluation.instance_tta import InstanceTTAModel
from .evaluation.predictions import DumpSmallResults
from .evaluation.robustness import CorruptionError, SubsetAccuracy
from .layer_decay import LayerDecayOptimWrapperConstructor
from .nonfinite.hook import NonFiniteHook
from .picture_hooks import CurvesHook, PredictionsHook
from .resume.checkpoint_hook import WholeCheckpointHook
from .resume.hook_state import HookStateHook
from .resume.position import PositionHook
from .resume.random_state import RandomStateHook
from .resume.signals import PreemptionHook
from .strategies import FSDPStrategy, wrap_blocks

__all__ = [
    'BatchNormMomentumHook',
    'CorruptionError',
    'CurvesHook',
    'DumpSmallResults',
    'ExportedModel',
    'FSDPStrategy',
    'HookStateHook',
    'InstanceTTAModel',
    'LayerDecayOptimWrapperConstructor',
    'NonFiniteHook',
    'PositionHook',
    'PredictionsHook',
    'PreemptionHook',
    'RandomStateHook',
    'SubsetAccuracy',
    'WholeCheckpointHook',
    'wrap_blocks',
]
