# The same at 640 x 640.
_base_ = 'coco_instance_lsj.py'
train_pipeline = [
    *_base_.load,
    dict(type='RandomResize', scale=(640, 640), ratio_range=(0.1, 2.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(640, 640), allow_negative_crop=True, recompute_bbox=True),
    *_base_.pack,
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(640, 640), keep_ratio=True),
    *_base_.pack_test,
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
