"""Each mistake ends in one clear message; everything else keeps its traceback."""

import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, build_from_cfg
from torch.utils.data import DataLoader, Dataset

from mmext_backbones.config.data_paths import check_data
from mmext_backbones.config.editing import ConfigEditor
from mmext_backbones.config.files import load_config
from mmext_backbones.config.options import apply_options
from mmext_backbones.engine import config_edits
from mmext_backbones.engine.evaluation.tta import use_tta
from mmext_backbones.registry import MODELS as OUR_MODELS
from mmext_backbones.utils import console as screens
from mmext_backbones.utils.cli import run_cli
from mmext_backbones.utils.errors import UserError
from mmext_backbones.utils.explain import explain
from mmext_backbones.weights import checkpoints


def message_of(call) -> str | None:
    with pytest.raises(Exception) as caught:
        call()
    return explain(caught.value)


def test_unknown_key_names_class_key_and_what_is_accepted():
    text = message_of(lambda: OUR_MODELS.build({'type': 'ELSASwin', 'arch': 'tiny', 'drop_path': 0.1}))
    assert 'ELSASwin' in text
    assert "accepts no key 'drop_path'" in text
    assert "Did you mean 'drop_path_rate'?" in text
    assert 'out_indices' in text.partition('It accepts:')[2]


def test_unknown_type_names_the_registry():
    text = message_of(lambda: build_from_cfg({'type': 'ELSASwim'}, OUR_MODELS))
    assert "type='ELSASwim'" in text
    assert "Did you mean 'ELSASwin'?" in text


@pytest.mark.parametrize(
    ('wrong', 'argument'),
    [
        ({'arch': 'tinny'}, 'arch'),
        ({'arch': 'tiny', 'out_indices': (3, 9)}, 'out_indices'),
        ({'arch': 'tiny', 'window_size': 0}, 'window_size'),
    ],
    ids=['arch', 'out_indices', 'window_size'],
)
def test_wrong_backbone_argument(wrong, argument):
    text = message_of(lambda: MODELS.build({'type': 'mmext_backbones.SwinTransformer', **wrong}))
    assert argument in text
    assert '\n' not in text


def test_wrong_number_of_channels():
    model = OUR_MODELS.build({'type': 'SwinTransformer', 'arch': 'tiny'})
    assert '4' in message_of(lambda: model(torch.zeros(1, 4, 32, 32)))


def test_error_inside_a_call_of_ours_is_a_bug():
    """Only what this package raises on purpose is a message."""

    def broken():
        Path('\0').is_file()
        int('x')

    assert message_of(broken) is None
    assert message_of(lambda: {}['key']) is None
    assert message_of(lambda: dict(1)) is None
    assert message_of(lambda: Path('/nowhere/at/all').read_text()) is None


def test_chained_errors_are_unwrapped():
    def chained():
        try:
            raise UserError('the reason')
        except UserError as error:
            raise RuntimeError('a library on top') from error

    assert message_of(chained) == 'the reason'


class Broken(Dataset):
    """Fails as mmcv's image loader does."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        raise self.error


@pytest.mark.parametrize('num_workers', [0, 1])
@pytest.mark.parametrize(
    ('error', 'expected'),
    [
        (AssertionError('failed to load image: data/a b.png'), "image 'data/a b.png' cannot be read"),
        (FileNotFoundError(2, 'No such file or directory', 'data/c.png'), "lists 'data/c.png'"),
    ],
    ids=['unreadable', 'missing'],
)
def test_bad_image_in_a_loader(num_workers, error, expected):
    assert expected in message_of(lambda: next(iter(DataLoader(Broken(error), num_workers=num_workers))))


def test_exit_codes(capsys, monkeypatch):
    def fail(argv):
        raise UserError('what to do')

    def stop(argv):
        raise KeyboardInterrupt

    def bug(argv):
        raise RuntimeError('a bug')

    assert run_cli(lambda argv: None, []) == 0
    assert run_cli(fail, []) == 2
    out = capsys.readouterr().err
    assert out.strip() == 'Error: what to do'
    assert run_cli(fail, ['--traceback']) == 2
    assert 'Traceback' in capsys.readouterr().err
    monkeypatch.setenv('MMEXT_TRACEBACK', '1')
    assert run_cli(fail, []) == 2
    assert 'Traceback' in capsys.readouterr().err
    assert run_cli(stop, []) == 130
    with pytest.raises(RuntimeError, match='a bug'):
        run_cli(bug, [])


# --------------------------------------------------------------------------------------------------------------------
# What runs check before they build anything


def test_config_errors(tmp_path):
    with pytest.raises(UserError, match='no such file'):
        load_config(str(tmp_path / 'nothing.py'))
    (tmp_path / 'elsa_swin.py').write_text('model = dict(')
    with pytest.raises(UserError, match=r"elsa_swin\.py' cannot be read"):
        load_config(str(tmp_path / 'elsa_swin.py'))
    with pytest.raises(UserError, match=r"Did you mean '.*elsa_swin\.py'"):
        load_config(str(tmp_path / 'elsa_swim.py'))


def test_misspelt_option():
    cfg = Config({'model': {'type': 'x'}})
    with pytest.raises(UserError, match=r"no 'modle'\. Did you mean 'model'"):
        apply_options(cfg, {'modle.type': 'y'})
    apply_options(cfg, {'model.type': 'y', 'randomness.seed': 1})
    assert (cfg.model.type, cfg.randomness.seed) == ('y', 1)


def test_missing_data_through_wrappers(tmp_path):
    leaf = {
        'type': 'CocoDataset',
        'data_root': str(tmp_path / 'coco'),
        'ann_file': 'a.json',
        'data_prefix': {'img': 'i'},
    }
    there = {'type': 'X', 'data_root': str(tmp_path), 'data_prefix': {'img': ''}}
    nested = {'type': 'RepeatDataset', 'dataset': {'type': 'ConcatDataset', 'datasets': [there, leaf]}}
    cfg = Config({'train_dataloader': {'dataset': nested}, 'val_dataloader': {'dataset': there}})
    with pytest.raises(UserError) as caught:
        check_data(cfg, ('train', 'val'))
    text = str(caught.value)
    assert str(tmp_path / 'coco' / 'a.json') in text
    assert str(tmp_path / 'coco' / 'i') in text
    assert f'ln -s /where/it/is {tmp_path / "coco"}' in text
    assert '--shapes' in text
    check_data(cfg, ('val',))


def test_checkpoints(tmp_path):
    path = tmp_path / 'x.pth'
    with pytest.raises(UserError, match='no such file'):
        checkpoints.check_checkpoint(str(path))
    torch.save({'state_dict': {'w': torch.ones(1000)}}, path)
    assert list(checkpoints.check_checkpoint(str(path))) == ['w']
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match='truncated'):
        checkpoints.check_checkpoint(str(path))
    assert checkpoints.check_checkpoint('https://somewhere/x.pth') is None
    # the same file, noticed only inside the libraries
    text = message_of(lambda: torch.load(path))
    assert str(path) in text
    assert 'truncated' in text


def test_checkpoint_of_another_model(tmp_path):
    model = torch.nn.Linear(2, 2)
    checkpoints.check_match(model, model.state_dict(), 'x.pth', shapes=True)
    with pytest.raises(UserError, match=r'1 of 2 tensors.*weight.*--shapes'):
        checkpoints.check_match(model, {**model.state_dict(), 'weight': torch.zeros(3, 2)}, 'x.pth', shapes=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason='the message is for machines without a GPU')
def test_amp_without_a_gpu():
    with pytest.raises(UserError, match='--amp needs a GPU'):
        config_edits.use_amp(ConfigEditor(Config({'optim_wrapper': {'type': 'OptimWrapper'}})))


def test_tta_that_cannot_be():
    for model in ({'type': 'CondInst', 'mask_head': {'type': 'CondInstMaskHead'}}, {'type': 'Mask2Former'}):
        masks = Config({'default_scope': 'mmdet', 'model': model, 'test_evaluator': {'metric': ['bbox', 'segm']}})
        with pytest.raises(UserError, match=f'{model["type"]} predicts masks without a roi_head'):
            use_tta(masks)
    model = {'type': 'HybridTaskCascade', 'roi_head': {'mask_head': [{'type': 'HTCMaskHead'}]}}
    boxes = {'default_scope': 'mmdet', 'model': model, 'tta_model': {'type': 'DetTTAModel'}}
    with pytest.raises(UserError, match=r'tta_model.type=mmext_backbones.InstanceTTAModel'):
        use_tta(Config(boxes))
    with pytest.raises(UserError, match='no tta_model'):
        use_tta(Config({'default_scope': 'mmseg', 'model': {'type': 'EncoderDecoder'}}))


@pytest.mark.parametrize(
    ('model', 'wrapper'),
    [
        ({'type': 'MaskRCNN', 'roi_head': {'mask_head': {'type': 'FCNMaskHead'}}}, 'mmext_backbones.InstanceTTAModel'),
        ({'type': 'HTC', 'roi_head': {'mask_head': [{'type': 'HTCMaskHead'}]}}, 'mmext_backbones.InstanceTTAModel'),
        ({'type': 'FasterRCNN', 'roi_head': {'bbox_head': {'type': 'BBoxHead'}}}, 'DetTTAModel'),
    ],
)
def test_tta_where_the_config_says_nothing(model, wrapper):
    steps = [{'type': name} for name in ('LoadImageFromFile', 'Resize', 'LoadAnnotations', 'PackDetInputs')]
    loader = {'dataset': {'type': 'CocoDataset', 'pipeline': steps}}
    cfg = Config({'default_scope': 'mmdet', 'model': model, 'test_dataloader': loader})
    use_tta(cfg)
    assert cfg.model.type == wrapper
    assert cfg.model.module.type == model['type']
    *before, views = cfg.test_dataloader.dataset.pipeline
    assert before == steps[:3]
    flips, (pack,) = views.transforms
    assert [flip.prob for flip in flips] == [0.0, 1.0]
    assert {'scale_factor', 'flip', 'flip_direction'} <= set(pack.meta_keys)


def test_chatter_is_left_out(capsys):
    screen = screens.QuietStdout(sys.stdout)
    print('creating index...', file=screen)
    print('a line that matters', file=screen)
    print('Done (t=0.1s)', file=screen)
    assert capsys.readouterr().out == 'a line that matters\n'
