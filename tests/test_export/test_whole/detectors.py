"""Small detectors of mmdet with random weights, in which every part of a prediction has something to do."""

import torch
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.utils import import_modules_from_strings

from mmext_backbones.export.whole.checking import compare, pictures, predict

CLASSES = 5
BATCHES = [(1, (65, 97)), (2, (97, 50)), (3, (64, 64)), (2, (33, 129))]
PREPROCESSOR = {
    'type': 'DetDataPreprocessor',
    'mean': [123.675, 116.28, 103.53],
    'std': [58.395, 57.12, 57.375],
    'bgr_to_rgb': True,
    'pad_size_divisor': 32,
}
BACKBONE = {  # strides 4, 8, 16
    'type': 'ResNet',
    'depth': 18,
    'base_channels': 8,
    'num_stages': 3,
    'strides': (1, 2, 2),
    'dilations': (1, 1, 1),
    'out_indices': (0, 1, 2),
}
SWIN = {
    'type': 'mmext_backbones.SwinTransformer',
    'arch': {'embed_dims': 8, 'depths': (1, 1, 1, 1), 'num_heads': (1, 2, 4, 8)},
    'out_indices': (0, 1, 2),
}
NECK = {'type': 'FPN', 'in_channels': [8, 16, 32], 'out_channels': 16, 'num_outs': 4}
STRIDES = [4, 8, 16, 32]
ANCHORS = {'type': 'AnchorGenerator', 'scales': [4], 'ratios': [0.5, 1.0, 2.0], 'strides': STRIDES}
RPN = {'type': 'RPNHead', 'in_channels': 16, 'feat_channels': 16, 'anchor_generator': ANCHORS}
RPN_TEST = {'nms_pre': 60, 'max_per_img': 40, 'nms': {'type': 'nms', 'iou_threshold': 0.7}, 'min_bbox_size': 0}
RCNN_TEST = {'score_thr': 0.05, 'nms': {'type': 'nms', 'iou_threshold': 0.5}, 'max_per_img': 20, 'mask_thr_binary': 0.5}


def pooling(size):
    layer = {'type': 'RoIAlign', 'output_size': size, 'sampling_ratio': 0}
    return {'type': 'SingleRoIExtractor', 'roi_layer': layer, 'out_channels': 16, 'featmap_strides': STRIDES[:3]}


BOX_HEAD = {'type': 'Shared2FCBBoxHead', 'in_channels': 16, 'fc_out_channels': 32, 'num_classes': CLASSES}
MASK_HEAD = {'type': 'FCNMaskHead', 'num_convs': 1, 'in_channels': 16, 'conv_out_channels': 8, 'num_classes': CLASSES}
CONV_HEAD = {
    'type': 'ConvFCBBoxHead',
    'in_channels': 16,
    'num_classes': CLASSES,
    'num_shared_convs': 1,
    'num_shared_fcs': 1,
    'conv_out_channels': 8,
    'fc_out_channels': 32,
    'norm_cfg': {'type': 'BN'},
}
STANDARD = {
    'type': 'StandardRoIHead',
    'bbox_roi_extractor': pooling(7),
    'bbox_head': BOX_HEAD,
    'mask_roi_extractor': pooling(14),
    'mask_head': MASK_HEAD,
}
CASCADE = {
    **STANDARD,
    'type': 'CascadeRoIHead',
    'num_stages': 3,
    'stage_loss_weights': [1, 0.5, 0.25],
    'bbox_head': [CONV_HEAD, {**CONV_HEAD, 'reg_class_agnostic': True}, CONV_HEAD],
}
DENSE = {
    'type': 'RetinaHead',
    'num_classes': CLASSES,
    'in_channels': 16,
    'feat_channels': 16,
    'stacked_convs': 1,
    'anchor_generator': ANCHORS,
    'loss_cls': {'type': 'FocalLoss', 'use_sigmoid': True},
}
COMMON = {'data_preprocessor': PREPROCESSOR, 'backbone': BACKBONE, 'neck': NECK}
TWO_STAGES = {**COMMON, 'train_cfg': None, 'rpn_head': RPN, 'test_cfg': {'rpn': RPN_TEST, 'rcnn': RCNN_TEST}}
DETECTORS = {
    'mask': {'type': 'MaskRCNN', **TWO_STAGES, 'roi_head': STANDARD},
    'cascade': {'type': 'CascadeRCNN', **TWO_STAGES, 'roi_head': CASCADE},
    'retina': {
        'type': 'RetinaNet',
        **COMMON,
        'bbox_head': DENSE,
        'test_cfg': {**RCNN_TEST, 'nms_pre': 60, 'min_bbox_size': 0},
    },
}
DETECTORS['faster'] = {
    **DETECTORS['mask'],
    'type': 'FasterRCNN',
    'roi_head': {key: value for key, value in STANDARD.items() if 'mask' not in key},
}


def detector(name, **edits):
    """A detector in eval mode; edits are entries of its config with __ for a dot."""
    registry = import_modules_from_strings('mmdet.registry').MODELS
    import_modules_from_strings('mmdet.models')
    init_default_scope('mmdet')
    cfg = edited(DETECTORS[name], {key.replace('__', '.'): value for key, value in edits.items()})
    torch.manual_seed(0)
    return randomised(registry.build(ConfigDict(cfg)).eval())


def edited(cfg, edits):
    """A copy of nested dicts and lists with other values at dotted keys."""
    if isinstance(cfg, dict):
        items = {key: edited(value, below(edits, key)) for key, value in cfg.items()}
        return items | {key: value for key, value in edits.items() if '.' not in key}
    if isinstance(cfg, list) and any(isinstance(each, dict) for each in cfg):
        return [edited(each, below(edits, str(n))) for n, each in enumerate(cfg)]
    return cfg


def below(edits, key):
    return {name.partition('.')[2]: value for name, value in edits.items() if name.startswith(f'{key}.')}


GAINS = {'fc_reg': 0.3, 'rpn_reg': 0.1, 'retina_reg': 0.1, 'conv_logits': 2.0, 'lateral_convs': 0.5}


def randomised(model):
    """Weights that keep the size of maps, so that scores spread and boxes differ from their anchors."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.named_parameters():
        if tensor.ndim > 1:
            gain = next((gain for part, gain in GAINS.items() if f'.{part}.' in name), 1.0)
            tensor.data = gain * torch.randn(tensor.shape, generator=generator) / tensor[0].numel() ** 0.5
    model.backbone.train()
    for module in model.backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train().momentum = 1.0  # the statistics of one batch
    with torch.no_grad():
        model.backbone(model.data_preprocessor({'inputs': list(pictures(2, (96, 128)))})['inputs'])
    return model.eval()


def rows_of(model, network, run, batches=BATCHES):
    """The comparison of a function of images with the model, on several batches."""
    return [
        row for n, (batch, size) in enumerate(batches) for row in compare(model, network, run, pictures(batch, size, n))
    ]


def counts(model, network, batch, size):
    """How many objects the model itself finds in each image."""
    return [len(sample.pred_instances) for sample in predict(model, network, pictures(batch, size))]
