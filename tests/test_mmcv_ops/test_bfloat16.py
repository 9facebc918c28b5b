"""A whole detector in bfloat16: RoIAlign and the suppression of boxes take what mmcv's compiled ones refuse."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmext_backbones.backbones import ELSASwin
from mmext_backbones.registry import MODELS
from tests.test_backbones.test_contract import SMALL, small

CONFIG = Path(__file__).parents[2] / 'configs' / 'elsa_swin_t_maskrcnn_1x.py'
H, W = 96, 128


def detector(**options):
    cfg = Config.fromfile(CONFIG)
    cfg.model.backbone.update(arch=SMALL[ELSASwin], init_cfg=None, drop_path_rate=0.0, **options)
    cfg.model.neck.in_channels = list(small(ELSASwin).out_channels)
    cfg.model.roi_head.bbox_head.fc_out_channels = 64
    cfg.model.roi_head.mask_head.update(num_convs=1, conv_out_channels=16)
    cfg.model.test_cfg.rcnn.score_thr = 0.0  # so that there is something to suppress
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(cfg.model)


def batch():
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    sample = DetDataSample(metainfo={'img_shape': (H, W), 'ori_shape': (H, W), 'scale_factor': (1.0, 1.0)})
    mask = torch.zeros(1, H, W, dtype=torch.uint8)
    mask[:, 10:60, 20:90] = 1
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[20.0, 10.0, 90.0, 60.0]]), labels=torch.tensor([3]), masks=BitmapMasks(mask.numpy(), H, W)
    )
    image = torch.randint(256, (3, H, W), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return {'inputs': [image], 'data_samples': [sample]}


def step_and_prediction(model, context):
    """The loss of a step, and the maps of the backbone in it and in the prediction that follows."""
    maps = []
    model.backbone.register_forward_hook(lambda module, inputs, outs: maps.extend(outs))
    torch.manual_seed(1)
    with context:
        loss = model.parse_losses(model(**model.train().data_preprocessor(batch(), True), mode='loss'))[0]
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert any(p.grad.abs().max() > 0 for p in model.backbone.parameters())
    with torch.no_grad(), context:
        (found,) = model.eval()(**model.data_preprocessor(batch(), False), mode='predict')
    assert len(found.pred_instances) == 100
    assert found.pred_instances.bboxes.isfinite().all()
    assert found.pred_instances.masks.shape == (100, H, W)
    return loss.item(), maps


@pytest.fixture(scope='module')
def loss_in_float():
    return step_and_prediction(detector(), nullcontext())[0]


@pytest.mark.parametrize(
    ('options', 'whole'),
    [
        ({'autocast_dtype': 'bfloat16'}, False),  # --bf16
        ({'autocast_dtype': 'bfloat16', 'out_dtype': 'bfloat16'}, True),
        ({}, True),
    ],
)
def test_a_step_and_a_prediction(options, whole, loss_in_float):
    context = torch.autocast('cpu', torch.bfloat16) if whole else nullcontext()
    loss, maps = step_and_prediction(detector(**options), context)
    if options.get('out_dtype'):
        assert {x.dtype for x in maps} == {torch.bfloat16}
    assert loss == pytest.approx(loss_in_float, rel=0.02)
