"""Which operators run: a line for the log, and a table."""

import importlib.util
import logging
from collections.abc import Iterator
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from ..config.bases import package_folder
from .missing import MISSING

__all__ = ['announce', 'compiled_extension', 'describe', 'mmcv_folder', 'table']

# Configs of mmdet 3.3.0 and mmsegmentation 1.2.2 that use an operator, of the 801 and 681 that have a model: counted by
# the types in the resolved configs. nms, for one, has 664 of mmdet's.
CONFIGS = {
    'nms': (664, 0),
    'roi_align': (409, 0),
    'sigmoid_focal_loss': (256, 4),
    'ms_deform_attn': (84, 13),
    'deform_conv': (82, 0),
    'modulated_deform_conv': (49, 0),
    'masked_im2col': (16, 0),
    'masked_col2im': (16, 0),
    'psamask': (0, 16),
    'sync_bn': (10, 0),
    'softnms': (5, 0),
    'nms_match': (4, 0),
    'carafe': (2, 0),
    'deform_roi_pool': (2, 0),
}
_told: set[str] = set()


def mmcv_folder() -> Path | None:
    """Where mmcv is installed, or None. mmcv is not imported."""
    return package_folder('mmcv')


def compiled_extension() -> ModuleSpec | None:
    """The installed ``mmcv._ext`` that a compiler made; None where there is none. Nothing is imported."""
    folder = mmcv_folder()
    spec = PathFinder.find_spec('mmcv._ext', [str(folder)]) if folder else None
    return None if spec is None or str(spec.origin).endswith('.py') else spec


def describe() -> str | None:
    """One line: which of mmcv's operators run here. None where there is no mmcv."""
    if mmcv_folder() is None:
        return None
    version = import_module('mmcv').__version__
    if compiled_extension() is not None:
        return f"mmcv's operators: compiled (mmcv {version})"
    torchvision = import_module('torchvision').__version__ if importlib.util.find_spec('torchvision') else None
    source = f'torchvision {torchvision} and PyTorch' if torchvision else 'PyTorch (torchvision is not installed)'
    return f"mmcv's operators: {source}; this mmcv ({version}) has no compiled ones"


def announce(log: logging.Logger | None = None) -> None:
    """Writes that line into a log, once.

    Args:
        log: When None, that of the run that is going on, if there is one that keeps a file.
    """
    log = log or _log_of_a_run()
    line = describe() if log is not None and log.name not in _told else None
    if line is not None:
        _told.add(log.name)
        log.info(line)


def _log_of_a_run() -> logging.Logger | None:
    from mmengine.logging import MMLogger

    log = MMLogger.get_current_instance() if MMLogger._instance_dict else None
    kept = log is not None and any(isinstance(handler, logging.FileHandler) for handler in log.handlers)
    return log if kept else None


def table(operators: dict[str, tuple[str, ...]]) -> Iterator[str]:
    """Lines: every operator there is with the configs that use it, then those there are not, by who uses them.

    Args:
        operators: `extension.OPERATORS`.
    """
    yield f'{"operator":<34}{"file":<17}{"configs of mmdet":>17}{"mmsegmentation":>16}'
    for module, names in operators.items():
        for name in names:
            counts = next((counts for prefix, counts in CONFIGS.items() if _is_of(name, prefix)), ('-', '-'))
            yield f'{name:<34}{module + ".py":<17}{counts[0]:>17}{counts[1]:>16}'
    yield ''
    yield 'Not there (they raise when they are called), by who uses them:'
    for users, names in MISSING.items():
        yield f'  {users}'
        yield from (f'    {name}' for name in names)


def _is_of(name: str, prefix: str) -> bool:
    """Whether a function of the extension belongs to an operator: ``deform_conv_backward_input`` to ``deform_conv``."""
    rest = name.removeprefix(prefix)
    return name.startswith(prefix) and rest.partition('_')[2].partition('_')[0] in ('forward', 'backward', '')
