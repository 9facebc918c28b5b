"""What a process holds: memory, threads, files, tensors, and the caches of a package. Reads Linux's /proc."""

import ctypes
import functools
import gc
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

__all__ = ['Usage', 'caches', 'children', 'released', 'resident', 'slope', 'usage']


class Usage(NamedTuple):
    """Resident memory in MiB, and counts."""

    resident: float
    threads: int
    files: int
    tensors: int


def resident(pid: int | str = 'self') -> float:
    """Resident memory of a process in MiB.

    Raises:
        OSError: where there is no such process, or no /proc.
    """
    status = Path(f'/proc/{pid}/status').read_text()
    field = re.search(r'^VmRSS:\s+(\d+) kB$', status, re.MULTILINE)
    if field is None:
        raise ProcessLookupError(f'process {pid} has ended')
    return int(field.group(1)) / 1024


def children(pid: int) -> list[int]:
    """The processes that a process has started and that still run."""
    found = []
    for folder in Path('/proc').glob('[0-9]*'):
        try:
            fields = (folder / 'stat').read_text().rpartition(')')[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(fields[1]) == pid and fields[0] != 'Z':
            found.append(int(folder.name))
    return sorted(found)


def usage() -> Usage:
    """What this process holds after a full collection of garbage, with the allocator's free memory given back."""
    released()
    tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    threads = len(os.listdir('/proc/self/task'))
    return Usage(resident(), threads, len(os.listdir('/proc/self/fd')), tensors)


def released() -> None:
    """Collect garbage, and give the allocator's free memory back to the system where it can be asked to."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # glibc
    if trim is not None:
        trim(0)


def caches(package: str) -> dict[str, tuple[int, int | None]]:
    """(entries, the most it may have; None for any number) of each functools cache that a package has made."""
    kinds = type(functools.lru_cache(str))
    found = {}
    for thing in gc.get_objects():
        if type(thing) is kinds and (thing.__module__ or '').partition('.')[0] == package:
            info, name = thing.cache_info(), f'{thing.__module__}.{thing.__qualname__}'
            size, most = found.get(name, (0, info.maxsize))
            found[name] = max(size, info.currsize), most
    return found


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the least-squares line through the points, in units of y per unit of x."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    width = sum((a - mean_x) ** 2 for a in x)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / width if width else 0.0
