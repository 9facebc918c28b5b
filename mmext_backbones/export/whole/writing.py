"""Writes a whole model as one ONNX file, and keeps it if it predicts what the model does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..checking import sizes_to_check
from ..recording import record
from ..writing import INPUT, check_bytes, check_packages, checked_size, keep_if_right, write_onnx
from .checking import check_file
from .describing import describe_whole
from .network import WholeNetwork, whole_network
from .task import Row

__all__ = ['ExportedWhole', 'export_whole']

RAW_INPUT = 'input'  # as mmdeploy's SDK calls it


@dataclass(frozen=True)
class ExportedWhole:
    """A file that predicts what its model does.

    Attributes:
        path: The file.
        nodes: Of its graph.
        seconds: That the recording and the writing took.
        rows: Its differences from the model, of every batch that was run.
        metadata: What the file says about itself.
        network: The model as a function of images.
    """

    path: Path
    nodes: int
    seconds: float
    rows: list[Row]
    metadata: dict[str, str]
    network: WholeNetwork


def export_whole(
    model: nn.Module,
    path: str | Path,
    *,
    raw: bool = False,
    size: tuple[int, int] = (224, 224),
    dynamic: bool = True,
    sizes: Sequence[tuple[int, int]] | None = None,
    metadata: Mapping[str, Any] | None = None,
    openvino: bool = False,
) -> ExportedWhole:
    """Writes a detector, segmentor or classifier as ONNX, and runs the file in onnxruntime beside its `predict`.

    Input ``image`` [B, 3, H, W] float32, blue, green, red from 0 to 255, any B; flipping, normalising and padding are
    inside. Outputs are those of the task (docs/export.md). Standard operators only.

    Args:
        model: As built by mmdet, mmseg or mmpretrain; it stays as it is.
        path: The file; one that is there is replaced once the new one is right.
        raw: The input is called ``input``, and comes normalised.
        size: (H, W) in pixels, one of those the file is run at; the only one without `dynamic`.
        dynamic: For images of any size.
        sizes: At which the file is run; `checking.sizes_to_check` when None.
        metadata: What is known of the model besides, see `describing.describe_whole`.
        openvino: Run it in OpenVINO, too.

    Raises:
        ImportError: without onnx, onnxscript or onnxruntime.
        UserError: for heads or settings that are not known, by name.
        ValueError: for what cannot be exported, see `recording.record`.
        ParityError: where the file predicts something else; it stays as ``NAME.differs.onnx``.
    """
    check_packages()
    size = checked_size(size)
    network = whole_network(model, raw)
    check_bytes(network)
    from ..translations import OPSET

    image = RAW_INPUT if raw else INPUT
    facts = describe_whole(network, image, None if dynamic else size, metadata or {}, OPSET)

    def write(partial: Path) -> int:
        program = record(network, None if dynamic else size, None, onnx=True)
        return write_onnx(program, partial, image, network.outputs, facts)

    def check(partial: Path) -> list[Row]:
        return check_file(model, network, partial, sizes or sizes_to_check(size, dynamic), openvino)

    nodes, seconds, rows = keep_if_right(Path(path), write, check)
    return ExportedWhole(Path(path), nodes, seconds, rows, facts, network)
