"""What mmcv says of its compiled module: `mmcv.ops.get_compiler_version` and `get_compiling_cuda_version`."""

import torch

__all__ = ['get_compiler_version', 'get_compiling_cuda_version']


def get_compiler_version() -> str:
    """Nothing was compiled."""
    return 'none (operators of torchvision and PyTorch, by mmext_backbones)'


def get_compiling_cuda_version() -> str:
    """The CUDA of torch, which runs what a GPU runs."""
    return str(torch.version.cuda or 'not available')
