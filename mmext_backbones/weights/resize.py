"""Tensors of one size made into tensors of another."""

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
