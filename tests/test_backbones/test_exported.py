"""torch.export writes a backbone down once, for images of any size in a range."""

import io

import pytest
import torch

from mmext_backbones.backbones import VOLO, ELSASwin, MaxViT, Sequencer2D, SwinTransformer
from mmext_backbones.layers import PartitionAttention
from mmext_backbones.ops.window_attention import shifted_window_mask
from tests.torch_features import RECORDS_ONCE, needs_export, needs_kernels

from .recording import FIRST, SIZES, fewest_stages, picture, two_stages

if RECORDS_ONCE:
    from torch.export import Dim, export, load, save
pytestmark = needs_export

# The strict way holds no autocast context, which the operator of ELSA enters to leave that of its caller.
WAYS = [
    *((cls, False) for cls in (SwinTransformer, ELSASwin, MaxViT, Sequencer2D, VOLO)),
    *((cls, True) for cls in (SwinTransformer, MaxViT, Sequencer2D)),
]


@needs_kernels
@pytest.mark.parametrize(
    ('cls', 'strict'),
    [
        pytest.param(*way, id=f'{way[0].__name__}{"-strict" * way[1]}', marks=[pytest.mark.slow] * (i > 0))
        for i, way in enumerate(WAYS)
    ],
)
def test_once_for_a_range_of_sizes(cls, strict):
    model = (fewest_stages if strict else two_stages)(cls).eval()
    axes = {2: Dim('H', min=33, max=2048), 3: Dim('W', min=33, max=2048)}
    file = io.BytesIO()
    save(export(model, (picture(FIRST),), dynamic_shapes=(axes,), strict=strict), file)
    file.seek(0)
    loaded = load(file).module()
    with torch.no_grad():
        for size in SIZES:
            x = picture(size)
            for out, expected in zip(loaded(x), model(x), strict=True):
                torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
        with pytest.raises(AssertionError, match='2048'):
            loaded(picture((64, 2080)))


def test_nothing_recorded_stays_in_the_caches():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = PartitionAttention(32, 1, 5)  # a window of no other test: nothing is cached yet

        def forward(self, x):
            return self.attn(x, (5, 5)) + shifted_window_mask((15, 15), (5, 5), 2, x.device)[0, 0, 0]

    layer, x = Layer(), torch.randn(1, 7, 9, 32)
    exported = export(layer, (x,)).module()
    out = layer(x)
    assert type(out) is torch.Tensor
    assert torch.equal(exported(x), out)
