"""What this package adds to a run may fail without ending it: it is told once, and the run goes on as without it."""

import logging
from collections.abc import Callable
from typing import Any

from .errors import UserError

__all__ = ['attempt', 'warn']

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
            reason = ' '.join(str(error).split())[:200]
            warn(f'{what} failed, and the run goes on without it: {type(error).__name__}: {reason}')
        return default


def warn(text: str) -> None:
    """Warns on the screen and in the log of the run, where there is one, on its first process only."""
    from mmengine.logging import print_log  # the doctor imports utils where mmengine may not be installed

    print_log(text, logger='current', level=logging.WARNING)
