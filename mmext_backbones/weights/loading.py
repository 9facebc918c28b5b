"""Loads weights from files, addresses and hubs, always safely, see `safe_reading`.

`register_schemes` teaches mmengine's CheckpointLoader two addresses and replaces its readers of files:

- ``timm://<model>.<tag>``: the safetensors file of a timm model on the Hugging Face hub;
- ``hf://<owner>/<repository>/<file>``: any file of any repository there;
- a local file, or an ``https://`` address: safetensors, or a checkpoint of tensors and plain values.

The hub's client keeps a cache, shows its progress and honours ``HF_HUB_OFFLINE=1``.
"""

import functools
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.runner import CheckpointLoader, checkpoint

from ..utils.checksums import check_zip
from ..utils.errors import UserError, first_line
from .errors import WeightsError
from .safe_globals import TORCH_TAKES_A_LIST
from .safe_reading import keep_tensors, load

__all__ = ['check_address', 'read', 'register_schemes']


def read(source: str | os.PathLike, map_location: Any = 'cpu') -> Any:
    """The content of a checkpoint.

    Args:
        source: A file, an ``https://`` address, or an address of a scheme that mmengine knows.
        map_location: As in `torch.load`.

    Raises:
        FileNotFoundError: if there is no such file.
        WeightsError: if it is damaged, or holds anything but tensors and plain values.
    """
    return CheckpointLoader.load_checkpoint(os.fspath(source), map_location=map_location, logger='silent')


def read_file(filename: str, map_location: Any = None, *, mmap: bool = False, compare: bool = True) -> Any:
    """As `read`, for a local file.

    Args:
        filename: The file.
        map_location: As in `torch.load`.
        mmap: Leave its tensors on the disk where the format allows.
        compare: Compare its checksums, which reads all of it. Without, for those who look at what it says of itself.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'{filename} can not be found.')
    status = path.stat()
    try:
        if compare:
            _check_bytes(path, status.st_ino, status.st_size, status.st_mtime_ns)
        if path.suffix == '.safetensors':
            return _safetensors(path, map_location)
        return load(path, map_location, mmap=mmap)
    except pickle.UnpicklingError as error:
        if 'Unsupported operand' in str(error):
            raise WeightsError(f'{path} cannot be read: no checkpoint of torch, or a damaged one') from error
        raise WeightsError(_refusal(path, error)) from error
    except (ImportError, WeightsError):
        raise
    except Exception as error:  # a damaged file fails in as many ways as it has bytes
        line = first_line(error)
        raise WeightsError(
            f'{path} cannot be read: {line or type(error).__name__} (a truncated or damaged file? fetch it again)'
        ) from error


@functools.lru_cache(maxsize=32)
def _check_bytes(path: Path, *state: int) -> None:
    """Compares checksums, which torch does not; once for a file that stays as it is, for a run reads it repeatedly."""
    try:
        check_zip(path)
    except UserError as error:
        why = str(error).removeprefix(f'{path} is damaged: ')
        raise WeightsError(f'{path} cannot be read: it is truncated or damaged, {why}') from error


def check_address(address: str) -> None:
    """Looks at the form of an address; nothing is fetched, and whether there is such a file is not asked.

    Raises:
        WeightsError: for a scheme that mmengine does not know, or an address that its scheme does not take.
    """
    scheme, separator, rest = address.partition('://')
    if not separator:
        return
    if not any(prefix and re.match(prefix, address) for prefix in CheckpointLoader._schemes):
        known = [prefix for prefix in CheckpointLoader._schemes if re.fullmatch(r'[\w-]+://', prefix)]
        raise WeightsError(f'{address}: no such scheme as {scheme}://. Known: {", ".join(sorted(known))}')
    if scheme == 'timm':
        _timm_repository(address)
    elif scheme == 'hf':
        _hub_file(address)
    elif scheme in ('http', 'https') and not all(rest.partition('/')[::2]):
        raise WeightsError(f'{address}: expected {scheme}://<host>/<file>')


def register_schemes() -> None:
    """Make mmengine read these addresses, and local files safely."""
    CheckpointLoader.register_scheme(prefixes='', loader=read_file, force=True)
    CheckpointLoader.register_scheme(prefixes=['http://', 'https://'], loader=_read_url, force=True)
    CheckpointLoader.register_scheme(prefixes='timm://', loader=_read_timm, force=True)
    CheckpointLoader.register_scheme(prefixes='hf://', loader=_read_hub, force=True)
    checkpoint.load_from_http = _read_url  # where mmengine's names of published models (openmmlab://, ...) lead
    if not TORCH_TAKES_A_LIST:
        for scheme, loader in CheckpointLoader._schemes.items():
            if loader in (checkpoint.load_from_ceph, checkpoint.load_from_pavi):
                CheckpointLoader._schemes[scheme] = _refuse_scheme


def _refuse_scheme(address: str, map_location: Any = None) -> Any:
    """mmengine reads these with `torch.load` as it is, which is safe from torch 2.6 on."""
    raise WeightsError(f'{address} is not read: safe with torch 2.6 or newer, and this is {torch.__version__}.')


def _read_url(address: str, map_location: Any = None) -> Any:
    """A file from the net, by way of torch's cache of downloads."""
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    path = folder / Path(urlparse(address).path).name
    rank, world_size = get_dist_info()
    if rank == 0 and not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(address, str(path))
        except (OSError, RuntimeError) as error:
            raise WeightsError(f'{address} cannot be fetched: {error}') from error
    if world_size > 1:
        barrier()
    return read_file(str(path), map_location)


def _read_timm(address: str, map_location: Any = None) -> Any:
    return read_file(_fetch(address, _timm_repository(address), 'model.safetensors'), map_location)


def _timm_repository(address: str) -> str:
    name = address.removeprefix('timm://')
    if '/' in name or '.' not in name.strip('.'):
        raise WeightsError(
            f'{address}: expected timm://<model>.<tag>, as in timm://swin_tiny_patch4_window7_224.ms_in1k'
        )
    return f'timm/{name}'


def _read_hub(address: str, map_location: Any = None) -> Any:
    return read_file(_fetch(address, *_hub_file(address)), map_location)


def _hub_file(address: str) -> tuple[str, str]:
    """Repository and file of a ``hf://`` address."""
    owner, _, rest = address.removeprefix('hf://').partition('/')
    repository, _, file = rest.partition('/')
    if not (owner and repository and file):
        raise WeightsError(f'{address}: expected hf://<owner>/<repository>/<file>')
    return f'{owner}/{repository}', file


def _fetch(address: str, repository: str, file: str) -> str:
    """The path of a file of the hub in the local cache; it is downloaded where it is missing."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise ImportError(f'{address}: needs the hub client, pip install "mmext_backbones[hub]"') from error
    try:
        return hf_hub_download(repository, file)
    except LocalEntryNotFoundError as error:
        raise WeightsError(
            f'{address}: not in the local cache, and the hub cannot be reached (or HF_HUB_OFFLINE is set)'
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        reason = first_line(error)
        raise WeightsError(f'{address}: the hub has no {file} in {repository}, or refuses it: {reason}') from error


def _safetensors(path: Path, map_location: Any) -> Mapping[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f'{path}: needs safetensors, pip install "mmext_backbones[hub]"') from error
    try:
        return load_file(path, device=str(map_location or 'cpu'))
    except SafetensorError as error:
        raise RuntimeError(str(error)) from error


def _refusal(path: Path, error: Exception) -> str:
    text = str(error)
    culprit = text.partition('GLOBAL ')[2].split()[:1] or text.partition('Unsupported global: GLOBAL ')[2].split()[:1]
    what = f'refers to {culprit[0]}' if culprit else text.strip().partition('\n')[0]
    return (
        f'{path} is not read: it {what}, and a checkpoint that refers to code can run it. If you trust whoever made '
        'it, keep its tensors alone, in a file OUT: run, where its project is installed,\n'
        + keep_tensors(path, "torch.load({}, map_location='cpu', weights_only=False)")
    )
