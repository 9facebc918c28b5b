_base_ = [
    '_base_/models/cascade_mask_rcnn_lsj.py',
    '_base_/datasets/coco_instance_lsj.py',
    '_base_/schedules/coco_lsj.py',
    '_base_/default_runtime_lsj.py',
    '_base_/backbones/maxvit_t.py',
]
# 32 GPUs x 8 images = 256 an iteration, learning rate 3e-3. Rates of MaxViT-T were published for 640 x 640 only.
model = dict(
    data_preprocessor=dict(pad_size_divisor=896),  # the published windows, a 32nd of the image, suit squares alone
    backbone=dict(**_base_.maxvit_t, window_size='scaled', drop_path_rate=0.7),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
