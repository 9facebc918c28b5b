"""What a training and a test do before a model is built: the config read, edited and checked."""

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

from ..config.dialect import refuse_old_config
from ..config.editing import ConfigEditor, walk
from ..config.files import load_config
from ..config.options import apply_options
from ..config.values import check_config
from ..datasets.shapes.config import use_shapes
from ..datasets.shapes.files import make_default_shapes
from ..utils.console import QuietStdout, silence_libraries
from ..utils.errors import UserError
from ..utils.files import is_full
from ..weights.checkpoints import check_checkpoint
from .config_edits import fit_device, fit_processes, use_bf16, use_strategy
from .memory import explain_out_of_memory
from .options import RunOptions
from .processes import check_launcher

__all__ = ['check_checkpoints', 'make_work_dir', 'prepare', 'watched']


def prepare(config: str, options: RunOptions, strategy: str | None = None) -> ConfigEditor:
    """The config of a run, with the edits that a training and a test share: Shapes, options, the machine.

    The user's own ``cfg_options`` come after what other options set, and before what the machine demands.

    Args:
        config: Path or name of a config.
        options: Of the run.
        strategy: One of `config_edits.STRATEGY_NAMES`; the config's own when None.

    Returns:
        The editor of the config, which knows what was changed.

    Raises:
        UserError: if the config cannot be read or run, or an option does not fit it.
    """
    silence_libraries()
    check_launcher(options.launcher)
    cfg = load_config(config)
    refuse_old_config(cfg, config)
    if cfg.get('model') is None:
        raise UserError(f'config {config!r} has no model: is it a part that other configs inherit?')
    editor = ConfigEditor(cfg)
    if options.shapes:
        check_config(cfg)
        iters = (options.cfg_options or {}).get('train_cfg.max_iters')
        use_shapes(cfg, make_default_shapes(), editor=editor, **({'iters': iters} if iters else {}))
    if options.bf16:
        use_bf16(editor)
    if strategy is not None:
        use_strategy(editor, strategy)
    apply_options(cfg, options.cfg_options)
    check_config(cfg)
    fit_device(editor, options.launcher)
    fit_processes(editor, options.launcher)
    if cfg.get('default_scope') == 'mmpretrain':
        for split in ('train', 'val', 'test'):
            loader = cfg.get(f'{split}_dataloader')
            if loader is not None:
                loader.setdefault('collate_fn', {'type': 'default_collate'})
    cfg.launcher = options.launcher
    if options.bad_data is not None:
        cfg.bad_data = options.bad_data
    name = Path(cfg.filename).stem + ('_shapes' if options.shapes else '')
    cfg.work_dir = options.work_dir or cfg.get('work_dir') or str(Path('work_dirs') / name)
    _check_name(cfg.work_dir)
    return editor


def _check_name(work_dir: str) -> None:
    """The config that is written there holds the name as text."""
    try:
        work_dir.encode('utf-8')
    except UnicodeEncodeError:
        raise UserError(
            f'work dir {work_dir!a}: the name holds bytes that are no UTF-8. Name another one with --work-dir.'
        ) from None


def make_work_dir(work_dir: str) -> None:
    """Makes the folder where it is not there.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        Path(work_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=work_dir):
            pass
    except OSError as error:
        if not is_full(error):
            raise UserError(
                f'work dir {work_dir!r} cannot be written: {error.strerror}. Name another one with --work-dir.'
            ) from error


def check_checkpoints(cfg: Config) -> None:
    """The checkpoints a training starts from: `load_from`, and `init_cfg` inside the model.

    Raises:
        UserError: as `check_checkpoint`.
    """
    names = [cfg.get('load_from')]
    names += [node.get('checkpoint') for _, node in walk(cfg.model) if node.get('type') == 'Pretrained']
    for name in names:
        if isinstance(name, str) and not (cfg.get('resume') and Path(name).is_dir()):  # DeepSpeed resumes from folders
            check_checkpoint(name)


@contextlib.contextmanager
def watched(cfg: Config, kind: str) -> Iterator[None]:
    """What is built or run inside prints what a person needs only; where memory runs out, the settings that save some.

    Args:
        cfg: Of the run.
        kind: ``'train'`` or ``'test'``.
    """
    with contextlib.redirect_stdout(QuietStdout(sys.stdout)), explain_out_of_memory(cfg, kind):
        yield
