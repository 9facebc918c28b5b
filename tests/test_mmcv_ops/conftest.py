import importlib
import importlib.util
import sys
import types

if 'mmcv._ext' not in sys.modules and importlib.util.find_spec('mmcv._ext') is None:
    extension = types.ModuleType('mmcv._ext')
    extension.__getattr__ = lambda name: lambda *args, **kwargs: None
    for module in ('boxes', 'rotated_boxes', 'pooling'):
        module = importlib.import_module(f'mmext_backbones.mmcv_ops.{module}')
        for name in module.__all__:
            setattr(extension, name, getattr(module, name))
    sys.modules['mmcv._ext'] = extension
