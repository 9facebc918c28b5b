"""tools/finetune_coco.py, the tool of docs/tutorial.md: own pictures and a COCO file become a trained detector."""

import json
import runpy
import shutil
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmext_backbones.config.files import load_config
from mmext_backbones.datasets.shapes.files import make_shapes
from mmext_backbones.finetune import own_config, read_own_coco, write_own_config
from mmext_backbones.utils.cli import run_cli
from mmext_backbones.utils.errors import UserError
from mmext_backbones.weights.fitting import WeightsError

pytest.importorskip('mmdet')
ROOT = Path(__file__).parents[2]
THIN = """
_base_ = ['mmext_backbones::swin_t_maskrcnn_1x.py']
model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=24, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8))),
    neck=dict(in_channels=[24, 48, 96, 192], out_channels=32),
    rpn_head=dict(in_channels=32, feat_channels=32),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        mask_roi_extractor=dict(out_channels=32),
        bbox_head=dict(in_channels=32, fc_out_channels=32),
        mask_head=dict(in_channels=32, conv_out_channels=32)),
    train_cfg=dict(rpn_proposal=dict(nms_pre=200, max_per_img=100), rcnn=dict(sampler=dict(num=32))),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=50), rcnn=dict(max_per_img=10)))
"""
QUICK = ('--base', 'base.py', '--weights', 'none', '--lr', '1e-3', '--workers', '0')


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('drawn') / 'made', size=64, num_train=20, num_val=6)


@pytest.fixture
def mine(drawn, tmp_path, monkeypatch):
    """The folder of a person who has pictures and one COCO file, as exporters write it."""
    shutil.copytree(drawn / 'train', tmp_path / 'pictures')
    data = json.loads((drawn / 'annotations' / 'instances_train.json').read_text())
    ids = {1: 7, 2: 3, 3: 90, 4: 12, 5: 4}  # in no order, with gaps; a first one that nothing is of
    for category in data['categories']:
        category.update(id=ids[category['id']], name=f'my {category["name"]}')
    data['categories'].insert(0, {'id': 0, 'name': 'things', 'supercategory': 'none'})
    for annotation in data['annotations']:
        annotation.update(id=annotation['id'] - 1, category_id=ids[annotation['category_id']])
        del annotation['area'], annotation['iscrowd']
    (tmp_path / 'mine.json').write_text(json.dumps(data))
    (tmp_path / 'base.py').write_text(THIN)
    monkeypatch.chdir(tmp_path)
    return data


def finetune(*args: object) -> int:
    main = runpy.run_path(str(ROOT / 'tools' / 'finetune_coco.py'), run_name='finetune_coco')['main']
    return run_cli(main, ['pictures', 'mine.json', *map(str, args)])


def test_from_pictures_to_a_tested_detector(mine, capsys):
    once = ('--cfg-options', 'train_cfg.val_interval=3')
    assert finetune(*QUICK, '--epochs', 3, '--out', 'out', *once) == 0
    screen = capsys.readouterr().out
    assert 'left out, since no training annotation is of them: things' in screen
    assert 'nothing to report' in screen
    assert 'THE BACKBONE STARTS FROM RANDOM WEIGHTS' in screen

    losses = json.loads(Path('out/run/curves.json').read_text())['losses']['loss']
    assert losses[-1][0] == 24  # three epochs of 16 images, two a step
    assert losses[-1][1] < 0.7 * losses[0][1]
    (result,) = Path('out/run').glob('*.config.json')
    record = json.loads(result.read_text())
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= set(record['metrics'])
    assert record['num_images'] == len(list(Path('out/pictures').glob('*.png'))) == 4
    names = [category['name'] for category in mine['categories'][1:]]
    assert list(record['per_class']['bbox']) == names

    cfg = load_config('out/config.py')
    heads = cfg.model.roi_head
    assert heads.bbox_head.num_classes == heads.mask_head.num_classes == 5
    assert list(cfg.train_dataloader.dataset.metainfo.classes) == names
    for split, number in (('train', 16), ('val', 4)):
        written = json.loads(Path(f'out/annotations/{split}.json').read_text())
        assert len(written['images']) == number
        assert [each['id'] for each in written['annotations']] == list(range(1, 1 + len(written['annotations'])))
        assert {each['category_id'] for each in written['annotations']} == {1, 2, 3, 4, 5}

    assert finetune(*QUICK, '--out', 'out') == 2
    assert 'the same command with --resume' in capsys.readouterr().err


def without_masks(data: dict) -> None:
    for annotation in data['annotations']:
        annotation['segmentation'] = []
    Path('mine.json').write_text(json.dumps(data))


def test_boxes_alone_make_a_faster_rcnn(mine, capsys):
    """Which test_a_stopped_training_goes_on_as_it_is_told trains."""
    without_masks(mine)
    assert finetune(*QUICK, '--out', 'out', '--only-config') == 0
    assert 'no annotation has a mask: boxes alone are learned' in capsys.readouterr().out
    assert load_config('out/config.py').model.type == 'FasterRCNN'


def test_a_pair_of_files_in_another_order(mine, drawn):
    """The validation has its own ids and its own order of categories; names decide."""
    val = json.loads((drawn / 'annotations' / 'instances_val.json').read_text())
    for category in val['categories']:
        category['name'] = f'my {category["name"]}'
    val['categories'].reverse()
    Path('val.json').write_text(json.dumps(val))
    data = read_own_coco('pictures', 'mine.json', 'out', val_images=drawn / 'val', val_annotations='val.json')
    assert (data.train.num_images, data.val.num_images) == (20, 6)
    written = json.loads(data.val.annotations.read_text())
    names = {each['id']: each['name'] for each in val['categories']}
    assert [data.classes[each['category_id'] - 1] for each in written['annotations']] == [
        names[each['category_id']] for each in val['annotations']
    ]


def test_what_follows_from_the_number_of_images(mine):
    data = read_own_coco('pictures', 'mine.json', 'out')
    notes = write_own_config('base.py', data, 'out/a.py', weights='none', batch_size=4)
    cfg = Config.fromfile('out/a.py')
    # 16 images, 4 a step: 4 steps an epoch, and no more than 100 epochs of them
    assert cfg.train_cfg.max_epochs == 100
    assert cfg.param_scheduler[0].end == 40
    assert cfg.param_scheduler[1].milestones == [67, 92]
    # the recipe has 1e-4 for 16 images
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(1e-4 * 4 / 16)
    assert cfg.auto_scale_lr.base_batch_size == 4
    assert '2.5e-05' in ' '.join(notes)
    assert cfg.val_dataloader.dataset.pipeline[1].scale == (64, 64)


def test_no_warm_up_of_a_single_step(mine):
    """mmengine's LinearLR of one step never reaches the rate."""
    data = read_own_coco('pictures', 'mine.json', 'out')
    notes = write_own_config('base.py', data, 'out/a.py', weights='none', batch_size=16, epochs=11)
    assert [each.type for each in Config.fromfile('out/a.py').param_scheduler] == ['MultiStepLR']
    assert 'too few for a warm-up' in ' '.join(notes)


def test_the_annotations_are_not_written_over(mine):
    Path('annotations').mkdir()
    shutil.move('mine.json', 'annotations/train.json')
    before = Path('annotations/train.json').read_bytes()
    with pytest.raises(UserError, match=r'annotations/train.json.* would be replaced'):
        read_own_coco('pictures', 'annotations/train.json', '.')
    assert Path('annotations/train.json').read_bytes() == before


@pytest.mark.slow
def test_a_stopped_training_goes_on_as_it_is_told(mine, capsys):
    """Without --resume the tool says how; with it the data and the config stay as they are. Of boxes alone."""
    without_masks(mine)
    options = (*QUICK, '--epochs', '2', '--batch-size', '8', '--out', 'my results')
    assert finetune(*options, '--only-config') == 0
    assert "python tools/train.py 'my results/config.py' --seed 0" in capsys.readouterr().out
    config = Path('my results/config.py')
    before = config.read_bytes()
    assert finetune(*options) == 2
    assert "Train it: python tools/train.py 'my results/config.py' --seed 0" in capsys.readouterr().err
    stopped = ('--cfg-options', 'train_cfg.max_epochs=1')
    assert finetune(*options, '--resume', *stopped) == 0
    capsys.readouterr()
    assert finetune(*options) == 2
    assert 'Go on with its training: the same command with --resume' in capsys.readouterr().err
    assert finetune(*options, '--resume') == 0
    out = capsys.readouterr().out
    assert "python tools/test.py 'my results/config.py' 'my results/run/" in out
    assert Path('my results/run/epoch_2.pth').is_file()
    assert config.read_bytes() == before
    losses = json.loads(Path('my results/run/curves.json').read_text())['losses']
    assert 'loss_bbox' in losses
    assert 'loss_mask' not in losses


@pytest.mark.parametrize('base', ['swin_t_cascade_1x.py', 'sequencer_s_retinanet_1x.py'])
def test_every_head_has_the_classes(mine, base):
    data = read_own_coco('pictures', 'mine.json', 'out', masks=False if 'retinanet' in base else None)
    write_own_config(f'mmext_backbones::{base}', data, 'out/a.py', weights='none')
    cfg = Config.fromfile('out/a.py')
    init_default_scope('mmdet')
    heads = [
        m for m in MODELS.build(cfg.model).modules() if hasattr(m, 'num_classes') and 'RPN' not in type(m).__name__
    ]
    assert {head.num_classes for head in heads} == {5}
    assert len(heads) >= (1 if 'retinanet' in base else 6)


def test_weights_that_cannot_be_had_are_told_of(mine, monkeypatch):
    data = read_own_coco('pictures', 'mine.json', 'out')

    def offline(address):
        raise WeightsError(f'{address}: the hub cannot be reached')

    monkeypatch.setattr(own_config, 'read', offline)
    notes = ' '.join(write_own_config('base.py', data, 'out/a.py'))
    assert 'THE BACKBONE STARTS FROM RANDOM WEIGHTS' in notes
    assert 'timm://swin_tiny_patch4_window7_224.ms_in1k: the hub cannot be reached' in notes
    assert 'THE BACKBONE' in Path('out/a.py').read_text()
    assert Config.fromfile('out/a.py').model.backbone.init_cfg is None
    with pytest.raises(UserError, match=r'mine\.pth: .*hub cannot be reached'):
        write_own_config('base.py', data, 'out/b.py', weights='mine.pth')


def spoil(data, how):
    if how == 'no annotations':
        data['annotations'] = []
    elif how == 'few images':
        data['annotations'] = [each for each in data['annotations'] if each['image_id'] < 3]
    elif how == 'unknown category':
        data['categories'] = data['categories'][:-1]
    elif how == 'unknown image':
        data['images'] = data['images'][1:]
    elif how == 'twice the same name':
        data['categories'][2]['name'] = data['categories'][1]['name']
    elif how == 'a space too much':
        data['categories'][1]['name'] += ' '
    elif how in ('iscrowd', 'ignore'):
        for annotation in data['annotations']:
            annotation[how] = 1
    elif how == 'some masks':
        del data['annotations'][0]['segmentation']
    elif how == 'file names from above':
        for image in data['images']:
            image['file_name'] = f'pictures/{image["file_name"]}'
    elif how == 'file names from elsewhere':
        for image in data['images']:
            image['file_name'] = f'C:/me/{image["file_name"]}'
    return data


MESSAGES = {
    'no annotations': 'no annotation in 20 images',
    'few images': 'too few to keep some of them for validation .expected 5 or more',
    'unknown category': 'have a category_id that is no category of the file',
    'unknown image': 'have a image_id that is no image of the file',
    'twice the same name': 'two categories have the name',
    'a space too much': "'my circle ' is empty, or begins or ends with a space",
    'iscrowd': r'every annotation is a crowd .iscrowd: 1.*set iscrowd to 0',
    'ignore': 'every annotation is to be ignored',
    'some masks': r'1 of \d+ annotations have no segmentation.*--boxes',
    'file names from above': 'They count from .*: name that folder',
    'file names from elsewhere': "There is 'pictures/000000.png': correct the file_name entries",
}


@pytest.mark.parametrize('how', MESSAGES)
def test_what_cannot_be_learned_from_is_named(mine, how):
    Path('mine.json').write_text(json.dumps(spoil(mine, how)))
    with pytest.raises(UserError, match=MESSAGES[how]):
        read_own_coco('pictures', 'mine.json', 'out')
    assert not Path('out').exists()


def test_the_same_pictures_in_both_files(mine):
    with pytest.raises(UserError, match=r'20 images in .*learned by heart'):
        read_own_coco('pictures', 'mine.json', 'out', val_annotations='mine.json')


@pytest.mark.parametrize(
    ('base', 'message'),
    [
        ('mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py', 'no config of an mmdet detector'),
        (
            'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
            'Mask2Former learns masks, and the data has boxes alone',
        ),
        ('mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py', 'learns masks, and the data has boxes alone'),
        (str(ROOT / 'configs' / 'swin_t_in1k.py'), 'no config of an mmdet detector'),
    ],
)
def test_bases_that_do_not_fit_are_refused(mine, base, message):
    data = read_own_coco('pictures', 'mine.json', 'out', masks=False)
    with pytest.raises(UserError, match=message):
        write_own_config(base, data, 'out/a.py', weights='none')
