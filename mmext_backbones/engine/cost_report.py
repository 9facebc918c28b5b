"""From a name to a network, and from its cost to a table: what tools/model_cost.py prints."""

from collections.abc import Mapping
from typing import Any

from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope
from torch import nn

from ..config.options import apply_options
from ..registry import MODELS
from ..utils.errors import UserError, did_you_mean
from .cost import BOX_ROIS, DEFINITION, MASK_ROIS, Cost
from .runs import load_config

__all__ = ['backbone_names', 'build_network', 'cost_table']

FAMILIES = {'swin': 'SwinTransformer', 'elsa_swin': 'ELSASwin', 'maxvit': 'MaxViT', 'sequencer': 'Sequencer2D'}


def backbone_names() -> dict[str, tuple[str, str]]:
    """`swin_t` and the like -> class and arch."""
    names = {}
    for family, cls in FAMILIES.items():
        for arch in MODELS.get(cls).ARCHS:
            letters = 'xl' if arch == 'xlarge' else arch[0]
            names[f'{family}_{letters}'] = cls, arch
    return names


def build_network(name: str, options: Mapping[str, Any] | None = None) -> nn.Module:
    """Builds a backbone or the model of a config, with random weights.

    Args:
        name: `swin_t`, any other of `backbone_names`, or a config as in `runs.load_config`.
        options: Arguments of the backbone, or dotted keys of the config, with values.

    Raises:
        UserError: for an unknown backbone, a config that cannot be read, or one without a model.
    """
    names = backbone_names()
    if name in names:
        cls, arch = names[name]
        return ROOT_MODELS.build({'type': f'{MODELS.scope}.{cls}', 'arch': arch, **(options or {})})
    if not name.endswith('.py') and '::' not in name:
        raise UserError(
            f'{name!r} is neither a backbone nor a config (a file, or library::path.py).'
            f'{did_you_mean(name, list(names))}\nBackbones: {", ".join(names)}.'
        )
    cfg = load_config(name)
    if not isinstance(cfg.get('model'), Mapping):
        raise UserError(f'config {name!r} has no model: there is nothing to build.')
    apply_options(cfg, dict(options or {}))
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    if cfg.get('data_preprocessor') is not None:  # as mmengine's Runner does
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    return ROOT_MODELS.build(cfg.model)


def cost_table(cost: Cost) -> list[str]:
    """Lines of a table: a row for each part and their sum, then what the numbers mean and leave out."""
    rows = [(name, part.params, part.macs, part.activations) for name, part in cost.parts.items()]
    rows.append(('total', cost.params, cost.macs, cost.activations))
    width = max(len(name) for name, *_ in rows)
    header = f'{"":{width}}  {"params (M)":>12}{"MACs (G)":>12}{"activations (M)":>18}'
    lines = [
        f'{name:{width}}  {params / 1e6:>12.2f}{macs / 1e9:>12.3f}{activations / 1e6:>18.2f}'
        for name, params, macs, activations in rows
    ]
    kinds = sorted(cost.macs_by_operator.items(), key=lambda item: -item[1])
    lines = [header, *lines[:-1], '-' * len(header), lines[-1], '']
    lines.append(f'MACs by operator: {", ".join(f"{kind} {macs / 1e9:.3f} G" for kind, macs in kinds)}')
    lines.append(f'{DEFINITION}.')
    if any(name.startswith('roi_head.') for name in cost.parts):
        lines.append(f'Counted on {BOX_ROIS} regions of interest (box heads) and {MASK_ROIS} (mask heads) an image.')
    if cost.not_run:
        lines.append(f'Not run in a prediction, so not counted: {", ".join(cost.not_run)}.')
    if cost.not_counted:
        calls = ', '.join(f'{name} ({number} calls)' for name, number in cost.not_counted.items())
        lines.append(f'Not counted, for want of a formula: {calls}.')
    return lines
