"""Where a training is followed: TensorBoard's event files, MLflow or Weights & Biases, through mmengine's backends.

A training that is resumed in its work dir goes on as the same run of the tracker: which one that is stands in
``tracking.json`` there. All is written by the first process alone, as mmengine's visualizer does it.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config

from ..config.editing import Change, ConfigEditor
from ..utils.console import say
from ..utils.errors import UserError

__all__ = ['TRACKERS', 'track']

TRACKERS = ('tensorboard', 'mlflow', 'wandb', 'none')

# mmengine's backend, whose name ours takes for hooks that ask the visualizer for it; ours; the packages it needs
BACKENDS = {
    'tensorboard': ('TensorboardVisBackend', 'mmext_backbones.TensorBoardBackend', 'tensorboard'),
    'mlflow': ('MLflowVisBackend', 'mmext_backbones.MLflowBackend', 'mlflow'),
    'wandb': ('WandbVisBackend', 'mmext_backbones.WandbBackend', 'wandb'),
}


def track(cfg: Config, trackers: Sequence[str] | None = None) -> list[Change]:
    """Adds trackers to the visualizer of a config, beside those it has.

    Args:
        cfg: The config of a training, edited in place; `resume` and `load_from` are set.
        trackers: Of `TRACKERS`; TensorBoard, where it is installed, when None.

    Returns:
        What was changed.

    Raises:
        UserError: for a tracker that is asked for and not installed.
    """
    asked = trackers is not None
    trackers = list(dict.fromkeys(trackers or ['tensorboard']))
    if 'none' in trackers and len(trackers) > 1:
        raise UserError(f'--track {" ".join(trackers)}: none goes with no other tracker.')
    backends = _backends(cfg)
    added, present = [], list(backends)
    for name in trackers:
        if name == 'none':
            continue
        theirs, ours, package = BACKENDS[name]
        backend = {'type': ours, 'name': theirs}
        if cfg.get('resume'):
            backend['resume_from'] = cfg.load_from
        # ours is there already in the config that an earlier training left: of another checkpoint, perhaps
        named = [theirs in (_class_name(each), each.get('name')) for each in present]
        if any(named):
            place = named.index(True)
            if _class_name(present[place]) == _class_name(backend):
                backends[place] = backend
            continue
        if importlib.util.find_spec(package) is None:
            if asked:
                raise UserError(f'--track {name}: {package} is not installed. pip install {package}')
            say(f'{package} is not installed: this training leaves no event files (pip install {package}).')
            continue
        added.append(backend)
    if not added and backends == present:
        return []
    editor = ConfigEditor(cfg)
    if cfg.get('visualizer') is None:
        editor.set('visualizer', {'type': 'Visualizer', 'vis_backends': [{'type': 'LocalVisBackend'}, *added]})
    else:
        editor.set('visualizer.vis_backends', [*backends, *added])
    return editor.changes


def _class_name(backend: Mapping[str, Any]) -> str:
    return str(backend.get('type')).rpartition('.')[2]


def _backends(cfg: Config) -> list[dict]:
    """Those of the config's visualizer; mmengine also takes one without a list."""
    backends = (cfg.get('visualizer') or {}).get('vis_backends') or []
    return [backends] if isinstance(backends, dict) else list(backends)
