"""The module that stands in for ``mmcv._ext``: a name for each operator, loaded at its first use."""

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

from .missing import missing_operator
from .showing import announce

__all__ = ['OPERATORS', 'fill']

# module of this folder -> what it offers, by mmcv's names
OPERATORS = {
    'boxes': ('nms', 'softnms', 'nms_match', 'bbox_overlaps'),
    'rotated_boxes': ('box_iou_rotated', 'nms_rotated'),
    'rotated_pooling': ('roi_align_rotated_forward', 'roi_align_rotated_backward'),
    'pooling': ('roi_align_forward', 'roi_align_backward', 'roi_pool_forward', 'roi_pool_backward'),
    'deform_pooling': ('deform_roi_pool_forward', 'deform_roi_pool_backward'),
    'convolutions': (
        *('deform_conv_forward', 'deform_conv_backward_input', 'deform_conv_backward_parameters'),
        *('modulated_deform_conv_forward', 'modulated_deform_conv_backward'),
        *('masked_im2col_forward', 'masked_col2im_forward'),
    ),
    'losses': (
        *('sigmoid_focal_loss_forward', 'sigmoid_focal_loss_backward'),
        *('softmax_focal_loss_forward', 'softmax_focal_loss_backward'),
    ),
    'attention': ('ms_deform_attn_forward', 'ms_deform_attn_backward', 'psamask_forward', 'psamask_backward'),
    'upsampling': ('carafe_forward', 'carafe_backward', 'carafe_naive_forward', 'carafe_naive_backward'),
    'normalization': (
        *('sync_bn_forward_mean', 'sync_bn_forward_var', 'sync_bn_forward_output'),
        *('sync_bn_backward_param', 'sync_bn_backward_data'),
    ),
    'versions': ('get_compiler_version', 'get_compiling_cuda_version'),
}
_MODULES = {operator: module for module, operators in OPERATORS.items() for operator in operators}


def operator(name: str) -> Callable:
    """The function that mmcv calls by this name; where there is none, one that raises when it is called.

    mmcv asks for 112 names when `mmcv.ops` is imported, and a fork may ask for others: each is answered.
    """
    if name in _MODULES:
        return getattr(import_module(f'.{_MODULES[name]}', __package__), name)

    def missing(*args: Any, **kwargs: Any) -> None:
        raise missing_operator(name)

    missing.__name__ = name
    return missing


def fill(module: ModuleType) -> None:
    """Makes a module answer to every name that is no dunder with an operator, and says so in the log of a run."""

    def __getattr__(name: str) -> Callable:
        if name.startswith('__'):
            raise AttributeError(f'module {module.__name__!r} has no attribute {name!r}')
        value = operator(name)
        setattr(module, name, value)
        return value

    module.__doc__ = __doc__
    module.__getattr__ = __getattr__
    announce()
