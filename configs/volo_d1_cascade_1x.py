# Nobody published this recipe for VOLO: it is Swin's, with the drop path rate of VOLO-D1 on ImageNet. All but the last
# block of a transformer stage attend in windows: global attention would cost more than the rest of the network.
_base_ = [
    '_base_/models/cascade_mask_rcnn.py',
    '_base_/datasets/coco_instance_ms_crop.py',
    '_base_/schedules/coco_1x.py',
    'mmdet::_base_/default_runtime.py',
    '_base_/backbones/volo_d1.py',
]
# 8 GPUs x 2 images = 16 an iteration, learning rate 1e-4.
model = dict(
    backbone=dict(**_base_.volo_d1, window_size=14, drop_path_rate=0.1),
    neck=dict(in_channels=[192, 192, 384, 384]),
)
