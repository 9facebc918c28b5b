# Classifier of 1000 classes on the last map, trained on mixed pairs of images; a leaf puts in the backbone.
model = dict(
    type='mmext_backbones.ImageClassifier',
    _scope_='mmpretrain',  # of what is inside, also where this is a base of another project
    data_preprocessor=dict(num_classes=1000, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        cal_acc=False,
    ),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
