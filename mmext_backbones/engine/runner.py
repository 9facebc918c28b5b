"""Builds the runner of a config."""

import logging
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch.nn import Module

from ..config.inputs import written_by_hand
from ..datasets.bad_data.runner import GuardedData
from ..mmcv_ops.showing import announce
from ..utils.console import shorten_console
from ..weights.checkpoints import rename_weights
from .processes import join_processes
from .resume.runner import ResumableRun
from .resume.starting import CheckedStart


class _Run(GuardedData, ResumableRun, CheckedStart):
    """For a Runner class. The environment, the config and the hooks go to the log file, not over the screen; a test
    leaves the config of the training where it is, in the folder that both share, and a training what a person wrote
    there; and the file that weights come from may hold them under any name, or alone, which neither mmengine nor its
    averaging hooks expect."""

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        # the weights of a model in shards, which a strategy makes, have other shapes and names
        if fn_name == 'after_load_checkpoint' and isinstance(self.model, Module) and not hasattr(self, 'strategy'):
            rename_weights(self.model, kwargs['checkpoint'])
        super().call_hook(fn_name, **kwargs)

    def build_logger(self, *args: Any, **kwargs: Any) -> logging.Logger:
        logger = shorten_console(super().build_logger(*args, **kwargs), testing=self.testing)
        announce(logger)
        return logger

    def dump_config(self) -> None:
        if self.testing or not is_main_process():
            return
        own = written_by_hand(self.cfg, self.work_dir)
        if own is None:
            super().dump_config()
        else:
            self.cfg.dump(own.with_name(f'{own.stem}_as_run{own.suffix}'))

    def build_strategy(self, *args: Any, **kwargs: Any) -> Any:
        """Of a FlexibleRunner, whose strategy has the log."""
        strategy = super().build_strategy(*args, **kwargs)
        announce(shorten_console(strategy.logger, testing=self.testing))
        return strategy


def build_runner(cfg: Config, *, train: bool = True) -> Runner:
    """The runner of a config; `runner_type` is honoured.

    Args:
        cfg: The config.
        train: Whether it is to train. If not, what a training needs is built where a hook asks for it, as in mmengine.
    """
    if not train:
        cfg = _without_halves(cfg)
    join_processes(cfg)
    runner_class = RUNNERS.get(cfg.get('runner_type', 'Runner'))
    runner = type(runner_class.__name__, (_Run, runner_class), {'testing': not train}).from_cfg(cfg)
    if isinstance(runner.model, dict):  # a FlexibleRunner would build it when it starts
        runner.model = runner.strategy.build_model(runner.model)
    return runner


def _without_halves(cfg: Config) -> Config:
    """A copy without a training or validation that is not whole, which mmengine refuses even where neither is run."""
    cfg = cfg.copy()
    needed = ('train_dataloader', 'train_cfg', 'optim_wrapper'), ('val_dataloader', 'val_cfg', 'val_evaluator')
    for keys in needed:
        if any(cfg.get(key) is None for key in keys):
            for key in keys:
                cfg[key] = None
    if cfg.optim_wrapper is None:
        cfg.param_scheduler = None
    return cfg
