"""Files as people have them: weights under any name, wrapped in parts, several networks in one, with more beside."""

import argparse
import shlex
import subprocess
import sys
import time
import warnings

import pytest
import torch
from torch import nn

from mmext_backbones.backbones import SwinTransformer
from mmext_backbones.weights import checkpoints, swin
from mmext_backbones.weights.containers import plain_names, unwrap
from mmext_backbones.weights.converting import convert_file
from mmext_backbones.weights.errors import WeightsError
from mmext_backbones.weights.fitting import check_values
from tests.test_weights.test_layouts import SMALL, authors_swin, small

ARCH = SMALL[SwinTransformer]
NORMS = ('norm0', 'norm1', 'norm2', 'norm3')


@pytest.fixture(scope='module')
def source():
    return small(SwinTransformer)


@pytest.fixture(scope='module')
def other():
    return small(SwinTransformer, seed=5)


def load(content, tmp_path, **options):
    """A network of other values that was loaded from a file of this content, and the report."""
    torch.save(content, tmp_path / 'x.pth')
    model = small(SwinTransformer, seed=1)
    return model, model.load_pretrained(str(tmp_path / 'x.pth'), **options)


def assert_same(model, source, but=()):
    for key, value in source.state_dict().items():
        if not key.startswith(tuple(but)):
            assert torch.equal(model.state_dict()[key], value), key


def under(prefix, state_dict):
    return {prefix + key: value for key, value in state_dict.items()}


STATE = {'state': {0: {'exp_avg': torch.ones(3)}}, 'param_groups': [{'lr': 0.1}]}  # of an optimizer


@pytest.mark.parametrize(
    'wrap',
    [
        *(
            lambda s, name=name: {name: s, 'epoch': 3}
            for name in ('model_state_dict', 'net', 'params', 'teacher', 'ema')
        ),
        lambda s: {'net': s, 'optimizer': STATE, 'scaler': {'scale': torch.ones(1)}, 'step': torch.tensor(3)},
        lambda s: {'checkpoint': {'weights': s}},
        lambda s: {'state_dict': under('model.backbone.', s), 'loops': {}, 'hyper_parameters': {'lr': 0.1}},
        lambda s: {'model': {'state_dict': under('encoder.', s)}},
        lambda s: {'state_dict': s, 'ema_state_dict': {'steps': torch.tensor(3)}},
        lambda s: under('_orig_mod.', s),
        lambda s: under('module._orig_mod.', s),
        lambda s: {key.replace('layers.0.', 'layers.0._orig_mod.'): value for key, value in s.items()},
        lambda s: {key.replace('blocks.', '_fsdp_wrapped_module.blocks.'): value for key, value in s.items()},
        lambda s: {key.replace('attn.', '_checkpoint_wrapped_module.attn.'): value for key, value in s.items()},
        lambda s: under('student.', {key.replace('blocks.1', 'blocks.1.module'): value for key, value in s.items()}),
    ],
)
def test_weights_are_found_wherever_they_stand(tmp_path, source, wrap):
    model, report = load(wrap(authors_swin(source.state_dict())), tmp_path)
    assert report.complete
    assert_same(model, source, but=NORMS)


def test_a_file_without_tensors_says_what_it_has():
    with pytest.raises(WeightsError, match=r'x holds no tensors: epoch \(a int\), net \(a dict\)'):
        unwrap({'epoch': 3, 'net': {}}, 'x')
    with pytest.raises(WeightsError, match='among its weights name is a str'):
        unwrap({'state_dict': {'w': torch.ones(1), 'name': 'x'}}, 'x')
    assert list(unwrap({'state_dict': {'w': torch.ones(1), 'w_extra_state': None}}, 'x')) == ['w']


def test_two_names_for_one_tensor_stay_as_they_are():
    both = {'a.module.b': 1, 'a.b': 2}
    assert plain_names(both) == both


@pytest.mark.parametrize('nested', [True, False])
def test_of_several_networks_one_is_chosen_and_named(tmp_path, source, other, nested):
    parts = {'teacher': swin.to_openmmlab(other.state_dict()), 'student': swin.to_openmmlab(source.state_dict())}
    content = parts if nested else {**under('teacher.', parts['teacher']), **under('student.', parts['student'])}
    model, report = load(content, tmp_path)
    assert_same(model, source)
    assert "network      student.; another one by prefix='teacher.'" in str(report)
    model, report = load(content, tmp_path, prefix='teacher.')
    assert_same(model, other)
    assert not report.others
    with pytest.raises(WeightsError, match=r"prefix='nobody\.'; they begin with teacher\., student\."):
        load(content, tmp_path, prefix='nobody.')


def test_the_network_that_fits_best_is_chosen(tmp_path, source):
    larger = SwinTransformer({**ARCH, 'embed_dims': 32}).state_dict()
    model, report = load({'model': larger, 'student': source.state_dict()}, tmp_path)
    assert_same(model, source)
    assert (report.prefix, report.others) == ('student.', ['model.'])
    with pytest.raises(WeightsError, match='wrong shape'):
        load({'model': larger, 'student': source.state_dict()}, tmp_path, prefix='model.')


def test_an_average_is_there_to_be_named(tmp_path, source, other):
    content = {'model': source.state_dict(), 'model_ema': other.state_dict()}
    assert_same(load(content, tmp_path)[0], source)
    assert_same(load(content, tmp_path, prefix='model_ema.')[0], other)
    assert_same(load({'net': source.state_dict()}, tmp_path, prefix='net.')[0], source)
    content = {
        'state_dict': under('backbone.', source.state_dict()),
        'ema_state_dict': under('backbone.', other.state_dict()),
    }
    assert_same(load(content, tmp_path, prefix='backbone.')[0], source)
    assert_same(load(content, tmp_path, prefix='ema_state_dict.backbone.')[0], other)


def test_a_pretraining_by_simmim(tmp_path, source):
    content = under('encoder.', {**authors_swin(source.state_dict()), 'mask_token': torch.zeros(1, 1, 16)})
    content['decoder.0.weight'] = torch.ones(4, 4, 1, 1)
    with pytest.raises(WeightsError, match=r'unexpected +1 +mask_token'):
        load({'model': content}, tmp_path)
    model, report = load({'model': content}, tmp_path, strict=False)
    assert report.unexpected == ['mask_token']
    assert 'decoder.0.weight' in report.ignored
    assert_same(model, source, but=NORMS)
    unexpected = small(SwinTransformer, seed=1).load_state_dict(content, strict=False).unexpected_keys
    assert unexpected == ['mask_token']


def test_parts_of_the_network_that_are_compiled_are_filled(tmp_path, source):
    torch.save(authors_swin(source.state_dict()), tmp_path / 'x.pth')
    for load_into in (
        lambda model: model.load_pretrained(str(tmp_path / 'x.pth')),
        lambda model: model.load_state_dict(authors_swin(source.state_dict()), strict=False),
        lambda model: model.load_state_dict(source.state_dict()),
    ):
        model = small(SwinTransformer, seed=1)
        model.stages[1] = torch.compile(model.stages[1])
        load_into(model)
        plain = plain_names(model.state_dict())
        for key, value in source.state_dict().items():
            assert key.startswith(NORMS) or torch.equal(plain[key], value), key


@pytest.mark.parametrize('out_indices', [(0,), (0, 1), (0, 1, 2)])
def test_timms_features_without_the_last_stages(tmp_path, source, out_indices):
    last = out_indices[-1]
    theirs = {
        key.replace('layers.', 'layers_'): value
        for key, value in swin.to_timm(source.state_dict()).items()
        if key.startswith(('patch_embed', *(f'layers.{i}.' for i in out_indices)))
    }
    torch.save(theirs, tmp_path / 'x.pth')
    model = small(SwinTransformer, seed=1, out_indices=out_indices)
    report = model.load_pretrained(str(tmp_path / 'x.pth'))
    assert report.layout == 'timm'
    assert max(int(key.split('.')[1]) for key in report.loaded if key.startswith('stages')) == last
    assert all(torch.equal(value, source.state_dict()[k]) for k, value in model.state_dict().items() if k[:4] != 'norm')


class Detector(nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.backbone = small(SwinTransformer, seed)
        self.neck = nn.Linear(3, 2)


@pytest.mark.parametrize(
    'wrap',
    [
        lambda s, e: s,
        lambda s, e: {'net': s},
        lambda s, e: {'state_dict': under('model.', s)},
        lambda s, e: {'model': under('module._orig_mod.', s)},
        lambda s, e: {key.replace('stages.1', 'stages.1._orig_mod'): value for key, value in s.items()},
        lambda s, e: {'teacher': e, 'student': s},
        lambda s, e: {'net': under('module.', s), 'ema': under('module.', e)},
        lambda s, e: {**under('ema.', e), **under('net.', s), 'optimizer.x': torch.ones(3)},
    ],
)
@pytest.mark.parametrize('foreign', [False, True])
def test_whole_models_by_any_name(tmp_path, wrap, foreign):
    """As `load_from`, `tools/test.py` and `Predictor` read them."""
    first, second, target = Detector(0), Detector(5), Detector(1)

    def written(model):
        rest = under('neck.', model.neck.state_dict())
        return (
            under('backbone.', swin.to_openmmlab(model.backbone.state_dict())) | rest if foreign else model.state_dict()
        )

    torch.save(wrap(written(first), written(second)), tmp_path / 'x.pth')
    weights = checkpoints.check_checkpoint(str(tmp_path / 'x.pth'))
    checkpoints.check_match(target, weights, 'x.pth', shapes=False)
    renamed, _ = checkpoints.to_model_names(target, weights, 'x.pth')
    assert all(torch.equal(renamed[key], value) for key, value in first.state_dict().items())
    content = torch.load(tmp_path / 'x.pth')
    checkpoints.rename_weights(target, content)
    target.load_state_dict(content['state_dict'], strict=False)
    assert_same(target, first)


def test_a_checkpoint_of_the_model_is_left_as_it_is():
    model = Detector(0)
    state = model.state_dict()
    content = {'state_dict': state, 'ema_state_dict': under('module.', state), 'meta': {}}
    checkpoints.rename_weights(model, content)
    assert content['state_dict'] is state
    assert set(content) == {'state_dict', 'ema_state_dict', 'meta'}


# --------------------------------------------------------------------------------------------------------------------
# Refusals


@pytest.mark.parametrize('name', ['x.pth', 'two words.pth', "it's.pth", 'a"b$HOME`c\\d!.pth'])
@pytest.mark.parametrize('content', ['arguments', 'module', 'script'])
def test_the_way_out_works_as_it_is_printed(tmp_path, source, name, content):
    path = tmp_path / name
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        if content == 'script':
            torch.jit.script(nn.Linear(2, 2)).save(str(path))
        elif content == 'module':
            torch.save(small(SwinTransformer), path)
        else:
            torch.save({'net': source.state_dict(), 'args': argparse.Namespace(lr=0.1)}, path)
    with pytest.raises(WeightsError, match='keep its tensors alone') as caught:
        SwinTransformer(ARCH).load_pretrained(str(path))
    python, option, code = shlex.split(str(caught.value).partition('\n')[2])
    assert (python, option) == ('python', '-c')
    if name == 'x.pth' or content == 'arguments':  # a process takes seconds
        exec(code.replace("'OUT'", repr(str(tmp_path / 'OUT'))), {})
        written = torch.load(tmp_path / 'OUT', weights_only=True)
        assert len(unwrap(written, 'OUT')) == (2 if content == 'script' else len(source.state_dict()))


def test_the_way_out_works_in_a_shell(tmp_path, source):
    path = tmp_path / 'a "$b" \'c\'.pth'
    torch.save({'model': source.state_dict(), 'args': argparse.Namespace(lr=0.1)}, path)
    with pytest.raises(WeightsError) as caught:
        SwinTransformer(ARCH).load_pretrained(str(path))
    command = str(caught.value).partition('\n')[2].replace('python', shlex.quote(sys.executable), 1)
    subprocess.run(['sh', '-c', command], cwd=tmp_path, check=True)
    model = small(SwinTransformer, seed=1)
    model.load_pretrained(str(tmp_path / 'OUT'))
    assert_same(model, source)


def test_a_refusal_lists_what_is_known(tmp_path):
    with pytest.raises(
        WeightsError, match=r'Known: SwinTransformer of OpenMMLab, timm, torchvision, the authors of Swin'
    ):
        load({'fc.weight': torch.ones(2)}, tmp_path)


def test_damage_inside_a_file_is_noticed(tmp_path, source):
    path = tmp_path / 'x.pth'
    torch.save({'model': source.state_dict()}, path)
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 0x40]) + whole[middle + 1 :])
    for read in (
        lambda: SwinTransformer(ARCH).load_pretrained(str(path)),
        lambda: checkpoints.check_checkpoint(str(path)),
        lambda: checkpoints.read_meta(str(path)),
        lambda: convert_file(str(path), tmp_path / 'out.pth'),
    ):
        with pytest.raises(WeightsError, match=r'x\.pth cannot be read: it is truncated or damaged, the checksum of'):
            read()
    path.write_bytes(whole)
    SwinTransformer(ARCH).load_pretrained(str(path))


@pytest.mark.parametrize(
    ('change', 'why'),
    [
        (lambda w: w.to(torch.float8_e4m3fn), 'holds float8_e4m3fn numbers'),
        (lambda w: w.to(torch.int8), 'holds int8 numbers'),
        (lambda w: w.to(torch.complex64), 'holds complex64 numbers'),
        (lambda w: w.to_sparse(), 'is sparse, nested or quantised'),
        (lambda w: torch.nested.nested_tensor([w[0], w[1]]), 'is sparse, nested or quantised'),
        (lambda w: w.double() * 1e300, 'holds float64 numbers beyond the largest of float32'),
        (lambda w: w * float('nan'), 'holds NaN or infinity'),
    ],
)
@pytest.mark.parametrize('key', ['stages.0.blocks.0.mlp.fc1.weight', 'stages.0.downsample.reduction.weight'])
def test_values_that_the_network_cannot_hold_are_named(tmp_path, source, change, why, key):
    state = {**source.state_dict(), key: change(source.state_dict()[key])}
    for content in (state, swin.to_timm(state) if 'sparse' not in why else state):
        for strict in (True, False):
            with pytest.raises(WeightsError, match=why):
                load(content, tmp_path, strict=strict)
    with pytest.raises(WeightsError, match=why):
        checkpoints.check_checkpoint(str(tmp_path / 'x.pth'))


def test_numbers_too_large_for_half_precision():
    with pytest.raises(WeightsError, match='a holds float32 numbers beyond the largest of float16'):
        check_values({'a': torch.tensor([1e6])}, 'x', {'a': torch.ones(1, dtype=torch.float16)})
    check_values({'a': torch.tensor([1e6]), 'attn_mask': torch.tensor(-torch.inf)}, 'x', {'a': torch.ones(1)})
    check_values({'text.attn_mask': torch.tensor(-torch.inf)}, 'x')


def test_many_further_keys_take_no_long_time(tmp_path, source):
    one = torch.zeros(1)
    content = authors_swin(source.state_dict()) | {f'layers.0.further.{i}': one for i in range(40_000)}
    content |= {f'text.{i}.weight': one for i in range(40_000)}
    torch.save(content, tmp_path / 'x.pth')
    start = time.perf_counter()
    model = small(SwinTransformer, seed=1)
    report = model.load_pretrained(str(tmp_path / 'x.pth'), strict=False)
    assert len(report.unexpected) == 80_000
    assert time.perf_counter() - start < 20  # of which reading takes most; a table walked for every key took minutes


# --------------------------------------------------------------------------------------------------------------------
# The converter


def test_the_converter_names_what_it_keeps_and_drops(tmp_path, source):
    classifier = authors_swin(source.state_dict())
    torch.save({'model': classifier}, tmp_path / 'x.pth')
    said = convert_file(str(tmp_path / 'x.pth'), tmp_path / 'a.pth')
    dropped = next(line for line in said.splitlines() if line.startswith('dropped'))
    assert all(name in dropped for name in ('head.weight', 'head.bias', 'norm.weight', 'attn.relative_position_index'))
    assert 'layout     SwinTransformer, that of the authors of Swin' in said
    detector = under('backbone.', source.state_dict()) | {
        'neck.0.weight': torch.ones(1),
        'neck.1.weight': torch.ones(1),
    }
    torch.save(detector, tmp_path / 'y.pth')
    said = convert_file(str(tmp_path / 'y.pth'), tmp_path / 'b.pth', to='timm')
    assert 'kept       2 beside it, as they are: neck.*.weight (2)' in said
    assert 'dropped    8 that have no place there: backbone.norm0.weight' in said


def test_the_converter_takes_one_of_several(tmp_path, source, other):
    torch.save({'student': source.state_dict(), 'teacher': other.state_dict()}, tmp_path / 'x.pth')
    said = convert_file(str(tmp_path / 'x.pth'), tmp_path / 'a.pth')
    assert 'ours; there is another under teacher. (--prefix takes it)' in said
    convert_file(str(tmp_path / 'x.pth'), tmp_path / 'b.pth', prefix='teacher.')
    for name, network in (('a', source), ('b', other)):
        model = small(SwinTransformer, seed=1)
        model.load_pretrained(str(tmp_path / f'{name}.pth'))
        assert_same(model, network)
