"""docs/study.md: its table is of the results and of the networks as they are, and its command trains each of them."""

import copy
import functools
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from dev import study
from mmext_backbones.analysis.cost import model_cost
from mmext_backbones.backbones import LocalSwin
from mmext_backbones.backbones.local_mixers import MIXERS
from mmext_backbones.datasets.shapes.files import make_shapes
from mmext_backbones.engine import setup, train
from mmext_backbones.engine.options import TrainOptions
from mmext_backbones.utils.errors import UserError

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / 'docs' / 'study.md').read_text()
TABLE = re.search(r'<!-- mixers: begin.*?-->\n(.*?)<!-- mixers: end', TEXT, re.DOTALL).group(1)
ROWS = {cells[0].strip('`'): cells for cells in ([cell.strip() for cell in line.split('|')[1:-1]]
                                                 for line in TABLE.strip().splitlines()[2:])}  # fmt: skip
FOUND = json.loads(study.RESULTS.read_text())
COMMAND = shlex.split(re.search(r'```bash\n(.*?)```', TEXT, re.DOTALL).group(1).replace('\\\n', ''))
ARCH = {'embed_dims': 16, 'depths': (2, 2, 2, 2), 'num_heads': (1, 2, 4, 8)}
SOME = 'net7-n'  # of the command


def test_every_mixer_has_a_row():
    assert list(ROWS) == list(MIXERS)


def test_the_numbers_are_those_of_the_results():
    assert list(FOUND['mixers']) == list(MIXERS)
    assert study.page(TEXT, FOUND) == TEXT
    times = [one[mode] for one in FOUND['mixers'].values() for mode in study.MODES]
    assert all(0 < time['low'] <= time['median'] <= time['high'] for time in times)


def test_other_results_make_another_page():
    one = {'params': 1_234_567, 'macs': 8_900_000_000}
    one |= {mode: {'median': median} for mode, median in zip(study.MODES, (0.0123, 4.5678), strict=True)}
    text = study.page(TEXT, {**FOUND, 'mixers': {'net4-n': one}, 'date': '2001-02-03'})
    assert '| `net4-n` | r^b | softmax | neighbourhood | 1.23 M | 8.90 G | 12 ms | 4568 ms | - |' in text
    assert ', 2001-02-03.' in text
    assert len(text.splitlines()) == len(TEXT.splitlines())
    with pytest.raises(UserError, match="no row of the mixer 'net8'"):
        study.page(TEXT, {**FOUND, 'mixers': {'net8': one}})


def test_measured_and_drawn(monkeypatch, tmp_path):
    monkeypatch.setattr(study, 'MIXERS', {name: MIXERS[name] for name in ('involution', 'net1')})
    monkeypatch.setattr(study, 'LocalSwin', functools.partial(LocalSwin, ARCH))
    monkeypatch.setattr(study, 'SIZE', (64, 64))
    monkeypatch.setattr(study, 'SCENES', 1)
    monkeypatch.setattr(study, 'describe', lambda device: FOUND['machine'])  # which takes seconds to ask
    for name in ('PAGE', 'RESULTS', 'PICTURE'):
        monkeypatch.setattr(study, name, tmp_path / getattr(study, name).name)
    study.PAGE.write_text(TEXT)
    study.main(['--rounds', '2', '--warmup', '0', '--threads', '1'])
    found = json.loads(study.RESULTS.read_text())
    assert list(found['mixers']) == ['involution', 'net1']
    for one in found['mixers'].values():
        assert 0 < one['forward']['low'] <= one['forward']['high'] < one['forward+backward']['high']
    assert study.PAGE.read_text() == study.page(TEXT, found) != TEXT
    assert study.PICTURE.read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize('mixer', MIXERS)
def test_its_costs_are_those_of_the_network(mixer):
    with torch.device('meta'):
        model = LocalSwin(mixer=mixer)
    cost = model_cost(model, (224, 224))
    assert ROWS[mixer][4:6] == [f'{cost.params / 1e6:.2f} M', f'{cost.macs / 1e9:.2f} G']


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('shapes') / 'made', size=64, num_train=4, num_val=2)


def options(mixer: str) -> dict:
    """Those of the command, with another mixer, in a thin network."""
    python, tool, _, shapes_option, _, *words = COMMAND
    assert (python, tool, shapes_option) == ('python', 'tools/train.py', '--shapes')
    options = dict(word.split('=', 1) for word in words)
    assert options.pop('model.backbone.init_cfg') == 'None'
    assert options['model.backbone.mixer'] == SOME
    options |= {
        'model.backbone.mixer': mixer,
        'model.backbone.init_cfg': None,
        'model.backbone.arch': {'_delete_': True, **ARCH},
    }
    options |= {'model.neck.in_channels': [16, 32, 64, 128], 'train_cfg.max_iters': 2, 'train_dataloader.batch_size': 2}
    options |= {'model.roi_head.bbox_head.fc_out_channels': 32, 'model.roi_head.mask_head.conv_out_channels': 16}
    return options | {'train_dataloader.num_workers': 0, 'train_dataloader.persistent_workers': False}


def test_the_command_trains_a_mask_rcnn(shapes, tmp_path, monkeypatch):
    pytest.importorskip('mmdet')
    monkeypatch.setattr(setup, 'make_default_shapes', lambda: shapes)
    monkeypatch.chdir(ROOT)
    metrics = train.train(COMMAND[2], shapes=True, cfg_options=options(SOME), seed=0, work_dir=str(tmp_path / 'run'))
    assert 'coco/segm_mAP' in metrics


@pytest.fixture(scope='module')
def batches(shapes):
    """A batch of the training and one of the validation of the command."""
    pytest.importorskip('mmdet')
    cfg = prepared(SOME, shapes)
    return [next(iter(Runner.build_dataloader(cfg[f'{split}_dataloader'], seed=0))) for split in ('train', 'val')]


def prepared(mixer: str, shapes: Path) -> Config:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, 'make_default_shapes', lambda: shapes)
        patch.chdir(ROOT)
        cfg = setup.prepare(COMMAND[2], TrainOptions(shapes=True, cfg_options=options(mixer))).cfg
    init_default_scope(cfg.default_scope)
    return cfg


@pytest.mark.slow
@pytest.mark.parametrize('mixer', MIXERS)
def test_its_model_makes_a_step_and_a_prediction(mixer, shapes, batches):
    """What the command does with each mixer, on a batch that all share."""
    cfg = prepared(mixer, shapes)
    cfg.model.backbone.drop_path_rate = 0.0  # a block that is left out learns nothing
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    assert cfg.model.backbone.mixer == mixer
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {name: value.clone() for name, value in model.backbone.named_parameters()}
    losses = model.train().train_step(copy.deepcopy(batches[0]), wrapper)
    assert losses['loss'].isfinite()
    assert losses['loss_mask'] > 0
    still = [name for name, value in model.backbone.named_parameters() if torch.equal(value, before[name])]
    assert still == []
    with torch.no_grad():
        (sample, *_) = model.eval().val_step(copy.deepcopy(batches[1]))
    assert sample.pred_instances.masks.shape[1:] == sample.ori_shape
