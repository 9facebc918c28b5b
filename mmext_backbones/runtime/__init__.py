"""What runs an exported model without this package: `predict.py`, one file, copied beside each."""

from pathlib import Path

from ..utils.errors import UserError
from ..utils.files import write_whole

__all__ = ['RUNTIMES', 'copy_runtime']

RUNTIMES = ('onnxruntime', 'openvino')
NAME = 'predict.py'


def copy_runtime(folder: str | Path) -> Path:
    """Writes `predict.py` into a folder, over an earlier one.

    Args:
        folder: Is there.

    Returns:
        The file.

    Raises:
        UserError: if a file of this name is there that is something else.
    """
    text = Path(__file__).with_name(NAME).read_text(encoding='utf-8')
    place = Path(folder) / NAME
    first = text.partition('\n')[0].encode()
    if place.exists() and not (place.is_file() and place.read_bytes().startswith(first)):
        raise UserError(f'{str(place)!r} is there already, and is something else: name another folder, or move it.')
    write_whole(place, text)
    return place
