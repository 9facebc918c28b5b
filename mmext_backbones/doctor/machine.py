"""The machine around the libraries: Python, compiler, data folders, memory and space on disks."""

import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

Line = tuple[str, str, str, str | None]  # the fields of a Finding

GIB = 2**30
SHARED_MEMORY = (
    2**26,
    GIB,
)  # bytes of /dev/shm: a problem up to the first (a container's default), a note below the other
DISK = (GIB // 2, 10 * GIB)  # bytes free for work_dirs: a checkpoint of a large model takes more than a GiB
HUB = (0, 2 * GIB)  # bytes free for downloaded weights

# what the configs of detection and segmentation expect by default
STANDARD_DATA = {
    'data/coco': ('annotations/instances_train2017.json', 'annotations/instances_val2017.json', 'train2017', 'val2017'),
    'data/ade/ADEChallengeData2016': ('images/training', 'images/validation', 'annotations/training'),
}


def python() -> str:
    return f'{python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores'


def python_version() -> str:
    return platform.python_version()


def compiler_remedy() -> str | None:
    """What to do for a C compiler, if there is none."""
    compiler = os.environ.get('CC') or 'cc'
    return None if shutil.which(compiler) else f'{compiler!r} is not on the PATH: apt-get install gcc, or set CC'


def standard_data() -> Iterator[Line]:
    for folder, parts in STANDARD_DATA.items():
        if not Path(folder).exists():
            yield folder, 'note', 'not there', f'ln -s /where/it/is {folder}, or train with --shapes'
            continue
        missing = [part for part in parts if not Path(folder, part).exists()]
        if missing:
            yield folder, 'note', f'not there: {", ".join(missing)}', 'unpack the rest of it'
        else:
            yield folder, 'ok', 'there'


def spaces(hub: str | None) -> Iterator[Line]:
    """The shared memory of loader processes, the disk of work_dirs, and the folder of downloaded weights."""
    if Path('/dev/shm').exists():
        remedy = 'docker run --shm-size=8g (or --ipc=host), or train_dataloader.num_workers=0'
        yield _space('/dev/shm', shutil.disk_usage('/dev/shm').total, SHARED_MEMORY, 'for loader processes', remedy)
    yield from _folder('work_dirs', Path('work_dirs'), DISK, '--work-dir on another disk')
    if hub:
        yield from _folder('hub cache', Path(hub), HUB, 'set TORCH_HOME to a folder that can be written')


def _folder(topic: str, folder: Path, limits: tuple[int, int], remedy: str) -> Iterator[Line]:
    """Whether a folder, there or not yet, can be written, and how much."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        if not (there.is_dir() and os.access(there, os.W_OK)):
            yield topic, 'problem', f'{folder} cannot be written', remedy
        else:
            yield _space(topic, shutil.disk_usage(there).free, limits, f'free in {folder}', remedy)
    except OSError as error:
        yield topic, 'problem', f'{folder}: {error}', remedy


def _space(topic: str, size: int, limits: tuple[int, int], where: str, remedy: str) -> Line:
    text = f'{size / GIB:.1f} GiB {where}' if size >= GIB else f'{size / 2**20:.0f} MiB {where}'
    if size <= limits[0]:
        return topic, 'problem', f'only {text}', remedy
    return (topic, 'note', f'only {text}', remedy) if size < limits[1] else (topic, 'ok', text, None)
