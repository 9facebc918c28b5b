"""The checksums of zip files, which torch writes into its checkpoints and does not compare when it reads them."""

import os
import zipfile
from pathlib import Path

from .errors import UserError, first_line

__all__ = ['check_zip']

ZIP_START = b'PK\x03\x04'  # what torch, too, tells a zip file from its older format by


def check_zip(path: str | os.PathLike) -> None:
    """Compares every part of a zip file with its checksum; a file of another format is left alone.

    Files without checksums (`torch.serialization.set_crc32_options(False)`) have zeros in their place and pass.

    Args:
        path: Of a file that is there.

    Raises:
        UserError: if a part differs from its checksum, or the file is no whole zip file.
        OSError: if the file cannot be opened.
    """
    with Path(path).open('rb') as file:
        if file.read(len(ZIP_START)) != ZIP_START:
            return
        try:
            with zipfile.ZipFile(file) as parts:
                damaged = parts.testzip() if any(part.CRC for part in parts.infolist()) else None
        except MemoryError:
            raise
        except Exception as error:  # a damaged table of contents fails in many ways, an OSError among them
            line = first_line(error)
            raise _damaged(path, f'its list of parts cannot be read ({line or type(error).__name__})') from error
    if damaged is not None:
        raise _damaged(path, f'the checksum of its part {damaged!r} is wrong: bytes of it have changed')


def _damaged(path: str | os.PathLike, why: str) -> UserError:
    return UserError(
        f'{os.fspath(path)} is damaged: {why} (a cut download, a bad disk or copy). Fetch it again, or name another.'
    )
