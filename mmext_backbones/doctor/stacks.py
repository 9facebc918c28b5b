"""What `make stacks` measured: which versions run together. The table is written by dev/stacks.py."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..utils.remedies import release

__all__ = ['compare']

TABLE = Path(__file__).with_name('stacks.json')
LIBRARIES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain')


def compare(versions: Mapping[str, str], table: Path = TABLE) -> tuple[str, str] | None:
    """How near the installed versions are to a stack that was measured.

    Args:
        versions: Of what is installed, by import name.
        table: The file of the measurements.

    Returns:
        A level of `Finding` and a text; None without torch or without a measurement.
    """
    torch = versions.get('torch')
    records = json.loads(table.read_text()) if table.is_file() else []
    records = [record for record in records if record['versions']]
    if not torch or not records:
        return None
    same = [record for record in records if _minor(record['versions']['torch']) == _minor(torch)]
    if not same:
        known = sorted({_minor(record['versions']['torch']) for record in records})
        told = ', '.join('.'.join(map(str, version)) for version in known)
        return 'note', f'torch {torch} was not measured; {told} were (docs/compatibility.md)'
    record = min(same, key=lambda each: len(_differences(each, versions)))
    differences = _differences(record, versions)
    beside = f'; here differ: {", ".join(differences)}' if differences else ''
    name = f'{record["name"]}, measured on {record["date"]}'
    if record['failed']:
        return 'note', f'{name}: fails in {", ".join(record["failed"])}{beside}'
    return 'ok', f'{name}: all checks pass{beside}'


def _minor(version: str) -> tuple[int, ...]:
    return (*release(version), 0)[:2]


def _differences(record: Mapping[str, Any], versions: Mapping[str, str]) -> list[str]:
    """Libraries that are installed in another version than the record's: ``mmdet 3.2.0 (3.3.0)``."""
    measured = record['versions']
    told = [
        f'{name} {versions[name]} ({measured[name]})'
        for name in LIBRARIES
        if versions.get(name) and release(versions[name]) != release(measured.get(name, ''))
    ]
    if _minor(versions.get('python', '')) != _minor(measured['python']):
        told.append(f'Python {versions.get("python")} ({measured["python"]})')
    return told
