"""Predicts with a file in place of the network: exported and compared at the first use, kept beside the weights."""

import hashlib
import os
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config

from ..engine.evaluation.exported import ExportedModel
from ..runtime import RUNTIMES
from ..utils.console import say
from ..utils.errors import UserError
from ..version import __version__
from .loading import described
from .network import Network

__all__ = ['check_runtime', 'run_exported']


def check_runtime(runtime: str, device: str | torch.device | None, tta: bool) -> str | torch.device | None:
    """The device of a runtime.

    Raises:
        UserError: for a runtime that is not known or not installed, and for what no file does.
    """
    if runtime == 'torch':
        return device
    if runtime not in RUNTIMES:
        raise UserError(f'runtime {runtime!r}: expected torch, {", ".join(RUNTIMES)}.')
    if tta:
        raise UserError(f'several views of a picture (--tta) are for the runtime torch, not for {runtime}.')
    if device is not None and torch.device(device).type != 'cpu':
        raise UserError(f'device {str(device)!r}: {runtime} computes on the CPU here; leave the device out.')
    from ..export.writing import PACKAGES

    missing = sorted(name for name in {runtime, *PACKAGES} if find_spec(name) is None)
    if missing:
        raise UserError(f'the runtime {runtime} needs more packages: pip install {" ".join(missing)}')
    return 'cpu'


def run_exported(network: Network, cfg: Config, weights: str, runtime: str) -> ExportedModel:
    """What predicts as the network does, by a file.

    The file is written at the first use, run beside the network, and kept beside the weights, or, where those come from
    an address or lie where nothing can be written, in the folder of torch.hub. Its name has a checksum of the weights,
    of what else decides about predictions, and of the versions of torch and of this package.

    Args:
        network: On the CPU.
        cfg: What it was built from.
        weights: A file or an address.
        runtime: ``'onnxruntime'`` or ``'openvino'``.

    Raises:
        UserError: for a model that cannot be exported, or whose file predicts something else.
    """
    path = _place(network, cfg, weights, runtime)
    if path.is_file():
        say(f'{path}: exported before, run by {runtime}')
    else:
        _write(network, cfg, weights, runtime, path)
    return ExportedModel(str(path), runtime).eval()


def _write(network: Network, cfg: Config, weights: str, runtime: str, path: Path) -> None:
    from ..export import ParityError, export_whole

    say(f'The model is exported for {runtime}, this once: it takes minutes.')
    loaded = described(network, cfg, weights)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made = export_whole(loaded.model, path, metadata=loaded.metadata, openvino=runtime == 'openvino')
    except (ImportError, ParityError, RuntimeError, ValueError) as error:
        raise UserError(f'the model cannot be run by {runtime}: {error}') from error
    worst = {name: max(row.value for row in made.rows if row.name == name) for name in {row.name for row in made.rows}}
    differences = ', '.join(f'{name} {value:.1e}' for name, value in sorted(worst.items()))
    say(f'{path}: compared with the model, largest differences: {differences}')


def _place(network: Network, cfg: Config, weights: str, runtime: str) -> Path:
    file = Path(weights)
    beside = file.is_file() and os.access(file.resolve().parent, os.W_OK)
    folder = file.parent if beside else Path(torch.hub.get_dir()) / 'exported'
    return folder / f'{file.stem}.{_checksum(network, cfg, runtime)[:16]}.onnx'


def _checksum(network: Network, cfg: Config, runtime: str) -> str:
    digest = hashlib.sha256()
    for name, tensor in network.model.state_dict().items():
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())
    settings = (cfg.model, cfg.get('data_preprocessor'), network.classes, runtime, torch.__version__, __version__)
    digest.update(repr(settings).encode())
    return digest.hexdigest()
