"""Reading weights from wherever they are: what fits is loaded and reported, what does not is refused whole."""

import functools
import http.server
import json
import pickle
import shutil
import sys
import threading
from pathlib import Path

import pytest
import torch
from mmengine.runner import CheckpointLoader, load_checkpoint

import mmext_backbones.weights.loading as loading
from mmext_backbones.backbones import DenseBackbone, MaxViT, Sequencer2D, SwinTransformer
from mmext_backbones.datasets.shapes.files import make_shapes
from mmext_backbones.utils.cli import run_cli
from mmext_backbones.weights import swin
from mmext_backbones.weights.converting import write
from mmext_backbones.weights.fitting import WeightsError
from mmext_backbones.weights.resize import resize_window_table
from mmext_backbones.weights.safe_globals import TORCH_TAKES_A_LIST
from tests.test_inference import networks
from tests.test_weights.test_layouts import SMALL, authors_swin, small


def pretrained(cls, path, seed=1, **options):
    """A model that loads `path` as a config would tell it."""
    keys = {key: options.pop(key) for key in ('strict', 'prefix') if key in options}
    torch.manual_seed(seed)
    model = cls(SMALL[cls], init_cfg={'type': 'Pretrained', 'checkpoint': str(path), **keys}, **options)
    model.init_weights()
    return model


def snapshot(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_loaded(model, source, but=('norm0', 'norm1', 'norm2', 'norm3', 'upsample')):
    for key, value in source.state_dict().items():
        if not key.startswith(but):
            assert torch.equal(model.state_dict()[key], value), key


@pytest.mark.parametrize('wrap', [lambda s: s, lambda s: {'model': s, 'epoch': 3}, lambda s: {'state_dict': s}])
def test_init_cfg_loads_a_published_classifier(tmp_path, wrap):
    source = small(SwinTransformer)
    torch.save(wrap(authors_swin(source.state_dict())), tmp_path / 'x.pth')
    assert_loaded(pretrained(SwinTransformer, tmp_path / 'x.pth'), source)


def test_report_says_what_became_of_every_tensor(tmp_path):
    source = small(SwinTransformer)
    foreign = authors_swin(source.state_dict())
    torch.save({'model': foreign}, tmp_path / 'x.pth')
    report = small(SwinTransformer, seed=1).load_pretrained(str(tmp_path / 'x.pth'))
    assert report.complete
    assert report.layout == 'the authors of Swin'
    assert {key.split('.')[0] for key in report.fresh} == {'norm0', 'norm1', 'norm2', 'norm3'}
    assert len(report.loaded) + len(report.fresh) == len(source.state_dict())
    assert {'head.weight', 'head.bias', 'norm.weight', 'norm.bias'} <= set(report.ignored)
    text = str(report)
    assert f'loaded       {len(report.loaded):4}' in text
    assert 'fresh           8  norm0.weight' in text


def test_an_incomplete_file_is_refused_whole(tmp_path):
    foreign = authors_swin(small(SwinTransformer).state_dict())
    del foreign['layers.2.blocks.0.mlp.fc1.weight']
    torch.save(foreign, tmp_path / 'x.pth')
    torch.manual_seed(1)
    model = SwinTransformer(SMALL[SwinTransformer])
    before = snapshot(model)
    with pytest.raises(WeightsError, match=r'missing +1 +stages\.2\.blocks\.0\.mlp\.fc1\.weight'):
        model.load_pretrained(str(tmp_path / 'x.pth'))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    report = model.load_pretrained(str(tmp_path / 'x.pth'), strict=False)
    assert report.missing == ['stages.2.blocks.0.mlp.fc1.weight']
    pretrained(SwinTransformer, tmp_path / 'x.pth', strict=False)


def test_leftovers_are_refused(tmp_path):
    torch.save({**small(SwinTransformer).state_dict(), 'absolute_pos_embed': torch.ones(1)}, tmp_path / 'x.pth')
    with pytest.raises(WeightsError, match=r'unexpected +1 +absolute_pos_embed'):
        pretrained(SwinTransformer, tmp_path / 'x.pth')


def test_another_arch_is_refused(tmp_path):
    torch.save(small(SwinTransformer).state_dict(), tmp_path / 'x.pth')
    model = SwinTransformer({**SMALL[SwinTransformer], 'embed_dims': 32})
    before = snapshot(model)
    with pytest.raises(WeightsError, match=r'wrong shape +\d+ +patch_embed\.proj\.weight 16x3x4x4 -> 32x3x4x4'):
        model.load_pretrained(str(tmp_path / 'x.pth'))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize('convert', [dict, authors_swin, swin.to_openmmlab], ids=['ours', 'authors', 'openmmlab'])
def test_a_deeper_network_is_refused(tmp_path, convert):
    """Every tensor of the shallow one would be filled, with the numbers of another network."""
    torch.save(convert(small(SwinTransformer).state_dict()), tmp_path / 'x.pth')
    shallow = SwinTransformer({**SMALL[SwinTransformer], 'depths': (2, 2, 1, 2)})
    with pytest.raises(WeightsError, match=r'unexpected +1\d +stages\.2\.blocks\.1\.'):
        shallow.load_pretrained(str(tmp_path / 'x.pth'))
    with pytest.raises(RuntimeError, match=r'Unexpected key.*stages\.2\.blocks\.1\.'):
        shallow.load_state_dict(convert(small(SwinTransformer).state_dict()))


def test_load_state_dict_names_other_shapes():
    foreign = swin.to_openmmlab(small(SwinTransformer).state_dict())
    wide = SwinTransformer({**SMALL[SwinTransformer], 'embed_dims': 32})
    with pytest.raises(RuntimeError, match=r'size mismatch for patch_embed\.proj\.weight'):
        wide.load_state_dict(foreign)


class Plain(DenseBackbone):
    """What somebody might add: a backbone of no family."""

    def __init__(self, init_cfg=None):
        super().__init__(
            (4,),
            (2,),
            in_channels=3,
            out_indices=(0,),
            frozen_stages=-1,
            with_cp=False,
            init_cfg=init_cfg,
        )
        self.conv = torch.nn.Conv2d(3, 4, 2)


def test_a_backbone_of_no_family_loads_its_own_files(tmp_path):
    source = Plain()
    torch.save({'state_dict': source.state_dict()}, tmp_path / 'x.pth')
    target = Plain({'type': 'Pretrained', 'checkpoint': str(tmp_path / 'x.pth')})
    target.init_weights()
    assert_loaded(target, source)
    torch.save({'conv.weight': torch.zeros(4, 3, 2, 2)}, tmp_path / 'y.pth')
    with pytest.raises(WeightsError, match=r'missing +1 +conv\.bias'):
        Plain({'type': 'Pretrained', 'checkpoint': str(tmp_path / 'y.pth')}).init_weights()


def test_weights_are_loaded_once(tmp_path):
    torch.save(small(SwinTransformer).state_dict(), tmp_path / 'x.pth')
    model = pretrained(SwinTransformer, tmp_path / 'x.pth')
    (tmp_path / 'x.pth').unlink()
    model.init_weights()


def test_another_family_is_named(tmp_path):
    torch.save(small(MaxViT).state_dict(), tmp_path / 'x.pth')
    with pytest.raises(
        WeightsError, match='no weights of a SwinTransformer: it is a MaxViT in the layout of mmext_backbones'
    ):
        pretrained(SwinTransformer, tmp_path / 'x.pth')
    torch.save({'fc.weight': torch.ones(2)}, tmp_path / 'y.pth')
    with pytest.raises(WeightsError, match=r'its keys are of no known layout \(fc\.weight'):
        pretrained(SwinTransformer, tmp_path / 'y.pth')


def test_fewer_stages_ignore_the_rest(tmp_path):
    source = small(SwinTransformer)
    torch.save(source.state_dict(), tmp_path / 'x.pth')
    model = pretrained(SwinTransformer, tmp_path / 'x.pth', out_indices=(1,))
    for key, value in model.state_dict().items():
        assert torch.equal(value, source.state_dict()[key])


def test_prefix_picks_a_part(tmp_path):
    student, teacher = small(SwinTransformer), small(SwinTransformer, seed=5)
    both = {f'student.{key}': value for key, value in student.state_dict().items()}
    both |= {f'teacher.{key}': value for key, value in teacher.state_dict().items()}
    torch.save(both, tmp_path / 'x.pth')
    assert_loaded(pretrained(SwinTransformer, tmp_path / 'x.pth', prefix='teacher.'), teacher, but=('-',))
    with pytest.raises(WeightsError, match=r"no key begins with prefix='nobody\.'"):
        pretrained(SwinTransformer, tmp_path / 'x.pth', prefix='nobody.')


def test_other_windows_are_resampled(tmp_path):
    source = small(SwinTransformer)
    torch.save(swin.to_openmmlab(source.state_dict()), tmp_path / 'x.pth')
    model = small(SwinTransformer, seed=1, window_size=12)
    report = model.load_pretrained(str(tmp_path / 'x.pth'))
    assert len(report.resized) == 8
    assert report.resized['stages.0.blocks.0.attn.relative_position_bias_table'] == (169, 1)
    assert 'resized         8  stages.0.blocks.0.attn.relative_position_bias_table from 169x1' in str(report)
    small(SwinTransformer, seed=1, window_size=12).load_state_dict(swin.to_openmmlab(source.state_dict()))


def test_tables_of_other_heads_are_not_resampled():
    assert resize_window_table(torch.zeros(169, 3), torch.Size((529, 6))) is None
    assert resize_window_table(torch.zeros(3, 13, 13), torch.Size((6, 23, 23))) is None


def test_resampled_tables_keep_constants_and_symmetry():
    table = torch.arange(169.0).view(169, 1)
    resized = resize_window_table(table, torch.Size((529, 1))).view(23, 23)
    torch.testing.assert_close(resized + resized.flip(0, 1), torch.full((23, 23), 168.0))  # centred on the same offset
    constant = resize_window_table(torch.ones(2, 13, 13), torch.Size((2, 39, 57)))
    torch.testing.assert_close(constant, torch.ones(2, 39, 57))


def test_patches_are_resampled(tmp_path):
    native = small(Sequencer2D, patch_size=7, pyramid=False)
    torch.save(native.state_dict(), tmp_path / 'x.pth')
    report = small(Sequencer2D, seed=1).load_pretrained(str(tmp_path / 'x.pth'), strict=False)
    assert report.resized == {'patch_embed.proj.weight': (16, 3, 7, 7)}


# --------------------------------------------------------------------------------------------------------------------
# Files


def test_safetensors_load_everywhere(tmp_path):
    save_file = pytest.importorskip('safetensors.torch').save_file
    source = small(SwinTransformer)
    save_file(source.state_dict(), tmp_path / 'x.safetensors')
    assert_loaded(pretrained(SwinTransformer, tmp_path / 'x.safetensors'), source, but=('-',))
    model = small(SwinTransformer, seed=1)
    load_checkpoint(model, str(tmp_path / 'x.safetensors'), strict=True)  # what load_from and tools/test.py call
    assert_loaded(model, source, but=('-',))


@pytest.mark.parametrize('name', ['x.pth', 'x.safetensors'])
@pytest.mark.parametrize('content', [b'', b'not a checkpoint at all'], ids=['empty', 'garbage'])
def test_damaged_files_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=rf'{name} (cannot be read|is not read)'):
        pretrained(SwinTransformer, tmp_path / name)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nothing\.pth'):
        pretrained(SwinTransformer, tmp_path / 'nothing.pth')


@pytest.mark.parametrize('content', [[1, 2], {}, {'state_dict': {}}, {'epoch': 3}])
def test_files_without_weights_are_named(tmp_path, content):
    torch.save(content, tmp_path / 'x.pth')
    with pytest.raises(WeightsError, match=r'x\.pth holds'):
        pretrained(SwinTransformer, tmp_path / 'x.pth')


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize('how', ['torch', 'pickle'])
def test_a_malicious_file_runs_nothing(tmp_path, how):
    trace = tmp_path / 'trace'
    content = {'state_dict': small(SwinTransformer).state_dict(), 'extra': Bomb(str(trace))}
    path = tmp_path / 'x.pth'
    if how == 'torch':
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    paths = [
        lambda: pretrained(SwinTransformer, path),
        lambda: small(SwinTransformer).load_pretrained(str(path)),
        lambda: load_checkpoint(small(SwinTransformer), str(path)),
        lambda: CheckpointLoader.load_checkpoint(str(path)),
        lambda: loading.read(path),
    ]
    for load in paths:
        with pytest.raises(WeightsError, match=r'x\.pth (is not read|cannot be read)'):
            load()
    assert not trace.exists()
    if how == 'torch':
        with pytest.raises(WeightsError, match=r'keep its tensors alone'):
            loading.read(path)


def test_addresses_are_fetched_once_and_read_safely(tmp_path, monkeypatch):
    source = small(SwinTransformer)
    (tmp_path / 'served').mkdir()
    torch.save({'model': authors_swin(source.state_dict())}, tmp_path / 'served' / 'good.pth')
    torch.save({'extra': Bomb(str(tmp_path / 'trace'))}, tmp_path / 'served' / 'bad.pth')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / 'served')
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f'http://127.0.0.1:{server.server_port}'
    try:
        assert_loaded(pretrained(SwinTransformer, f'{address}/good.pth'), source)
        with pytest.raises(WeightsError, match=r'bad\.pth is not read'):
            loading.read(f'{address}/bad.pth')
        with pytest.raises(WeightsError, match=r'nothing\.pth cannot be fetched: .*404'):
            loading.read(f'{address}/nothing.pth')
    finally:
        server.shutdown()
    assert not (tmp_path / 'trace').exists()
    assert_loaded(pretrained(SwinTransformer, f'{address}/good.pth'), source)  # from the cache: the server is gone


@pytest.mark.parametrize('address', ['openmmlab://x', 'torchvision://x', 'mmcls://x', 's3://bucket/x.pth'])
def test_mmengines_own_schemes_are_read_safely(tmp_path, monkeypatch, address):
    from mmengine.runner import checkpoint

    trace = tmp_path / 'trace'
    torch.save({'extra': Bomb(str(trace))}, tmp_path / 'x.pth')
    for names in ('get_external_models', 'get_torchvision_models', 'get_mmcls_models'):
        monkeypatch.setattr(checkpoint, names, lambda: {'x': (tmp_path / 'x.pth').as_uri().replace('file', 'http')})
    monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda address, path: shutil.copy(tmp_path / 'x.pth', path))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    expected = ImportError if address.startswith('s3') and TORCH_TAKES_A_LIST else WeightsError  # without a client
    with pytest.raises(expected):
        loading.read(address)
    assert not trace.exists()


def test_malicious_files_do_not_run_in_the_tools(tmp_path, run_tool, monkeypatch):
    pytest.importorskip('mmseg')
    trace, path = tmp_path / 'trace', tmp_path / 'x.pth'
    torch.save({'state_dict': {}, 'extra': Bomb(str(trace))}, path)
    monkeypatch.chdir(tmp_path)
    config, _ = networks.make(
        'segmentation', tmp_path, make_shapes(tmp_path / 'shapes', size=64, num_train=1, num_val=1)
    )
    work_dir = ('--work-dir', tmp_path / 'run')
    for command in (
        ('test', config, path, *work_dir),
        ('train', config, '--resume', path, *work_dir),
        ('train', config, *work_dir, '--cfg-options', f'load_from={path}'),
        ('convert_weights', path, tmp_path / 'out.pth'),
    ):
        result = run_tool(*command)
        assert result.returncode == 2
        assert 'is not read' in result.stderr
    assert not trace.exists()


# --------------------------------------------------------------------------------------------------------------------
# The hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache as the hub's client keeps it; the network is off. Answers with a function that puts a file there."""
    constants = pytest.importorskip('huggingface_hub.constants')
    save_file = pytest.importorskip('safetensors.torch').save_file
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)

    def put(repository, file, tensors):
        folder = tmp_path / f'models--{repository.replace("/", "--")}'
        snapshot = folder / 'snapshots' / ('0' * 40)
        snapshot.mkdir(parents=True)
        (folder / 'refs').mkdir()
        (folder / 'refs' / 'main').write_text('0' * 40)
        save_file(tensors, snapshot / file)

    return put


def test_timm_address_loads_from_the_cache(hub):
    source = small(SwinTransformer)
    hub('timm/swin_tiny_patch4_window7_224.ms_in1k', 'model.safetensors', swin.to_timm(source.state_dict()))
    model = pretrained(SwinTransformer, 'timm://swin_tiny_patch4_window7_224.ms_in1k')
    assert_loaded(model, source)


def test_hub_address_loads_from_the_cache(hub):
    source = small(MaxViT)
    hub('somebody/networks', 'maxvit.safetensors', source.state_dict())
    assert_loaded(pretrained(MaxViT, 'hf://somebody/networks/maxvit.safetensors'), source, but=('-',))


def test_what_is_not_in_the_cache_is_named_offline(hub):
    with pytest.raises(WeightsError, match='not in the local cache, and the hub cannot be reached'):
        loading.read('timm://maxvit_tiny_tf_224.in1k')


def test_a_tool_without_the_client_of_the_hub_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    assert run_cli(lambda argv: loading.read('timm://maxvit_tiny_tf_224.in1k'), []) == 2
    assert capsys.readouterr().err.endswith('needs the hub client, pip install "mmext_backbones[hub]"\n')


def test_a_file_without_its_writer_says_what_to_install(monkeypatch, tmp_path):
    for name in ('safetensors', 'safetensors.torch'):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'x\.safetensors: needs safetensors, pip install'):
        write({'a': torch.zeros(1)}, tmp_path / 'x.safetensors')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('address', ['timm://swin_tiny', 'timm://a/b.c', 'hf://owner', 'hf://owner/repository'])
def test_malformed_addresses_are_named(address):
    with pytest.raises(WeightsError, match=r'expected (timm|hf)://<'):
        loading.read(address)


# --------------------------------------------------------------------------------------------------------------------
# The converter


@pytest.fixture
def convert(run_tool):
    return functools.partial(run_tool, 'convert_weights')


def test_converter_there_and_back(tmp_path, convert):
    pytest.importorskip('safetensors')
    state_dict = {f'backbone.{key}': value for key, value in small(SwinTransformer).state_dict().items()}
    state_dict['neck.weight'] = torch.ones(3)
    torch.save({'state_dict': state_dict, 'meta': {}}, tmp_path / 'ours.pth')
    result = convert(tmp_path / 'ours.pth', tmp_path / 'mmdet.safetensors', '--to', 'mmdet')
    assert result.returncode == 0, result.stderr
    assert 'sha256     ' in result.stdout
    foreign = loading.read(tmp_path / 'mmdet.safetensors')
    assert 'backbone.stages.0.blocks.0.attn.w_msa.qkv.weight' in foreign
    assert convert(tmp_path / 'mmdet.safetensors', tmp_path / 'back.pth').returncode == 0
    back = loading.read(tmp_path / 'back.pth')['state_dict']
    assert back.keys() == state_dict.keys()
    assert all(torch.equal(back[key], value) for key, value in state_dict.items())

    refused = convert(tmp_path / 'ours.pth', tmp_path / 'back.pth', '--to', 'timm')
    assert refused.returncode != 0
    assert 'is there already' in refused.stderr
    assert convert(tmp_path / 'ours.pth', tmp_path / 'back.pth', '--to', 'timm', '--force').returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ['back.pth', 'mmdet.safetensors', 'ours.pth']


def test_converter_refuses_what_it_cannot_do(tmp_path, convert):
    torch.save(small(MaxViT).state_dict(), tmp_path / 'maxvit.pth')
    torch.save({'fc.weight': torch.ones(2)}, tmp_path / 'stranger.pth')
    for arguments, message in [
        (('maxvit.pth', 'out.pth', '--to', 'mmdet'), 'it is a MaxViT, and only Swin'),
        (('stranger.pth', 'out.pth'), 'its keys are of no known layout'),
        (('maxvit.pth', 'out.zip'), 'ends in .pth or .safetensors'),
        (('maxvit.pth', 'folder/out.pth'), 'there is no folder'),
    ]:
        source, target, *rest = arguments
        result = convert(tmp_path / source, tmp_path / target, *rest)
        assert result.returncode != 0
        assert message in result.stderr, json.dumps(result.stderr)
    assert not list(tmp_path.glob('out*'))
