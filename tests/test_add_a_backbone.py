"""docs/add_a_backbone.md, followed to the letter: its code, its command, its weights, its config."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmext_backbones.datasets.shapes.files import make_shapes
from mmext_backbones.engine import setup, train
from mmext_backbones.registry import MODELS
from mmext_backbones.weights.layouts import FAMILIES

from .conftest import randomize
from .test_backbones import test_contract as contract

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / 'docs' / 'add_a_backbone.md').read_text()
NETWORK, WEIGHTS, CONFIG = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)
CONTRACT, TRAIN = (line for block in re.findall(r'```bash\n(.*?)```', TEXT, re.DOTALL) for line in block.splitlines())
SMALL = {'embed_dims': 16, 'depths': (2, 2, 2, 2)}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The folder of a person who copied the page."""
    path = tmp_path_factory.mktemp('project')
    (path / 'convnext.py').write_text(NETWORK + '\n\n' + WEIGHTS)
    (path / 'convnext_t_maskrcnn_1x.py').write_text(CONFIG)
    return path


@pytest.fixture
def convnext(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(MODELS, '_module_dict', dict(MODELS._module_dict))
    monkeypatch.setitem(FAMILIES, 'ConvNeXt', None)  # put back when the test ends
    yield importlib.import_module('convnext')
    sys.modules.pop('convnext')


def test_it_keeps_the_contract_in_its_main_points(convnext, monkeypatch):
    """Of those that the command of the page proves, what a block or a stage most easily breaks."""
    cls = convnext.ConvNeXt
    monkeypatch.setitem(contract.SMALL, cls, SMALL)
    for size in contract.SIZES:
        contract.check_maps(contract.small(cls).eval(), *size)
    contract.test_every_parameter_gets_a_gradient(cls, (0, 3))
    contract.test_outputs_do_not_depend_on_out_indices(cls)
    contract.test_checkpointing_changes_neither_outputs_nor_gradients(cls, 1, True)
    contract.test_blocks_are_those_of_block_classes(cls)
    contract.test_frozen_stages_stay_frozen_and_in_eval_mode(cls, 2)
    contract.test_drop_path_grows_linearly_to_its_maximum(cls)
    contract.test_autocast_is_finite_and_close(cls, torch.bfloat16)
    contract.test_memory_format_and_batch_do_not_matter(cls)
    contract.test_hooks_run_for_every_module(cls)


@pytest.mark.slow
def test_it_keeps_the_contract(folder):
    setting, python, *arguments = shlex.split(CONTRACT)
    assert (setting, python) == ('PYTHONPATH=.', 'python')
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), str(folder)])}
    result = subprocess.run(
        [sys.executable, *arguments, '-q', '-p', 'no:cacheprovider'], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    # as many cases as one of our own with two sizes has, and none left out
    assert int(re.search(r'(\d+) passed', result.stdout).group(1)) >= 44
    assert 'skipped' not in result.stdout


@pytest.mark.parametrize('size', [(64, 96), (224, 224)])
def test_weights_of_timm_give_its_numbers(convnext, tmp_path, size):
    timm = pytest.importorskip('timm')
    options = {'depths': (1, 2, 2, 1), 'dims': (16, 32, 64, 128)}
    theirs = randomize(timm.models.ConvNeXt(**options)).eval()
    torch.save(theirs.state_dict(), tmp_path / 'timm.pth')
    ours = convnext.ConvNeXt({'embed_dims': 16, 'depths': (1, 2, 2, 1)}).eval()
    report = ours.load_pretrained(str(tmp_path / 'timm.pth'))
    assert report.complete
    assert report.layout == 'timm'
    for i in range(4):
        setattr(ours, f'norm{i}', torch.nn.Identity())  # timm's maps are not normed
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = theirs.forward_intermediates(x, intermediates_only=True)
        for out, wanted in zip(ours(x), expected, strict=True):
            torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.slow
def test_the_config_trains(convnext, folder, tmp_path, monkeypatch):
    pytest.importorskip('mmdet')
    shapes = make_shapes(tmp_path / 'made', size=64, num_train=4, num_val=2)
    monkeypatch.setattr(setup, 'make_default_shapes', lambda: shapes)
    monkeypatch.chdir(folder)
    setting, python, tool, config, shapes_option = TRAIN.split()
    assert (setting, python, tool, shapes_option) == ('PYTHONPATH=.', 'python', 'tools/train.py', '--shapes')
    options = {'model.backbone.arch': {'_delete_': True, **SMALL}, 'model.neck.in_channels': [16, 32, 64, 128]}
    options |= {'model.roi_head.bbox_head.fc_out_channels': 64, 'model.roi_head.mask_head.conv_out_channels': 16}
    options |= {'train_cfg.max_iters': 2, 'train_dataloader.batch_size': 2, 'train_dataloader.num_workers': 0}
    options |= {'train_dataloader.persistent_workers': False}
    metrics = train.train(config, shapes=True, cfg_options=options, seed=0, work_dir=str(tmp_path / 'run'))
    assert 'coco/segm_mAP' in metrics
