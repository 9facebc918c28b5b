_base_ = [
    '_base_/models/upernet.py',
    '_base_/datasets/ade20k.py',
    '_base_/schedules/ade20k_160k.py',
    'mmseg::_base_/default_runtime.py',
]
# 8 GPUs x 2 images = 16 an iteration, learning rate 6e-5.
# Pretrained weights: fetch the file that github.com/damo-cv/ELSA links, then
# init_cfg=dict(type='Pretrained', checkpoint='elsa_swin_t.pth').
model = dict(
    backbone=dict(_delete_=True, type='mmext_backbones.ELSASwin', arch='tiny', drop_path_rate=0.3, init_cfg=None),
)
