"""Exports a backbone to a file, and runs the file to check it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ..utils.files import PARTIAL, move_into_place, remove
from .checking import TOLERANCE, Difference, ParityError, Run, check_parity, differences, sizes_to_check
from .describing import describe
from .recording import BackboneWithNeck, prepare, record

ONNX_LIMIT = 2**31 - 2**26  # bytes of weights in a file: protobuf ends at 2 GiB
PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')
INPUT = 'image'
Result = TypeVar('Result')


@dataclass(frozen=True)
class Exported:
    """A file that agrees with its network.

    Attributes:
        path: The file.
        nodes: Of its graph.
        seconds: That the recording and the writing took.
        differences: From the network, at every size that was run.
        metadata: What the file says about itself.
        run: Runs it: images -> maps.
        network: What it was made from, in eval mode.
    """

    path: Path
    nodes: int
    seconds: float
    differences: list[Difference]
    metadata: dict[str, str]
    run: Run
    network: BackboneWithNeck


def export_onnx(
    backbone: nn.Module,
    path: str | Path,
    *,
    neck: nn.Module | None = None,
    size: tuple[int, int] = (224, 224),
    dynamic: bool = True,
    sizes: Sequence[tuple[int, int]] | None = None,
    metadata: Mapping[str, Any] | None = None,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Writes a backbone, or a backbone and a neck, as ONNX, and runs the file in onnxruntime beside it.

    Input ``image`` [B, in_channels, H, W] float32, any B; outputs ``map0``, ``map1``, ... Standard operators only.

    Args:
        backbone: One of ours; it stays as it is.
        path: The file; one that is there is replaced once the new one is right.
        neck: What reads the maps, as mmdet's FPN.
        size: (H, W) in pixels, one of those the file is run at; the only one without `dynamic`.
        dynamic: For images of any size.
        sizes: At which the file is run; `checking.sizes_to_check` when None.
        metadata: More of what the file says about itself, see `describing.describe`.
        tolerance: The largest difference of a map, by its largest value.

    Raises:
        ImportError: without onnx, onnxscript or onnxruntime.
        TypeError: for what is no backbone of ours.
        ValueError: for what cannot be exported, see `recording.prepare`.
        ParityError: where the file computes something else; it stays as ``NAME.differs.onnx``.
    """
    check_packages()
    network = prepare(backbone, neck)
    check_bytes(network)

    def write(partial: Path, facts: dict[str, str]) -> int:
        program = record(network, None if dynamic else size, None, onnx=True)
        names = [f'map{n}' for n in range(len(program.graph_signature.user_outputs))]
        return write_onnx(program, partial, INPUT, names, facts)

    return _export(network, Path(path), write, run_onnx, size, dynamic, sizes, (1, 2), metadata, tolerance)


def export_torch(
    backbone: nn.Module,
    path: str | Path,
    *,
    neck: nn.Module | None = None,
    size: tuple[int, int] = (224, 224),
    dynamic: bool = True,
    batch: int = 1,
    sizes: Sequence[tuple[int, int]] | None = None,
    metadata: Mapping[str, Any] | None = None,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Writes a backbone, or a backbone and a neck, by torch.export, and runs the file beside it.

    ``torch.export.load(path).module()`` needs PyTorch alone, of the version that wrote it or newer.

    The arguments are those of `export_onnx`, for images from 33 x 33 pixels on, and

    Args:
        batch: Images of a batch, which the file is for: of one or of more is another case to PyTorch.

    Raises:
        RuntimeError: where this version of PyTorch cannot record the network.
        TypeError: As `export_onnx`.
        ValueError: As `export_onnx`.
        ParityError: As `export_onnx`.
    """
    if batch < 1:
        raise ValueError(f'batch={batch}: expected at least 1')
    network = prepare(backbone, neck)

    def write(partial: Path, facts: dict[str, str]) -> int:
        program = record(network, None if dynamic else size, batch, onnx=False)
        program.example_inputs = None  # megabytes of zeros
        torch.export.save(program, str(partial), extra_files=facts)
        return sum(len(module.graph.nodes) for module in program.graph_module.modules() if hasattr(module, 'graph'))

    return _export(network, Path(path), write, run_torch, size, dynamic, sizes, (batch,), metadata, tolerance)


def check_packages() -> None:
    """Raises ImportError unless ONNX files can be written and run."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ImportError(f'ONNX needs {", ".join(missing)}: pip install "mmext_backbones[export]"')


def check_bytes(network: nn.Module) -> None:
    """Raises ValueError where the weights are more than an ONNX file holds."""
    weights = sum(tensor.nbytes for tensor in network.state_dict().values())
    if weights > ONNX_LIMIT:
        raise ValueError(f'the weights take {weights / 2**30:.1f} GiB: an ONNX file holds 2 GiB, export to torch')


def write_onnx(
    program: torch.export.ExportedProgram, path: Path, image: str, names: Sequence[str], facts: Mapping[str, str]
) -> int:
    """Writes a graph that `recording.record` made as ONNX, and answers how many nodes it has.

    Args:
        program: The graph.
        path: The file.
        image: Name of the input.
        names: Of the outputs.
        facts: What the file says about itself.
    """
    from .translations import OPSET, translation_table

    onnx = torch.onnx.export(
        program,
        dynamo=True,
        input_names=[image],
        output_names=list(names),
        opset_version=OPSET,
        custom_translation_table=translation_table(),
        verbose=False,
    )
    _name_axes(onnx.model.graph)
    onnx.model.metadata_props.update(facts)
    onnx.save(str(path), external_data=False)
    return sum(1 for _ in onnx.model.graph.all_nodes())


def run_onnx(path: Path) -> Run:
    """An ONNX file as a function of images, in onnxruntime with as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name
    return lambda x: [torch.from_numpy(out) for out in session.run(None, {name: x.numpy()})]


def run_torch(path: Path) -> Run:
    """A file of torch.export as a function of images."""
    module = torch.export.load(str(path)).module()

    @torch.no_grad()
    def run(x: torch.Tensor) -> Sequence[torch.Tensor]:
        return module(x)

    return run


def _export(
    network: BackboneWithNeck,
    path: Path,
    write: Callable[[Path, dict[str, str]], int],
    load: Callable[[Path], Run],
    size: tuple[int, int],
    dynamic: bool,
    sizes: Sequence[tuple[int, int]] | None,
    batches: Sequence[int],
    metadata: Mapping[str, Any] | None,
    tolerance: float,
) -> Exported:
    """Writes a file beside its place, runs it, and puts it there."""
    size = checked_size(size)
    facts = describe(network, None if dynamic else size, metadata)

    def check(partial: Path) -> tuple[Run, list[Difference]]:
        run = load(partial)
        rows = differences(network, run, sizes or sizes_to_check(size, dynamic), network.in_channels, batches)
        check_parity(rows, tolerance)
        return run, rows

    nodes, seconds, (run, rows) = keep_if_right(path, lambda partial: write(partial, facts), check)
    return Exported(path, nodes, seconds, rows, facts, run, network)


def checked_size(size: tuple[int, int]) -> tuple[int, int]:
    """A height and a width as integers of Python; ValueError for what is none."""
    size = (int(size[0]), int(size[1]))
    if min(size) < 1:
        raise ValueError(f'size={size}: expected a height and a width of at least 1 pixel')
    return size


def keep_if_right(
    path: Path, write: Callable[[Path], int], check: Callable[[Path], Result]
) -> tuple[int, float, Result]:
    """Writes a file beside its place, has it checked, and puts it there, or as ``NAME.differs`` beside it.

    Args:
        path: The place.
        write: Writes the file, and answers how many nodes it has.
        check: Runs it.

    Returns:
        The nodes, the seconds that the writing took, and what `check` answered.

    Raises:
        ParityError: of `check`, with the place of the file.
    """
    partial = path.with_name(f'{path.stem}{PARTIAL}{path.suffix}')
    try:
        start = time.perf_counter()
        nodes = write(partial)
        seconds = time.perf_counter() - start
        result = check(partial)
        move_into_place(partial, path)
    except ParityError as error:
        aside = path.with_name(f'{path.stem}.differs{path.suffix}')
        move_into_place(partial, aside)
        raise ParityError(f'{error}. The file is kept as {aside}, for a look at it.') from None
    finally:
        remove(partial)
    return nodes, seconds, result


def _name_axes(graph: Any) -> None:
    """Names for the axes of an ONNX graph in place of symbols: those of the input, or of an output and its edges."""
    from onnxscript import ir

    (image,) = graph.inputs
    known = dict(zip(map(str, image.shape), ('batch', image.shape[1], 'height', 'width'), strict=True))
    for value in (image, *graph.outputs):
        rank = len(value.shape)
        edges = {rank - 2: f'{value.name}_height', rank - 1: f'{value.name}_width', 0: 'batch'}
        value.shape = ir.Shape(
            dim if isinstance(dim, int) else known.get(str(dim), edges.get(axis))
            for axis, dim in enumerate(value.shape)
        )
