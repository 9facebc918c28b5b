_base_ = [
    '_base_/models/cascade_mask_rcnn.py',
    '_base_/datasets/coco_instance_ms_crop.py',
    '_base_/schedules/coco_1x.py',
    'mmdet::_base_/default_runtime.py',
]
# 8 GPUs x 2 images = 16 an iteration, learning rate 1e-4.
# Pretrained weights: fetch the file that github.com/damo-cv/ELSA links, then
# init_cfg=dict(type='Pretrained', checkpoint='elsa_swin_t.pth').
model = dict(
    backbone=dict(_delete_=True, type='mmext_backbones.ELSASwin', arch='tiny', drop_path_rate=0.0, init_cfg=None),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
