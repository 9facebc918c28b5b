"""The configs of configs/evaluation, their metrics, and tests with both on drawn data."""

import gc
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmext_backbones.config.files import load_config
from mmext_backbones.datasets.imagenet_c import ALEXNET_ERRORS, CORRUPTIONS
from mmext_backbones.datasets.shapes.config import use_shapes
from mmext_backbones.datasets.shapes.files import make_shapes
from mmext_backbones.engine import test as testing
from mmext_backbones.engine.evaluation.robustness import CorruptionError, SubsetAccuracy
from mmext_backbones.utils.errors import UserError

pytest.importorskip('mmpretrain')

CONFIGS = Path(__file__).parents[1] / 'configs'
PROTOCOLS = ('imagenet_c', 'imagenet_a', 'imagenet_r')
NETWORKS = {
    **{f'sequencer_{size}': (*PROTOCOLS, 'in1k_448') for size in 'sml'},
    **{f'elsa_swin_{size}': PROTOCOLS for size in 'tsb'},
}
THIN = {'embed_dims': (8, 8, 8, 8), 'depths': (1, 1, 1, 1), 'hidden_dims': (2, 2, 2, 2), '_delete_': True}


def load(name: str) -> Config:
    return Config.fromfile(CONFIGS / 'evaluation' / f'{name}.py')


def test_there_is_one_for_each_network_and_protocol():
    paths = {path.stem: path.read_text() for path in (CONFIGS / 'evaluation').iterdir()}
    assert set(paths) == {f'{network}_{protocol}' for network in NETWORKS for protocol in NETWORKS[network]}
    for name, text in paths.items():
        network = name[: re.search('_(imagenet|in1k)_', name).start()]
        smallest = 'sequencer_s' if 'sequencer' in network else 'elsa_swin_t'
        like = paths[name.replace(network, smallest)]
        # they differ in the name of the classifier, and of its weights
        assert text == like.replace(smallest, network).replace('sequencer2d_s', f'sequencer2d_{network[-1]}')
        assert (CONFIGS / f'{network}_in1k.py').is_file()
        assert len(text.splitlines()) < 15


@pytest.mark.parametrize(('network', 'scale'), [('sequencer_s', 256), ('elsa_swin_t', 248)])
def test_protocols(network, scale):
    """Those of Sequencer's authors: C's images as they are, A's and R's cut as ImageNet's."""
    classifier = Config.fromfile(CONFIGS / f'{network}_in1k.py')
    for protocol in NETWORKS[network]:
        cfg = load(f'{network}_{protocol}')
        assert cfg.model == classifier.model
        assert cfg.val_dataloader == classifier.val_dataloader
        data, metric = cfg.test_dataloader.dataset, cfg.test_evaluator
        sizes = [step.get('scale', step.get('crop_size')) for step in data.pipeline[1:3]]
        expected = {'imagenet_c': [224, 224], 'in1k_448': [512, 448]}.get(protocol, [scale, 224])
        assert sizes == expected
        if protocol == 'in1k_448':
            assert (data.type, data.data_root, metric.type) == ('ImageNet', 'data/imagenet', 'Accuracy')
            continue
        assert data.data_root == f'data/{protocol.replace("_", "-")}'
        kind = ('ImageNetC', 'CorruptionError') if protocol == 'imagenet_c' else ('ImageNetSubset', 'SubsetAccuracy')
        assert (data.type, metric.type) == tuple(f'mmext_backbones.{name}' for name in kind)
        assert 'split' not in data
        if protocol != 'imagenet_c':
            assert data.subset == metric.subset == protocol
            assert metric.topk == (1, 5)


def test_they_are_found_by_a_name_of_the_package():
    cfg = load_config('mmext_backbones::evaluation/sequencer_s_imagenet_a.py')
    assert cfg.test_evaluator.subset == 'imagenet_a'


# --------------------------------------------------------------------------------------------------------------------
# Metrics


def sample(img_path: str, best: int, label: int, num_classes: int = 3) -> dict:
    scores = torch.full((num_classes,), 0.1)
    scores[best] = 0.8
    return {'img_path': img_path, 'pred_score': scores, 'gt_label': torch.tensor([label])}


def corruption_error(wrong: dict[tuple[str, int], tuple[int, int]]) -> dict[str, float]:
    """The metrics where of each part so many images are wrong, of so many."""
    metric = CorruptionError()
    for (corruption, severity), (errors, images) in wrong.items():
        paths = [f'imagenet-c/{corruption}/{severity}/n01/{number}.JPEG' for number in range(images)]
        metric.process(None, [sample(path, 2 if i < errors else 1, 1) for i, path in enumerate(paths)])
    return metric.evaluate(sum(images for _, images in wrong.values()))


def test_mean_corruption_error_by_hand():
    """Fog: errors 0, 1/4, 1/2, 3/4 and 1, on parts of unlike size: 1/2 of AlexNet's .819324. The others: all wrong."""
    wrong = {(name, severity): (1, 1) for name in CORRUPTIONS for severity in range(1, 6)}
    wrong |= {('fog', 1): (0, 3), ('fog', 2): (1, 4), ('fog', 3): (1, 2), ('fog', 4): (3, 4), ('fog', 5): (8, 8)}
    metrics = corruption_error(wrong)
    assert metrics['corruption/fog'] == pytest.approx(100 * 0.5 / 0.819324)
    assert metrics['corruption/snow'] == pytest.approx(100 / 0.866816)
    others = sum(1 / value for name, value in ALEXNET_ERRORS.items() if name != 'fog')
    assert metrics['corruption/mCE'] == pytest.approx(100 * (others + 0.5 / 0.819324) / 15)
    assert metrics['corruption/error'] == pytest.approx(100 * (14 + 0.5) / 15)
    assert len(metrics) == 17


def test_no_mean_over_a_part_of_imagenet_c():
    wrong = {('fog', severity): (1, 2) for severity in range(1, 6)} | {('snow', 1): (1, 4), ('snow', 3): (3, 4)}
    fog, error = pytest.approx(100 * 0.5 / 0.819324), pytest.approx(50)
    assert corruption_error(wrong) == {'corruption/fog': fog, 'corruption/error': error}
    assert corruption_error({('snow', 3): (1, 4)}) == {'corruption/error': pytest.approx(25)}


def test_images_of_something_else():
    with pytest.raises(UserError, match=r'val/n01/x\.JPEG is no image of ImageNet-C'):
        CorruptionError().process(None, [sample('data/imagenet/val/n01/x.JPEG', 0, 0)])


def test_accuracy_on_a_subset_by_hand():
    """Classes 1, 3 and 4 of six. The best class of the first image is 0, and of the subset 3, which is right; of the
    second it is 4, and 3 comes next; of the third 1, and 3 is the last."""
    metric = SubsetAccuracy([1, 3, 4], topk=(1, 2))
    metric.dataset_meta = {'classes': list('abcdef')}
    scores = [[0.5, 0.1, 0.1, 0.2, 0.05, 0.05], [0.0, 0.0, 0.0, 0.3, 0.6, 0.1], [0.3, 0.4, 0.1, 0.01, 0.09, 0.1]]
    samples = [{'pred_score': torch.tensor(row), 'gt_label': torch.tensor([3])} for row in scores]
    metric.process(None, samples)
    assert metric.evaluate(3) == {
        'accuracy/top1': pytest.approx(100 / 3),
        'accuracy/top2': pytest.approx(200 / 3),
    }
    assert scores[0] == pytest.approx(samples[0]['pred_score'].tolist())  # other metrics read them too


def test_scores_of_zero_are_above_those_of_other_classes():
    metric = SubsetAccuracy([0, 2])
    metric.process(None, [{'pred_score': torch.tensor([0.0, 1.0, 0.0]), 'gt_label': torch.tensor([2])}])
    assert metric.results[0]['pred_score'].tolist() == [0.0, -1.0, 0.0]


def test_what_a_subset_cannot_measure():
    metric = SubsetAccuracy('imagenet_r')
    with pytest.raises(UserError, match='the model has 10 classes, and the subset names number 988'):
        metric.process(None, [sample('x.jpg', 1, 1, num_classes=10)])
    with pytest.raises(UserError, match=r'label \[0\] of x\.jpg is not in the subset'):
        metric.process(None, [sample('x.jpg', 1, 0, num_classes=1000)])
    with pytest.raises(UserError, match='imagenet_s'):
        SubsetAccuracy('imagenet_s')


# --------------------------------------------------------------------------------------------------------------------
# Whole tests


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(name: str, options: dict, num_classes: int, best: int, **asked: str) -> dict[str, float]:
    """A test of a thin Sequencer2D that prefers one class for every image, and the next ones in their order."""
    options = {
        'model.backbone.arch': THIN,
        'model.head.in_channels': 8,
        'model.head.num_classes': num_classes,
        'model.data_preprocessor.num_classes': num_classes,
        'test_dataloader.num_workers': 0,
        'test_dataloader.persistent_workers': False,
        'test_dataloader.dataset.pipeline.1.scale': 28,
        'test_dataloader.dataset.pipeline.2.crop_size': 28,
        **options,
    }
    cfg = load(name)
    cfg.merge_from_dict({key: value for key, value in options.items() if key.startswith('model')})
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model)
    torch.nn.init.zeros_(model.head.fc.weight)
    model.head.fc.bias.data = -0.01 * ((torch.arange(num_classes) - best) % num_classes).float()
    torch.save({'state_dict': model.state_dict()}, 'x.pth')
    return testing.test(str(CONFIGS / 'evaluation' / f'{name}.py'), 'x.pth', cfg_options=options, **asked)


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((28, 28, 3), 128, np.uint8))


def test_of_imagenet_c(folder, monkeypatch):
    """One image of the right class in every part, and in those of severity 5 three of the other: errors 0 and 3/4."""
    for corruption in CORRUPTIONS:
        for severity in range(1, 6):
            root = folder / 'data' / 'imagenet-c' / corruption / str(severity)
            draw(root / 'n01' / 'a.JPEG')
            (root / 'n02').mkdir()
            for name in 'bcd' if severity == 5 else '':
                draw(root / 'n02' / f'{name}.JPEG')
    monkeypatch.setattr(gc, 'collect', lambda: 0)  # mmengine calls it for each of the 75 parts: half a minute
    options = {'test_dataloader.dataset.metainfo.classes': ['tench', 'goldfish']}
    metrics = run('sequencer_s_imagenet_c', options, num_classes=2, best=0)
    assert metrics['corruption/error'] == pytest.approx(15)
    assert metrics['corruption/mCE'] == pytest.approx(sum(15 / value for value in ALEXNET_ERRORS.values()) / 15)


def test_of_a_subset_and_of_its_saved_predictions(folder, capsys):
    """Class 3 is preferred, then 4, 5 and so on: right for the images of class 5 among 2, 5 and 7."""
    for name in ('n01/a.jpg', 'n02/b.jpg', 'n02/c.jpg', 'n03/d.jpg'):
        draw(folder / 'data' / 'imagenet-a' / name)
    options = {'test_dataloader.dataset.subset': [2, 5, 7], 'test_evaluator.subset': [2, 5, 7]}
    options |= {'test_evaluator.topk': (1, 2)}
    metrics = run('sequencer_s_imagenet_a', options, num_classes=1000, best=3, out='p.pkl')
    assert metrics == {'accuracy/top1': 50.0, 'accuracy/top2': 75.0}
    config = str(CONFIGS / 'evaluation' / 'sequencer_s_imagenet_a.py')
    assert testing.test(config, predictions='p.pkl', cfg_options=options) == metrics


@pytest.mark.parametrize(('name', 'told'), [('imagenet_c', 'data/imagenet-c'), ('imagenet_a', 'data/imagenet-a')])
def test_data_that_are_not_there(name, told, folder):
    config = str(CONFIGS / 'evaluation' / f'sequencer_s_{name}.py')
    with pytest.raises(UserError, match=rf'the data of this config is not there\. Missing.*\n  {told}'):
        testing.test(config, 'x.pth')


@pytest.mark.parametrize('protocol', NETWORKS['sequencer_s'])
def test_on_shapes_they_are_the_classifier(protocol, tmp_path):
    cfg = load(f'sequencer_s_{protocol}')
    use_shapes(cfg, make_shapes(tmp_path / 'shapes', size=32, num_train=1, num_val=1), size=32)
    assert (cfg.test_dataloader.dataset.type, cfg.test_evaluator.type) == ('CustomDataset', 'Accuracy')
    assert 'ImageNet' not in str(cfg.test_dataloader)
