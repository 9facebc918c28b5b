"""The dict of a backbone in a config, with the drop path rate of its task."""

from ..registry import MODELS
from ..zoo import Network

__all__ = ['backbone_config']

# drop path rates by size, for detection, segmentation and classification: those of configs/
SWIN_RATES = {'t': (0.1, 0.3, 0.2), 's': (0.2, 0.3, 0.3), 'b': (0.3, 0.3, 0.5), 'l': (0.3, 0.3, 0.2)}
VOLO_RATES = {'d1': (0.1,) * 3, 'd2': (0.2,) * 3, **dict.fromkeys(('d3', 'd4', 'd5'), (0.5,) * 3)}
DROP_PATH_RATES = {
    'swin': SWIN_RATES,
    'elsa_swin': SWIN_RATES | {'t': (0.1, 0.3, 0.1)},
    'maxvit': {'t': (0.2,) * 3, 's': (0.3,) * 3, 'b': (0.4,) * 3, 'l': (0.6,) * 3, 'xl': (0.7,) * 3},
    'sequencer': {'s': (0.1,) * 3, 'm': (0.2,) * 3, 'l': (0.4,) * 3},
    'volo': VOLO_RATES,
    'elsa_volo': VOLO_RATES,
}
TASKS = ('detection', 'segmentation', 'classification')
# (family, task) -> further arguments, those of configs/
OPTIONS = {
    (family, task): {'norm_eval': True, **({'window_size': 14} if task == 'detection' else {})}
    for family in ('volo', 'elsa_volo')
    for task in ('detection', 'segmentation')
}


def backbone_config(
    network: Network,
    task: str,
    out_indices: tuple[int, ...],
    weights: str | None,
    in_channels: int = 3,
    with_cp: bool = False,
) -> dict:
    """The dict of a backbone; arguments at their defaults are left out, as a person would.

    Args:
        network: Which backbone.
        task: Of `TASKS`: it decides the drop path rate.
        out_indices: The stages whose maps are wanted.
        weights: Where they are, or None for random ones.
        in_channels: Of the images.
        with_cp: Whether to recompute activations in the backward pass.
    """
    family, _, size = network.name.rpartition('_')
    config = {'type': f'{MODELS.scope}.{network.cls}', 'arch': network.arch}
    if in_channels != 3:
        config['in_channels'] = in_channels
    if out_indices != (0, 1, 2, 3):
        config['out_indices'] = out_indices
    config['drop_path_rate'] = DROP_PATH_RATES[family][size][TASKS.index(task)]
    config |= OPTIONS.get((family, task), {})
    if with_cp:
        config['with_cp'] = True
    config['init_cfg'] = None if weights is None else {'type': 'Pretrained', 'checkpoint': weights}
    return config
