"""Writes the folder of results of tools/infer.py.

run.json          what was predicted with what: see `Results.write`
predictions.json  of a detection COCO's result format; else a list with an entry for each picture
images.json       of a detection the pictures and categories that those entries number, as a COCO annotation file
pictures/         what was predicted, drawn
crops/            with --save-crop: the box of each object, cut out, in a folder a class
segments/         of a segmentation the class of each pixel: PNGs with a palette
videos/           with --video, instead of the two folders
"""

import contextlib
import datetime
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..drawing.files import write_label_map, write_picture
from ..utils.errors import UserError
from ..utils.files import keep_inputs, remove, write_whole
from .prediction import Prediction, category_ids, colours_of

__all__ = ['Results']

FORMAT = 1
SAME = ('config', 'weights', 'options', 'shapes', 'tta', 'sources', 'video', 'only')  # what makes two runs the same


class Results:
    """Collects the predictions of a run and writes them.

    Args:
        folder: Where everything goes.
        run: What is asked for: the keys of `SAME` and any others.
        targets: Files that the run will write, relative to the folder.
        overwrite: Whether those of another run may be replaced; the run's own sources never are.

    Attributes:
        replaces: Whether results of an earlier, equal run or, with `overwrite`, of any other, are there.

    Raises:
        UserError: if they are there and may not be replaced, or the folder cannot be made.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any], targets: Sequence[str], *, overwrite: bool) -> None:
        self.folder = folder
        self.run = json.loads(json.dumps(run, default=str))  # as it would be read again
        self.files: list[str] = []
        self.entries: list[dict[str, Any]] = []
        self.images: list[dict[str, Any]] = []
        places = [folder / name for name in ('run.json', 'predictions.json', 'images.json', *targets)]
        places += [folder / 'segments' / Path(name).relative_to('pictures').with_suffix('.png') for name in targets
                   if name.startswith('pictures/')]  # fmt: skip
        keep_inputs(f'--out {str(folder)!r}', places, self._sources())
        earlier = self._earlier()
        there = [name for name in ('run.json', 'predictions.json', *targets) if (folder / name).exists()]
        same = bool(earlier) and all(earlier.get(key) == self.run.get(key) for key in SAME)
        if there and not (overwrite or same):
            other = [key for key in SAME if earlier and earlier.get(key) != self.run.get(key)]
            of = f' of a run with other {", ".join(other)}' if other else ''
            raise UserError(
                f'--out {str(folder)!r} has results already{of}, such as {there[0]}. Name another folder, or replace '
                'them with --overwrite.'
            )
        self.replaces = bool(there)
        files = earlier.get('files')
        self._stale = {name for name in files if isinstance(name, str)} if isinstance(files, list) else set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f'--out {str(folder)!r} is no folder that can be written: {error.strerror}.') from error

    def _earlier(self) -> dict[str, Any]:
        try:
            record = json.loads((self.folder / 'run.json').read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        return record if isinstance(record, dict) else {}

    def _sources(self) -> list[str]:
        return [str(source) for source in self.run.get('sources') or []]

    def add(self, prediction: Prediction, file_name: str) -> None:
        """Keeps what JSON says of a prediction; the rest of it is not kept.

        Args:
            prediction: Of a picture or a frame.
            file_name: How the files call it.
        """
        number = len(self.images) + 1
        height, width = prediction.size
        self.images.append({'id': number, 'file_name': file_name, 'height': height, 'width': width})
        if prediction.kind == 'detection':
            self.entries += prediction.to_coco(number)
        else:
            values = {key: value for key, value in prediction.to_dict().items() if key != 'map'}  # in segments/
            self.entries.append({'image_id': number, 'file_name': file_name, **values})

    def draw(self, prediction: Prediction, name: str, threshold: float) -> None:
        """Writes the drawn prediction to ``pictures/<name>``."""
        write_picture(self.folder / 'pictures' / name, prediction.drawn(threshold))
        self.files.append(f'pictures/{name}')

    def write_crops(self, prediction: Prediction, name: str, suffix: str, threshold: float) -> None:
        """Writes the objects of a detection to ``crops/<class>/<name>_<number>``.

        Args:
            prediction: Of a picture.
            name: Of the picture, without a suffix.
            suffix: Of the files.
            threshold: Detections below this score are left out.
        """
        for number, (label, crop) in enumerate(prediction.crops(threshold), 1):
            folder = re.sub(r'[^\w. -]', '_', prediction.name_of(label)).strip('. ') or f'class {label}'
            path = f'crops/{folder}/{name}_{number}{suffix}'
            write_picture(self.folder / path, crop)
            self.files.append(path)

    def write_segments(self, prediction: Prediction, name: str) -> None:
        """Writes the class of each pixel to ``segments/<name>``."""
        write_label_map(self.folder / 'segments' / name, prediction.segmentation, colours_of(prediction))
        self.files.append(f'segments/{name}')

    def write(self, classes: Sequence[str], kind: str, **more: Any) -> None:
        """Writes the JSON files, the last of them ``run.json``; files that only the earlier run wrote are removed.

        Args:
            classes: Names of the classes.
            kind: Of the predictions.
            **more: Goes into ``run.json``, after ``format``, ``date``, what was asked for and ``files``, the others
                that were written.
        """
        self._json('predictions.json', self.entries)
        if kind == 'detection':
            ids = category_ids(tuple(classes))
            categories = [{'id': number, 'name': name} for number, name in zip(ids, classes, strict=True)]
            self._json('images.json', {'images': self.images, 'categories': categories, 'annotations': []})
        date = datetime.datetime.now().astimezone().isoformat(timespec='seconds')
        record = {'format': FORMAT, 'date': date, 'kind': kind, 'classes': list(classes), **self.run, **more}
        write_whole(self.folder / 'run.json', json.dumps({**record, 'files': self.files}, indent=2) + '\n')
        sources = {Path(source).resolve() for source in self._sources()}
        for name in self._stale - set(self.files):
            with contextlib.suppress(OSError, ValueError):  # whoever wrote that list
                stale, real = self.folder / name, (self.folder / name).resolve()
                if real.is_file() and real.is_relative_to(self.folder.resolve()) and real not in sources:
                    remove(stale)

    def _json(self, name: str, content: Any) -> None:
        write_whole(self.folder / name, json.dumps(content) + '\n')
        self.files.append(name)
