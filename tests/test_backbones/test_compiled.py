"""torch.compile records a backbone once, for images of any size."""

import copy

import pytest
import torch
import torch._dynamo

from mmext_backbones.backbones import ELSAVOLO, MaxViT, Sequencer2D, SwinTransformer
from mmext_backbones.ops.torch_versions import TOO_OLD_TO_COMPILE
from tests.torch_features import RECORDS_ONCE, needs_kernels, needs_one_recording

from .recording import FIRST, SIZES, fewest_stages, picture, shallow, two_stages
from .test_contract import SMALL, gradients, loss

pytestmark = [
    needs_kernels,
    pytest.mark.skipif(TOO_OLD_TO_COMPILE is not None, reason=str(TOO_OLD_TO_COMPILE)),
]
each_compiled = pytest.mark.parametrize(
    'cls', [pytest.param(cls, marks=[pytest.mark.slow] * (cls is not SwinTransformer)) for cls in SMALL]
)


@pytest.fixture(autouse=True)
def _forget_graphs():
    yield
    torch._dynamo.reset()


def compiled(model, backend):
    """The model, and the graphs it is compiled to so far; a break is an error."""
    graphs = []

    def record(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    return torch.compile(model, backend=record, fullgraph=True), graphs


def with_dynamic_size(x):
    for axis in (2, 3):
        torch._dynamo.mark_dynamic(x, axis)  # an error where a size becomes a constant
    return x


@each_compiled
def test_for_one_size_and_then_for_all(cls):
    model = fewest_stages(cls).eval()
    run, graphs = compiled(model, 'eager')
    with torch.no_grad():
        for size in [FIRST, *SIZES]:
            x = picture(size)
            for out, expected in zip(run(x), model(x), strict=True):
                torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    assert len(graphs) == 2 or not RECORDS_ONCE


@needs_one_recording
@each_compiled
def test_once_for_training_at_sizes_marked_as_dynamic(cls):
    model = fewest_stages(cls) if cls is ELSAVOLO else two_stages(cls)
    plain = copy.deepcopy(model)
    run, graphs = compiled(model, 'aot_eager')
    for size in [FIRST, *SIZES]:
        for network, forward in ((model, run), (plain, plain)):
            network.zero_grad()
            loss(forward(with_dynamic_size(picture(size)))).backward()
        expected = gradients(plain)
        for name, grad in gradients(model).items():
            torch.testing.assert_close(grad, expected[name], rtol=1e-8, atol=1e-8)
    assert len(graphs) == 1


@needs_one_recording
def test_native_sequencer_once():
    model = shallow(Sequencer2D, stages=2, patch_size=7, pyramid=False, out_indices=(0, 1)).eval()
    run, graphs = compiled(model, 'aot_eager')
    with torch.no_grad():
        for size in [FIRST, *SIZES[:3]]:
            x = with_dynamic_size(picture(size))
            for out, expected in zip(run(x), model(x), strict=True):
                torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    assert len(graphs) == 1


@pytest.mark.parametrize(
    'cls', [pytest.param(cls, marks=[pytest.mark.slow] * (cls not in (SwinTransformer, MaxViT))) for cls in SMALL]
)
def test_with_recomputed_blocks(cls):
    """Outputs, gradients and the statistics of batch norms, which count a batch once."""
    model = two_stages(cls, with_cp=True)
    plain = copy.deepcopy(model)
    run, _ = compiled(model, 'aot_eager')
    for _ in range(2):
        for network, forward in ((model, run), (plain, plain)):
            network.zero_grad()
            loss(forward(picture(FIRST))).backward()
    expected = gradients(plain)
    for name, grad in gradients(model).items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-8, atol=1e-8)
    statistics = dict(plain.named_buffers())
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, statistics[name], rtol=1e-8, atol=1e-8)
