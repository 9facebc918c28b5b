"""Backbones, alone or with a neck, as files that need nothing of OpenMMLab: ONNX and torch.export."""

from .checking import ParityError
from .writing import Exported, export_onnx, export_torch

__all__ = ['Exported', 'ParityError', 'export_onnx', 'export_torch']
