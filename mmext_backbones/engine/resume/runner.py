"""A runner whose trainings can be interrupted at any moment and resumed."""

import functools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.logging import MMLogger
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from mmengine.runner.base_loop import BaseLoop
from mmengine.visualization import Visualizer
from torch.utils.data import DataLoader

from ...utils.files import PARTIAL, is_full, is_local, move_into_place, remove, unless_full
from ...weights.checkpoints import read_meta
from .batches import NumberedBatches, number_batches
from .checkpoint_hook import NoRoom
from .signals import LoaderProcesses, any_process, release_signals
from .work_dir_lock import lock_work_dir

__all__ = ['ResumableRun']


class ResumableRun:
    """For a Runner class, which comes after it among the bases.

    A checkpoint is written beside its place and renamed, so that it is whole or not there. Batches are numbered, so
    that a resumed training starts at the right one without loading those before. On a full disk, logs and curves are
    left out.

    Attributes:
        testing: Whether this runs no training.
        numbered_batches: Of the training; None where they cannot be numbered.
        first_batch: The number that an iteration-based training starts at.
    """

    testing = False
    numbered_batches: NumberedBatches | None = None
    first_batch = 0
    _checkpoint_bytes = 0
    _place: dict[str, int] | None = None

    @functools.cached_property
    def _loader_processes(self) -> LoaderProcesses:
        return LoaderProcesses()

    def train(self) -> torch.nn.Module:
        try:
            with lock_work_dir(self.work_dir):
                return super().train()
        finally:
            self._loader_processes.end()
            release_signals()

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        loader = self._train_dataloader
        if not self.testing and isinstance(loop, dict) and isinstance(loader, dict) and 'dataset' in loader:
            kind = loop.get('type') or ('EpochBasedTrainLoop' if loop.get('by_epoch') else 'IterBasedTrainLoop')
            kind = LOOPS.get(kind) if isinstance(kind, str) else kind
            if isinstance(kind, type) and issubclass(kind, (EpochBasedTrainLoop, IterBasedTrainLoop)):
                self._number_batches(endless=issubclass(kind, IterBasedTrainLoop))
        return super().build_train_loop(loop)

    def build_val_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        built = super().build_val_loop(loop)
        if not self.testing and isinstance(loop, dict) and isinstance(built.dataloader, DataLoader):
            self._loader_processes.guard(built.dataloader)
        return built

    def _number_batches(self, *, endless: bool) -> None:
        loader = self.build_dataloader(
            self._train_dataloader,
            seed=self.seed,
            diff_rank_seed=self._randomness_cfg.get('diff_rank_seed', False),
        )
        self._loader_processes.guard(loader)
        self.numbered_batches = number_batches(loader, self.seed, endless=endless)
        if self.numbered_batches is not None and endless and self._resume and self._load_from:
            # an iteration-based loop starts to load before the checkpoint is read
            self.first_batch = read_meta(self._load_from).get('iter', 0)
            self.numbered_batches.start_at(0, self.first_batch)
        self._train_dataloader = loader

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        super().call_hook(fn_name, **kwargs)
        if fn_name == 'before_save_checkpoint':
            checkpoint = kwargs['checkpoint']
            checkpoint['meta'].update(self._place or {})  # FlexibleRunner's own is one iteration late after validation
            self._checkpoint_bytes = _num_bytes(checkpoint)

    def save_checkpoint(
        self, out_dir: str, filename: str, file_client_args: dict | None = None, **options: Any
    ) -> None:
        """As mmengine's, with options by name; called by all processes.

        Raises:
            NoRoom: on a full disk. The file is then what it was before.
        """
        self._place = {key: value for key, value in (options.get('meta') or {}).items() if key in ('epoch', 'iter')}
        self.call_hook('before_save_on_all_processes')
        local = is_local(out_dir, options.get('backend_args'), file_client_args)
        path = Path(out_dir, filename)
        partial = path.with_name(path.name + PARTIAL)
        error = None
        try:
            super().save_checkpoint(out_dir, partial.name if local else filename, file_client_args, **options)
        except OSError as problem:
            error = problem
        failed = any_process(error is not None)  # each may have its part
        if local and not failed and is_main_process():
            try:
                move_into_place(partial, path)
            except OSError as problem:
                error = problem
        if local and (failed or error is not None):
            remove(partial)
        if error is not None and not (local and is_full(error)):
            raise error
        if failed or error is not None:
            raise NoRoom(path, self._checkpoint_bytes, error.strerror if error else 'another process failed')

    def build_visualizer(self, *args: Any, **kwargs: Any) -> Visualizer:
        visualizer = super().build_visualizer(*args, **kwargs)
        for name in ('add_config', 'add_graph', 'add_image', 'add_scalar', 'add_scalars', 'add_datasample'):
            if hasattr(visualizer, name):
                setattr(visualizer, name, unless_full('logs and pictures')(getattr(visualizer, name)))
        return visualizer

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handleError = _unless_full(handler.handleError)
        return logger


def _unless_full(complain: Callable[[logging.LogRecord], None]) -> Callable[[logging.LogRecord], None]:
    """What a log handler does about an error: nothing on a full disk, where a traceback for each line helps nobody."""

    def handle(record: logging.LogRecord) -> None:
        if not is_full(sys.exc_info()[1]):
            complain(record)

    return handle


def _num_bytes(node: Any) -> int:
    """Bytes of all tensors in nested dicts and lists."""
    if isinstance(node, torch.Tensor):
        return node.numel() * node.element_size()
    if isinstance(node, dict):
        return sum(_num_bytes(value) for value in node.values())
    return sum(_num_bytes(value) for value in node) if isinstance(node, (list, tuple)) else 0
