import importlib
import importlib.util
import sys
import types


def missing(name):
    if name.startswith('__'):
        raise AttributeError(name)
    return lambda *args, **kwargs: None


if 'mmcv._ext' not in sys.modules and importlib.util.find_spec('mmcv._ext') is None:
    extension = types.ModuleType('mmcv._ext')
    extension.__getattr__ = missing
    for module in ('boxes', 'rotated_boxes', 'pooling', 'rotated_pooling'):
        module = importlib.import_module(f'mmext_backbones.mmcv_ops.{module}')
        for name in module.__all__:
            setattr(extension, name, getattr(module, name))
    sys.modules['mmcv._ext'] = extension
