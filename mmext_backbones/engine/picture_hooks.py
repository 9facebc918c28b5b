"""Hooks that draw loss and metric curves, and predictions beside the ground truth.

Both write one PNG in the work dir, renewed after each validation, so that a run that is cut short leaves its picture.
They know no library: what they draw follows from what the run recorded and what the model predicted. What they cannot
draw or write they leave out with one warning: no run ends over a picture.
"""

import json
import math
import numbers
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..drawing.charts import Line, Panel, draw_chart, is_main_metric
from ..drawing.files import write_picture
from ..drawing.samples import can_draw, draw_sides, has_two_sides, sheet
from ..registry import HOOKS
from ..utils.attempts import MayFail
from ..utils.errors import UserError
from ..utils.files import in_place, write_whole
from .evaluation.shown import ShownPictures

__all__ = ['CurvesHook', 'PredictionsHook']


@HOOKS.register_module()
class CurvesHook(Hook):
    """Keeps losses and metrics in ``curves.json`` and draws them in ``curves.png``.

    A resumed run goes on from the points of the run before it.

    Args:
        interval: Iterations between two points; each is the mean over them. It doubles whenever there are more than
            `max_points`.
        max_points: Points kept of a loss.
    """

    priority = 'LOW'

    def __init__(self, interval: int = 10, max_points: int = 2000) -> None:
        self.interval = interval
        self.max_points = max_points
        self.losses: dict[str, list[tuple[int, float]]] = {}
        self.metrics: dict[str, list[tuple[int, float]]] = {}
        self._drawn = ''  # points of the picture that is there
        self._may_fail = MayFail('curves of losses and metrics')

    def before_train(self, runner: Runner) -> None:
        if runner.iter == 0:
            return
        folders = [Path(runner.work_dir)] + ([Path(runner._load_from).parent] if runner._load_from else [])
        for path in (folder / 'curves.json' for folder in folders):
            if path.is_file():
                with MayFail(f'the curves of the run before, {path}'):
                    self.interval, self.losses, self.metrics = _read_curves(path, runner.iter)
                return

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        step = runner.iter + 1
        if step % self.interval == 0 and is_main_process():
            with self._may_fail:
                self._add_losses(runner, step)

    def _add_losses(self, runner: Runner, step: int) -> None:
        """A point at `step`, the mean of what came after the last one, at most `interval` iterations."""
        for key, buffer in runner.message_hub.log_scalars.items():
            if key.startswith('train/') and 'loss' in key:
                points = self.losses.setdefault(key.removeprefix('train/'), [])
                window = min(self.interval, step - points[-1][0] if points else step)
                if window > 0:
                    points.append((step, float(buffer.mean(window))))
        if any(len(points) > self.max_points for points in self.losses.values()):
            self.losses = {key: points[1::2] for key, points in self.losses.items()}
            self.interval *= 2

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        if not is_main_process():
            return
        with self._may_fail:
            for key, value in (metrics or {}).items():
                if isinstance(value, numbers.Real) and math.isfinite(value):
                    points = [point for point in self.metrics.get(key, []) if point[0] < runner.iter]  # if repeated
                    self.metrics[key] = [*points, (runner.iter, float(value))]
            self._write(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if is_main_process():
            with self._may_fail:
                self._save(runner)  # for a run that goes on from this checkpoint

    def after_train(self, runner: Runner) -> None:
        if is_main_process():
            with self._may_fail:
                self._write(runner)

    def _save(self, runner: Runner) -> str:
        points = json.dumps({'interval': self.interval, 'losses': self.losses, 'metrics': self.metrics})
        write_whole(Path(runner.work_dir) / 'curves.json', points)
        return points

    def _write(self, runner: Runner) -> None:
        self._add_losses(runner, runner.iter)
        if not self.losses:  # a validation without training
            return
        points = self._save(runner)
        if points != self._drawn:  # a training often ends with a validation
            work_dir = Path(runner.work_dir)
            self._draw(work_dir / 'curves.png', title=work_dir.name)
            self._drawn = points

    def _draw(self, path: Path, title: str) -> None:
        total = {'color': 'black', 'linewidth': 2}
        losses = [
            Line('total', self.losses[name], style=total)
            if name == 'loss'
            else Line(name, self.losses[name], style={'linewidth': 1.1})
            for name in sorted(self.losses, key=lambda name: name != 'loss')
        ]
        shown = {name: points for name, points in self.metrics.items() if points and is_main_metric(name)}
        metrics = [Line(name.rpartition('/')[2], points, style={'marker': 'o'}) for name, points in shown.items()]
        percent = any(value > 1 for points in shown.values() for _, value in points)
        panels = [
            Panel(f'training loss (mean of {self.interval} iterations)', 'loss', losses, (0, None)),
            Panel(
                'validation',
                'percent' if percent else 'metric, 0 to 1',
                metrics,
                (0, 100 if percent else 1),
                'no validation yet',
            ),
        ]
        with in_place(path) as partial:
            draw_chart(panels, title, columns=2, size=(5.5, 4.4)).savefig(partial, dpi=110)


def _read_curves(path: Path, until: int) -> tuple[int, dict[str, list], dict[str, list]]:
    """Interval, losses and metrics of an earlier run up to an iteration."""
    saved = json.loads(path.read_text(encoding='utf-8'))
    interval = int(saved['interval'])
    if interval < 1:
        raise ValueError(f'interval {interval}')
    curves = []
    for name in ('losses', 'metrics'):
        points = {str(key): [(int(step), float(value)) for step, value in each] for key, each in saved[name].items()}
        curves.append({key: [point for point in each if point[0] <= until] for key, each in points.items()})
    return interval, *curves


@HOOKS.register_module()
class PredictionsHook(Hook):
    """Draws some validation images with their ground truth and what the model predicts, as ``predictions.png``.

    Boxes, masks and semantic maps are drawn by `drawing`, all else by the visualizer of the config. Images, boxes and
    masks are brought to one size first, so that the labels stay legible on small images. Of an image that is no file
    of a picture (many bands, arrays, archives) what the pipeline made of it is shown, see `drawing.pixels.to_rgb`.

    Args:
        num_images: Images on the sheet, spread over the data set.
        edge: Longer side of an image on the sheet, in pixels.
        score_thr: Least score of a box that is drawn.
        show_dir: In a test, a folder for a picture of every image; none when None.
        file: The sheet; ``predictions.png`` in the work dir when None.
    """

    priority = 'LOW'

    def __init__(
        self,
        num_images: int = 6,
        edge: int = 512,
        score_thr: float = 0.5,
        show_dir: str | None = None,
        file: str | None = None,
    ) -> None:
        self.num_images = num_images
        self.edge = edge
        self.score_thr = score_thr
        self.show_dir = show_dir
        self.file = file
        self.tiles: list[np.ndarray] = []
        self._pairs = False
        self._shown: ShownPictures | None = None
        self._may_fail = MayFail('pictures of predictions')

    def before_test(self, runner: Runner) -> None:
        if self.show_dir is not None and can_draw(runner.visualizer):
            try:
                Path(self.show_dir).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f'--show-dir {self.show_dir} cannot be written: {error.strerror}.') from error
            self._shown = ShownPictures(runner.test_dataloader.dataset, self.show_dir, runner.cfg)

    def before_val_epoch(self, runner: Runner) -> None:
        self.tiles = []

    def before_test_epoch(self, runner: Runner) -> None:
        self.tiles = []

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: Sequence | None = None
    ) -> None:
        with self._may_fail:
            self._collect(runner, runner.val_dataloader, batch_idx, data_batch, outputs)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: Sequence | None = None
    ) -> None:
        with self._may_fail:
            self._collect(runner, runner.test_dataloader, batch_idx, data_batch, outputs)
        if self.show_dir is None or not can_draw(runner.visualizer):
            return
        for sample, inputs in _with_inputs(outputs, data_batch):
            with self._may_fail:
                self._show(runner, sample, inputs)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        with self._may_fail:
            self._write(runner, f'iteration {runner.iter}', metrics or {})

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        with self._may_fail:
            self._write(runner, 'test', metrics or {})

    def _collect(
        self,
        runner: Runner,
        loader: torch.utils.data.DataLoader,
        batch_idx: int,
        data_batch: dict | None,
        outputs: Sequence | None,
    ) -> None:
        if not is_main_process() or self.num_images < 1:
            return
        wanted = np.linspace(0, len(loader) - 1, min(self.num_images, len(loader))).round().astype(int)
        if batch_idx not in wanted:
            return
        for sample, inputs in _with_inputs(outputs, data_batch)[: -(-self.num_images // len(loader))]:
            if len(self.tiles) < self.num_images:
                tile = self._draw(runner, loader, sample, inputs)
                if tile is not None:
                    self._pairs = has_two_sides(sample)
                    self.tiles.append(tile)

    def _show(self, runner: Runner, sample: Any, inputs: torch.Tensor | None) -> None:
        """The picture of one image of a test."""
        if self._shown is None:
            self.before_test(runner)
        image = self._draw(runner, runner.test_dataloader, sample, inputs, shrink=False)
        if image is not None:
            write_picture(self._shown(sample), image)

    def _draw(
        self,
        runner: Runner,
        loader: torch.utils.data.DataLoader,
        sample: Any,
        inputs: torch.Tensor | None,
        shrink: bool = True,
    ) -> np.ndarray | None:
        if not can_draw(runner.visualizer):
            return None
        metainfo = loader.dataset.metainfo
        return draw_sides(runner.visualizer, metainfo, sample, self.edge, self.score_thr, shrink, inputs)

    def _write(self, runner: Runner, when: str, metrics: dict[str, float]) -> None:
        if not self.tiles or not is_main_process():
            return
        values = [
            f'{name.rpartition("/")[2]} {value:.3f}'
            for name, value in metrics.items()
            if isinstance(value, numbers.Real) and is_main_metric(name) and not name.endswith('_50')
        ]
        sides = 'left: ground truth, right: prediction' if self._pairs else 'ground truth and prediction'
        title = ', '.join([f'{Path(runner.work_dir).name}, {when}', sides, *values])
        picture = sheet(self.tiles, title, columns=2 if self._pairs else 4)
        write_picture(Path(self.file or Path(runner.work_dir) / 'predictions.png'), picture)


def _with_inputs(outputs: Sequence | None, data_batch: Any) -> list[tuple[Any, torch.Tensor | None]]:
    """Each data sample of a batch with what the pipeline made of its image, where the batch has that for each."""
    samples = list(outputs or [])
    inputs = data_batch.get('inputs') if isinstance(data_batch, dict) else None
    if not isinstance(inputs, (list, tuple, torch.Tensor)) or len(inputs) != len(samples):
        return [(sample, None) for sample in samples]
    return list(zip(samples, inputs, strict=True))
