"""Text out of files, for a screen: names of classes, files and keys may hold what a terminal obeys.

Control characters (with them the escape sequences of terminals), characters that turn the direction of the text, and
halves of characters are written as Python writes them in a string: ``\\x1b``, ``\\u202e``.
"""

import re

__all__ = ['one_line', 'printable']

_OBEYED = re.compile(
    '[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb'
    '\ud800-\udfff\U000e0000-\U000e007f]'
)
_BREAKS = re.compile(r'[\n\t]')


def printable(text: object) -> str:
    """The text, in which line breaks and tabs stay and whatever else is obeyed by a screen is spelt out."""
    return _OBEYED.sub(_spelt, str(text))


def one_line(text: object) -> str:
    """As `printable`, for a name: line breaks and tabs are spelt out, too."""
    return _BREAKS.sub(_spelt, printable(text))


def _spelt(match: re.Match) -> str:
    return match.group().encode('unicode_escape').decode('ascii')
