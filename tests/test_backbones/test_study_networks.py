"""The other networks of docs/study.md: what the contract promises, torch.compile in one graph, ONNX for any size.

The contract of `LocalSwin` stands in test_local_swin.py.
"""

from functools import partial

import pytest
import torch
import torch._dynamo

from mmext_backbones.backbones import DeiT, LocalSwin, SequencerVariant, VanillaSequencer
from mmext_backbones.export import export_onnx
from mmext_backbones.ops.torch_versions import TOO_OLD_TO_COMPILE
from tests.test_backbones import test_contract as contract
from tests.torch_features import RECORDS_ONCE, needs_export, needs_kernels

from .recording import FIRST, SIZES, picture

SWIN = {'embed_dims': 16, 'depths': (2, 1, 1, 1), 'num_heads': (1, 2, 4, 8)}
DEIT = {'embed_dims': 24, 'depths': (2,), 'num_heads': (2,)}
SEQUENCER = {'embed_dims': (16, 24, 24, 24), 'depths': (2, 2, 2, 2), 'hidden_dims': (4, 6, 6, 6)}
VANILLA = {'embed_dims': (24,) * 4, 'depths': (2, 2, 2, 2), 'patch_sizes': (7, 2, 1, 1)}
# name -> class, architecture, options
OTHERS = {
    'deit': (DeiT, DEIT, {'ghost': True}),
    'deit-plain': (DeiT, DEIT, {'ghost': False}),
    'gru': (SequencerVariant, SEQUENCER, {'cell': 'gru'}),
    'add': (SequencerVariant, SEQUENCER, {'union': 'add', 'bidirectional': False}),
    'vanilla': (VanillaSequencer, VANILLA, {}),
    'vanilla-position': (VanillaSequencer, VANILLA, {'absolute_position': True}),
}


@pytest.mark.parametrize('name', OTHERS)
def test_the_contract(name, monkeypatch):
    """What the suite asks of a backbone of any number of levels."""
    base, arch, options = OTHERS[name]

    class Other(base):
        def __init__(self, arch=arch, **more):
            super().__init__(arch, **options, **more)

    monkeypatch.setitem(contract.SMALL, Other, arch)
    levels = range(len(arch['depths']))
    contract.test_every_parameter_gets_a_gradient(Other, tuple({levels[0], levels[-1]}))
    contract.test_checkpointing_changes_neither_outputs_nor_gradients(Other, -1, True)
    contract.test_blocks_are_those_of_block_classes(Other)
    contract.test_frozen_stages_stay_frozen_and_in_eval_mode(Other, 1)
    contract.test_drop_path_acts_in_training_only(Other)
    contract.test_autocast_is_finite_and_close(Other, torch.bfloat16)
    contract.test_memory_format_and_batch_do_not_matter(Other)
    contract.test_inference_mode_leaves_training_usable(Other)
    contract.test_an_empty_batch(Other)
    contract.test_a_tensor_left_on_the_meta_device_is_named(Other)
    contract.test_hooks_run_for_every_module(Other)


# one of each kind of mixer, the others are their terms in other sums
KINDS = ('swin', 'net4', 'net7', 'net4-n', 'net7-n', 'dwconv', 'dwnet-dynamic', 'involution', 'ddf-add', 'elsa-full')
# what of the study is recorded: mixers in a block with a shift and one without, and the others of few stages
RECORDED = {
    **{mixer: partial(LocalSwin, SWIN, mixer=mixer, out_indices=(0,)) for mixer in KINDS},
    'deit': partial(DeiT, {**DEIT, 'depths': (1,)}),
    'deit-plain': partial(DeiT, {**DEIT, 'depths': (1,)}, ghost=False),
}
COMPILED = ('involution',)  # every day; the others with `slow`
WRITTEN = ('dwconv',)


def recorded(every_day):
    marks = {name: [] if name in every_day else [pytest.mark.slow] for name in RECORDED}
    return pytest.mark.parametrize('name', [pytest.param(name, marks=marks[name]) for name in RECORDED])


def build(name):
    torch.manual_seed(0)
    return RECORDED[name](drop_path_rate=0.0).eval()


@needs_kernels
@pytest.mark.skipif(TOO_OLD_TO_COMPILE is not None, reason=str(TOO_OLD_TO_COMPILE))
@recorded(COMPILED)
def test_compiled_in_one_graph_for_a_size_and_one_for_all(name):
    """Down to two windows along both axes: one is another case to a compiler."""
    graphs = []
    model = build(name).double()
    run = torch.compile(model, backend=lambda graph, inputs: graphs.append(graph) or graph, fullgraph=True)
    try:
        with torch.no_grad():
            for size in [FIRST, *SIZES[:3]]:
                x = picture(size)
                for out, expected in zip(run(x), model(x), strict=True):
                    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    finally:
        torch._dynamo.reset()
    assert len(graphs) == 2 or not RECORDS_ONCE


@needs_export
@recorded(WRITTEN)
def test_one_onnx_file_for_any_size_and_batch(name, tmp_path):
    onnx = pytest.importorskip('onnx', reason='requirements/extras.txt is not installed')
    for package in ('onnxruntime', 'onnxscript'):
        pytest.importorskip(package, reason='requirements/extras.txt is not installed')
    sizes = [(64, 96), (65, 97), (33, 201), (7, 41), (1, 1)]
    made = export_onnx(build(name), tmp_path / 'net.onnx', size=(64, 96), sizes=sizes)
    assert {row.size for row in made.differences} == set(sizes)
    assert all(0 <= row.relative < 1e-5 for row in made.differences)  # float32 in another order
    assert {opset.domain for opset in onnx.load(made.path).opset_import} == {''}


@needs_kernels
@pytest.mark.skipif(TOO_OLD_TO_COMPILE is not None, reason=str(TOO_OLD_TO_COMPILE))
@pytest.mark.parametrize('name', ['gru', pytest.param('vanilla', marks=pytest.mark.slow)])
def test_compiled_around_torch_s_recurrences(name):
    """Which torch.compile records in no graph: they run between two."""
    base, arch, options = OTHERS[name]
    torch.manual_seed(0)
    arch = {key: value[:2] if isinstance(value, tuple) else value for key, value in arch.items()} | {'depths': (1, 1)}
    more = {'out_indices': (0, 1)} if base is VanillaSequencer else {}
    model = base(arch, drop_path_rate=0.0, **options, **more).double().eval()
    try:
        with torch.no_grad():
            x = picture(FIRST)
            for out, expected in zip(torch.compile(model, backend='eager')(x), model(x), strict=True):
                torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    finally:
        torch._dynamo.reset()
