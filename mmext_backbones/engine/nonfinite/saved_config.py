"""What the config inside a saved batch may name: registered parts of models, and no files.

mmengine builds whatever the ``type`` of a config names, any function of any module included, and imports what a scope
names. Some registered parts read files that their arguments name, by readers that run what is in them, or evaluate an
argument as Python. A saved batch may come from anywhere, so its config is looked at before anything of it is imported
or built.
"""

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import MODELS, TASK_UTILS, DefaultScope

from ...registry import SCOPE
from ...utils.errors import UserError

__all__ = ['checked_model', 'scope_of']

SCOPES = ('mmengine', 'mmcv', SCOPE, *MODULE2PACKAGE)
# what the toolboxes take from mmcv.ops by its name, without a registry
OPERATORS = ('nms', 'soft_nms', 'nms_match', 'nms_rotated', 'nms_quadri')
OPERATORS += ('RoIAlign', 'RoIPool', 'RoIAlignRotated', 'RiRoIAlignRotated', 'SimpleRoIAlign', 'PrRoIPool')
OPERATORS += ('DeformRoIPool', 'DeformRoIPoolPack', 'ModulatedDeformRoIPoolPack')
WEIGHTS = ('init_cfg', 'pretrained')  # where first weights come from: the saved ones replace them
DEEPEST, MOST = 64, 1_000_000  # levels and values of a config
# A text that could name a file or an address, or be evaluated to a call
NOT_PLAIN = re.compile(
    r'(?<!\d)/|/(?!\d)|[\\()`\0]|\.(py|pkl|pickle|pth?|ckpt|bin|json|ya?ml|np[yz]|safetensors|txt|model|h5)\s*$',
    re.IGNORECASE,
)
DOTTED = re.compile(r'[^\W\d]\w*(\.[^\W\d]\w*)+')  # module.name
OWN_PARTS = (
    'Where it is a part of yours: import the module that registers it, then call '
    'mmext_backbones.engine.nonfinite.replay.replay(FILE) from Python.'
)


def scope_of(cfg: Any) -> str | None:
    """The default scope of a config, if it is that of a library of OpenMMLab or of one that is loaded.

    Raises:
        UserError: for any other.
    """
    name = cfg.get('default_scope') if isinstance(cfg, Mapping) else None
    if name is not None:
        _check_scope(name, 'default_scope')
    return name


def checked_model(cfg: Any) -> dict[str, Any]:
    """The model of a config with its data preprocessor, without where first weights come from; a copy.

    The caller has set the default scope of the config, see `scope_of`.

    Raises:
        UserError: if it names anything but registered parts of models, or a file.
    """
    model = cfg.get('model') if isinstance(cfg, Mapping) else None
    if not isinstance(model, Mapping):
        raise UserError('the config of the saved batch has no model.')
    model = dict(model)
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', cfg['data_preprocessor'])
    nodes = list(_nodes(model))
    registered = _registered(_scopes(nodes))
    for path, value in nodes:
        key = path.rpartition('.')[2]
        if key == 'type':
            _check_type(path, value, registered)
        elif key == 'trust_remote_code' and value:
            raise UserError(f'the config of the saved batch is not run: {path}={value!r} runs programs of others.')
        elif isinstance(value, str):
            _check_text(path, value)
        elif callable(value) or isinstance(value, (bytes, bytearray)):
            raise UserError(f'the config of the saved batch is not run: {path} is a {type(value).__name__}.')
    return _without_weights(model)


def _nodes(model: Mapping) -> Iterator[tuple[str, Any]]:
    """Dotted path and value of everything in a model, but where first weights come from.

    Raises:
        UserError: if there is no end to it.
    """
    left, count = [('model', model, 0)], 0
    while left:
        path, value, depth = left.pop()
        count += 1
        if depth > DEEPEST or count > MOST:
            raise UserError('the config of the saved batch is nested too deeply, or too large.')
        yield path, value
        if isinstance(value, Mapping):
            if not all(isinstance(key, str) for key in value):
                value = {str(key): each for key, each in value.items()}
            children = [(key, each) for key, each in value.items() if key not in WEIGHTS]
        elif isinstance(value, (list, tuple, set)):
            children = list(enumerate(value))
        else:
            continue
        left += [(f'{path}.{key}', each, depth + 1) for key, each in children]


def _without_weights(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _without_weights(value) for key, value in node.items() if key not in WEIGHTS}
    return type(node)(map(_without_weights, node)) if isinstance(node, (list, tuple)) else node


# --------------------------------------------------------------------------------------------------------------------
# What may be named


def _check_scope(name: Any, path: str) -> None:
    if not isinstance(name, str) or not (name in SCOPES or name in MODELS.children):
        raise UserError(f'the config of the saved batch is not run: {path}={name!r} is no library of OpenMMLab.')


def _scopes(nodes: list[tuple[str, Any]]) -> set[str]:
    """The libraries whose parts a model names."""
    found = set()
    for path, value in nodes:
        key = path.rpartition('.')[2]
        if key == '_scope_' and value is not None:
            _check_scope(value, path)
            found.add(value)
        elif key == 'type' and isinstance(value, str) and value.partition('.')[0] in SCOPES:
            found.add(value.partition('.')[0])
    current = DefaultScope.get_current_instance()
    return found | ({current.scope_name} if current is not None else set())


def _registered(scopes: set[str]) -> dict[str, Any]:
    """What libraries have registered as parts of models: by name, and by ``scope.name``."""
    for scope in sorted(scopes):
        with contextlib.suppress(ImportError):  # its types will not be found
            import_module(f'{scope}.registry')
    roots = [MODELS, TASK_UTILS]
    if 'mmpretrain' in scopes and 'mmpretrain.registry' in sys.modules:
        roots += [getattr(sys.modules['mmpretrain.registry'], name) for name in ('BATCH_AUGMENTS', 'TOKENIZER')]
    for registry in [each for root in roots for each in (root, *root.children.values())]:
        if registry.scope in scopes:
            registry.import_from_location()
    found = {}
    for root in roots:
        for registry in [root, *root.children.values()]:
            own = {**registry.module_dict, **dict.fromkeys(getattr(registry, 'lazy', ()))}
            found.update(own)
            for scope in [registry.scope, *root.children] if registry is root else [registry.scope]:
                found.update({f'{scope}.{name}': part for name, part in own.items()})
    return found


def _check_type(path: str, name: Any, registered: Mapping[str, Any]) -> None:
    if name is None or (isinstance(name, str) and (name in registered or name in OPERATORS)):
        return
    if isinstance(name, str) and re.fullmatch(r'[a-z][a-z0-9_]*', name) and not _is_module(name):
        return  # a mode of some part, such as 'offset': no part and no module is called so
    part = _loaded(name) if isinstance(name, str) else None  # as configs in Python's own syntax name a class
    if isinstance(part, type) and any(part is each for each in registered.values()):
        return
    raise UserError(
        f'the config of the saved batch is not run: {path}={name!r} is no registered part of a model. {OWN_PARTS}'
    )


def _check_text(path: str, text: str) -> None:
    top = text.partition('.')[0]
    names_code = DOTTED.fullmatch(text) and _is_module(top)
    if names_code and isinstance(_loaded(text), (int, float)):  # a constant, such as cv2.MOTION_EUCLIDEAN
        return
    if names_code or NOT_PLAIN.search(text) or os.path.isfile(text):
        raise UserError(
            f'the config of the saved batch is not run: {path}={text[:100]!r} could name a file, an address or a '
            'program, and a saved batch holds all that it needs.'
        )


def _is_module(name: str) -> bool:
    """Whether there is such a module; it is not imported for that."""
    return name in sys.modules or find_spec(name) is not None


def _loaded(name: str) -> Any:
    """What a dotted name means, if its module is loaded already; None else."""
    module, _, attribute = name.rpartition('.')
    return getattr(sys.modules.get(module), attribute, None)
