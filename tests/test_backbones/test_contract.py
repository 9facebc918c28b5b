"""What every backbone promises. A new one joins by one line in `SMALL`; one of elsewhere is tried with `--backbone`."""

import copy
import math
import pickle
import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from mmext_backbones.backbones import ELSAVOLO, VOLO, ELSASwin, MaxViT, Sequencer2D, SwinTransformer, recomputation
from mmext_backbones.backbones.recomputation import kept_bytes, recomputes
from mmext_backbones.layers import Stage
from tests.conftest import GIVEN_BACKBONES
from tests.torch_features import HALF_AUTOCAST

VOLO_ARCH = {
    'embed_dims': (32, 64, 64, 64),
    'depths': (2, 2, 2, 2),
    'num_heads': (1, 2, 2, 2),
    'mlp_ratio': 3,
    'stem_dims': 4,
}
# class -> a small custom architecture, for what need not be tried in every size
SMALL = GIVEN_BACKBONES or {
    SwinTransformer: {'embed_dims': 16, 'depths': (2, 2, 2, 2), 'num_heads': (1, 2, 4, 8)},
    ELSASwin: {'embed_dims': 16, 'depths': (2, 2, 2, 2), 'num_heads': (1, 2, 4, 8), 'group_width': 4},
    MaxViT: {'embed_dims': (32, 64, 64, 96), 'depths': (2, 2, 2, 2), 'stem_dims': 32},
    Sequencer2D: {'embed_dims': (16, 32, 32, 32), 'depths': (2, 2, 2, 2), 'hidden_dims': (4, 8, 8, 8)},
    VOLO: VOLO_ARCH,
    ELSAVOLO: {**VOLO_ARCH, 'kernel_size': 5, 'group_width': 8},
}
ALL_ARCHS = [
    pytest.param(cls, arch, id=f'{cls.__name__}-{arch}', marks=pytest.mark.slow if i else ())
    for cls in SMALL
    for i, arch in enumerate(cls.ARCHS)
]
SIZES = [(64, 96), (65, 97), (1, 1), (31, 225)]  # and 800 x 1333, with the small networks
OUT_INDICES = [(0, 1, 2, 3), (3,), (0,), (1, 2), (0, 3)]

each_arch = pytest.mark.parametrize(('cls', 'arch'), ALL_ARCHS)
each_class = pytest.mark.parametrize('cls', SMALL)


def small(cls, arch=None, **options):
    torch.manual_seed(0)
    return cls(arch or SMALL[cls], **options)


def image(*size, batch=1, channels=3):
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1))


def loss(outs):
    # a different weight for every element, so that no gradient cancels
    return sum((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum() for out in outs)


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters()}


def check_maps(model, H, W):
    with torch.no_grad():
        outs = model(image(H, W))
    shapes = [tuple(out.shape) for out in outs]
    assert shapes == [
        (1, c, math.ceil(H / s), math.ceil(W / s)) for c, s in zip(model.out_channels, model.out_strides, strict=True)
    ]
    assert all(out.is_contiguous() and out.isfinite().all() for out in outs)


@each_arch
def test_channels_and_strides_at_any_size(cls, arch):
    model = cls(arch).eval()
    for size in SIZES if arch == next(iter(cls.ARCHS)) else SIZES[1:2]:
        check_maps(model, *size)
    assert model.out_strides == (4, 8, 16, 32)


@pytest.mark.parametrize('cls', [pytest.param(cls, marks=pytest.mark.slow if i else ()) for i, cls in enumerate(SMALL)])
def test_channels_and_strides_at_the_size_of_coco(cls):
    check_maps(small(cls).eval(), 800, 1333)


@each_class
@pytest.mark.parametrize('out_indices', OUT_INDICES, ids=str)
def test_every_parameter_gets_a_gradient(cls, out_indices):
    model = small(cls, out_indices=out_indices, drop_path_rate=0.0)
    outs = model(image(40, 72, batch=2))
    assert [out.shape[1] for out in outs] == list(model.out_channels)
    loss(outs).backward()
    missing = [name for name, grad in gradients(model).items() if grad is None or not grad.any()]
    assert not missing


@each_class
def test_outputs_do_not_depend_on_out_indices(cls):
    full = small(cls).eval()
    part = small(cls, out_indices=(1, 2)).eval()
    incompatible = part.load_state_dict(full.state_dict(), strict=False)
    assert not incompatible.missing_keys
    x = image(40, 72)
    with torch.no_grad():
        for actual, expected in zip(part(x), full(x)[1:3], strict=True):
            torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@each_class
@pytest.mark.parametrize(('frozen_stages', 'checkpointed'), [(-1, True), (1, True), (-1, (1, 3))], ids=str)
def test_checkpointing_changes_neither_outputs_nor_gradients(cls, frozen_stages, checkpointed):
    results = []
    for with_cp in (False, checkpointed):
        model = small(cls, with_cp=with_cp, frozen_stages=frozen_stages, drop_path_rate=0.5).train()
        torch.manual_seed(2)  # the same paths dropped; the recomputation must restore the generator's state too
        x = image(40, 72, batch=2).requires_grad_()
        outs = model(x)
        loss(outs).backward()
        results.append((outs, gradients(model)))
    (outs, grads), (outs_cp, grads_cp) = results
    for actual, expected in zip(outs_cp, outs, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    for name, expected in grads.items():
        if expected is None:
            assert grads_cp[name] is None
        else:
            torch.testing.assert_close(grads_cp[name], expected, rtol=1e-5, atol=1e-6)


@each_class
@pytest.mark.parametrize('with_cp', [False, (1,)], ids=str)
def test_recomputation_changes_memory_alone(cls, with_cp, monkeypatch):
    """Outputs, gradients and statistics of two steps; 'auto' keeps what is little on the CPU."""
    results, kept = [], []
    needed = kept_bytes(small(cls, with_cp=with_cp), torch.empty(2, 3, 40, 72, dtype=torch.float64))
    for recompute, on_cpu in ((True, 0), (False, 0), ('auto', needed - 1), ('auto', needed)):
        monkeypatch.setattr(recomputation, 'ON_CPU', on_cpu)
        model = small(cls, with_cp=with_cp, drop_path_rate=0.5).double().train()
        model.recompute = recompute
        storages = {}
        for _ in range(2):
            torch.manual_seed(2)
            model.zero_grad()
            with torch.autograd.graph.saved_tensors_hooks(partial(kept_in, storages), lambda x: x):
                outs = model(image(40, 72, batch=2).double())
            loss(outs).backward()
        results.append([*outs, *gradients(model).values(), *model.buffers()])
        weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
        kept.append(sum(storage.nbytes() for pointer, storage in storages.items() if pointer not in weights))
    for each in zip(*results, strict=True):
        for other in each[1:]:
            torch.testing.assert_close(other, each[0], rtol=1e-6, atol=1e-8)
    with_it, without, *auto = kept
    assert auto == [with_it, with_it if with_cp else without]
    assert with_it <= without if GIVEN_BACKBONES else with_it < 0.9 * without


def kept_in(storages, x):
    storages[x.untyped_storage().data_ptr()] = x.untyped_storage()  # kept alive: no address is used twice
    return x


@each_class
def test_recomputation_follows_the_memory_of_the_gpu(cls, monkeypatch):
    """Of a GPU that is not there: from shapes, and less where stages are recomputed as a whole."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    x = SimpleNamespace(device=torch.device('cuda'), shape=(2, 3, 800, 1344), element_size=lambda: 4)
    gpu, model = SimpleNamespace(), small(cls)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: gpu)
    needed = kept_bytes(model, x)
    for gpu.total_memory, expected in ((3.9 * needed, True), (4.1 * needed, False)):
        assert recomputes(model, x) is expected
        for model.recompute in (True, False):
            assert recomputes(model, x) is model.recompute
        model.recompute = 'auto'
    assert recomputes(small(cls, with_cp=(0,)), x) is False
    assert 0 < kept_bytes(small(cls, with_cp=(0,)), x) < needed
    assert kept_bytes(small(cls, with_cp=True), x) == 0
    x.shape = (4, 3, 800, 1344)
    assert kept_bytes(model, x) == 2 * needed


@each_class
def test_checkpointing_keeps_less(cls):
    def saved_bytes(with_cp):
        storages = {}

        def pack(x):
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage()  # kept alive: no address is used twice
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            outs = small(cls, with_cp=with_cp)(image(64, 96))
        return sum(s.nbytes() for s in storages.values()), outs

    all_stages, first_stage, nothing = (saved_bytes(with_cp)[0] for with_cp in (True, (0,), False))
    assert all_stages < 0.5 * nothing
    assert all_stages < first_stage < nothing


@each_class
def test_blocks_are_those_of_block_classes(cls):
    """What sharding and checkpointing by class would find: all blocks, and nothing else."""
    model = small(cls)
    blocks = [block for stage in model.stages for block in stage.blocks]
    assert [module for module in model.modules() if isinstance(module, cls.BLOCK_CLASSES)] == blocks


@each_class
@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2, 4])
def test_frozen_stages_stay_frozen_and_in_eval_mode(cls, frozen_stages):
    model = small(cls, frozen_stages=frozen_stages, drop_path_rate=0.5)
    assert model.train() is model
    frozen = [] if frozen_stages < 0 else list(model.stem_modules())
    for i in range(max(0, frozen_stages)):
        frozen += [model.stages[i], *([getattr(model, f'norm{i}')] if hasattr(model, f'norm{i}') else [])]
    frozen_parameters = {id(p) for module in frozen for p in module.parameters()}
    assert {id(p) for p in model.parameters() if not p.requires_grad} == frozen_parameters
    assert not any(m.training for module in frozen for m in module.modules())
    assert model.training

    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainable = [p for p in model.parameters() if p.requires_grad]
    if trainable:
        loss(model(image(40, 72))).backward()
        torch.optim.SGD(trainable, lr=1.0).step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed.isdisjoint(n for n, p in model.named_parameters() if id(p) in frozen_parameters)
    assert model.eval() is model
    assert not any(m.training for m in model.modules())


@each_class
def test_drop_path_grows_linearly_to_its_maximum(cls):
    model = small(cls, drop_path_rate=0.7)
    rates = [block.drop_path.rate for stage in model.stages for block in stage.blocks]
    undropped = 2 if issubclass(cls, VOLO) else 0  # blocks of its first stage, as in the authors' code
    assert rates == pytest.approx([0.7 * i / (len(rates) - 1) * (i >= undropped) for i in range(len(rates))])
    # a network that ends early keeps the rates of the whole one
    early = small(cls, drop_path_rate=0.7, out_indices=(1,))
    early_rates = [block.drop_path.rate for stage in early.stages for block in stage.blocks]
    assert len(early.stages) < 4
    assert early_rates == rates[: 2 * len(early.stages)]


@each_class
def test_drop_path_acts_in_training_only(cls):
    model = small(cls, drop_path_rate=0.9)
    x = image(32, 32, batch=4)
    with torch.no_grad():
        model.train()
        assert not torch.equal(model(x)[-1], model(x)[-1])
        model.eval()
        assert torch.equal(model(x)[-1], model(x)[-1])


@each_class
@pytest.mark.parametrize('dtype', [torch.bfloat16, HALF_AUTOCAST])
def test_autocast_is_finite_and_close(cls, dtype):
    model = small(cls, drop_path_rate=0.0)
    x = image(40, 72)
    exact = model(x)
    with torch.autocast('cpu', dtype=dtype):
        outs = model(x)
    loss([out.float() for out in outs]).backward()
    assert all(grad.isfinite().all() for grad in gradients(model).values())
    for out, expected in zip(outs, exact, strict=True):
        # outputs are normed: of order one, so this is about eight roundings of bfloat16
        assert (out.float() - expected).abs().max() < 8 * torch.finfo(dtype).eps * expected.abs().max()


@each_class
def test_state_dict_deepcopy_and_pickle_round_trips(cls, tmp_path):
    model = small(cls).eval()
    x = image(33, 47)
    with torch.no_grad():
        expected = model(x)
        torch.save(model.state_dict(), tmp_path / 'weights.pth')
        loaded = small(cls).eval()
        loaded.load_state_dict(torch.load(tmp_path / 'weights.pth', weights_only=True))
        for other in (loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert all(torch.equal(a, b) for a, b in zip(other(x), expected, strict=True))


@each_class
def test_memory_format_and_batch_do_not_matter(cls):
    model = small(cls).eval()
    x = image(40, 72, batch=2)
    with torch.no_grad():
        expected = model(x)
        strided = model(x.contiguous(memory_format=torch.channels_last))
        single = model(x[1:])
    for out, out_strided, out_single in zip(expected, strided, single, strict=True):
        torch.testing.assert_close(out_strided, out, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(out_single, out[1:], rtol=1e-4, atol=1e-5)


@each_class
def test_other_image_channels(cls):
    model = small(cls, in_channels=4).eval()
    assert len(model(image(32, 32, channels=4))) == 4


@each_class
def test_inference_mode_leaves_training_usable(cls):
    model = small(cls, drop_path_rate=0.0)
    with torch.inference_mode():
        model.eval()(image(47, 53))
    loss(model.train()(image(47, 53))).backward()  # whatever was cached above must not be an inference tensor
    assert all(grad is not None for grad in gradients(model).values())


@each_class
@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'arch': 'gigantic'}, "arch='gigantic': expected one of (tiny|small|d1), "),
        ({'arch': {'embed_dims': 8}}, r"arch=\['embed_dims'\]: expected .* a dict with the keys embed_dims, depths"),
        ({'out_indices': (0, 4)}, r'out_indices=\(0, 4\)'),
        ({'out_indices': ()}, r'out_indices=\(\)'),
        ({'out_indices': (2, 1)}, r'out_indices=\(2, 1\)'),
        ({'frozen_stages': 5}, 'frozen_stages=5'),
        ({'frozen_stages': 3, 'out_indices': (0, 1)}, 'frozen_stages=3: .* up to [12],'),
        ({'in_channels': 0}, 'in_channels=0'),
        ({'with_cp': (0, 4)}, r'with_cp=\(0, 4\): expected True, False or distinct stages from 0 to 3'),
        ({'with_cp': (1, 1)}, r'with_cp=\(1, 1\)'),
        ({'with_cp': 1}, 'with_cp=1'),
        ({'drop_path_rate': 1.5}, 'drop_path_rate=1.5'),
    ],
)
def test_bad_arguments_are_named(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**({'arch': SMALL[cls]} | options))


@each_class
@pytest.mark.parametrize('shape', [(1, 4, 32, 32), (3, 32, 32), (1, 1, 32, 32)])
def test_bad_input_is_named(cls, shape):
    with pytest.raises(ValueError, match=rf'{cls.__name__} got an input of shape .*expected \[B, 3, H, W\]'):
        small(cls)(torch.zeros(shape))


@each_class
def test_unknown_key_is_named(cls):
    with pytest.raises(TypeError, match='embed_dim'):
        cls('tiny', embed_dim=96)


@each_class
def test_truncated_pretrained_weights_are_named(cls, tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save(small(cls).state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    model = small(cls, init_cfg={'type': 'Pretrained', 'checkpoint': str(path)})
    with pytest.raises(ValueError, match=r'weights.pth cannot be read: .*truncated'):
        model.init_weights()


@each_class
def test_an_empty_batch(cls):
    model = small(cls, drop_path_rate=0.0).eval()
    outs = model(image(40, 72, batch=0))
    assert [tuple(out.shape[:2]) for out in outs] == [(0, c) for c in model.out_channels]
    sum(out.sum() for out in outs).backward()
    assert all(not grad.any() for grad in gradients(model).values())


@each_class
@pytest.mark.parametrize('how', ['assign', 'to_empty', 'load_pretrained'])
def test_built_on_the_meta_device_and_loaded(cls, how, tmp_path):
    whole = small(cls).eval()
    with torch.device('meta'):
        model = cls(SMALL[cls]).eval()
    with pytest.raises(ValueError, match=r'have no values yet .*: load_state_dict\(weights, assign=True\)'):
        model(image(40, 72))
    if how == 'load_pretrained':
        torch.save(whole.state_dict(), tmp_path / 'weights.pth')
        model.load_pretrained(str(tmp_path / 'weights.pth'))
    else:
        if how == 'to_empty':
            model.to_empty(device='cpu')
            for tensor in [*model.parameters(), *model.buffers()]:  # as unwritten memory may be
                tensor.data.fill_(77)
        model.load_state_dict(whole.state_dict(), assign=how == 'assign')
    with torch.no_grad():
        for out, expected in zip(model(image(40, 72)), whole(image(40, 72)), strict=True):
            assert torch.equal(out, expected)


@each_class
def test_a_tensor_left_on_the_meta_device_is_named(cls):
    weights = small(cls).state_dict()
    missing = next(iter(weights))
    with torch.device('meta'):
        model = cls(SMALL[cls])
    model.load_state_dict({key: value for key, value in weights.items() if key != missing}, strict=False, assign=True)
    with pytest.raises(ValueError, match=f'1 of its tensors have no values yet \\({re.escape(missing)}, ...'):
        model(image(40, 72))
    model.load_state_dict(weights, assign=True)
    model(image(40, 72))
    with pytest.raises(ValueError, match='have no values yet'):
        model.to('meta')(image(40, 72))


@each_class
def test_hooks_run_for_every_module(cls):
    model = small(cls, drop_path_rate=0.0).eval()
    with torch.no_grad():
        expected = model(image(40, 72))
    heard = set()
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: heard.add((name, 'before')))
        module.register_forward_hook(lambda *_, name=name: heard.add((name, 'after')))
    outs = model(image(40, 72))
    silent = {name for name, m in model.named_modules() if not isinstance(m, (torch.nn.ModuleList, Stage))}
    assert heard >= {(name, when) for name in silent for when in ('before', 'after')}
    for out, one in zip(outs, expected, strict=True):
        torch.testing.assert_close(out, one, rtol=1e-4, atol=1e-4)
