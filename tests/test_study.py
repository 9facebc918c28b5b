"""docs/study.md: its table of mixers is of the networks as they are, and its command trains each of them."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from mmext_backbones.analysis.cost import model_cost
from mmext_backbones.backbones import LocalSwin
from mmext_backbones.backbones.local_mixers import MIXERS
from mmext_backbones.datasets.shapes.files import make_shapes
from mmext_backbones.engine import setup, train

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / 'docs' / 'study.md').read_text()
TABLE = re.search(r'<!-- mixers: begin.*?-->\n(.*?)<!-- mixers: end', TEXT, re.DOTALL).group(1)
ROWS = {cells[0].strip('`'): cells for cells in ([cell.strip() for cell in line.split('|')[1:-1]]
                                                 for line in TABLE.strip().splitlines()[2:])}  # fmt: skip
COMMAND = shlex.split(re.search(r'```bash\n(.*?)```', TEXT, re.DOTALL).group(1).replace('\\\n', ''))
ARCH = {'embed_dims': 16, 'depths': (2, 2, 2, 2), 'num_heads': (1, 2, 4, 8)}
SOME = 'net7-n'  # every day; the others with `slow`


def test_every_mixer_has_a_row():
    assert list(ROWS) == list(MIXERS)


@pytest.mark.parametrize('mixer', MIXERS)
def test_its_costs_are_those_of_the_network(mixer):
    with torch.device('meta'):
        model = LocalSwin(mixer=mixer)
    cost = model_cost(model, (224, 224))
    assert ROWS[mixer][4:6] == [f'{cost.params / 1e6:.2f} M', f'{cost.macs / 1e9:.2f} G']


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('shapes') / 'made', size=64, num_train=4, num_val=2)


@pytest.mark.parametrize(
    'mixer', [mixer if mixer == SOME else pytest.param(mixer, marks=pytest.mark.slow) for mixer in MIXERS]
)
def test_the_command_trains_a_mask_rcnn(mixer, shapes, tmp_path, monkeypatch, unformatted_configs):
    pytest.importorskip('mmdet')
    monkeypatch.setattr(setup, 'make_default_shapes', lambda: shapes)
    python, tool, config, shapes_option, _, *words = COMMAND
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
    options |= {'train_dataloader.num_workers': 0, 'train_dataloader.persistent_workers': False}
    monkeypatch.chdir(ROOT)
    metrics = train.train(config, shapes=True, cfg_options=options, seed=0, work_dir=str(tmp_path / 'run'))
    assert 'coco/segm_mAP' in metrics
