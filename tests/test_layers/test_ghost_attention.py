"""A ghost head over global attention, by plain loops and by pictures of its parts."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmext_backbones.layers import GhostAttention, GlobalAttention
from tests.vectors import DATA, relative_error

VECTORS = {name: torch.from_numpy(array) for name, array in np.load(DATA / 'global_ghost_head.npz').items()}


def test_agrees_with_plain_loops():
    """Heads of q and k are 3 wide there, those of v 2: the widths are put in by hand."""
    H, W = VECTORS['size'].tolist()
    attn = GhostAttention(8, 2, size=(H, W)).double()
    attn.ghost_mul.data, attn.ghost_head.data = VECTORS['ghost_mul'], VECTORS['ghost_add']
    q, k, v = (VECTORS[name].flatten(1) for name in 'qkv')  # [N, 6], [N, 6], [N, 8]
    # two dead channels a head make q and k as wide as v
    q, k = (F.pad(x.view(-1, 2, 3), (0, 1)).flatten(1) for x in (q, k))
    attn.scale = 3**-0.5
    out = attn.attend(torch.cat((q, k, v), dim=1).view(1, H, W, 24))
    assert relative_error(out.view(H * W, 4, 2), VECTORS['out']) <= 1e-12


def test_without_a_ghost_head_it_is_torchs_attention():
    torch.manual_seed(0)
    attn = GlobalAttention(12, 3, qkv_bias=True).double()
    x = torch.randn(2, 4, 5, 12, dtype=torch.float64)
    q, k, v = attn.qkv(x).view(2, 20, 3, 3, 4).permute(2, 0, 3, 1, 4)
    expected = attn.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 4, 5, 12))
    torch.testing.assert_close(attn(x), expected)


def test_a_neutral_ghost_head_is_each_map_on_half_the_values_of_a_head():
    torch.manual_seed(0)
    attn = GhostAttention(12, 3, size=(4, 5)).double()
    attn.ghost_mul.data.fill_(1)
    attn.ghost_head.data.zero_()
    qkv = torch.randn(1, 4, 5, 36, dtype=torch.float64)
    q, k, v = qkv.flatten(1, 2).chunk(3, dim=2)
    maps = (q.view(1, 20, 3, 4).transpose(1, 2) @ k.view(1, 20, 3, 4).permute(0, 2, 3, 1) * 0.5).softmax(-1)
    out = attn.attend(qkv).flatten(1, 2)
    for f in range(6):  # new head f takes map f mod 3
        torch.testing.assert_close(out[..., 2 * f : 2 * f + 2], maps[:, f % 3] @ v[..., 2 * f : 2 * f + 2])


@pytest.mark.parametrize('size', [(1, 1), (3, 9)])
def test_tables_are_resampled_for_other_maps(size):
    attn = GhostAttention(12, 3, size=(4, 4))
    attn.ghost_mul.data.fill_(2)  # a constant stays itself
    H, W = size
    torch.testing.assert_close(attn.by_pair(attn.ghost_mul, size), torch.full((6, H * W, H * W), 2.0))
    assert attn(torch.randn(2, *size, 12)).shape == (2, *size, 12)
