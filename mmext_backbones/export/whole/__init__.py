"""Whole models, from the picture to boxes, masks, segments or scores, as one ONNX file."""

from .network import WholeNetwork, whole_network
from .task import Row, Task
from .writing import ExportedWhole, export_whole

__all__ = ['ExportedWhole', 'Row', 'Task', 'WholeNetwork', 'export_whole', 'whole_network']
