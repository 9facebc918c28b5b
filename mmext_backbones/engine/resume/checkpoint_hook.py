"""A checkpoint hook that never leaves half a file."""

import shutil
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from ...registry import HOOKS
from ...utils.errors import UserError
from ...utils.files import PARTIAL, is_local, remove, write_whole
from .work_dir_lock import is_left_over

__all__ = ['LAST', 'NoRoom', 'WholeCheckpointHook']

LAST = 'last_checkpoint'  # the file in the work dir that names the last checkpoint, mmengine's


class NoRoom(UserError):
    """A checkpoint that does not fit on its disk."""

    def __init__(self, path: Path, needed: int, reason: str) -> None:
        free = shutil.disk_usage(path.parent).free
        super().__init__(
            f'checkpoint {str(path)!r} cannot be written ({reason}): it needs {needed / 1e6:.1f} MB, and there are '
            f'{free / 1e6:.1f} MB free. What was written of it is removed; the checkpoint before it is kept.'
        )


@HOOKS.register_module()
class WholeCheckpointHook(CheckpointHook):
    """mmengine's `CheckpointHook`, safe against being killed and against a full disk.

    An old checkpoint is removed after the new one is whole, and the file ``last_checkpoint`` is renewed between the
    two; so the disk needs room for one checkpoint more than `max_keep_ckpts` and `save_best` keep. That a checkpoint
    itself is whole or not there is the runner's part, see `ResumableRun`.

    On a full disk, a periodic checkpoint is left out with a warning and training goes on to the next one; at the end
    of the training there is no next one, and the run fails.

    The arguments are those of `CheckpointHook`.
    """

    written_at: tuple[int, int] | None = None  # epoch and iteration of the last checkpoint of this process

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        if is_main_process() and is_local(self.out_dir, self.backend_args):
            for leftover in filter(is_left_over, Path(self.out_dir).glob(f'*{PARTIAL}')):
                runner.logger.info(f'{leftover} was not written to its end: removed.')
                remove(leftover)

    def save_for_resume(
        self, runner: Runner, step: int | str, epoch: int, iteration: int, *, again: bool = False
    ) -> str:
        """Writes a checkpoint now, with all that going on needs, whatever the interval and the options say.

        Args:
            runner: The runner.
            step: For the name of the file.
            epoch: Epochs that are done.
            iteration: Iterations that are done.
            again: Also if one was written at this place already: what a validation found came after it.

        Returns:
            The checkpoint.

        Raises:
            NoRoom: on a full disk.
        """
        complete = self.save_optimizer and self.save_param_scheduler
        if again or self.written_at != (epoch, iteration) or not complete:
            options = self.save_optimizer, self.save_param_scheduler
            self.save_optimizer = self.save_param_scheduler = True
            try:
                self._write(runner, step, {'epoch': epoch, 'iter': iteration})
            finally:
                self.save_optimizer, self.save_param_scheduler = options
        return self.last_ckpt

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        try:
            self._write(runner, step, meta)
        except NoRoom as error:
            last = self.is_last_train_epoch(runner) if self.by_epoch else self.is_last_train_iter(runner)
            if last:
                raise
            runner.logger.warning(f'No room: {error} Training goes on to the next one.')

    def _write(self, runner: Runner, step: int | str, meta: dict[str, Any]) -> None:
        hub, last = runner.message_hub, self.last_ckpt
        ids = list(self.keep_ckpt_ids) if self.max_keep_ckpts > 0 else []
        path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))
        written_at = (meta['epoch'], meta['iter'])
        if self.max_keep_ckpts > 0:
            # with those that are removed below: if they are not, a run that is resumed from this checkpoint does it
            hub.update_info('keep_ckpt_ids', [*(i for i in ids if i != step), step])
        hub.update_info('last_ckpt', path)
        try:
            runner.save_checkpoint(
                self.out_dir,
                self.filename_tmpl.format(step),
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
        except NoRoom:
            hub.update_info('last_ckpt', last)
            if self.max_keep_ckpts > 0:
                hub.update_info('keep_ckpt_ids', ids)
            raise
        self.last_ckpt = path
        self.written_at = written_at
        if is_main_process():
            write_whole(Path(runner.work_dir) / LAST, str(path))
        if self.max_keep_ckpts > 0:
            self._keep(runner, [*(i for i in ids if i != step), step])

    def _keep(self, runner: Runner, ids: list[int | str]) -> None:
        """Removes all but the last `max_keep_ckpts` of these."""
        for step in ids[: -self.max_keep_ckpts]:
            self._remove(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step)))
        self.keep_ckpt_ids.clear()
        self.keep_ckpt_ids.extend(ids[-self.max_keep_ckpts :])
        runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, float]) -> None:
        if not self.save_best:
            return
        infos = {key: value for key, value in runner.message_hub.runtime_info.items() if key.startswith('best_')}
        before = self._take_best_paths()  # what it does not know it does not remove
        try:
            super()._save_best_checkpoint(runner, metrics)
        except NoRoom as error:
            for key in [key for key in runner.message_hub.runtime_info if key.startswith('best_')]:
                runner.message_hub.pop_info(key)
            runner.message_hub.update_info_dict(infos)
            self._take_best_paths()
            runner.logger.warning(f'No room: {error}')
        after = self._take_best_paths()
        self._set_best_paths({key: after[key] or path for key, path in before.items()})
        for key, path in before.items():
            if path and after[key] and path != after[key]:
                self._remove(path)

    def _take_best_paths(self) -> dict[str | None, str | None]:
        """The best checkpoint of each metric (of the only one under None), which are forgotten."""
        alone = len(self.key_indicators) == 1
        paths = {None: self.best_ckpt_path} if alone else dict(self.best_ckpt_path_dict)
        self._set_best_paths(dict.fromkeys(paths))
        return paths

    def _set_best_paths(self, paths: dict[str | None, str | None]) -> None:
        if None in paths:
            self.best_ckpt_path = paths[None]
        else:
            self.best_ckpt_path_dict.update(paths)

    def _remove(self, path: str) -> None:
        if is_main_process():
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):  # DeepSpeed's are folders
                self.file_backend.rmtree(path)
