"""Builds the runner of a config."""

import logging
from typing import Any

from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch.nn import Module

from ..datasets.bad_data.runner import GuardedData
from ..mmcv_ops.showing import announce
from ..utils.console import shorten_console
from ..weights.checkpoints import rename_weights
from .processes import join_processes
from .resume.runner import ResumableRun
from .resume.starting import CheckedStart


class _Run(GuardedData, ResumableRun, CheckedStart):
    """For a Runner class. The environment, the config and the hooks go to the log file, not over the screen; a test
    leaves the config of the training where it is, in the folder that both share; and the file that weights come from
    may hold them under any name, or alone, which neither mmengine nor its averaging hooks expect."""

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        if fn_name == 'after_load_checkpoint' and isinstance(self.model, Module):
            rename_weights(self.model, kwargs['checkpoint'])
        super().call_hook(fn_name, **kwargs)

    def build_logger(self, *args: Any, **kwargs: Any) -> logging.Logger:
        logger = shorten_console(super().build_logger(*args, **kwargs), testing=self._train_loop is None)
        announce(logger)
        return logger

    def dump_config(self) -> None:
        if self._train_loop is not None:
            super().dump_config()

    def build_strategy(self, *args: Any, **kwargs: Any) -> Any:
        """Of a FlexibleRunner, whose strategy has the log."""
        strategy = super().build_strategy(*args, **kwargs)
        announce(shorten_console(strategy.logger, testing=self._train_loop is None))
        return strategy


def build_runner(cfg: Config, *, train: bool = True) -> Runner:
    """The runner of a config; `runner_type` is honoured.

    Args:
        cfg: The config.
        train: Build what a training needs; without it, training and validation are left out.
    """
    if not train:
        cfg = cfg.copy()
        for key in ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler'):
            cfg[key] = None
        for key in ('val_dataloader', 'val_cfg', 'val_evaluator'):
            cfg[key] = None
    join_processes(cfg)
    runner_class = RUNNERS.get(cfg.get('runner_type', 'Runner'))
    runner = type(runner_class.__name__, (_Run, runner_class), {}).from_cfg(cfg)
    if isinstance(runner.model, dict):  # a FlexibleRunner would build it when it starts
        runner.model = runner.strategy.build_model(runner.model)
    return runner
