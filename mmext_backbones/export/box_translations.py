"""The operators of `box_operators` in those of ONNX.

Each box is pooled on its own level only: the rows of a level are found, pooled and put back by the inverse of their
order. RoIAlign's half_pixel is what mmcv calls aligned.
"""

from collections.abc import Callable

import torch
from onnxscript import ir
from onnxscript import opset18 as op

from .box_operators import ABSENT

__all__ = ['box_translations']


def _constant(value, dtype):
    return op.Constant(value=ir.tensor(torch.tensor(value, dtype=dtype).numpy()))


def _top_k(scores, k: int):
    """scores [..., N] -> [..., k], int64 [..., k]."""
    return op.TopK(scores, _constant([k], torch.int64), axis=-1, largest=1, sorted=1)


def _nms_keep(boxes, scores, most: int, iou_threshold: float):
    """boxes [G, N, 4], scores [G, N] -> [G, N]."""
    found = op.NonMaxSuppression(
        boxes,
        op.Unsqueeze(scores, _constant([1], torch.int64)),
        _constant([most], torch.int64),
        _constant([iou_threshold], torch.float32),
        _constant([ABSENT / 2], torch.float32),
    )
    places = op.Gather(found, _constant([0, 2], torch.int64), axis=1)  # [K, 2], group and row; between them a class
    nothing = op.ConstantOfShape(op.Shape(scores), value=ir.tensor([ABSENT], dtype=ir.DataType.FLOAT))
    return op.ScatterND(nothing, places, op.GatherND(scores, places))


def _roi_levels(maps, rois, levels, scales, height: int, width: int, sampling_ratio: int):
    """maps of [B, C, H, W], rois [K, 5], levels [K] -> [K, C, height, width]."""

    def align(x, boxes, scale: float):
        start, end, axis = (_constant([n], torch.int64) for n in (1, 5, 1))
        return op.RoiAlign(
            x,
            op.Slice(boxes, start, end, axis),
            op.Cast(op.Gather(boxes, _constant(0, torch.int64), axis=1), to=ir.DataType.INT64),
            coordinate_transformation_mode='half_pixel',
            mode='avg',
            output_height=height,
            output_width=width,
            sampling_ratio=max(sampling_ratio, 0),
            spatial_scale=scale,
        )

    if len(maps) == 1:
        return align(maps[0], rois, scales[0])
    orders, parts = [], []
    for level, (x, scale) in enumerate(zip(maps, scales, strict=True)):
        here = op.NonZero(op.Equal(levels, _constant(level, torch.int64)))
        orders.append(op.Reshape(here, _constant([-1], torch.int64)))
        parts.append(align(x, op.Gather(rois, orders[-1], axis=0), scale))
    order = op.Concat(*orders, axis=0)
    count = op.Squeeze(op.Shape(order))
    rows = op.Range(_constant(0, torch.int64), count, _constant(1, torch.int64))
    return op.Gather(op.Concat(*parts, axis=0), op.ScatterElements(rows, order, rows, axis=0), axis=0)


def box_translations() -> dict[Callable, Callable]:
    """By operator, for `translations.translation_table`."""
    operators = torch.ops.mmext_backbones
    return {
        operators.top_k.default: _top_k,
        operators.nms_keep.default: _nms_keep,
        operators.roi_levels.default: _roi_levels,
    }
