"""Small segmentors and classifiers, and what their own `predict` answers."""

import torch
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.utils import import_modules_from_strings

from mmext_backbones.backbones import SwinTransformer

from ...test_backbones.test_contract import SMALL

SWIN = {**SMALL[SwinTransformer], 'depths': (1, 1, 1, 1)}
CHANNELS = [16, 32, 64, 128]
NORMALISATION = {'mean': [120.0, 110.0, 100.0], 'std': [58.0, 57.0, 56.0]}


def segmentor(head, neck=None, mode='whole', out_indices=(0, 1, 2, 3), **options):
    """An EncoderDecoder over a small Swin, with weights that are all random."""
    registry = import_modules_from_strings('mmseg.registry').MODELS
    import_modules_from_strings('mmseg.models')
    init_default_scope('mmseg')
    torch.manual_seed(0)
    model = registry.build(
        {
            'type': 'EncoderDecoder',
            'data_preprocessor': {
                'type': 'SegDataPreProcessor',
                **NORMALISATION,
                'bgr_to_rgb': True,
                'test_cfg': {'size_divisor': 32},
            },
            'backbone': {'type': 'mmext_backbones.SwinTransformer', 'arch': SWIN, 'out_indices': out_indices},
            'neck': neck,
            'decode_head': {'channels': 8, 'num_classes': 5, 'norm_cfg': {'type': 'BN'}, **head},
            'test_cfg': ConfigDict(mode=mode, crop_size=(64, 64), stride=(32, 32)),
            **options,
        }
    )
    return randomised(model)


def classifier(head, backbone=None, neck=None, **options):
    """An ImageClassifier of ours, with weights that are all random."""
    registry = import_modules_from_strings('mmpretrain.registry').MODELS
    import_modules_from_strings('mmpretrain.models')
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    model = registry.build(
        {
            'type': 'mmext_backbones.ImageClassifier',
            'data_preprocessor': {**NORMALISATION, 'to_rgb': True},
            'backbone': backbone or {'type': 'mmext_backbones.SwinTransformer', 'arch': SWIN, 'out_indices': (3,)},
            'neck': neck,
            'head': {'num_classes': 7, **head},
            **options,
        }
    )
    return randomised(model)


def randomised(model):
    """In eval mode; norms that change something, and scores that differ from pixel to pixel."""
    for name, tensor in model.state_dict().items():
        if name.endswith(('running_mean', 'conv_seg.bias')):
            tensor.normal_(std=0.1)
        elif name.endswith('running_var'):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith(('conv_seg.weight', 'fc.weight')):
            tensor.normal_().sub_(tensor.mean(dim=1, keepdim=True))  # what all pixels share decides nothing
    return model.eval()


@torch.no_grad()
def predicted(model, images, new_sample):
    """The inputs of the network, and the samples that the model's own `predict` answers."""
    size = tuple(images.shape[2:])
    samples = [new_sample() for _ in images]
    for sample in samples:
        sample.set_metainfo({'ori_shape': size, 'img_shape': size})
    data = model.data_preprocessor({'inputs': list(images), 'data_samples': samples})
    return data['inputs'], model.predict(**data)
