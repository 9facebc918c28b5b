"""Child registries of mmengine's.

Their scope is the name of this package. mmengine resolves ``type='mmext_backbones.X'`` from any other registry by
importing ``mmext_backbones.registry``; Python imports the package first, and that registers everything. So no config
needs ``custom_imports``.
"""

from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import Registry

SCOPE = 'mmext_backbones'

MODELS = Registry('model', parent=ROOT_MODELS, scope=SCOPE, locations=['mmext_backbones.backbones'])
HOOKS = Registry('hook', parent=ROOT_HOOKS, scope=SCOPE, locations=['mmext_backbones.engine'])
