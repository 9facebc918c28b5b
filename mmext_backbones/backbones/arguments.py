"""Checks of what a backbone is built with: each error names the argument, its value and what was expected."""

import os
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from mmengine.model.weight_init import PretrainedInit

__all__ = [
    'check_flag',
    'check_init_cfg',
    'check_int',
    'check_rate',
    'check_recompute',
    'check_stages',
    'is_int',
    'is_pretrained',
    'resolve_arch',
]

PRETRAINED_KEYS = {'type', 'checkpoint', 'prefix', 'strict', 'map_location', '_scope_'}  # the last is mmengine's


def is_int(value: Any) -> bool:
    """Whether a value is a whole number; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_int(name: str, value: Any, at_least: int = 1) -> None:
    """Raise ValueError unless the value is a whole number that is large enough."""
    if not is_int(value) or value < at_least:
        raise ValueError(f'{name}={value!r}: expected a whole number, at least {at_least}')


def check_rate(name: str, value: Any) -> None:
    """Raise ValueError unless the value is a probability, from 0 to 1."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f'{name}={value!r}: expected a probability, from 0 to 1')


def check_flag(name: str, value: Any) -> None:
    """Raise ValueError unless the value is True or False."""
    if not isinstance(value, (bool, int)) or value not in (True, False):
        raise ValueError(f'{name}={value!r}: expected True or False')


def check_recompute(value: Any) -> None:
    """Raise ValueError unless the value is 'auto', True or False."""
    if value != 'auto' and (not isinstance(value, (bool, int)) or value not in (True, False)):
        raise ValueError(f"recompute={value!r}: expected 'auto', True or False")


def check_stages(name: str, value: Any, num_stages: int) -> tuple[int, ...]:
    """Stages that are named in ascending order, as a tuple.

    Raises:
        ValueError: unless they are distinct whole numbers from 0 to `num_stages` - 1, at least one of them.
    """
    right = isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping))
    stages = tuple(value) if right else ()
    whole = all(is_int(i) and 0 <= i < num_stages for i in stages)
    if not stages or not whole or list(stages) != sorted(set(stages)):
        shown = stages if right else repr(value)
        raise ValueError(f'{name}={shown}: expected ascending, distinct stages from 0 to {num_stages - 1}, as in (0,)')
    return stages


def is_pretrained(cfg: Mapping) -> bool:
    """Whether an initialisation config loads weights."""
    return cfg['type'] in ('Pretrained', PretrainedInit)


def check_init_cfg(init_cfg: Any) -> None:
    """Raise ValueError unless the value is None, an initialisation config, or a list of them."""
    cfgs = [] if init_cfg is None else init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    for cfg in cfgs:
        if not isinstance(cfg, Mapping) or 'type' not in cfg:
            raise ValueError(
                f'init_cfg={init_cfg!r}: expected None, or a dict with a type, as in '
                "dict(type='Pretrained', checkpoint='swin_t.pth'), or a list of such"
            )
        if not is_pretrained(cfg):
            continue
        unknown = [str(key) for key in cfg if key not in PRETRAINED_KEYS]
        if unknown or not isinstance(cfg.get('checkpoint', 0), (str, os.PathLike, type(None))):
            raise ValueError(
                f'init_cfg={dict(cfg)!r}: expected the keys checkpoint (a file or an address) and, if needed, prefix, '
                'strict and map_location'
            )


def resolve_arch(arch: str | Mapping, archs: Mapping[str, Mapping]) -> Mapping:
    """The numbers of a named architecture, or a custom one: a dict of the same keys with values of the same kind.

    Raises:
        ValueError: for an unknown name, a dict with other keys, or a value that is not as those of `archs` are: a whole
            number of at least 1, or a list of such, one a stage.
    """
    if isinstance(arch, str):
        if arch not in archs:
            raise ValueError(f'arch={arch!r}: expected one of {", ".join(archs)}, or a dict')
        return archs[arch]
    known = next(iter(archs.values()))
    if not isinstance(arch, Mapping) or set(arch) != set(known):
        got = sorted(map(str, arch)) if isinstance(arch, Mapping) else repr(arch)
        raise ValueError(f'arch={got}: expected one of {", ".join(archs)}, or a dict with the keys {", ".join(known)}')
    lists = {key: arch[key] for key in known if isinstance(known[key], Sequence)}
    for key, value in arch.items():
        if key not in lists:
            check_int(key, value)
        elif not isinstance(value, (list, tuple)) or not value or not all(is_int(n) and n > 0 for n in value):
            raise ValueError(f'{key}={value!r}: expected whole numbers of at least 1, one a stage as in {known[key]}')
    depths = lists.get('depths', ())
    for key, value in lists.items():
        if len(value) != len(depths) and depths:
            raise ValueError(f'{key}={value}: expected {len(depths)} numbers, one a stage as in depths={depths}')
    return arch
