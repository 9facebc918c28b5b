"""The kinds of faults of a data set: how each is dealt with, and what a person can do about it.

An error stops a run, or, where it was asked for, its image or annotation is left out, counted and reported. A warning
is told before the first step, and the run goes on: only a person can tell whether it is meant. A note is harmless: the
libraries cope with it, and it is only told by `tools/check_dataset.py`.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ...utils.errors import UserError

__all__ = ['KINDS', 'BadDataError', 'Fault', 'Kind', 'log_faults', 'read_faults', 'stop']

SHOWN = 3  # faults that a message names


class Kind(NamedTuple):
    """How a fault is dealt with.

    Attributes:
        level: ``'error'``, ``'warning'`` or ``'note'``.
        drops: What is left out when errors are skipped, or is always for a note: ``'image'``, ``'annotation'`` or
            nothing.
        remedy: What a person can do, or what the libraries make of it.
    """

    level: str
    drops: str
    remedy: str


def _error(drops: str, remedy: str) -> Kind:
    return Kind('error', drops, remedy)


def _warning(remedy: str) -> Kind:
    return Kind('warning', '', remedy)


def _note(drops: str, remedy: str) -> Kind:
    return Kind('note', drops, remedy)


_FETCH = 'Fetch it again, or take it out of the data.'
_CORRECT = 'Correct the annotation, or take it out.'
KINDS = {
    # the whole data set: such an error stops in either mode
    'annotation file': _error('', 'Correct the file or the path in the config.'),
    'classes': _error('', 'Make the classes of the config those of the data.'),
    'no samples': _error('', 'Look at the paths, the suffixes, the classes and filter_cfg of the data set.'),
    'no iteration': _error('', 'Set a smaller batch_size, or drop_last=False.'),
    'other truth': _error('', "Make the evaluator's ann_file that of the data set."),
    # the same, where nobody but a person can tell whether it is meant
    'nothing to learn': _warning('Look at iscrowd, ignore, the categories and filter_cfg: only background is learned.'),
    'nothing to measure': _warning('Look at iscrowd, ignore and the categories: every metric would be -1.'),
    'missing categories': _warning(
        "Nothing is learned of them, and mmdet's CocoMetric fails where one is predicted: add them to the file's "
        'categories, or take them out of the config.'
    ),
    'class without objects': _warning('It is neither learned nor measured here: look at the labels, or take it out.'),
    'class without pixels': _warning(
        'It is neither learned nor measured here: number the classes from 0 in the maps; mmseg ignores 255.'
    ),
    'other files': _warning("The evaluator's ann_file may be that of other data: look at both."),
    'fewer images': _warning("Make the evaluator's ann_file that of the data set, if it is not meant."),
    'annotation number': _warning(
        'pycocotools takes a match with annotation 0 for none, and no texts: the measure would be too low, or fail. '
        'tools/train.py and tools/test.py number them anew as they measure; for other programs, number them from 1.'
    ),
    'class weights': _warning(
        'mmseg looks up the weight of every label, of 255 too, and fails: set loss_decode.reduction=none, '
        'docs/faq.md says more.'
    ),
    # files
    'missing': _error('image', 'Fetch the file, or take it off the list.'),
    'no file': _error('image', 'Put a readable file there, or take it out of the data.'),
    'empty': _error('image', _FETCH),
    'truncated': _error('image', _FETCH),
    'unreadable': _error('image', 'Replace it, or take it out of the data.'),
    'image size': _error('image', 'Annotate the picture as it is read: turned by its EXIF tag, if it has one.'),
    'map size': _error('image', 'Make the map as large as its picture.'),
    'map format': _error('image', 'Save the map with one channel of class numbers.'),
    'map values': _error('image', "Make the labels the config's classes, or 255 for what is not to be learned."),
    'label': _error('image', 'Number the classes from 0, as many as the config has.'),
    'pipeline': _error('image', "A step of the config's pipeline cannot take it: look at the file and the step."),
    # entries of a COCO file
    'image entry': _error('image', 'Give the image an id, a file_name, and its height and width in pixels.'),
    'duplicate image': _error('image', 'Give every image an id of its own.'),
    'annotation entry': _error('annotation', 'Give the annotation all of id, image_id, category_id, bbox and area.'),
    'duplicate annotation': _error('annotation', 'Give every annotation an id of its own.'),
    'unknown image': _error('annotation', 'Correct image_id, or take the annotation out.'),
    'unknown category': _error('annotation', 'Correct category_id, or add the category.'),
    'box numbers': _error('annotation', _CORRECT),
    'negative box': _error('annotation', 'Boxes are [x, y, width, height] in pixels: correct it.'),
    'box outside': _error('annotation', 'Correct the box, or the size of its image.'),
    'mask': _error('annotation', _CORRECT),
    'mask size': _error('annotation', 'Make the mask again for the size of its image.'),
    # harmless
    'zero-size box': _note('annotation', 'Under a pixel wide or high, or without area: left out.'),
    'box over the edge': _note('', 'Cut at the edge of its image.'),
    'short polygon': _note('', 'A part of a mask with less than three points: left out of the mask.'),
    'image without objects': _note('', 'Kept, or left out where the config says filter_empty_gt.'),
    'file listed twice': _note('', 'Two images of the annotation file are the same file.'),
    'ignored pixels': _note('', 'Neither learned nor measured. Nothing to mend if it is meant.'),
    'class without images': _note('', 'The class has a folder and a number, and nothing to learn from.'),
    'grey': _note('', 'Read as three equal channels.'),
    'palette': _note('', 'Read as the colours of the palette.'),
    '16-bit': _note('', 'Read as 8 bits: the upper byte (imdecode_backend=cv2).'),
    'alpha': _note('', 'Read without its transparency.'),
    'CMYK': _note('', 'Converted to three channels.'),
    'EXIF rotated': _note('', 'Turned as the tag says; annotations are taken to be made on the turned picture.'),
}


class Fault(NamedTuple):
    """One fault: a key of `KINDS`, the file it was found in, and what is wrong there, in words."""

    kind: str
    path: str
    detail: str

    def __str__(self) -> str:
        return f'{self.path!r}: {self.detail}'


class BadDataError(UserError):
    """Data that cannot be used. One message that names the file, also where it was raised in a DataLoader worker.

    torch raises an error of a worker again with the worker's whole traceback as its text; the message is at its end.

    Args:
        text: The message, or such a traceback.
        kind: Of the data set as a whole, a key of `KINDS`.
    """

    def __init__(self, text: str, kind: str = 'annotation file') -> None:
        self.kind = kind
        before, mark, message = text.rpartition(f'{__name__}.{type(self).__name__}: ')
        super().__init__(message.rstrip('\n') if mark else text)
        if mark:
            self.__notes__ = [before]  # for --traceback


def stop(faults: Sequence[Fault]) -> BadDataError:
    """The error that ends a run at some faults."""
    lines = [str(fault) for fault in faults[:SHOWN]]
    if len(faults) > SHOWN:
        lines.append(f'... and {len(faults) - SHOWN} more.')
    kinds = dict.fromkeys(fault.kind for fault in faults[:SHOWN])
    remedies = ' '.join(dict.fromkeys(KINDS[kind].remedy for kind in kinds))
    skip = (
        'To leave bad data out, and be told at the end what was: --bad-data skip. '
        if all(KINDS[kind].drops for kind in kinds)
        else ''
    )
    return BadDataError(
        '\n'.join([*lines, remedies, f'{skip}To find all of it beforehand: python tools/check_dataset.py CONFIG'])
    )


# --------------------------------------------------------------------------------------------------------------------
# What was left out, from all processes of a run


def log_faults(folder: str | os.PathLike, split: str, faults: Iterable[Fault]) -> None:
    """Adds faults to this process' own file: processes never write to the same one."""
    lines = [json.dumps([split, *fault]) + '\n' for fault in faults]
    if not lines:
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name = f'rank{os.environ.get("RANK", 0)}-{os.getpid()}.jsonl'
    with (folder / name).open('a', encoding='utf-8') as file:
        file.write(''.join(lines))


def read_faults(folder: str | os.PathLike) -> dict[str, list[Fault]]:
    """The faults of each split that the processes recorded, each once, in order of their kinds and names."""
    found: dict[str, set[Fault]] = {}
    for path in sorted(Path(folder).glob('*.jsonl')):
        for line in path.read_text(encoding='utf-8').splitlines(keepends=True):
            if line.endswith('\n'):  # a process may have been killed while it wrote
                split, *fault = json.loads(line)
                found.setdefault(split, set()).add(Fault(*fault))
    order = list(KINDS)
    return {
        split: sorted(faults, key=lambda fault: (order.index(fault.kind), fault.path, fault.detail))
        for split, faults in found.items()
    }
