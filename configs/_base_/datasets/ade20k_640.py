# ADE20K at crops of 640, 2 images a GPU. The views of test-time augmentation are multiples of (2560, 640), as in the
# published numbers; mmseg's own are multiples of each image's size.
_base_ = 'mmseg::_base_/datasets/ade20k_640x640.py'
train_dataloader = dict(batch_size=2, num_workers=2)
val_dataloader = dict(num_workers=2)
test_dataloader = dict(num_workers=2)
tta_scales = [(1280, 320), (1920, 480), (2560, 640), (3200, 800), (3840, 960), (4480, 1120)]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=scale, keep_ratio=True) for scale in tta_scales],
            [dict(type='RandomFlip', prob=prob, direction='horizontal') for prob in (0.0, 1.0)],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
