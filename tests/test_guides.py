"""The guides for users: their commands, links, references to tests, and code are what they say."""

import contextlib
import io
import json
import re
import runpy
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from mmext_backbones.backbones import SwinTransformer
from mmext_backbones.config.files import load_config
from mmext_backbones.datasets.shapes.files import make_shapes
from mmext_backbones.engine import test as testing
from mmext_backbones.engine.resume.starting import check_resume
from mmext_backbones.finetune import read_own_coco, write_own_config
from mmext_backbones.swap.checks import build_model, forward
from mmext_backbones.utils.errors import UserError
from mmext_backbones.utils.remedies import SYMPTOMS
from mmext_backbones.weights.fitting import WeightsError
from mmext_backbones.weights.loading import read
from tests.test_engine.toy import make_hooks, make_run
from tests.test_weights.test_layouts import authors_swin
from tests.torch_features import needs_kernels

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / 'docs' / f'{name}.md').read_text() for name in ('get_started', 'tutorial', 'faq', 'migration')}
PAGES['add_a_backbone'] = (ROOT / 'docs' / 'add_a_backbone.md').read_text()


def blocks(page, kind):
    return re.findall(rf'```{kind}\n(.*?)```', PAGES[page], re.DOTALL)


COMMANDS = [
    pytest.param(line, id=f'{page}-{line[:70]}')
    for page in PAGES
    for block in blocks(page, 'bash')
    for line in block.splitlines()
]
MODELS_OF_FAQ = [block for block in blocks('faq', 'python') if block.startswith('model = dict(')]


# --------------------------------------------------------------------------------------------------------------------
# Commands, links, references


def help_of(tool: Path) -> str:
    """What a tool says about itself."""
    main = runpy.run_path(str(tool), run_name='tool')['main']
    screen = io.StringIO()
    with contextlib.redirect_stdout(screen), pytest.raises(SystemExit):
        main(['--help'])
    return screen.getvalue()


@pytest.mark.parametrize('line', COMMANDS)
def test_commands_are_those_of_the_tools(line):
    words = [word for word in shlex.split(line, comments=True) if not re.fullmatch(r'[A-Z]+=.*', word)]
    for path in re.findall(r'\b(?:configs|tests)/\S+?\.py', line):
        assert (ROOT / path).is_file(), path
    if words[:2] == ['python', '-c']:
        compile(words[2], line, 'exec')
    elif words[0] == 'make':
        assert re.search(rf'^{words[1]}:', (ROOT / 'Makefile').read_text(), re.MULTILINE)
    elif words[0].endswith('.sh'):
        assert (ROOT / words[0]).is_file()
    elif words[:2] == ['python', '-m'] and words[2].startswith('mmext_backbones'):
        assert (ROOT / words[2].replace('.', '/') / '__main__.py').is_file()
    elif words[0] == 'python' and words[1].startswith('tools/'):
        tool = ROOT / words[1]
        if tool.name == 'infer.py' and not tool.is_file():
            pytest.skip('tools/infer.py is not in this checkout')
        told = help_of(tool)
        for option in [word for word in words[2:] if re.fullmatch(r'--\w.*', word)]:
            assert re.search(rf'{option}\b', told), f'{tool.name} has no {option}'
    else:
        known = ('git clone', 'source', 'pip install', 'pip uninstall', 'python -m pytest')
        assert line.startswith(known) or 'python -m pytest' in line


@pytest.mark.parametrize('page', PAGES)
def test_links_and_tests_are_there(page):
    for target in re.findall(r'\]\(([^)]+)\)', PAGES[page]):
        if '://' in target:
            continue
        name, _, anchor = target.partition('#')
        path = (ROOT / 'docs' / name).resolve()
        assert path.is_file(), target
        titles = re.findall(r'^#+ (.*)$', path.read_text(), re.MULTILINE)
        assert not anchor or anchor in [
            re.sub(r'[^\w -]', '', title).strip().lower().replace(' ', '-') for title in titles
        ]
    for path, name in re.findall(r'`(tests/[\w/]+\.py)(?:::(\w+))?', PAGES[page]):
        assert (ROOT / path).is_file(), path
        assert not name or f'def {name}(' in (ROOT / path).read_text(), f'{path}::{name}'


def test_remedies_are_those_of_the_doctor():
    quoted = [line for block in blocks('faq', 'bash') for line in block.splitlines() if line.startswith('pip')]
    quoted = [line for line in quoted if 'requirements/' not in line and ' -e ' not in line]  # an installation
    remedies = ' '.join(remedy for _, remedy in SYMPTOMS)
    assert len(quoted) == 5
    assert all(line in remedies for line in quoted)


def test_every_answer_can_be_checked():
    """A question has a line to type, or a test, or the page that has them."""
    answers = re.split(r'^### ', PAGES['faq'], flags=re.MULTILINE)[1:]
    assert len(answers) > 30
    for answer in answers:
        assert re.search(r'```|`tests/|\]\(\w+\.md', answer.partition('\n')[2]), answer


# --------------------------------------------------------------------------------------------------------------------
# What the answers say


@pytest.mark.parametrize('block', MODELS_OF_FAQ, ids=lambda block: ' '.join(block.split())[:80])
def test_configs_of_the_answers_run(block, tmp_path):
    pytest.importorskip('mmdet')
    path = tmp_path / 'config.py'
    path.write_text("_base_ = 'mmext_backbones::swin_t_maskrcnn_1x.py'\n" + block)
    model = build_model(Config.fromfile(path))
    if model.backbone.in_channels == 3:
        if len(model.backbone.out_channels) == 4:
            forward(model, (64, 64))
    else:
        model.data_preprocessor({'inputs': [torch.zeros(4, 64, 64)], 'data_samples': None})
        model.backbone(torch.zeros(1, 4, 64, 64))


def test_weights_for_rgb_and_four_channels(tmp_path):
    arch = {'embed_dims': 16, 'depths': (1, 1, 1, 1), 'num_heads': (1, 2, 4, 8)}
    rgb = SwinTransformer(arch)
    torch.save(rgb.state_dict(), tmp_path / 'swin_t.pth')
    model = SwinTransformer(arch, in_channels=4)
    with pytest.raises(WeightsError, match=r'patch_embed\.proj\.weight 16x3x4x4 -> 16x4x4x4'):
        model.load_pretrained(str(tmp_path / 'swin_t.pth'))
    report = model.load_pretrained(str(tmp_path / 'swin_t.pth'), strict=False)
    assert list(report.wrong_shape) == ['patch_embed.proj.weight']
    assert set(report.loaded) == set(model.state_dict()) - {'patch_embed.proj.weight'}


def test_an_average_of_the_weights(tmp_path):
    """A checkpoint has the average under `state_dict`, which a validation measures too."""
    names = {}
    exec(next(block for block in blocks('faq', 'python') if 'EMAHook' in block), names)
    runner = make_run(tmp_path, custom_hooks=[*make_hooks(), *names['custom_hooks']])
    runner.train()
    saved = read(tmp_path / 'epoch_3.pth')
    key = 'layers.0.weight'
    assert torch.equal(saved['ema_state_dict'][f'module.{key}'], runner.model.state_dict()[key])
    assert not torch.equal(saved['state_dict'][key], runner.model.state_dict()[key])


@pytest.mark.slow  # of test_export
@needs_kernels
def test_exporting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arch = {'embed_dims': 16, 'depths': (2, 2), 'num_heads': (1, 2)}
    model = SimpleNamespace(backbone=SwinTransformer(arch, out_indices=(0, 1)))
    exec(next(block for block in blocks('faq', 'python') if 'export.export' in block), {'torch': torch, 'model': model})
    x = torch.randn(1, 3, 97, 61)
    with torch.no_grad():
        for out, expected in zip(torch.export.load('backbone.pt2').module()(x), model.backbone(x), strict=True):
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_predictor_of_getting_started(old_detector, monkeypatch):
    pytest.importorskip('mmext_backbones.inference', reason='mmext_backbones.inference is not in this checkout')
    config, checkpoint, picture = old_detector
    monkeypatch.chdir(picture.parent)
    picture.rename('image.jpg')
    exec(blocks('get_started', 'python')[0], {'config': str(config), 'weights': str(checkpoint)})
    assert Path('out.png').is_file()


# --------------------------------------------------------------------------------------------------------------------
# Moving from older code


THIN = """
_base_ = 'mmext_backbones::swin_t_maskrcnn_1x.py'
model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8))),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=32),
    rpn_head=dict(in_channels=32, feat_channels=32),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        mask_roi_extractor=dict(out_channels=32),
        bbox_head=dict(in_channels=32, fc_out_channels=32),
        mask_head=dict(in_channels=32, conv_out_channels=32)),
    test_cfg=dict(rpn=dict(max_per_img=30), rcnn=dict(score_thr=0.0, max_per_img=10)))
"""


@pytest.fixture
def old_detector(tmp_path, monkeypatch):
    """A config, a checkpoint of it as the runner of mmcv 1.x wrote one in the Swin authors' repository, an image."""
    pytest.importorskip('mmdet')
    monkeypatch.chdir(tmp_path)
    shapes = make_shapes(tmp_path / 'made', size=64, num_train=24, num_val=2)
    (tmp_path / 'base.py').write_text(THIN)
    coco = shapes / 'annotations'
    data = read_own_coco(
        shapes / 'train', coco / 'instances_train.json', tmp_path,
        val_images=shapes / 'val', val_annotations=coco / 'instances_val.json',
    )  # fmt: skip
    write_own_config('base.py', data, 'config.py', weights='none', num_workers=0)
    torch.manual_seed(0)
    model = build_model(load_config('config.py'))
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, 'new.pth')
    weights = model.state_dict()
    backbone = {key.removeprefix('backbone.'): value for key, value in weights.items() if key.startswith('backbone.')}
    old = {f'backbone.{key}': value for key, value in authors_swin(backbone).items() if not key.startswith('head.')}
    old = {key: value for key, value in old.items() if not key.startswith('backbone.norm.')}
    old |= {key: value for key, value in weights.items() if not key.startswith('backbone.') or '.norm' in key[:14]}
    meta = {'epoch': 12, 'iter': 88, 'mmcv_version': '1.3.0', 'config': 'model = dict()', 'CLASSES': data.classes}
    state = {0: {'step': 7, 'exp_avg': torch.zeros(2)}}
    optimizer = {'state': state, 'param_groups': [{'lr': 1e-4, 'params': [0]}]}
    amp = {'loss_scaler0': {'loss_scale': 65536.0, 'unskipped': 3}}
    torch.save({'meta': meta, 'state_dict': old, 'optimizer': optimizer, 'amp': amp}, 'old.pth')
    return tmp_path / 'config.py', tmp_path / 'old.pth', shapes / 'val' / '000000.png'


def test_an_old_checkpoint_gives_its_metrics(old_detector):
    config, _, _ = old_detector
    metrics = [testing.test(str(config), f'{name}.pth', out=f'{name}.json') for name in ('new', 'old')]
    assert metrics[0] == metrics[1]
    # random weights measure nothing, but every box, score and mask follows from them
    found = [json.loads(Path(f'{name}.segm.json').read_text()) for name in ('new', 'old')]
    assert found[0] == found[1]
    assert len(found[0]) == 20
    # its training cannot go on; its weights can be a start
    with pytest.raises(UserError, match=r'load_from=old\.pth'):
        check_resume(Config({'resume': True, 'load_from': 'old.pth'}))


def test_the_worked_example_is_our_recipe(tmp_path):
    pytest.importorskip('mmdet')
    path = tmp_path / 'config.py'
    path.write_text(blocks('migration', 'python')[0])
    example, ours = Config.fromfile(path), Config.fromfile(ROOT / 'configs' / 'swin_t_maskrcnn_1x.py')

    def plain(node):
        if isinstance(node, dict):
            return {key: plain(value) for key, value in node.items() if key not in ('_scope_', '_delete_')}
        return [plain(item) for item in node] if isinstance(node, (list, tuple)) else node

    for key in ('model', 'optim_wrapper', 'param_scheduler', 'train_cfg', 'train_dataloader', 'val_dataloader'):
        assert plain(example[key]) == plain(ours[key]), key
    assert example.auto_scale_lr == ours.auto_scale_lr


def test_recipes_that_replace_theirs_are_there():
    rows = re.findall(r'\| `((?:swin|elsa_swin)_[\w{},]+)\.py` \|', PAGES['migration'])
    assert len(rows) == 6
    for row in rows:
        names = ['']
        for part in re.split(r'(\{.*?\})', row):
            choices = part[1:-1].split(',') if part.startswith('{') else [part]
            names = [name + choice for name in names for choice in choices]
        for name in names:
            assert (ROOT / 'configs' / f'{name}.py').is_file(), name
