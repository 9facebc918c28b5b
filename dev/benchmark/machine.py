"""What a measurement was made on and with: no name of a host or a user, and no path."""

import os
import platform
import re
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import torch

__all__ = ['describe']

MODULES = ('mmext_backbones', 'torch', 'triton', 'timm', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmpretrain')
MODULES += ('mmseg',)
# settings that change what is measured
VARIABLES = ('OMP_NUM_THREADS', 'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'TIMM_FUSED_ATTN', 'MMEXT_BACKEND')


def describe(device: torch.device) -> dict[str, Any]:
    """Processor, accelerator, versions, threads and settings, ready for JSON."""
    owners = packages_distributions()  # a fork has the name of the module, and another name itself
    packages = {owner: version(owner) for module in MODULES for owner in owners.get(module, ())}
    found = {
        'processor': _processor(),
        'cores': os.cpu_count(),
        'threads': torch.get_num_threads(),
        'system': platform.system(),
        'python': platform.python_version(),
        'packages': packages,
        'settings': {name: os.environ[name] for name in VARIABLES if name in os.environ},
        'device': device.type,
    }
    if device.type == 'cuda':
        found |= {
            'accelerator': torch.cuda.get_device_name(device),
            'cuda': torch.version.cuda,
            'cudnn': torch.backends.cudnn.version(),
            'tf32': torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
        }
    return found


def _processor() -> str:
    try:
        match = re.search(r'^model name\s*:\s*(.+)$', Path('/proc/cpuinfo').read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match.group(1) if match else platform.processor() or platform.machine()
