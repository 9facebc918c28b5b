"""Which heads of which library are exported with the whole model."""

from collections.abc import Callable

from torch import nn

from . import classification, detection, segmentation
from .refusing import Unsupported
from .task import Task

__all__ = ['KINDS', 'build_task']

# by library: what makes a `Task` of a model of it, or refuses it by name
KINDS: dict[str, Callable[[nn.Module], Task]] = {
    'mmdet': detection.build,
    'mmpretrain': classification.build,
    'mmseg': segmentation.build,
}


def build_task(model: nn.Module) -> Task:
    """The task of a model.

    Raises:
        UserError: for a model of another library, and for heads that are not known.
    """
    libraries = (base.__module__.partition('.')[0] for base in type(model).__mro__)
    library = next((name for name in libraries if name in KINDS), None)
    if library is None:
        raise Unsupported(f'{type(model).__name__} is no model of {", ".join(KINDS)}', sorted(KINDS))
    return KINDS[library](model)
