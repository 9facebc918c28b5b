"""Windows and grids hold the tokens that their definitions say, and merge to the map again."""

import pytest
import torch

from mmext_backbones.ops import (
    grid_merge,
    grid_partition,
    padding_mask,
    relative_position_index,
    window_merge,
    window_partition,
)

SIZES = [(14, 21), (15, 20), (1, 1), (3, 30), (13, 7)]
PAIRS = [(window_partition, window_merge), (grid_partition, grid_merge)]


def numbered_map(H, W):
    """A map [1, H, W, 1] whose value is its row-major place, from 1: padding is 0."""
    return torch.arange(1.0, H * W + 1).view(1, H, W, 1)


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('window_size', [(7, 7), (3, 5)], ids=str)
@pytest.mark.parametrize(('partition', 'merge'), PAIRS, ids=['window', 'grid'])
def test_merge_undoes_the_partition(partition, merge, window_size, size):
    x = torch.randn(2, *size, 3)
    groups, padded_size = partition(x, window_size)
    assert groups.shape[2] == window_size[0] * window_size[1]
    merged = merge(groups, window_size, padded_size)
    assert torch.equal(merged[:, : size[0], : size[1]], x)
    assert not merged[:, size[0] :].any()
    assert not merged[:, :, size[1] :].any()


@pytest.mark.parametrize('shift', [1, 3])
def test_shifted_windows_merge_too(shift):
    x = torch.randn(2, 15, 20, 3)
    windows, padded_size = window_partition(x, (7, 7), shift)
    assert torch.equal(window_merge(windows, (7, 7), padded_size, shift)[:, :15, :20], x)


def test_a_window_is_a_rectangle_of_neighbours():
    x = numbered_map(4, 6)
    windows, _ = window_partition(x, (2, 3))
    assert windows[0, 1, :, 0].tolist() == [4, 5, 6, 10, 11, 12]


def test_a_grid_group_takes_one_token_of_every_cell():
    x = numbered_map(4, 6)
    groups, _ = grid_partition(x, (2, 3))  # cells of 2 x 2
    assert groups[0, 0, :, 0].tolist() == [1, 3, 5, 13, 15, 17]
    assert groups[0, 1, :, 0].tolist() == [2, 4, 6, 14, 16, 18]


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('grid', [False, True], ids=['window', 'grid'])
def test_mask_hides_exactly_the_padding(grid, size):
    partition = grid_partition if grid else window_partition
    groups, _ = partition(numbered_map(*size), (7, 7))
    mask = padding_mask(size, (7, 7), grid, torch.device('cpu'))
    if mask is None:
        assert groups.all()
        return
    assert mask.shape == (groups.shape[1], 1, 49)
    assert torch.equal(mask[:, 0] == 0, groups[0, :, :, 0] > 0)
    assert (mask == 0).any(-1).all()  # no group is all padding
    assert set(mask.unique().tolist()) == {0.0, float('-inf')}


@pytest.mark.parametrize('window_size', [(2, 3), (7, 7), (1, 4)], ids=str)
def test_relative_position_index_is_query_minus_key(window_size):
    h, w = window_size
    index = relative_position_index(window_size)
    for q in range(h * w):
        for k in range(h * w):
            dy, dx = q // w - k // w, q % w - k % w
            assert index[q, k] == (dy + h - 1) * (2 * w - 1) + dx + w - 1
