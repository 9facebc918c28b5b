"""From a name like `elsa_swin_t` to the dict of a backbone: its class, its weights and what they expect."""

from dataclasses import dataclass

from ..engine.cost_report import backbone_names
from ..registry import MODELS
from ..utils.errors import did_you_mean

__all__ = ['IMAGENET', 'Network', 'known_network']

IMAGENET = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]  # mean and std in RGB, of the range 0 to 255
HALF = [127.5] * 3, [127.5] * 3
WEIGHTS = {
    'swin_t': 'timm://swin_tiny_patch4_window7_224.ms_in1k',
    'swin_s': 'timm://swin_small_patch4_window7_224.ms_in1k',
    'swin_b': 'timm://swin_base_patch4_window7_224.ms_in1k',
    'swin_l': 'timm://swin_large_patch4_window7_224.ms_in22k',
    'maxvit_t': 'timm://maxvit_tiny_tf_224.in1k',
    'maxvit_s': 'timm://maxvit_small_tf_224.in1k',
    'maxvit_b': 'timm://maxvit_base_tf_224.in1k',
    'maxvit_l': 'timm://maxvit_large_tf_224.in1k',
    'maxvit_xl': 'timm://maxvit_xlarge_tf_224.in21k',
    'sequencer_s': 'timm://sequencer2d_s.in1k',
    'sequencer_m': 'timm://sequencer2d_m.in1k',
    'sequencer_l': 'timm://sequencer2d_l.in1k',
}  # ELSA-Swin's stand on no hub: docs/weights.md
# drop path rates by size, for detection, segmentation and classification: those of configs/
SWIN_RATES = {'t': (0.1, 0.3, 0.2), 's': (0.2, 0.3, 0.3), 'b': (0.3, 0.3, 0.5), 'l': (0.3, 0.3, 0.2)}
DROP_PATH_RATES = {
    'swin': SWIN_RATES,
    'elsa_swin': SWIN_RATES | {'t': (0.1, 0.3, 0.1)},
    'maxvit': {'t': (0.2,) * 3, 's': (0.3,) * 3, 'b': (0.4,) * 3, 'l': (0.6,) * 3, 'xl': (0.7,) * 3},
    'sequencer': {'s': (0.1,) * 3, 'm': (0.2,) * 3, 'l': (0.4,) * 3},
}
TASKS = ('detection', 'segmentation', 'classification')


@dataclass(frozen=True)
class Network:
    """One backbone of this package.

    Attributes:
        name: `swin_t` and the like.
        cls: the registered class.
        arch: its architecture.
        weights: the address of its published weights, or None.
        mean, std: of the RGB images the weights expect.
    """

    name: str
    cls: str
    arch: str
    weights: str | None
    mean: list[float]
    std: list[float]

    def config(
        self, task: str, out_indices: tuple[int, ...], weights: str | None, in_channels: int = 3, with_cp: bool = False
    ) -> dict:
        """The dict of a config; arguments at their defaults are left out, as a person would."""
        family, _, size = self.name.rpartition('_')
        config = {'type': f'{MODELS.scope}.{self.cls}', 'arch': self.arch}
        if in_channels != 3:
            config['in_channels'] = in_channels
        if out_indices != (0, 1, 2, 3):
            config['out_indices'] = out_indices
        config['drop_path_rate'] = DROP_PATH_RATES[family][size][TASKS.index(task)]
        if with_cp:
            config['with_cp'] = True
        config['init_cfg'] = None if weights is None else {'type': 'Pretrained', 'checkpoint': weights}
        return config


def known_network(name: str) -> Network:
    """The network of a name.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
    """
    names = backbone_names()
    if name not in names:
        raise ValueError(f'unknown backbone {name!r}.{did_you_mean(name, list(names))} Known: {", ".join(names)}.')
    cls, arch = names[name]
    mean, std = HALF if name == 'maxvit_xl' else IMAGENET
    return Network(name, cls, arch, WEIGHTS.get(name), list(mean), list(std))
