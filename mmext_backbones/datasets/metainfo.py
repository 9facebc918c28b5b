"""What a data set says of itself, whatever kind it is of: one of mmengine's, several in one, or torch's own."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ['classes_of', 'metainfo_of']


def metainfo_of(dataset: Any) -> Mapping[str, Any]:
    """The metainfo of a data set; that of the first, where it is several with metainfo of their own; empty for none."""
    metainfo = getattr(dataset, 'metainfo', None)
    if isinstance(metainfo, (list, tuple)) and metainfo:  # mmdet's ConcatDataset
        metainfo = metainfo[0]
    return metainfo if isinstance(metainfo, Mapping) else {}


def classes_of(dataset: Any) -> Sequence[str] | None:
    """The classes of a data set; None if it has none, or is several data sets with classes of their own."""
    metainfo = getattr(dataset, 'metainfo', None)
    every = [each for each in (metainfo if isinstance(metainfo, (list, tuple)) else [metainfo]) if each is not None]
    classes = [each.get('classes') for each in every if isinstance(each, Mapping)]
    known = bool(classes) and all(each == classes[0] for each in classes)
    return classes[0] if known and isinstance(classes[0], (list, tuple)) else None
