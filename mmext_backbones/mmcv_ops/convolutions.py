"""Deformable convolutions, and the two halves of a convolution at some places only, as `mmcv._ext` has them.

- Deformable convolution (arXiv 1703.06211): every tap of the kernel reads the map, bilinearly, at a place moved by an
  offset; modulated (arXiv 1811.11168), it is also multiplied by a number. Both by torchvision's operator, which gives
  the same bits as mmcv's. Offsets are y, x of each tap in turn, for each group of channels.
- Masked convolution (MaskedConv2d of mmcv, for guided anchoring): the windows under the places of a mask are taken out
  of the map as columns; what a product makes of them is put back into a map of zeros. mmcv has it for CUDA alone.

The semantics are those of mmcv 2.1.0 (`csrc/pytorch/cpu/deform_conv.cpp`, `modulated_deform_conv.cpp`,
`csrc/common/cuda/masked_conv2d_cuda_kernel.cuh`). Half types are computed in float32 and rounded once. Arguments that
only say how the work is divided (`im2col_step`, buffers) change nothing.
"""

import torch
from torch import Tensor

from .precision import widened

__all__ = [
    'deform_conv_backward_input',
    'deform_conv_backward_parameters',
    'deform_conv_forward',
    'masked_col2im_forward',
    'masked_im2col_forward',
    'modulated_deform_conv_backward',
    'modulated_deform_conv_forward',
]


def _convolve(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None, geometry: tuple[int, ...]
) -> Tensor:
    """torchvision's operator; `geometry`: stride, padding, dilation, each y and x, then groups and offset groups."""
    import torchvision  # noqa: F401, registers the operator

    x, w, o = widened(input), widened(weight), widened(offset)
    m = x.new_zeros(len(x), 1) if mask is None else widened(mask)
    b = x.new_zeros(len(w)) if bias is None else widened(bias)
    return torch.ops.torchvision.deform_conv2d(x, w, o, m, b, *geometry, mask is not None)


def _gradients(
    grad: Tensor, input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, geometry: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of the input, the weight, the offset, the mask and the bias."""
    import torchvision  # noqa: F401, registers the operator

    x, w, o = widened(input), widened(weight), widened(offset)
    m = x.new_zeros(len(x), 1) if mask is None else widened(mask)
    return torch.ops.torchvision._deform_conv2d_backward(
        widened(grad).contiguous(), x, w, o, m, x.new_zeros(len(w)), *geometry, mask is not None
    )


@torch.no_grad()
def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Deformable convolution.

    Args:
        input: [B, C, H, W].
        weight: [out, C / group, kH, kW].
        offset: [B, 2 * deformable_group * kH * kW, H', W'], in pixels.
        output: [B, out, H', W']; written.
        columns: not used.
        ones: not used.
        kW: width of the kernel, as that of `weight`.
        kH: its height.
        dW: stride, x.
        dH: stride, y.
        padW: padding, x.
        padH: padding, y.
        dilationW: dilation, x.
        dilationH: dilation, y.
        group: groups of channels that are convolved apart.
        deformable_group: groups of channels with offsets of their own.
        im2col_step: not used.
    """
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    output.copy_(_convolve(input, weight, offset, None, None, geometry))


@torch.no_grad()
def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Gradients of the input and the offset, added to `gradInput` and `gradOffset`; see `deform_conv_forward`.

    torchvision computes that of the weight with them: it is left in `columns`, the buffer that mmcv hands to
    `deform_conv_backward_parameters` next.
    """
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    grad_input, grad_weight, grad_offset, _, _ = _gradients(gradOutput, input, weight, offset, None, geometry)
    gradInput += grad_input.to(gradInput)
    gradOffset += grad_offset.to(gradOffset)
    columns.resize_(grad_weight.shape).copy_(grad_weight)


@torch.no_grad()
def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Gradient of the weight, times `scale`, added to `gradWeight`; see `deform_conv_backward_input`."""
    if columns.shape != gradWeight.shape:  # the other gradients were not asked for
        geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
        columns = _gradients(gradOutput, input, torch.zeros_like(gradWeight), offset, None, geometry)[1]
    gradWeight += scale * columns.to(gradWeight)


@torch.no_grad()
def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Modulated deformable convolution.

    Args:
        input: [B, C, H, W].
        weight: [out, C / group, kernel_h, kernel_w].
        bias: [out]; read with `with_bias`.
        ones: not used.
        offset: [B, 2 * deformable_group * kernel_h * kernel_w, H', W'], in pixels.
        mask: [B, deformable_group * kernel_h * kernel_w, H', W'], what a tap is multiplied by.
        output: [B, out, H', W']; written.
        columns: not used.
        kernel_h: height of the kernel, as that of `weight`.
        kernel_w: its width.
        stride_h: stride, y.
        stride_w: stride, x.
        pad_h: padding, y.
        pad_w: padding, x.
        dilation_h: dilation, y.
        dilation_w: dilation, x.
        group: groups of channels that are convolved apart.
        deformable_group: groups of channels with offsets and masks of their own.
        with_bias: whether there is a bias.
    """
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    output.copy_(_convolve(input, weight, offset, mask, bias if with_bias else None, geometry))


@torch.no_grad()
def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """The gradients, added to `grad_...`; see `modulated_deform_conv_forward`."""
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    of_input, of_weight, of_offset, of_mask, of_bias = _gradients(grad_output, input, weight, offset, mask, geometry)
    pairs = [(grad_input, of_input), (grad_weight, of_weight), (grad_offset, of_offset), (grad_mask, of_mask)]
    for to, gradient in [*pairs, *([(grad_bias, of_bias)] if with_bias else [])]:
        to += gradient.to(to)


@torch.no_grad()
def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """The windows at some places of a map, as columns; zeros where they reach outside.

    Args:
        im: the map [1, C, H, W].
        mask_h_idx: row of each place [N], in the output of a convolution of stride 1 with this padding.
        mask_w_idx: its column [N].
        col: [C * kernel_h * kernel_w, N]; written.
        kernel_h: height of a window.
        kernel_w: its width.
        pad_h: padding, y.
        pad_w: padding, x.
    """
    padded = torch.nn.functional.pad(im[0], (pad_w, pad_w, pad_h, pad_h))  # [C, H + 2 pad_h, W + 2 pad_w]
    y = mask_h_idx + torch.arange(kernel_h, device=im.device)[:, None, None]
    x = mask_w_idx + torch.arange(kernel_w, device=im.device)[:, None]
    col.copy_(padded[:, y, x].reshape(col.shape))  # [C, kernel_h, kernel_w, N] before


@torch.no_grad()
def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int
) -> None:
    """Puts columns to their places in a map.

    Args:
        col: [channels, N].
        mask_h_idx: row of each place [N].
        mask_w_idx: its column [N].
        im: [1, channels, height, width]; written at the places.
        height: of the map.
        width: of the map.
        channels: of the map.
    """
    im[0][:, mask_h_idx, mask_w_idx] = col.to(im)
