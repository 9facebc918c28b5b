"""The steps of a data pipeline, with those inside of others: of `Compose`, `RandomChoice`, `KeyMapper` and the like."""

import traceback
from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ['failed_step', 'flat', 'is_librarys', 'loads', 'nested', 'reads']

LIBRARIES = ('mmcv.', 'mmengine.', 'mmdet.', 'mmseg.', 'mmpretrain.')


def flat(steps: Iterable[Any]) -> Iterator[Any]:
    """The steps in their order, with those of a `Compose` in its place: it runs one after the other, no more."""
    for step in steps:
        if type(step).__name__ == 'Compose' and is_librarys(step):
            yield from flat(step.transforms)
        else:
            yield step


def is_librarys(step: Any) -> bool:
    """Whether a step is one of OpenMMLab's, of which is known what it does."""
    return type(step).__module__.startswith(LIBRARIES)


def nested(steps: Any, seen: frozenset[int] = frozenset()) -> Iterator[Any]:
    """Every step in a list of steps or in a pipeline, and every one inside of these, whatever it is held by.

    Args:
        steps: A step or a list.
        seen: Those that hold it, by identity: a step may hold one that holds it.
    """
    for step in steps if isinstance(steps, (list, tuple)) else [steps]:
        if isinstance(step, (list, tuple)):
            yield from nested(step, seen)
        elif _is_step(step) and id(step) not in seen:
            yield step
            for held in vars(step).values():
                yield from nested(list(held.values()) if isinstance(held, dict) else held, seen | {id(step)})


def _is_step(value: Any) -> bool:
    if isinstance(value, type) or not callable(value) or not hasattr(value, '__dict__'):
        return False
    return hasattr(value, 'transform') or hasattr(value, 'transforms') or type(value).__name__.startswith('Load')


def loads(step: Any) -> bool:
    """Whether a step reads files and changes nothing of what it read; a step of steps does if all of them do."""
    if not hasattr(step, 'transforms'):
        return type(step).__name__.startswith('Load')
    inner = [each for each in nested(step) if not hasattr(each, 'transforms')]
    return bool(inner) and all(map(loads, inner))


def failed_step(error: Exception, steps: Any) -> Any:
    """The innermost step that an error came out of; None if it came out of none."""
    known = {id(step) for step in nested(steps)}
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    owners = [frame.f_locals.get('self') for frame in reversed(frames)]
    return next((owner for owner in owners if id(owner) in known), None)


def reads(steps: Any) -> set[str]:
    """Which files of a sample's entry a pipeline surely reads: ``'img_path'``, ``'seg_map_path'``.

    A step of a person's own may read another file, or none, whatever it is called.
    """
    keys = set()
    for step in nested(steps):
        if not is_librarys(step):
            continue
        names = {cls.__name__ for cls in type(step).__mro__}
        if 'LoadImageFromFile' in names and 'NDArray' not in type(step).__name__:
            keys.add('img_path')
        if getattr(step, 'with_seg', False) or 'LoadPanopticAnnotations' in names:
            keys.add('seg_map_path')
    return keys
