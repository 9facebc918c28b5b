"""`UserError`, for mistakes that are known to be the caller's, and sentences that several of them share."""

import difflib
from collections.abc import Sequence

from .printable import one_line

__all__ = ['UserError', 'did_you_mean', 'few', 'first_line', 'unreadable_checkpoint']

FEW = 6  # names that a message lists


class UserError(Exception):
    """A mistake in what was asked for. Its text says what is wrong and what to do; no traceback is needed."""


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """`' Did you mean ...?'` with the nearest known name, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f' Did you mean {near[0]!r}?' if near else ''


def few(names: Sequence[str]) -> str:
    """The first names, and dots if there are more."""
    return ', '.join(map(one_line, names[:FEW])) + (', ...' if len(names) > FEW else '')


def first_line(error: object) -> str:
    """The first line of a message; empty if it has none."""
    return str(error).strip().partition('\n')[0]


def unreadable_checkpoint(path: str, reason: object) -> UserError:
    """The error for a checkpoint that cannot be read: what to do is the same wherever it is noticed."""
    return UserError(
        f'checkpoint {path!r} cannot be read: {first_line(reason) or type(reason).__name__}\n'
        'The file may be truncated (a download or a save that was cut short) or no PyTorch checkpoint at all. '
        'Fetch or train it again, or name another one.'
    )
