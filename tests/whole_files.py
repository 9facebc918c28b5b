"""ONNX files by hand, with the inputs, outputs and metadata of whole models: no network, and no exporter."""

import json
from pathlib import Path

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper, save_model

CLASSES = ['ant', 'bee', 'cat']
FLOAT, INT, BYTE = TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8
BOXES = np.float32([[0.1, 0.2, 0.6, 0.7], [0, 0, 1, 1], [0.3, 0.3, 0.35, 0.9], [0, 0, 0, 0]])  # shares of the edges
SCORES = np.float32([0.9, 0.8, 0.3, 0])
LABELS = np.int64([2, 0, 1, -1])  # the last row is padding
COMMON = {
    'version': 1,
    'classes': CLASSES,
    'palette': [[250, 0, 0], [0, 250, 0], [0, 0, 250]],
    'input': {'name': 'image', 'channels': 'BGR', 'range': [0, 255], 'raw': False, 'mean': [10.0, 20.0, 30.0],
              'std': [2.0, 4.0, 5.0], 'to_rgb': True, 'size_divisor': 8},
    'resize': {'scale': [96, 64], 'keep_ratio': True, 'interpolation': 'bilinear', 'backend': 'cv2'},
    'mask_thr': 0.5,
    'align_corners': False,
}  # fmt: skip


def detector(path: Path, *, masks: bool = True, size: tuple[int, int] | None = None, **meta: object) -> Path:
    """The same boxes, as shares of the picture, whose scores are multiplied by its mean over 255."""
    rng = np.random.default_rng(0)
    constants = {
        'boxes': BOXES[None],
        'scores': SCORES[None, :, None],
        'kinds': LABELS[None],
        'probabilities': rng.random((1, len(BOXES), 28, 28), np.float32),
        'edges': np.int64([3, 2, 3, 2]),
        'first': np.int64([0]),
        'white': np.float32(255),
        'axes': np.int64([1, 2, 3]),
        'last': np.int64([3]),
        'for_boxes': np.int64([len(BOXES), 4]),
        'for_labels': np.int64([len(BOXES)]),
        'for_masks': np.int64([len(BOXES), 28, 28]),
    }
    nodes = [
        helper.make_node('Shape', ['image'], ['shape']),
        helper.make_node('Gather', ['shape', 'first'], ['batch']),
        helper.make_node('Gather', ['shape', 'edges'], ['whwh']),
        helper.make_node('Cast', ['whwh'], ['whwh_float'], to=FLOAT),
        helper.make_node('Mul', ['boxes', 'whwh_float'], ['boxes_1']),
        helper.make_node('Concat', ['batch', 'for_boxes'], ['shape_boxes'], axis=0),
        helper.make_node('Expand', ['boxes_1', 'shape_boxes'], ['boxes_b']),
        helper.make_node('ReduceMean', ['image', 'axes'], ['mean_4'], keepdims=1),
        helper.make_node('Squeeze', ['mean_4', 'last'], ['mean']),
        helper.make_node('Div', ['mean', 'white'], ['light']),
        helper.make_node('Mul', ['scores', 'light'], ['scores_b']),
        helper.make_node('Concat', ['boxes_b', 'scores_b'], ['dets'], axis=2),
        helper.make_node('Concat', ['batch', 'for_labels'], ['shape_labels'], axis=0),
        helper.make_node('Expand', ['kinds', 'shape_labels'], ['labels']),
        helper.make_node('Concat', ['batch', 'for_masks'], ['shape_masks'], axis=0),
        helper.make_node('Expand', ['probabilities', 'shape_masks'], ['masks']),
    ]
    outputs = {'dets': (FLOAT, ['batch', 4, 5]), 'labels': (INT, ['batch', 4]), 'masks': (FLOAT, ['batch', 4, 28, 28])}
    if not masks:
        nodes, outputs = nodes[:-2], {key: outputs[key] for key in ('dets', 'labels')}
    task = 'instance segmentation' if masks else 'detection'
    return write(path, nodes, constants, outputs, size, {'task': task, **meta})


def segmentor(path: Path, *, channels: int = 3, **meta: object) -> Path:
    """Logits of a quarter of the size by one convolution of the padded picture."""
    weight = np.random.default_rng(1).standard_normal((channels, 3, 4, 4)).astype(np.float32) / 500
    constants = {
        'weight': weight,
        'edges': np.int64([2, 3]),
        'divisor': np.int64([8]),
        'none': np.zeros(6, np.int64),
    }
    nodes = [
        helper.make_node('Shape', ['image'], ['shape']),
        helper.make_node('Gather', ['shape', 'edges'], ['hw']),
        helper.make_node('Neg', ['hw'], ['minus']),
        helper.make_node('Mod', ['minus', 'divisor'], ['missing']),
        helper.make_node('Concat', ['none', 'missing'], ['pads'], axis=0),
        helper.make_node('Pad', ['image', 'pads'], ['padded']),
        helper.make_node('Conv', ['padded', 'weight'], ['logits'], strides=[4, 4]),
        helper.make_node('ArgMax', ['logits'], ['best'], axis=1, keepdims=0),
        helper.make_node('Cast', ['best'], ['segmentation'], to=BYTE),
    ]
    outputs = {'segmentation': (BYTE, ['batch', 'h', 'w']), 'logits': (FLOAT, ['batch', channels, 'h', 'w'])}
    return write(path, nodes, constants, outputs, None, {'task': 'semantic segmentation', **meta})


def classifier(path: Path, *, channels: int = 3, size: tuple[int, int] | None = None, **meta: object) -> Path:
    """The softmax of a product with the mean colour."""
    weight = np.random.default_rng(2).standard_normal((3, channels)).astype(np.float32) / 40
    nodes = [
        helper.make_node('GlobalAveragePool', ['image'], ['mean']),
        helper.make_node('Flatten', ['mean'], ['flat']),
        helper.make_node('MatMul', ['flat', 'weight'], ['logits']),
        helper.make_node('Softmax', ['logits'], ['scores'], axis=1),
    ]
    resize = {'short_edge': 40, 'crop': 32, 'interpolation': 'bicubic', 'backend': 'pillow'}
    outputs = {'scores': (FLOAT, ['batch', channels])}
    return write(path, nodes, {'weight': weight}, outputs, size, {'task': 'classification', 'resize': resize, **meta})


def write(path: Path, nodes: list, constants: dict, outputs: dict, size: tuple[int, int] | None, meta: dict) -> Path:
    """Saves the graph; `meta` is added to what all files say of themselves."""
    height, width = size or ('height', 'width')
    given = helper.make_tensor_value_info('image', FLOAT, ['batch', 3, height, width])
    graph = helper.make_graph(
        nodes,
        'by_hand',
        [given],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=10)
    checker.check_model(model)
    helper.set_model_props(model, {'names': 'of others', 'mmext_backbones.whole': json.dumps({**COMMON, **meta})})
    save_model(model, str(path))
    return path
