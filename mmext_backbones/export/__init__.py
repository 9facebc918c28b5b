"""Backbones, alone or with a neck, and whole models as files that need nothing of OpenMMLab: ONNX and torch.export."""

from .checking import ParityError
from .whole import ExportedWhole, export_whole
from .writing import Exported, export_onnx, export_torch

__all__ = ['Exported', 'ExportedWhole', 'ParityError', 'export_onnx', 'export_torch', 'export_whole']
