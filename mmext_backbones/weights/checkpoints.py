"""Checkpoints: read, checked before a run, and compared with the model they are for."""

from pathlib import Path
from typing import Any

from .loading import read_file


def read_meta(path: str) -> dict[str, Any]:
    """What a checkpoint says of its run (``epoch``, ``iter``, ``seed``, ...); empty if it is not one local file."""
    if '://' in path or not Path(path).is_file():
        return {}
    checkpoint = read_file(path, 'cpu', mmap=True)
    return checkpoint.get('meta', {}) if isinstance(checkpoint, dict) else {}
