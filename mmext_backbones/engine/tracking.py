"""mmengine's backends for TensorBoard, MLflow and Weights & Biases, whose runs survive a resume.

Each keeps the name of its run in the work dir, and a resumed training goes on with it. Differences from mmengine's:

- TensorBoard hides what was logged after the iteration a training is resumed at, and writes every ten seconds.
- MLflow writes where `mlflow` itself would, ``MLFLOW_TRACKING_URI`` or its default: the folder that mmengine would name
  is a store that MLflow 3 refuses. A resumed run keeps its parameters: MLflow lets none be changed.
- Weights & Biases draws over the iterations, and no code is uploaded: mmengine would send every Python file below the
  current folder, an environment among them.
"""

import atexit
import functools
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.visualization.vis_backend import (
    MLflowVisBackend,
    TensorboardVisBackend,
    WandbVisBackend,
    force_init_env,
)

from ..registry import VISBACKENDS
from ..utils.attempts import MayFail
from ..utils.errors import UserError, first_line
from ..utils.files import is_full, unless_full, write_whole
from ..weights.checkpoints import read_meta

__all__ = ['MLflowBackend', 'TensorBoardBackend', 'WandbBackend']


def _guarded(call: Callable, may_fail: MayFail) -> Callable:
    """The call, whose errors are told once; but a tracker that cannot be started, and a full disk, are for others."""

    @functools.wraps(call)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except Exception as error:
            if isinstance(error, UserError) or is_full(error):
                raise
            with may_fail:
                raise

    return guarded


class _SameRun:
    """For a backend: remembers its run.

    Args:
        save_dir: ``work_dir/<date>/vis_data``, given by the visualizer.
        resume_from: The checkpoint that the training goes on from; None for one that starts.
        **kwargs: Of mmengine's backend.
    """

    KEY: str
    _unwritten: str | None = None

    def __init__(self, save_dir: str, resume_from: str | None = None, **kwargs: Any) -> None:
        super().__init__(save_dir, **kwargs)
        for name in ('add_scalar', 'add_scalars'):
            setattr(self, name, self._noting(getattr(self, name)))
        may_fail = MayFail(f'what {self.KEY} shows')
        for name in ('add_config', 'add_graph', 'add_image', 'add_scalar', 'add_scalars', 'close'):
            setattr(self, name, _guarded(getattr(self, name), may_fail))
        self._resume_from = resume_from
        self._work_dir = Path(save_dir).parents[1]

    @property
    def _file(self) -> Path:
        return self._work_dir / 'tracking.json'

    def _runs(self) -> dict[str, str]:
        try:
            runs = json.loads(self._file.read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        return runs if isinstance(runs, dict) else {}

    def _last_run(self) -> str | None:
        """That of the training which is resumed; one that starts has none."""
        run = self._runs().get(self.KEY) if self._resume_from is not None else None
        return run if isinstance(run, str) else None

    def _remember(self, run: str) -> None:
        """Notes a run once it has shown a number: that of a training which is refused takes no other's place."""
        self._unwritten = run

    def _noting(self, call: Callable) -> Callable:
        @functools.wraps(call)
        def noted(*args: Any, **kwargs: Any) -> Any:
            done = call(*args, **kwargs)
            run, self._unwritten = self._unwritten, None
            if run is not None:
                with MayFail(f'the note of the run of {self.KEY}, with which a resumed training would go on'):
                    self._file.parent.mkdir(parents=True, exist_ok=True)
                    write_whole(self._file, json.dumps({**self._runs(), self.KEY: run}))
            return done

        return noted


@VISBACKENDS.register_module()
class TensorBoardBackend(_SameRun, TensorboardVisBackend):
    """Event files beside mmengine's own log, in the folder of the first start; see `_SameRun`."""

    KEY = 'tensorboard'

    def _init_env(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder, first = self._last_run(), None
        if folder is not None:
            self._save_dir = str(self._work_dir / folder)
            first = read_meta(self._resume_from)['iter'] + 1
        self._remember(Path(self._save_dir).relative_to(self._work_dir).as_posix())
        self._tensorboard = SummaryWriter(self._save_dir, purge_step=first, flush_secs=10)
        atexit.register(self.close)  # after a signal no hook closes it

    @unless_full('TensorBoard')
    def close(self) -> None:
        super().close()


@VISBACKENDS.register_module()
class MLflowBackend(_SameRun, MLflowVisBackend):
    """A run of MLflow, in an experiment called like the work dir; see `_SameRun`."""

    KEY = 'mlflow'

    def _init_env(self) -> None:
        import mlflow
        from mlflow.exceptions import MlflowException

        self._mlflow = mlflow
        run = self._last_run()
        try:
            if run is None:
                name = os.environ.get('MLFLOW_EXPERIMENT_NAME') or self._work_dir.resolve().name
                mlflow.set_experiment(self._exp_name or name)
            started = mlflow.start_run(run, run_name=None if run else Path(self._save_dir).parent.name)
        except MlflowException as error:
            raise UserError(_mlflow_problem(mlflow.get_tracking_uri(), error)) from error
        self._resumed = run is not None
        self._remember(started.info.run_id)

    @force_init_env
    def add_config(self, config: Config, **kwargs: Any) -> None:
        self.cfg = config  # whose logs are copied at the end
        if not self._resumed:
            super().add_config(config, **kwargs)


def _mlflow_problem(address: str, error: Exception) -> str:
    line = first_line(error)
    return (
        f'--track mlflow: no run can be started in {address}: {line}\n'
        'MLFLOW_TRACKING_URI names a server or a store. A store in a local database (sqlite:///mlflow.db) needs the '
        'whole of MLflow: pip install mlflow. One in a folder (file:///...) needs MLFLOW_ALLOW_FILE_STORE=true.'
    )


@VISBACKENDS.register_module()
class WandbBackend(_SameRun, WandbVisBackend):
    """A run of Weights & Biases, in a project called like the work dir; see `_SameRun`."""

    KEY = 'wandb'

    def _init_env(self) -> None:
        import wandb

        run = self._last_run() or secrets.token_hex(4)
        self._init_kwargs = {
            'project': os.environ.get('WANDB_PROJECT') or self._work_dir.resolve().name,
            'name': Path(self._save_dir).parent.name,
            **(self._init_kwargs or {}),
            'id': run,
            'resume': 'allow',
        }
        self._define_metric_cfg = self._define_metric_cfg or [{'name': '*', 'step_metric': 'iter'}]
        try:
            super()._init_env()
        except wandb.Error as error:
            line = first_line(error)
            raise UserError(
                f'--track wandb: no run can be started: {line}\n'
                'wandb login once, or without a network WANDB_MODE=offline and later wandb sync.'
            ) from error
        self._remember(run)

    @force_init_env
    def add_config(self, config: Config, **kwargs: Any) -> None:
        self._wandb.config.update(config.to_dict(), allow_val_change=True)
