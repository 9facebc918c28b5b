"""Published ImageNet classifiers in our classification configs: the same scores, or a refusal."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner.checkpoint import load_checkpoint
from PIL import Image

from mmext_backbones.backbones import Sequencer2D, SwinTransformer
from mmext_backbones.engine import test as testing
from mmext_backbones.weights.classifiers import HEADS
from mmext_backbones.weights.fitting import WeightsError
from mmext_backbones.weights.rules import convert
from tests.conftest import randomize
from tests.test_weights.test_layouts import SMALL

CONFIGS = Path(__file__).parents[2] / 'configs'
# a small network of the kind, and the channels of its last map
NARROW = {'swin_t_in1k': (SMALL[SwinTransformer], 128), 'sequencer_s_in1k': (SMALL[Sequencer2D], 32)}
TIMM = {
    'swin_t_in1k': 'swin_tiny_patch4_window7_224',
    'maxvit_t_in1k': 'maxvit_tiny_tf_224',
    'sequencer_s_in1k': 'sequencer2d_s',
    'volo_d1_in1k': 'volo_d1_224',
}


def build(leaf: str, narrow: bool = False) -> torch.nn.Module:
    """The classifier of a config, or a narrow one of its kind."""
    pytest.importorskip('mmpretrain')
    cfg = Config.fromfile(CONFIGS / f'{leaf}.py')
    if narrow:
        cfg.model.backbone.arch, cfg.model.head.in_channels = NARROW[leaf]
    init_default_scope('mmpretrain')
    return MODELS.build(cfg.model).eval()


def published(leaf: str) -> torch.nn.Module:
    timm = pytest.importorskip('timm')
    return randomize(timm.create_model(TIMM[leaf], num_classes=1000)).eval()


def scores(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model.head(model.extract_feat(x))


@pytest.mark.parametrize(
    'leaf', [pytest.param(leaf, marks=() if leaf == 'swin_t_in1k' else pytest.mark.slow) for leaf in TIMM]
)
def test_scores_are_those_of_timm(leaf, tmp_path):
    peer, model = published(leaf), build(leaf)
    torch.save(peer.state_dict(), tmp_path / 'timm.pth')
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected, before = peer(x), scores(model, x)
        load_checkpoint(model, str(tmp_path / 'timm.pth'))
        actual = scores(model, x)
    spread = expected.std().item()
    assert (before - expected).abs().max() > 0.5 * spread  # it was another network
    assert (actual - expected).abs().max() < 1e-4 * spread


THEIRS = {
    'norm.weight': 'backbone.norm3.weight',
    'norm.bias': 'backbone.norm3.bias',
    'head.weight': 'head.fc.weight',
    'head.bias': 'head.fc.bias',
}


def test_the_authors_head_of_swin(tmp_path):
    own = randomize(build('swin_t_in1k', narrow=True)).state_dict()
    state = {key: own[ours] for key, ours in THEIRS.items()}
    for key, value in own.items():
        if key.startswith(('backbone.stages', 'backbone.patch_embed')):
            state[key.removeprefix('backbone.').replace('stages.', 'layers.')] = value
    torch.save({'model': state}, tmp_path / 'authors.pth')
    model = build('swin_t_in1k', narrow=True)
    load_checkpoint(model, str(tmp_path / 'authors.pth'))
    for key, value in model.state_dict().items():
        assert torch.equal(value, own[key]), key


def test_the_authors_head_of_elsa():
    """Their backbone's keys are the tests' of the layouts."""
    head = {key: torch.zeros(()) for key in THEIRS}
    assert convert(head, HEADS['ELSASwin']) == {ours: head[key] for key, ours in THEIRS.items()}


@pytest.mark.parametrize('spoil', ['head.fc.weight', 'missing'])
def test_a_classifier_that_does_not_fit_is_refused(spoil, tmp_path):
    state = dict(published('maxvit_t_in1k').state_dict())
    if spoil == 'missing':
        del state['head.norm.weight']
    else:
        state[spoil] = state[spoil][:10]  # ten classes
    model = build('maxvit_t_in1k')
    before = model.head.fc.weight.clone()
    torch.save(state, tmp_path / 'other.pth')
    with pytest.raises(WeightsError, match=r'does not fit this classifier[\s\S]*head\.'):
        load_checkpoint(model, str(tmp_path / 'other.pth'))
    assert torch.equal(before, model.head.fc.weight)


def test_own_checkpoints_load_as_they_are(tmp_path):
    model = randomize(build('sequencer_s_in1k', narrow=True))
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'own.pth')
    other = build('sequencer_s_in1k', narrow=True)
    load_checkpoint(other, str(tmp_path / 'own.pth'), strict=True)
    for key, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


@pytest.mark.slow  # test_scores_are_those_of_timm, and the whole test of a data set
@pytest.mark.parametrize('leaf', ['swin_t_in1k', 'maxvit_t_in1k'])  # without and with an average of the weights
def test_the_published_classifier_is_evaluated_as_timm_would(leaf, tmp_path, monkeypatch):
    """Images named after what timm says of them: every one is right."""
    peer = published(leaf)
    timm = pytest.importorskip('timm')
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=peer))
    rng = np.random.default_rng(0)
    images = [
        Image.fromarray(rng.integers(0, 255, (3 + i, 4, 3), dtype=np.uint8)).resize((300 + 20 * i, 260))
        for i in range(6)
    ]
    with torch.no_grad():
        logits = peer(torch.stack([transform(image) for image in images]))
        peer.get_classifier().bias -= logits.mean(dim=0)  # an untrained network says the same of every image
    labels = (logits - logits.mean(dim=0)).argmax(dim=1).tolist()
    assert len(set(labels)) > 3
    torch.save(peer.state_dict(), tmp_path / 'published.pth')

    folders = [tmp_path / f'data/imagenet/val/n{i:08d}' for i in range(1000)]
    for i, folder in enumerate(folders):  # the data set wants no empty class; what fills them is not tested
        folder.mkdir(parents=True)
        if i not in labels:
            images[0].resize((8, 8)).save(folder / 'z.png')
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        image.save(folders[label] / f'{i}.png')
    monkeypatch.chdir(tmp_path)
    loader = 'test_dataloader.'
    options = {f'{loader}num_workers': 0, f'{loader}persistent_workers': False}
    options |= {f'{loader}dataset.indices': _positions(folders)}
    metrics = testing.test(str(CONFIGS / f'{leaf}.py'), 'published.pth', cfg_options=options)
    assert metrics['accuracy/top1'] == 100


def _positions(folders: list[Path]) -> list[int]:
    """Where the six images stand in the data set, which lists files folder by folder."""
    files = [path for folder in folders for path in sorted(folder.iterdir())]
    return [i for i, path in enumerate(files) if path.name != 'z.png']
