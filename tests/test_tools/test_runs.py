"""The two tools from end to end, a training in a process of its own, with networks small enough for two cores."""

import json
import re
import subprocess
from pathlib import Path

import cv2
import pytest

from mmext_backbones.datasets.shapes.files import default_shapes_dir, make_shapes
from mmext_backbones.engine import setup
from tests.fresh import Fresh

ROOT = Path(__file__).parents[2]
THIN = {'embed_dims': 24, 'depths': (1, 1, 1, 1), 'num_heads': (1, 2, 4, 8)}
WIDTHS = [24, 48, 96, 192]
BACKBONE = f"dict(_delete_=True, type='mmext_backbones.SwinTransformer', arch={THIN})"

CONFIGS = {
    'detection': f"""
_base_ = [{str(ROOT / 'configs' / 'swin_t_maskrcnn_1x.py')!r}]
model = dict(
    backbone={BACKBONE},
    neck=dict(in_channels={WIDTHS}, out_channels=32),
    rpn_head=dict(in_channels=32, feat_channels=32),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        mask_roi_extractor=dict(out_channels=32),
        bbox_head=dict(in_channels=32, fc_out_channels=32),
        mask_head=dict(in_channels=32, conv_out_channels=32)))
""",
    'no_views': """
_base_ = 'detection.py'
tta_model = None
tta_pipeline = None
""",
    'boxes': f"""
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py']
model = dict(
    backbone={BACKBONE},
    neck=dict(in_channels={WIDTHS}, out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32, stacked_convs=1))
""",
    'segmentation': f"""
_base_ = [{str(ROOT / 'configs' / 'swin_t_upernet_160k.py')!r}]
model = dict(
    backbone={BACKBONE},
    decode_head=dict(in_channels={WIDTHS}, channels=32),
    auxiliary_head=dict(in_channels=96, channels=32))
""",
    'classification': f"""
_base_ = ['mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py']
model = dict(backbone=dict(_delete_=True, type='mmext_backbones.SwinTransformer', arch={THIN}, out_indices=(3,)),
             head=dict(in_channels=192))
""",
}
LIBRARY = {'detection': 'mmdet', 'boxes': 'mmdet', 'segmentation': 'mmseg', 'classification': 'mmpretrain'}
METRIC = {'detection': 'mask', 'boxes': 'box', 'segmentation': 'mIoU', 'classification': 'top1'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder to run in, with a small Shapes set where the tools look for theirs."""
    path = tmp_path_factory.mktemp('runs')
    make_shapes(path / 'made', size=64, num_train=8, num_val=3)
    (path / default_shapes_dir().parent).mkdir(parents=True)
    for name, text in CONFIGS.items():
        (path / f'{name}.py').write_text(text)
    return path


@pytest.fixture
def tool(folder, monkeypatch, run_tool):
    """Runs a tool in this process, in the folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(setup, 'make_default_shapes', lambda: Path('made'))
    return run_tool


def start(interpreter: Fresh, folder: Path, name: str, *args: str, before: str = '') -> subprocess.CompletedProcess:
    """Runs a tool in a process of its own, with the folder's own small set of Shapes."""
    code = (
        'import sys, runpy\n'
        'from pathlib import Path\n'
        'from mmext_backbones.engine import setup\n'
        'from tests.conftest import skip_waits\n'
        'skip_waits()\n'
        "setup.make_default_shapes = lambda: Path('made')\n"
        f'{before}'
        f'sys.argv = {[name, *args]!r}\n'
        f"runpy.run_path({str(ROOT / 'tools' / f'{name}.py')!r}, run_name='__main__')\n"
    )
    return interpreter.run(code, cwd=folder)


def ok(result: subprocess.CompletedProcess) -> str:
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout + result.stderr


def message(result: subprocess.CompletedProcess) -> str:
    assert result.returncode == 2, result.stdout[-2000:] + result.stderr[-4000:]
    assert 'Traceback' not in result.stderr
    return result.stderr


SLOW = [pytest.param(task, marks=pytest.mark.slow) for task in ('boxes', 'segmentation', 'classification')]


@pytest.mark.parametrize('task', ['detection', *SLOW])
def test_train_test_and_resume(task, folder, tool, fresh):
    pytest.importorskip(LIBRARY[task])
    config, work_dir = f'{task}.py', folder / 'work_dirs' / f'{task}_shapes'
    short = ['--shapes', '--cfg-options', 'train_cfg.max_iters=2', 'default_hooks.logger.interval=1']
    screen = ok(start(fresh(), folder, 'train', config, *short))  # warnings are seen in a process of its own
    assert 'Changed in the config to run on the Shapes data' in screen
    assert 'eta:' in screen
    assert METRIC[task] in screen.rpartition('Saving checkpoint')[2]
    for name in ('predictions.png', 'curves.png'):
        assert f'work_dirs/{task}_shapes/{name}' in screen
        assert cv2.imread(str(work_dir / name)) is not None
    for noise in ('creating index', 'paramwise_options', 'Warning', 'System environment'):
        assert noise not in screen

    if task == 'detection':  # the others take the same way
        short[2] = 'train_cfg.max_iters=3'
        screen = ok(tool('train', config, *short, '--resume'))
        assert 'resumed epoch: 0, iter: 2' in screen
        assert (work_dir / 'iter_3.pth').is_file()
        assert '"loss": [[' in (work_dir / 'curves.json').read_text()

    checkpoint = work_dir / ('iter_3.pth' if task == 'detection' else 'iter_2.pth')
    if task == 'detection':  # any file of weights can be tested
        ok(tool('convert_weights', checkpoint, folder / 'x.safetensors', '--force'))
        checkpoint = folder / 'x.safetensors'
    pictures = f'pictures_{task}'
    run = ['--shapes', '--tta', '--show-dir', pictures, '--out', f'{task}.pkl', '--threshold', '0.9', '--device', 'cpu']
    trained = (work_dir / 'predictions.png').read_bytes()
    screen = ok(tool('test', config, checkpoint, *run))
    assert METRIC[task] in screen
    if task == 'detection':
        assert 'tta_pipeline' in screen  # brought to the size of Shapes
    assert list((folder / pictures).glob('*.png'))
    name = f'{checkpoint.stem}.{task}_shapes.tta.json'
    assert name in screen.rpartition('results')[2]
    direct = json.loads((checkpoint.parent / name).read_text())
    assert f'{Path(name).stem}.png' in screen.rpartition('predictions')[2]  # beside the results
    assert cv2.imread(str((checkpoint.parent / name).with_suffix('.png'))) is not None
    assert (work_dir / 'predictions.png').read_bytes() == trained
    assert direct['num_images'] == (5 if task == 'classification' else 3)

    if task in ('detection', 'segmentation'):
        screen = ok(tool('test', config, '--shapes', '--predictions', f'{task}.pkl'))
        assert METRIC[task] in screen
        assert 'triangle' in screen
        given = json.loads((folder / f'{task}.{task}_shapes.json').read_text())
        assert (given['metrics'], given['per_class']) == (direct['metrics'], direct['per_class'])
    if task == 'detection':  # without views in the config, the mirror image
        screen = ok(tool('test', 'no_views.py', checkpoint, '--shapes', '--tta'))
        assert re.search(r'^mask +\d', screen, re.MULTILINE)


def test_resuming_where_no_checkpoint_can_be_read(tool, tmp_path):
    """Starting over would take the place of what is there."""
    pytest.importorskip('mmdet')
    for name in ('iter_5.pth', 'iter_10.pth'):
        (tmp_path / name).write_bytes(b'PK cut')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_10.pth'))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    text = message(tool('train', 'boxes.py', '--shapes', '--work-dir', tmp_path, '--resume'))
    assert all(f'{tmp_path / name} cannot be read' in text for name in ('iter_5.pth', 'iter_10.pth'))
    assert 'leave --resume out' in text
    (tmp_path / 'training.lock').unlink()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.slow  # by what it writes; forking_kills.py compares weights, and kills at any moment
def test_a_killed_run_resumes_as_if_unbroken(folder, tmp_path, fresh):
    """Six iterations at once, and four, a kill that nothing can catch, and the rest: the same losses."""
    pytest.importorskip('mmdet')
    options = ['train_cfg.max_iters=6', 'train_cfg.val_interval=3', 'default_hooks.logger.interval=1']
    options += ['default_hooks.checkpoint.interval=3', 'default_hooks.checkpoint.max_keep_ckpts=2']
    options += ['train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False']
    args = ['detection.py', '--shapes', '--seed', '7', '--cfg-options', *options]
    unbroken, broken = tmp_path / 'unbroken', tmp_path / 'broken'
    ok(start(fresh('mmdet'), folder, 'train', *args, '--work-dir', str(unbroken)))

    kill = (
        'import os, signal\n'
        'from mmengine.runner import Runner\n'
        'train_iter = Runner.call_hook\n'
        'def call_hook(self, name, **kwargs):\n'
        '    train_iter(self, name, **kwargs)\n'
        "    if name == 'after_train_iter' and self.iter == 4:\n"
        '        os.kill(os.getpid(), signal.SIGKILL)\n'
        'Runner.call_hook = call_hook\n'
    )
    result = start(fresh('mmdet'), folder, 'train', *args, '--work-dir', str(broken), before=kill)
    assert result.returncode == -9
    assert (broken / 'iter_3.pth').is_file()
    screen = ok(start(fresh('mmdet'), folder, 'train', *args, '--work-dir', str(broken), '--resume'))
    assert 'iter: 3' in screen

    def losses(work_dir):
        rows = {}
        for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
            for line in path.read_text().splitlines():
                row = json.loads(line)
                if 'loss' in row:
                    rows[row['step']] = row['loss']
        return rows

    expected, actual = losses(unbroken), losses(broken)
    assert list(expected) == list(actual) == list(range(1, 7))
    assert actual == expected


def test_no_data_no_traceback(tool):
    pytest.importorskip('mmdet')
    text = message(tool('train', ROOT / 'configs' / 'elsa_swin_t_maskrcnn_1x.py'))
    assert 'data/coco/annotations/instances_train2017.json' in text
    assert '--shapes' in text
    assert len(text.splitlines()) < 15


def test_unreadable_and_empty_images(tool, tmp_path, monkeypatch):
    pytest.importorskip('mmdet')
    monkeypatch.chdir(tmp_path)
    make_shapes(tmp_path / 'made', size=64, num_train=2, num_val=1)
    (tmp_path / 'boxes.py').write_text(CONFIGS['boxes'])
    args = ('boxes.py', '--shapes', '--cfg-options', 'train_cfg.max_iters=1', 'train_dataloader.num_workers=0')
    args += ('train_dataloader.persistent_workers=False',)
    for content, expected in ((b'no image', 'cannot be read'), (b'', 'is an empty file')):
        for path in (tmp_path / 'made' / 'train').glob('*.png'):
            path.write_bytes(content)
        text = message(tool('train', *args))
        assert 'made/train/00000' in text
        assert expected in text


def test_truncated_checkpoint_and_masks_that_tta_cannot_merge(folder, tool):
    pytest.importorskip('mmdet')
    (folder / 'cut.pth').write_bytes(b'PK\x03\x04 cut short')
    solo = tool('test', 'mmdet::solo/solo_r50_fpn_1x_coco.py', 'cut.pth', '--shapes', '--tta')
    assert 'SOLO predicts masks without a roi_head' in message(solo)
    text = message(tool('test', 'detection.py', 'cut.pth', '--shapes'))
    assert 'cut.pth cannot be read' in text


def test_unknown_key_in_the_backbone(tool):
    pytest.importorskip('mmdet')
    text = message(tool('train', 'boxes.py', '--shapes', '--cfg-options', 'model.backbone.drop_path=0.2'))
    assert "SwinTransformer (mmext_backbones.backbones.swin) accepts no key 'drop_path'" in text
    assert "Did you mean 'drop_path_rate'?" in text
