"""What this package adds to a run may fail without ending it: it is told once, and the run goes on as without it."""

import contextlib
import logging
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

from .errors import UserError, first_line

__all__ = ['MayFail', 'attempt', 'warn']

_told: set[str] = set()


def attempt(what: str, function: Callable[..., Any], *args: Any, default: Any = None, **kwargs: Any) -> Any:
    """The result of a function, or `default` where it fails by a mistake of its own, which is told once.

    Args:
        what: What the function does, for a person, such as ``'the check of the classes'``.
        function: Called with `args` and `kwargs`.
        default: The answer where it fails.

    Raises:
        UserError: as the function does: that is a finding.
    """
    try:
        return function(*args, **kwargs)
    except UserError:
        raise
    except Exception as error:
        if what not in _told:
            _told.add(what)
            _tell(what, error)
        return default


class MayFail(contextlib.ContextDecorator):
    """What fails inside is left out: its error is told, once, and the run goes on.

    It is for what this package adds to a run, drawings and tables, which the libraries' own run does not have.

    Args:
        what: What is left out then, for the warning.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.told = False

    def __enter__(self) -> 'MayFail':
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        if not self.told:
            self.told = True
            _tell(self.what, error)
        return True


def _tell(what: str, error: Exception) -> None:
    why = ': '.join(filter(None, [type(error).__name__, first_line(error)[:300]]))
    warn(f'{what}: left out, and the run goes on ({why}).')
    warn(''.join(traceback.format_exception(error)), logging.DEBUG)


def warn(text: str, level: int = logging.WARNING) -> None:
    """Warns on the screen and in the log of the run, where there is one, on its first process only."""
    from mmengine.logging import print_log  # the doctor imports utils where mmengine may not be installed

    print_log(text, logger='current', level=level)
