"""The text beside a picture: how much was found, of what, and how long it took. HTML, names escaped."""

import html
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from ..inference.prediction import Prediction
from ..utils.printable import one_line, printable
from ..utils.words import plural

__all__ = ['Found', 'failure_text', 'found_text', 'note_text']

MOST = 8  # classes that are listed


class Found(NamedTuple):
    """What one model has found on one picture; `loading` in seconds, None where the model was in memory."""

    name: str
    prediction: Prediction
    loading: float | None
    tta: bool


def found_text(found: Found, threshold: float) -> str:
    """A heading, what was found, and the timing."""
    prediction = found.prediction
    if prediction.kind == 'detection':
        line = _instances(prediction, threshold)
    else:
        line = _segments(prediction) if prediction.kind == 'segmentation' else _classes(prediction)
    timing = f'<b>{_seconds(prediction.seconds)}</b> for this picture'
    timing += ' with test-time augmentation' if found.tta else ''
    if found.loading is not None:
        timing += f' (its first: later ones may be quicker), after {_seconds(found.loading)} of loading'
    return f'<div class="found"><h3>{_text(found.name)}</h3><p>{line}</p><p class="timing">Time: {timing}.</p></div>'


def failure_text(message: str) -> str:
    """A message about what went wrong."""
    return f'<div class="failure" role="alert">{html.escape(printable(message))}</div>'


def note_text(message: str) -> str:
    """A message about what comes next."""
    return f'<div class="note">{html.escape(printable(message))}</div>'


def _instances(prediction: Prediction, threshold: float) -> str:
    shown = prediction.scores >= threshold
    counts = Counter(prediction.name_of(int(label)) for label in prediction.labels[shown])
    number, below = int(shown.sum()), int((~shown).sum())
    listed = f': {_list(f"{count} {_text(name)}" for name, count in counts.most_common())}' if counts else ''
    return f'<b>{plural(number, "object")}</b>{listed}. {below} below the threshold of {threshold:.2f}.'


def _segments(prediction: Prediction) -> str:
    shares = (f'{_text(name)} {share:.1%}' for name, share in prediction.shares().items())
    return f'<b>Segments</b>: {_list(shares)} of the picture.'


def _classes(prediction: Prediction) -> str:
    named = zip(prediction.labels, prediction.scores, strict=True)
    shares = (f'{_text(prediction.name_of(int(label)))} {score:.1%}' for label, score in named)
    return f'<b>Class</b>: {_list(shares)}.'


def _text(name: str) -> str:
    return html.escape(one_line(name))


def _list(items: Iterable[str]) -> str:
    items = list(items)
    more = f' and {len(items) - MOST} more' if len(items) > MOST else ''
    return ', '.join(items[:MOST]) + more


def _seconds(seconds: float) -> str:
    return f'{1000 * seconds:.0f} ms' if seconds < 1 else f'{seconds:.1f} s'
