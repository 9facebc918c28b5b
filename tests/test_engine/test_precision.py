"""A backbone in bfloat16 inside a model in float32."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmext_backbones.backbones import ELSASwin, MaxViT, Sequencer2D, SwinTransformer
from mmext_backbones.engine import config_edits
from mmext_backbones.registry import MODELS
from mmext_backbones.utils.errors import UserError
from tests.test_backbones.test_contract import SMALL, image, loss, small
from tests.test_engine.edits import edited

CONFIGS = Path(__file__).parents[2] / 'configs'
THIN = {
    'neck': {'out_channels': 16},
    'rpn_head': {'in_channels': 16, 'feat_channels': 16},
    'roi_head': {
        'bbox_roi_extractor': {'out_channels': 16},
        'mask_roi_extractor': {'out_channels': 16},
        'bbox_head': {'in_channels': 16, 'fc_out_channels': 16},
        'mask_head': {'in_channels': 16, 'conv_out_channels': 16},
    },
}


def types_inside(model, x):
    """The types of what the linear layers of the blocks return."""
    found = set()
    handles = [
        module.register_forward_hook(lambda module, inputs, out: found.add(out.dtype))
        for module in model.modules()
        if isinstance(module, torch.nn.Linear)
    ]
    outs = model(x)
    for handle in handles:
        handle.remove()
    return found, outs


@pytest.mark.parametrize('cls', SMALL)
def test_computes_in_bfloat16_and_hands_on_float32(cls):
    exact, model = small(cls, drop_path_rate=0.0), small(cls, drop_path_rate=0.0, autocast_dtype='bfloat16')
    x = image(40, 72)
    found, outs = types_inside(model, x)
    assert found == {torch.bfloat16}
    assert all(out.dtype == torch.float32 for out in outs)
    for out, expected in zip(outs, exact(x), strict=True):
        assert (out - expected).abs().max() < 8 * torch.finfo(torch.bfloat16).eps * expected.abs().max()
    loss(outs).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_type_of_the_maps():
    x = image(32, 32)
    assert small(SwinTransformer, autocast_dtype='bfloat16', out_dtype='bfloat16')(x)[0].dtype == torch.bfloat16
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert small(Sequencer2D, out_dtype='float32')(x)[0].dtype == torch.float32
    for options in ({'autocast_dtype': 'float16'}, {'out_dtype': 'int8'}):
        (name,) = options
        with pytest.raises(ValueError, match=f"{name}='{options[name]}': expected None"):
            small(MaxViT, **options)


def test_boxes_in_bfloat16_are_pixels_off():
    """Why the backbone has an autocast of its own: mmdet makes anchors and regions in the type of the maps."""
    from mmdet.models.task_modules import AnchorGenerator

    anchors = AnchorGenerator(strides=[4], ratios=[1.0], scales=[8])
    (exact,) = anchors.grid_priors([(200, 336)], device='cpu')
    (low,) = anchors.grid_priors([(200, 336)], dtype=torch.bfloat16, device='cpu')
    assert (low.float() - exact).abs().max() >= 4


@pytest.mark.parametrize('leaf', ['elsa_swin_t_maskrcnn_1x', 'maxvit_t_maskrcnn_1x', 'sequencer_s_maskrcnn_1x'])
def test_a_step_of_mask_rcnn(leaf):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    cfg = Config.fromfile(CONFIGS / f'{leaf}.py')
    cls = {'elsa': ELSASwin, 'maxv': MaxViT, 'sequ': Sequencer2D}[leaf[:4]]
    cfg.merge_from_dict({'model': THIN})
    cfg.model.backbone.arch = SMALL[cls]
    cfg.model.backbone.init_cfg = None
    cfg.model.backbone.drop_path_rate = 0.0
    cfg.model.neck.in_channels = list(small(cls).out_channels)
    H, W = 96, 128
    sample = DetDataSample(metainfo={'img_shape': (H, W), 'ori_shape': (H, W), 'scale_factor': (1.0, 1.0)})
    mask = torch.zeros(1, H, W, dtype=torch.uint8)
    mask[:, 10:60, 20:90] = 1
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[20.0, 10.0, 90.0, 60.0]]), labels=torch.tensor([3]), masks=BitmapMasks(mask.numpy(), H, W)
    )
    data = {'inputs': [torch.randint(256, (3, H, W), dtype=torch.uint8)], 'data_samples': [sample]}
    sums = []
    for bf16 in (False, True):
        if bf16:
            assert [change.path for change in edited(config_edits.use_bf16, cfg)] == ['model.backbone.autocast_dtype']
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope('mmdet'):
            model = MODELS.build(cfg.model).train()
        assert model.backbone.autocast_dtype == ('bfloat16' if bf16 else None)
        losses = model.parse_losses(model(**model.data_preprocessor(data, True), mode='loss'))[0]
        losses.backward()
        sums.append(losses.item())
        grads = [p.grad for p in model.backbone.parameters()]
        assert all(grad.isfinite().all() for grad in grads)
        assert any(grad.abs().max() > 0 for grad in grads)
    assert sums[1] == pytest.approx(sums[0], rel=0.02)


def test_a_config_without_our_backbones():
    with pytest.raises(UserError, match='--bf16 is about the backbones of mmext_backbones'):
        edited(config_edits.use_bf16, Config({'model': {'backbone': {'type': 'ResNet'}}}))
