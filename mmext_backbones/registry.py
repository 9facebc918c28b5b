"""Child registries of mmengine's.

Their scope is the name of this package. mmengine resolves ``type='mmext_backbones.X'`` from any other registry by
importing ``mmext_backbones.registry``; Python imports the package first, and that registers everything. So no config
needs ``custom_imports``.
"""

from importlib import import_module
from typing import Any

from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.registry import FUNCTIONS as ROOT_FUNCTIONS
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import METRICS as ROOT_METRICS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as ROOT_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import STRATEGIES as ROOT_STRATEGIES
from mmengine.registry import VISBACKENDS as ROOT_VISBACKENDS
from mmengine.registry import Registry

SCOPE = 'mmext_backbones'


class LazyRegistry(Registry):
    """A registry with some entries whose modules, which need a library that the package does not, load at their use.

    Args:
        lazy: module of each such entry.
        **kwargs: of `Registry`.
    """

    def __init__(self, name: str, lazy: dict[str, str], **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self.lazy = lazy

    def get(self, key: str) -> type | None:
        name = key.removeprefix(f'{self.scope}.')
        if name in self.lazy and name not in self.module_dict:
            import_module(self.lazy[name])
        return super().get(key)


MODELS = LazyRegistry(
    'model',
    {
        'ImageClassifier': 'mmext_backbones.heads',
        'MaxViTClsHead': 'mmext_backbones.heads',
        'SequencerClsHead': 'mmext_backbones.heads',
        'VOLOClsHead': 'mmext_backbones.heads',
    },
    parent=ROOT_MODELS,
    scope=SCOPE,
    locations=['mmext_backbones.backbones', 'mmext_backbones.engine', 'mmext_backbones.necks'],
)
DATASETS = Registry(
    'dataset',
    parent=ROOT_DATASETS,
    scope=SCOPE,
    locations=[
        'mmext_backbones.datasets.bad_data.dataset',
        'mmext_backbones.datasets.imagenet_c',
        'mmext_backbones.datasets.imagenet_subsets',
    ],
)
HOOKS = Registry('hook', parent=ROOT_HOOKS, scope=SCOPE, locations=['mmext_backbones.engine'])
METRICS = Registry('metric', parent=ROOT_METRICS, scope=SCOPE, locations=['mmext_backbones.engine'])
VISBACKENDS = Registry(
    'vis_backend', parent=ROOT_VISBACKENDS, scope=SCOPE, locations=['mmext_backbones.engine.tracking']
)
STRATEGIES = Registry('strategy', parent=ROOT_STRATEGIES, scope=SCOPE, locations=['mmext_backbones.engine'])
FUNCTIONS = Registry('function', parent=ROOT_FUNCTIONS, scope=SCOPE, locations=['mmext_backbones.engine'])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=ROOT_OPTIM_WRAPPER_CONSTRUCTORS,
    scope=SCOPE,
    locations=['mmext_backbones.engine'],
)
