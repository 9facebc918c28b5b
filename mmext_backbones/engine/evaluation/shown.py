"""The pictures of ``--show-dir``: one file for each image of the data, and none in the place of a file of the data."""

import collections
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import get_rank, get_world_size

from ...config.inputs import keep_config_inputs
from ...utils.errors import UserError
from ...utils.files import unique_names

__all__ = ['ShownPictures']


class ShownPictures:
    """Names the pictures of a test after the images; where several have one name, with the folders they lie in.

    The names follow from the data set alone, so that all processes of a test agree.

    Args:
        dataset: The data set.
        folder: Where the pictures go.
        cfg: The config of the test.

    Raises:
        UserError: if one of them would replace a file of the data, of any split.
    """

    def __init__(self, dataset: Any, folder: str | Path, cfg: Config) -> None:
        self.folder = Path(folder)
        infos = list(_infos(dataset))
        counts = collections.Counter(path for info in infos if isinstance(path := info.get('img_path'), str) and path)
        self._names = dict(zip(counts, unique_names(_plain_names(list(counts))), strict=True))
        self._several = {path for path, count in counts.items() if count > 1}
        self._taken = {name.lower() for name in self._names.values()}  # names of images that have no file follow
        self._others: dict[tuple[Any, Any], str] = {}
        self._check(infos, cfg)

    def __call__(self, sample: Any) -> Path:
        """The file for the picture of a data sample."""
        path = getattr(sample, 'img_path', None)
        name = self._names.get(path)
        if name is None or path in self._several:
            name = self._other_name(path, getattr(sample, 'img_id', None))
        target = self.folder / f'{name}.png'
        if path and target.exists() and os.path.exists(path) and os.path.samefile(target, path):
            raise UserError(f'the picture of {path} is not written: it would replace it')
        return target

    def _other_name(self, path: str | None, number: Any) -> str:
        """Of an image that the data set does not name, or not alone: after its file, and its number in the data."""
        unknown = path is None or path in self._several
        if unknown and number is None:
            number = len(self._others) + 1
        if (path, number) not in self._others:
            stem = self._names.get(path) or (Path(path).stem if path else 'image')
            parts = [stem, *([str(number)] if unknown else []), *([str(get_rank())] if get_world_size() > 1 else [])]
            self._others[path, number] = unique_names(['_'.join(parts)], self._taken)[0]
        return self._others[path, number]

    def _check(self, infos: Sequence[dict], cfg: Config) -> None:
        files = {
            value
            for info in infos
            for key, value in info.items()
            if str(key).endswith('path') and isinstance(value, str)
        }
        targets = [self.folder / f'{name}.png' for name in self._names.values()]
        keep_config_inputs(f'--show-dir {self.folder}', targets, cfg, files)


def _infos(dataset: Any) -> Iterator[dict]:
    """What a data set knows of each image; nothing if it cannot be asked."""
    try:
        for index in range(len(dataset)):
            info = dataset.get_data_info(index)
            yield info if isinstance(info, dict) else {}
    except Exception:  # a data set of any kind
        return


def _plain_names(paths: Sequence[str]) -> list[str]:
    """Names without folders: ``0`` of ``a/0.png``, and ``a_0`` where there is ``b/0.png``, too."""
    whole = [Path(os.path.abspath(path)) for path in paths]
    shared = os.path.commonpath([path.parent for path in whole]) if whole else ''
    counts = collections.Counter(path.stem.lower() for path in whole)
    folders = ['_'.join(path.parent.relative_to(shared).parts) for path in whole]
    return [
        f'{folder}_{path.stem}' if folder and counts[path.stem.lower()] > 1 else path.stem
        for path, folder in zip(whole, folders, strict=True)
    ]
