"""Resizes kernels of patch embeddings, tables of relative position biases, and embeddings of positions."""

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_patch_kernel(kernel: Tensor, patch_size: int) -> Tensor:
    """Resample the kernel of a patch embedding: [C, in_channels, p, p] -> [C, in_channels, patch_size, patch_size].

    The new kernel answers to a patch that was enlarged bilinearly as the old one answers to the patch. Enlarging is a
    linear map R of p * p pixels to patch_size**2; the kernel is the pseudo-inverse of its transpose applied to the old
    one, so the answers are equal for every patch where R loses nothing (patch_size >= p), and closest in the mean
    where it does.

    Source: Beyer et al., "FlexiViT" (arXiv 2212.08013), section 3.4.
    """
    old_size = kernel.shape[-2:]
    if tuple(old_size) == (patch_size, patch_size):
        return kernel
    pixels = old_size.numel()
    basis = torch.eye(pixels, dtype=torch.float64).view(pixels, 1, *old_size)
    enlarged = F.interpolate(basis, (patch_size, patch_size), mode='bilinear', antialias=patch_size < old_size[0])
    inverse = torch.linalg.pinv(enlarged.view(pixels, -1))  # [patch_size**2, p * p]
    new = kernel.to('cpu', torch.float64).flatten(2) @ inverse.T
    return new.view(*kernel.shape[:2], patch_size, patch_size).to(kernel)


def resize_window_table(table: Tensor, shape: torch.Size) -> Tensor | None:
    """Resample a table of relative position biases to a window of another size; None where heads differ too.

    Args:
        table: [(2h - 1) * (2w - 1), heads] with h = w, as Swin has it, resampled bicubically as its authors do; or
            [heads, 2h - 1, 2w - 1], as MaxViT has it, bilinearly as its authors do.
        shape: the shape to come to, of the same kind.
    """
    if table.dim() == 3 and len(shape) == 3 and table.shape[0] == shape[0]:
        return F.interpolate(table[None].float(), shape[1:], mode='bilinear', align_corners=False)[0].to(table)
    if table.dim() == 2 and len(shape) == 2 and table.shape[1] == shape[1]:
        old, new = (round(rows**0.5) for rows in (table.shape[0], shape[0]))
        if (old**2, new**2) == (table.shape[0], shape[0]):
            square = table.T.reshape(1, -1, old, old).float()
            resized = F.interpolate(square, (new, new), mode='bicubic', align_corners=False)
            return resized.view(-1, new**2).T.contiguous().to(table)
    return None


def resize_position_embedding(table: Tensor, shape: torch.Size) -> Tensor | None:
    """Resample a learnt grid of positions bicubically, as VOLO's authors do; None where the channels differ too.

    Args:
        table: [1, edge, edge, C].
        shape: the shape to come to, of the same kind.
    """
    if table.dim() != 4 or len(shape) != 4 or (table.shape[0], table.shape[3]) != (shape[0], shape[3]):
        return None
    resized = F.interpolate(table.permute(0, 3, 1, 2).float(), shape[1:3], mode='bicubic', align_corners=False)
    return resized.permute(0, 2, 3, 1).contiguous().to(table)
