"""What the page does with networks, of every kind, found as a training leaves them."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmext_backbones.app.finding import find_runs
from mmext_backbones.app.handlers import Handlers
from mmext_backbones.app.models import LoadedModels
from mmext_backbones.app.pictures import draw_examples
from mmext_backbones.app.serving import _loader
from mmext_backbones.datasets.shapes.config import use_shapes
from mmext_backbones.datasets.shapes.files import make_shapes

from ..test_tools.test_runs import CONFIGS, LIBRARY

SAID = {'detection': 'below the threshold', 'segmentation': 'of the picture', 'classification': '<b>Class</b>'}


@pytest.fixture(scope='module')
def handlers(tmp_path_factory):
    folder = tmp_path_factory.mktemp('app')
    shapes = make_shapes(folder / 'shapes', size=64, num_train=1, num_val=1)
    for kind in SAID:
        pytest.importorskip(LIBRARY[kind])
        (folder / f'{kind}.py').write_text(CONFIGS[kind])
        cfg = Config.fromfile(folder / f'{kind}.py')
        use_shapes(cfg, shapes)
        run = folder / 'work_dirs' / kind
        run.mkdir(parents=True)
        cfg.dump(run / f'{kind}.py')
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            state = MODELS.build(cfg.model).state_dict()
        torch.save({'state_dict': state}, run / 'best_1.pth')
    return Handlers(lambda: find_runs(folder / 'work_dirs'), LoadedModels(_loader('cpu'), keep=1), typed=True)


@pytest.fixture(scope='module')
def picture(tmp_path_factory):
    return str(draw_examples(tmp_path_factory.mktemp('pictures'), 1)[0])


@pytest.mark.parametrize('tta', [False, True], ids=['once', 'tta'])
@pytest.mark.parametrize('kind', SAID)
def test_every_kind_of_network(kind, tta, handlers, picture):
    panel = handlers.look(picture, f'{kind} (best_1)', {}, 0.0, tta)
    assert SAID[kind] in panel.text
    assert panel.found.prediction.kind == kind
    assert panel.found.prediction.seconds > 0
    assert panel.image.ndim == 3
    assert ('with test-time augmentation' in panel.text) is tta


def test_weights_of_another_network_are_told(handlers, picture, tmp_path):
    runs = {model.name: model for model in handlers._offered()}
    config = runs['segmentation (best_1)'].config
    added, name, _ = handlers.add(config, runs['detection (best_1)'].weights, {})
    panel = handlers.look(picture, name, added, 0.3, False)
    assert panel.image is None
    assert 'best_1.pth' in panel.text
    assert 'It seems to be of a model for detection' in panel.text
