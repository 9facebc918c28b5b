"""Per-sample validation of data sets that mix the samples of another one: mmdet's and mmseg's `MultiImageMixDataset`.

Their steps (Mosaic, MixUp, CopyPaste) run in the wrapper's own `__getitem__`, behind the guard of the data set inside.
"""

import functools
from typing import Any

from .guard import Guard
from .kinds import BadDataError, Fault

__all__ = ['guard_mixing', 'mixing_guard_of']


class _MixingGuard(Guard):
    """Prepares the samples of a wrapper, as its `__getitem__` would; see `Guard`.

    Args:
        dataset: The wrapper.
        cls: Its class, whose `__getitem__` is called.
    """

    def __init__(self, dataset: Any, cls: type, split: str, skip: bool, folder: str | None) -> None:
        super().__init__(dataset, split, skip, folder, [])
        self.cls = cls

    def examine(self, index: int) -> tuple[Any, Fault | None]:
        self._error = self._step = None
        try:
            return self.cls.__getitem__(self.dataset, index), None
        except BadDataError:  # of the data set inside
            raise
        except Exception as error:
            self._error = error
            return None, self._explain(self.dataset.get_data_info(index), error)


def guard_mixing(dataset: Any, split: str, skip: bool, folder: str | None) -> None:
    """Guards a wrapper that has steps of its own; any other data set is left as it is.

    Args:
        dataset: A data set around another one, built.
        split, skip, folder: As of `Guard`.
    """
    cls = type(dataset)
    if not hasattr(dataset, 'pipeline') or not hasattr(dataset, 'get_data_info') or hasattr(dataset, 'prepare_data'):
        return
    guarded = _guarded_class(cls)
    dataset._mixing_guard = _MixingGuard(dataset, cls, split, skip, folder)
    dataset.__class__ = guarded


def mixing_guard_of(dataset: Any) -> Guard | None:
    """The guard of a wrapper; None if it has none."""
    return getattr(dataset, '__dict__', {}).get('_mixing_guard')


@functools.cache
def _guarded_class(cls: type) -> type:
    """A wrapper's class that asks its guard for samples. It has the name of `cls`, and can be sent to processes."""

    def __getitem__(self: Any, index: int) -> Any:
        return self._mixing_guard(index)

    def __reduce__(self: Any) -> tuple:
        return _unfilled, (cls,), self.__dict__

    own = {'__getitem__': __getitem__, '__reduce__': __reduce__, '__module__': cls.__module__, '__doc__': cls.__doc__}
    return type(cls.__name__, (cls,), own)


def _unfilled(cls: type) -> Any:
    guarded = _guarded_class(cls)
    return guarded.__new__(guarded)
