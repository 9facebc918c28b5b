"""A tiny network of each kind with random weights, and the config that a run on Shapes would leave in its work dir."""

from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmext_backbones.datasets.shapes.config import use_shapes

ROOT = Path(__file__).parents[2]
THIN = {'embed_dims': 8, 'depths': (1, 1, 1, 1), 'num_heads': (1, 2, 2, 4)}
WIDTHS = [8, 16, 32, 64]
BACKBONE = f"dict(_delete_=True, type='mmext_backbones.SwinTransformer', arch={THIN}"
CONFIGS = {
    'detection': f"""
_base_ = [{str(ROOT / 'configs' / 'swin_t_maskrcnn_1x.py')!r}]
model = dict(
    backbone={BACKBONE}),
    neck=dict(in_channels={WIDTHS}, out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        mask_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=16),
        mask_head=dict(in_channels=16, conv_out_channels=16)),
    test_cfg=dict(rcnn=dict(score_thr=0.02)))
""",
    'segmentation': f"""
_base_ = [{str(ROOT / 'configs' / 'swin_t_upernet_160k.py')!r}]
model = dict(
    backbone={BACKBONE}),
    decode_head=dict(in_channels={WIDTHS}, channels=16),
    auxiliary_head=dict(in_channels=32, channels=16))
""",
    'classification': f"""
_base_ = [{str(ROOT / 'configs' / 'swin_t_in1k.py')!r}]
model = dict(backbone={BACKBONE}, out_indices=(3,)), head=dict(in_channels=64))
""",
}
SPREAD = {'rpn_cls': 0.1, 'rpn_reg': 0.02, 'fc_cls': 0.5, 'fc_reg': 0.1, 'conv_logits': 1.0, 'conv_seg': 1.0, 'fc': 0.5}


def make(task: str, folder: Path, shapes_dir: Path, size: int = 64) -> tuple[str, str]:
    """Paths of a config on Shapes and of a checkpoint."""
    plain = folder / f'{task}_plain.py'
    plain.write_text(CONFIGS[task])
    cfg = Config.fromfile(plain)
    use_shapes(cfg, shapes_dir, size=size, num_workers=0)
    for path in ('model.data_preprocessor', 'model.decode_head', 'model.auxiliary_head'):
        node = cfg
        for key in path.split('.'):
            node = node.get(key) or {}
        for value in node.values():
            if isinstance(value, dict) and value.get('type') == 'SyncBN':
                value['type'] = 'BN'
    if cfg.model.get('norm_cfg'):
        cfg.model.norm_cfg.type = 'BN'
    config = folder / f'{task}.py'
    cfg.dump(config)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # so that boxes, classes and pixels differ
            module, _, kind = name.rpartition('.')
            if kind == 'weight' and module.rpartition('.')[2] in SPREAD:
                parameter.normal_(std=SPREAD[module.rpartition('.')[2]])
    meta = dict(cfg.test_dataloader.dataset.get('metainfo') or {})
    if task == 'classification':
        meta['classes'] = tuple(cfg.test_dataloader.dataset.classes)
    weights = folder / f'{task}.pth'
    torch.save({'state_dict': model.state_dict(), 'meta': {'dataset_meta': meta}}, weights)
    return str(config), str(weights)


def assert_same(one, other) -> None:
    """Two predictions, to the bit."""
    for key in ('boxes', 'scores', 'labels', 'masks', 'segmentation'):
        a, b = getattr(one, key), getattr(other, key)
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_array_equal(a, b)
