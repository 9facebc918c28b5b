"""The backbones by names like `swin_t`: class, arch, published weights and normalisation; and how to build them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope
from torch import nn

from .config.files import load_config, own_configs
from .config.options import apply_options
from .registry import MODELS
from .utils.errors import UserError, did_you_mean

__all__ = ['IMAGENET', 'Network', 'backbone_names', 'block_classes', 'build_network', 'is_config', 'known_network']

FAMILIES = {
    'swin': 'SwinTransformer',
    'elsa_swin': 'ELSASwin',
    'maxvit': 'MaxViT',
    'sequencer': 'Sequencer2D',
    'volo': 'VOLO',
    'elsa_volo': 'ELSAVOLO',
}
SIZES = {'tiny': 't', 'small': 's', 'medium': 'm', 'base': 'b', 'large': 'l', 'xlarge': 'xl'}  # others as they are
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
    **{f'volo_d{i}': f'timm://volo_d{i}_224.sail_in1k' for i in range(1, 6)},
}  # ELSA-Swin's stand on no hub: docs/weights.md; ELSA-VOLO has none


@dataclass(frozen=True)
class Network:
    """One backbone of this package.

    Attributes:
        name: `swin_t` and the like.
        cls: the registered class.
        arch: its architecture.
        weights: the address of its published weights, or None.
        mean: of the RGB images the weights expect, in 0 to 255.
        std: of the same.
    """

    name: str
    cls: str
    arch: str
    weights: str | None
    mean: list[float]
    std: list[float]


def backbone_names() -> dict[str, tuple[str, str]]:
    """`swin_t` and the like -> class and arch."""
    names = {}
    for family, cls in FAMILIES.items():
        for arch in MODELS.get(cls).ARCHS:
            names[f'{family}_{SIZES.get(arch, arch)}'] = cls, arch
    return names


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


def block_classes() -> tuple[type[nn.Module], ...]:
    """The blocks of every backbone in our registry."""
    found = [cls for backbone in MODELS.module_dict.values() for cls in getattr(backbone, 'BLOCK_CLASSES', ())]
    return tuple(dict.fromkeys(found))


def is_config(name: str) -> bool:
    """Whether a name is one of a config, and not of a backbone."""
    return name.endswith('.py') or '::' in name or name in own_configs()


def build_network(name: str, options: Mapping[str, Any] | None = None) -> nn.Module:
    """Builds a backbone or the model of a config, with random weights.

    Args:
        name: `swin_t`, any other of `backbone_names`, or a config as in `config.files.load_config`.
        options: Arguments of the backbone, or dotted keys of the config, with values.

    Raises:
        UserError: for an unknown backbone, a config that cannot be read, or one without a model.
    """
    names = backbone_names()
    if name in names:
        cls, arch = names[name]
        return ROOT_MODELS.build({'type': f'{MODELS.scope}.{cls}', 'arch': arch, **(options or {})})
    if not is_config(name):
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
