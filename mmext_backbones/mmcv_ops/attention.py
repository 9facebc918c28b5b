"""Multi-scale deformable attention, and PSANet's masks, as `mmcv._ext` has them.

- Multi-scale deformable attention (arXiv 2010.04159, eq. 3): a query reads, for each of its heads, a few points of
  every map, bilinearly, and adds them up with weights of its own. mmcv has it for CUDA alone, and a form in PyTorch
  beside it.
- The masks of the point-wise spatial attention (PSANet, ECCV 2018): a position predicts how it goes with the positions
  about it, on a grid of offsets; they are laid out as a map of all positions for every position.

The semantics are those of mmcv 2.1.0's kernels (`csrc/common/cuda/ms_deform_attn_cuda_kernel.cuh`,
`csrc/pytorch/cpu/psamask.cpp`). Half types are computed in float32 and rounded once.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from .precision import widened

__all__ = ['ms_deform_attn_backward', 'ms_deform_attn_forward', 'psamask_backward', 'psamask_forward']

COLLECT = 0  # the other kind is 1, distribute


def _levels(value: Tensor, shapes: Tensor, starts: Tensor, points: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Of each map: where its pixels are in `value`, the map itself, and its points from -1 to 1.

    The map is [B * heads, D, H, W], the points are [B * heads, Q, P, 2]. One map comes after the other, so that no more
    than what is read of one is there at a time.
    """
    B, _, heads, D = value.shape
    for level, ((H, W), start) in enumerate(zip(shapes.tolist(), starts.tolist(), strict=True)):
        pixels = slice(start, start + H * W)
        maps = value[:, pixels].permute(0, 2, 3, 1).reshape(B * heads, D, H, W)
        yield pixels, maps, 2 * points[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1


@torch.no_grad()
def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc: Tensor,
    attn_weight: Tensor,
    im2col_step: int,
) -> Tensor:
    """Multi-scale deformable attention.

    Args:
        value: pixels of all maps, one map behind the other, [B, pixels, heads, D].
        spatial_shapes: H, W of each map, [maps, 2].
        level_start_index: index of the first pixel of each map, [maps].
        sampling_loc: the points [B, Q, heads, maps, P, 2], x, y, of each map from 0 to 1.
        attn_weight: their weights [B, Q, heads, maps, P].
        im2col_step: not used.

    Returns:
        [B, Q, heads * D], of the type of `value`.
    """
    v, points, weights = widened(value), widened(sampling_loc), widened(attn_weight)
    B, Q, heads, _, P = weights.shape
    out = v.new_zeros(B * heads, v.size(-1), Q)
    for level, (_, maps, grid) in enumerate(_levels(v, spatial_shapes, level_start_index, points)):
        weight = weights[:, :, :, level].transpose(1, 2).reshape(B * heads, 1, Q, P)
        out += (grid_sample(maps, grid, align_corners=False) * weight).sum(-1)
    return out.view(B, heads, v.size(-1), Q).permute(0, 3, 1, 2).flatten(2).to(value.dtype)


@torch.no_grad()
def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc: Tensor,
    attn_weight: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """The gradients, added to `grad_value`, `grad_sampling_loc` and `grad_attn_weight`; see `ms_deform_attn_forward`.

    What was read is read again, which keeps nothing of the size of all points between forward and backward.
    """
    v, points, weights = widened(value), widened(sampling_loc), widened(attn_weight)
    B, Q, heads, _, P = weights.shape
    D = v.size(-1)
    grad = widened(grad_output).view(B, Q, heads, D).permute(0, 2, 3, 1).reshape(B * heads, D, Q, 1)
    for level, (pixels, maps, grid) in enumerate(_levels(v, spatial_shapes, level_start_index, points)):
        weight = weights[:, :, :, level].transpose(1, 2).reshape(B * heads, 1, Q, P)
        of_weight = (grad * grid_sample(maps, grid, align_corners=False)).sum(1)  # [B * heads, Q, P]
        of_maps, of_grid = torch.ops.aten.grid_sampler_2d_backward(
            grad * weight, maps, grid, 0, 0, False, [True, True]  # bilinear, zeros outside
        )  # fmt: skip
        of_maps = of_maps.view(B, heads, D, pixels.stop - pixels.start).permute(0, 3, 1, 2)
        grad_value[:, pixels] += of_maps.to(grad_value)
        grad_sampling_loc[:, :, :, level] += _queries_first(2 * of_grid, B, heads).to(grad_sampling_loc)
        grad_attn_weight[:, :, :, level] += _queries_first(of_weight, B, heads).to(grad_attn_weight)


def _queries_first(x: Tensor, B: int, heads: int) -> Tensor:
    """[B * heads, Q, ...] as [B, Q, heads, ...]."""
    return x.unflatten(0, (B, heads)).transpose(1, 2)


def _offsets(H: int, W: int, mask: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """For each position t = y * W + x and each h, w: which cell of the mask of h, w lies on t, and whether one does.

    Both are [H * W, H, W]. The middle of a mask, rounded down, lies on its own position.
    """
    found = []
    for edge, size in ((H, mask[0]), (W, mask[1])):
        positions = torch.arange(edge, device=device)
        found.append(positions[:, None] - positions + (size - 1) // 2)  # [to, from]
    rows, columns = found[0][:, None, :, None], found[1][None, :, None, :]
    inside = (rows >= 0) & (rows < mask[0]) & (columns >= 0) & (columns < mask[1])
    cells = rows.clamp(0, mask[0] - 1) * mask[1] + columns.clamp(0, mask[1] - 1)
    return cells.reshape(H * W, H, W), inside.reshape(H * W, H, W)


@torch.no_grad()
def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Lays out the masks of all positions.

    Args:
        input: [B, h_mask * w_mask, H, W], the mask of each position.
        output: [B, H * W, H, W]; written. `collect`: at (t, h, w) what the mask of (h, w) says of position t.
            `distribute`: at (s, y, x) what the mask of position s says of (y, x).
        psa_type: 0 for collect, 1 for distribute.
        num_: B.
        h_feature: H.
        w_feature: W.
        h_mask: rows of a mask.
        w_mask: its columns.
        half_h_mask: row of its middle.
        half_w_mask: column of its middle.
    """
    cells, inside = _offsets(h_feature, w_feature, (h_mask, w_mask), input.device)
    out = input.gather(1, cells.expand(num_, -1, -1, -1)) * inside
    output.copy_(out if psa_type == COLLECT else _turned(out))


@torch.no_grad()
def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """The gradient of the masks, added to `grad_input`; see `psamask_forward`."""
    cells, inside = _offsets(h_feature, w_feature, (h_mask, w_mask), grad_output.device)
    grad = grad_output if psa_type == COLLECT else _turned(grad_output)
    grad_input.scatter_add_(1, cells.expand(num_, -1, -1, -1), (grad * inside).to(grad_input))


def _turned(x: Tensor) -> Tensor:
    """[B, H * W, H, W] with the two positions exchanged."""
    return x.flatten(2).transpose(1, 2).reshape(x.shape)
