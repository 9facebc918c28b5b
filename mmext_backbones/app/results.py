"""What is said beside a picture: how much was found, of what, and how long it took. HTML, names escaped."""

import html
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

__all__ = ['Found', 'failure_text', 'found_text', 'note_text']

MOST = 8  # classes that are listed


class Found(NamedTuple):
    """What one model has found on one picture; `loading` in seconds, None where the model was in memory."""

    name: str
    prediction: Any
    loading: float | None
    tta: bool


def found_text(found: Found, threshold: float) -> str:
    """A heading, what was found, and the timing."""
    prediction = found.prediction
    if getattr(prediction, 'segmentation', None) is not None:
        lines = _segments(prediction)
    elif getattr(prediction, 'boxes', None) is not None:
        lines = _instances(prediction, threshold)
    else:
        lines = _classes(prediction)
    timing = f'<b>{_seconds(prediction.seconds)}</b> for this picture'
    timing += ' with test-time augmentation' if found.tta else ''
    if found.loading is not None:
        timing += f' (its first: later ones may be quicker), after {_seconds(found.loading)} of loading'
    return (
        f'<div class="found"><h3>{html.escape(found.name)}</h3>'
        f'<p>{lines}</p><p class="timing">Time: {timing}.</p></div>'
    )


def failure_text(message: str) -> str:
    """A message about what went wrong."""
    return f'<div class="failure" role="alert">{html.escape(message)}</div>'


def note_text(message: str) -> str:
    """A message about what comes next."""
    return f'<div class="note">{html.escape(message)}</div>'


def _instances(prediction: Any, threshold: float) -> str:
    shown = np.asarray(prediction.scores) >= threshold
    counts = Counter(prediction.classes[label] for label in np.asarray(prediction.labels)[shown])
    below = int(np.count_nonzero(~shown))
    what = 'objects' if len(shown) - below != 1 else 'object'
    listed = f': {_list(f"{number} {html.escape(name)}" for name, number in counts.most_common())}' if counts else ''
    return f'<b>{len(shown) - below} {what}</b>{listed}. {below} below the threshold of {threshold:.2f}.'


def _segments(prediction: Any) -> str:
    labels, counts = np.unique(prediction.segmentation, return_counts=True)
    pairs = [(label, count) for label, count in zip(labels, counts, strict=True) if label < len(prediction.classes)]
    pairs.sort(key=lambda pair: -pair[1])
    total = np.size(prediction.segmentation)
    shares = (f'{html.escape(prediction.classes[label])} {100 * count / total:.1f} %' for label, count in pairs)
    return f'<b>Segments</b>: {_list(shares)} of the picture.'


def _classes(prediction: Any) -> str:
    pairs = zip(np.asarray(prediction.labels).ravel(), np.asarray(prediction.scores).ravel(), strict=True)
    named = (f'{html.escape(prediction.classes[label])} {100 * score:.1f} %' for label, score in pairs)
    return f'<b>Class</b>: {_list(named)}.'


def _list(items: Any) -> str:
    items = list(items)
    more = f' and {len(items) - MOST} more' if len(items) > MOST else ''
    return ', '.join(items[:MOST]) + more


def _seconds(seconds: float) -> str:
    return f'{1000 * seconds:.0f} ms' if seconds < 1 else f'{seconds:.1f} s'
