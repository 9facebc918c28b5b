"""`use_shapes` on configs of many families: each is rewritten, built thin, and takes one training and one test step."""

import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import Evaluator
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from mmext_backbones.config.editing import NOT_SET, Change, ConfigEditor, shorten, walk
from mmext_backbones.datasets.shapes.config import shapes_task, use_shapes
from mmext_backbones.datasets.shapes.files import SEMANTIC_CLASSES, make_shapes
from mmext_backbones.datasets.shapes.scenes import CLASSES

RESNET = {'type': 'ResNet', 'depth': 18, 'frozen_stages': 1, 'norm_eval': True, 'out_indices': (0, 1, 2, 3)}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('shapes') / 'set', size=64, num_train=4, num_val=2)


def load(name: str) -> Config:
    pytest.importorskip(name.partition('::')[0])
    return get_config(name)


def thin(cfg: Config) -> None:
    """Makes a model small without touching what `use_shapes` changes."""
    model = cfg.model
    old = model.backbone
    if 'ResNet' in old.type:
        model.backbone = ConfigDict({**RESNET, 'out_indices': old.get('out_indices', (0, 1, 2, 3))})
        if old.type == 'ResNetV1c':
            model.backbone.type, model.backbone.strides = 'ResNetV1c', old.strides
            model.backbone.dilations = old.dilations
        widths = [(64, 128, 256, 512)[i] for i in model.backbone.out_indices]
        if isinstance(model.get('neck'), dict) and 'in_channels' in model.neck:
            model.neck.in_channels = widths
        for head in ('decode_head', 'auxiliary_head'):
            for node in model[head] if isinstance(model.get(head), list) else [model.get(head)]:
                if node and isinstance(node.get('in_channels'), int) and node.in_channels in (1024, 2048):
                    node.in_channels //= 4
    for _, node in walk(model):
        if 'fc_out_channels' in node:
            node.fc_out_channels = 64
    for part in ('encoder', 'decoder'):
        if part in model:
            model[part].num_layers = 1


def one_step(cfg: Config) -> tuple[torch.Tensor, dict]:
    """The loss of a training batch and the metrics of a validation batch."""
    init_default_scope(cfg.default_scope)
    if 'data_preprocessor' in cfg:
        cfg.model.data_preprocessor = cfg.data_preprocessor
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(cfg.model))
    batch = next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))
    loss, _ = model.parse_losses(model(**model.data_preprocessor(batch, True), mode='loss'))
    loss.backward()
    loader = Runner.build_dataloader(cfg.val_dataloader)
    evaluator = Evaluator(copy.deepcopy(cfg.val_evaluator))
    evaluator.dataset_meta = loader.dataset.metainfo
    model.eval()
    with torch.no_grad():
        for batch in loader:
            evaluator.process(data_samples=model.val_step(batch), data_batch=batch)
    return loss, evaluator.evaluate(len(loader.dataset))


def rewrite(name: str, data_dir, **kwargs) -> tuple[Config, list[Change]]:
    cfg = load(name)
    thin(cfg)
    changes = use_shapes(cfg, data_dir, size=64, batch_size=2, num_workers=0, **kwargs)
    return cfg, changes


@pytest.mark.parametrize(
    ('name', 'metrics'),
    [
        ('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', {'bbox', 'segm'}),
        ('mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py', {'bbox', 'segm'}),
        ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', {'bbox'}),
        ('mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', {'bbox'}),
        ('mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', {'bbox'}),
    ],
    ids=lambda value: value.rpartition('/')[2] if isinstance(value, str) else '',
)
def test_detection(name, metrics, data_dir):
    cfg, changes = rewrite(name, data_dir)
    loss, result = one_step(cfg)
    assert torch.isfinite(loss)
    assert {key.partition('/')[2].partition('_')[0] for key in result} == metrics
    numbers = {path: node['num_classes'] for path, node in walk(cfg.model) if 'num_classes' in node}
    assert numbers
    assert set(numbers.values()) == {len(CLASSES)}
    assert 'Pretrained' not in str(cfg.model)
    assert changes


@pytest.mark.parametrize(
    'name',
    [
        'mmseg::upernet/upernet_r18_4xb4-160k_ade20k-512x512.py',
        'mmseg::fcn/fcn_r50-d8_4xb4-160k_ade20k-512x512.py',
        'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
        'mmseg::point_rend/pointrend_r50_4xb4-160k_ade20k-512x512.py',
    ],
    ids=lambda value: value.rpartition('/')[2],
)
def test_segmentation(name, data_dir):
    cfg, _ = rewrite(name, data_dir)
    for path, node in list(walk(cfg.model)):
        if node.get('type') == 'SyncBN':
            ConfigEditor(cfg).set(f'model.{path}.type', 'BN')
    loss, result = one_step(cfg)
    assert torch.isfinite(loss)
    assert 'mIoU' in result
    numbers = [node['num_classes'] for _, node in walk(cfg.model) if 'num_classes' in node]
    assert set(numbers) == {len(SEMANTIC_CLASSES)}
    assert cfg.tta_pipeline[1]['transforms'][0][0]['scale'] == (64, 64)


def test_views_of_instances_are_brought_to_size(data_dir):
    pytest.importorskip('mmdet')
    root = Path(__file__).parents[2] / 'configs'
    cfg = Config.fromfile(root / 'swin_t_maskrcnn_1x.py')
    views = Config.fromfile(root / '_base_' / 'tta' / 'coco_instance_ms_flip.py')
    cfg.merge_from_dict(views.to_dict())
    use_shapes(cfg, data_dir, size=64)
    resizes, flips, (load,), (pack,) = cfg.tta_pipeline[1].transforms
    assert [resize.scale for resize in resizes] == [(64, 64), (80, 80)]
    assert [flip.prob for flip in flips] == [0.0, 1.0]
    assert load.with_mask
    assert set(pack.meta_keys) == set(views.tta_pipeline[1].transforms[-1][0].meta_keys)
    assert cfg.tta_model == views.tta_model


@pytest.mark.parametrize(
    ('name', 'edge'),
    [
        ('mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py', 224),  # Swin is built for a size there
        ('mmpretrain::resnet/resnet18_8xb32_in1k.py', 64),
    ],
    ids=['swin', 'resnet'],
)
def test_classification(name, edge, data_dir):
    cfg, _ = rewrite(name, data_dir)
    if 'Swin' in cfg.model.backbone.type:
        cfg.model.backbone.arch = {'embed_dims': 24, 'depths': [2, 2, 2, 2], 'num_heads': [1, 2, 4, 8]}
        cfg.model.head.in_channels = 192
    assert [step.scale for step in cfg.train_dataloader.dataset.pipeline if step.type == 'Resize'] == [(edge, edge)]
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].collate_fn = {'type': 'default_collate'}
    loss, result = one_step(cfg)
    assert torch.isfinite(loss)
    assert 'accuracy/top1' in result
    assert cfg.data_preprocessor.num_classes == cfg.model.head.num_classes == len(CLASSES)
    dataset = Runner.build_dataloader(cfg.val_dataloader).dataset
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        assert dataset.metainfo['classes'][info['gt_label']] == Path(info['img_path']).parent.name


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py', 'panoptic'),
        ('mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py', 'panoptic'),
        ('mmdet::bytetrack/bytetrack_yolox_x_8xb4-80e_crowdhuman-mot17halftrain_test-mot17halfval.py', 'video'),
        ('mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py', 'unlabelled'),
        ('mmdet::grounding_dino/grounding_dino_r50_scratch_8xb2_1x_coco.py', 'text'),
        ('mmdet::fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py', 'proposals'),
    ],
    ids=lambda value: value.rpartition('/')[2],
)
def test_refusals_say_why(name, reason):
    with pytest.raises(ValueError, match=reason):
        shapes_task(load(name))


def test_refuses_other_libraries_and_bad_numbers(data_dir):
    model = {'type': 'TopdownPoseEstimator'}
    with pytest.raises(ValueError, match="default_scope='mmpose'"):
        use_shapes(Config({'default_scope': 'mmpose', 'model': model}), data_dir)
    with pytest.raises(ValueError, match='iters=0'):
        use_shapes(load('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'), data_dir, iters=0)


def test_every_difference_is_told(data_dir):
    """Whatever differs between the config before and after lies under a path in the list, and nothing else does."""
    before = load('mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py')
    after = copy.deepcopy(before)
    changes = use_shapes(after, data_dir)
    told = [change.path for change in changes]

    def differences(a, b, path=''):
        a = (
            {} if a is NOT_SET and path.endswith(('paramwise_cfg', 'custom_keys', 'shared_fcs')) else a
        )  # made on the way
        if isinstance(a, dict) and isinstance(b, dict):
            for key in {*a, *b}:
                yield from differences(a.get(key, NOT_SET), b.get(key, NOT_SET), f'{path}.{key}'.lstrip('.'))
        elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
            for index, pair in enumerate(zip(a, b, strict=True)):
                yield from differences(*pair, f'{path}.{index}')
        elif a != b:
            yield path

    found = list(differences(before.to_dict(), after.to_dict()))
    own = ('_scope_', 'persistent_workers', 'drop_last')  # of no consequence to a reader
    assert not [p for p in found if not p.endswith(own) and not any((p + '.').startswith(t + '.') for t in told)]
    assert not [t for t in told if not any((p + '.').startswith(t + '.') for p in found)]


def test_class_weights_follow_the_classes(data_dir):
    cfg = load('mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py')
    use_shapes(cfg, data_dir)
    assert cfg.model.panoptic_head.loss_cls.class_weight == [1.0] * len(CLASSES) + [0.1]
    assert cfg.model.panoptic_head.num_things_classes == cfg.model.panoptic_fusion_head.num_things_classes == 5
    assert cfg.val_evaluator.metric == ['bbox', 'segm']


def test_wrapped_data_sets_and_epoch_hooks_go(data_dir):
    cfg = load('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py')
    changes = use_shapes(cfg, data_dir)
    assert cfg.train_dataloader.dataset.type == 'CocoDataset'
    assert [hook.type for hook in cfg.custom_hooks] == ['mmext_backbones.BatchNormMomentumHook']
    assert 'batch_augments' not in cfg.model.data_preprocessor
    pipeline = next(change for change in changes if change.path == 'train_dataloader.dataset.pipeline')
    assert shorten(pipeline.before).startswith('[Mosaic')


def test_own_weights_stay_and_fetched_ones_go(data_dir):
    cfg = load('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    use_shapes(cfg, data_dir)
    backbone = cfg.model.backbone
    assert (backbone.init_cfg, backbone.frozen_stages, backbone.norm_eval) == (None, -1, False)
    cfg = load('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    cfg.model.backbone.init_cfg.checkpoint = 'mine.pth'
    use_shapes(cfg, data_dir)
    assert cfg.model.backbone.init_cfg.checkpoint == 'mine.pth'
    assert cfg.model.backbone.frozen_stages == 1


def test_schedule_is_by_iteration(data_dir):
    cfg = load('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    use_shapes(cfg, data_dir, iters=90)
    assert (cfg.train_cfg.type, cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == ('IterBasedTrainLoop', 90, 45)
    assert cfg.optim_wrapper.optimizer.type == 'AdamW'
    assert not cfg.log_processor.by_epoch
    warmup, decay = cfg.param_scheduler
    assert warmup.end == decay.begin
    assert decay.end == 90


@pytest.mark.parametrize('iters', [1, 2, 7])
def test_no_warm_up_of_a_single_step(iters, data_dir):
    """mmengine's LinearLR of one step never reaches the rate."""
    cfg = load('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    use_shapes(cfg, data_dir, iters=iters)
    (decay,) = cfg.param_scheduler
    assert (decay.type, decay.begin, decay.end) == ('CosineAnnealingLR', 0, iters)


def test_editor_records_only_what_changes():
    editor = ConfigEditor(Config({'a': {'b': [{'c': 1}, {'c': (1, 2)}]}}))
    editor.set('a.b.0.c', 2)
    editor.set('a.b.1.c', [1, 2])  # equal
    editor.set('a.new.key', 'x')
    editor.drop('a.nothing')
    assert editor.changes == [Change('a.b.0.c', 1, 2), Change('a.new.key', NOT_SET, 'x')]
    assert editor.cfg.a.b[0].c == 2
    assert str(editor.changes[1]) == "a.new.key: (not set) -> 'x'"


def test_shorten():
    assert shorten([{'type': 'LoadImageFromFile'}, {'type': 'mmdet.Resize', 'scale': (8, 4)}]) == (
        '[LoadImageFromFile, Resize(8, 4)]'
    )
    assert len(shorten(list(range(1000)))) <= 100


def test_regions_are_sampled_for_small_pictures(data_dir):
    cfg = get_config('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py')
    use_shapes(cfg, data_dir)
    rcnn, roi_head = cfg.model.train_cfg.rcnn, cfg.model.roi_head
    assert (rcnn.sampler.num, rcnn.sampler.pos_fraction) == (48, 0.5)
    assert (rcnn.mask_size, roi_head.mask_roi_extractor.roi_layer.output_size) == (14, 7)  # the head doubles
    assert roi_head.bbox_roi_extractor.roi_layer.output_size == 7  # fully connected layers have one size
    assert {node['sampling_ratio'] for _, node in walk(cfg.model) if 'sampling_ratio' in node} == {1}
    assert cfg.optim_wrapper.paramwise_cfg.custom_keys.shared_fcs.lr_mult < 1


def test_masks_of_heads_with_a_fixed_size_keep_it(data_dir):
    cfg = get_config('mmdet::point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py')
    before = cfg.model.train_cfg.rcnn.mask_size
    use_shapes(cfg, data_dir)
    assert cfg.model.train_cfg.rcnn.mask_size == before


def test_cascades_are_sampled_in_every_stage(data_dir):
    cfg = get_config('mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py')
    use_shapes(cfg, data_dir)
    for stage in cfg.model.train_cfg.rcnn:
        assert (stage.sampler.num, stage.sampler.pos_fraction, stage.mask_size) == (48, 0.5, 14)
