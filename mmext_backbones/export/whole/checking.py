"""Runs a file beside the `predict` of the model that it was made from."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checking import ParityError, Run
from ..recording import shared_copy
from ..writing import run_onnx
from .network import WholeNetwork
from .task import Row

__all__ = ['check_file', 'check_rows', 'compare', 'pictures', 'plain', 'predict', 'row_table', 'run_openvino']

BATCHES = (1, 3, 2)  # images of a batch, in turn with the sizes


def pictures(batch: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """Made-up pictures [B, 3, H, W] of whole numbers from 0 to 255: soft blobs of all sizes, and some noise."""
    generator = torch.Generator().manual_seed(seed)
    x = 8 * torch.randn(batch, 3, *size, generator=generator)
    for cells in (2, 4, 8, 16):
        coarse = torch.randn(batch, 3, cells, cells, generator=generator)
        x = x + 40 * F.interpolate(coarse, size, mode='bilinear', align_corners=False)
    return (x + 128).clamp(0, 255).round()


def plain(size: tuple[int, int]) -> Tensor:
    """A picture of grey with a little noise, without which scores would be equal all over: [1, 3, H, W]."""
    return (114 + torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))).round()


def predict(model: nn.Module, network: WholeNetwork, images: Tensor) -> list:
    """What a model says of pictures that need no resizing: its data samples."""
    H, W = images.shape[2:]
    samples = [network.task.new_sample() for _ in images]
    shape = {'img_shape': (H, W), 'ori_shape': (H, W), 'pad_shape': (H, W), 'scale_factor': (1.0, 1.0)}
    for sample in samples:
        sample.set_metainfo(shape)
    with torch.no_grad():
        return model.test_step({'inputs': list(images), 'data_samples': samples})


def compare(model: nn.Module, network: WholeNetwork, run: Run, images: Tensor) -> list[Row]:
    """How far a function of images is from what the model predicts, on one batch."""
    preprocessing = network.preprocessing
    outputs = run(preprocessing.normalised(images) if preprocessing.raw else images)
    if len(outputs) != len(network.outputs):
        raise ParityError(f'the file has {len(outputs)} outputs: expected {", ".join(network.outputs)}')
    wrong = [name for name, out in zip(network.outputs, outputs, strict=True) if not out.isfinite().all()]
    if wrong:
        raise ParityError(f'at {images.shape[2]} x {images.shape[3]} {", ".join(wrong)} of the file is not finite')
    return network.task.compare(predict(model, network, images), outputs, tuple(images.shape[2:]))


def check_file(
    model: nn.Module, network: WholeNetwork, path: Path, sizes: Sequence[tuple[int, int]], openvino: bool = False
) -> list[Row]:
    """Runs a file at all sizes beside its model.

    Where a threshold decides what is an object, the batches are run in a copy of the file without it, where every image
    has results; the file itself on a picture and on one of grey, in which a model rarely finds anything.

    Args:
        model: What the file was made from.
        network: The same as a function of images.
        path: The file.
        sizes: (H, W) of images, in turn with batches of 1, 3 and 2.
        openvino: Run it in OpenVINO, too.

    Raises:
        ParityError: where it differs by more than the limits of its rows.
    """
    model = shared_copy(model)
    runtimes: list[Callable[[Path], Run]] = [run_onnx, *([run_openvino] if openvino else [])]
    rows = []
    for load in runtimes:
        run = load(path)
        for images in (pictures(1, sizes[0]), plain(sizes[0])):
            rows += compare(model, network, run, images)
    turns = range(max(len(sizes), len(BATCHES)))
    batches = [pictures(BATCHES[n % len(BATCHES)], sizes[n % len(sizes)], seed=n) for n in turns]
    opened = path.with_name(f'{path.stem}.opened{path.suffix}')
    bare = shared_copy(model)
    values = {f'task.{name}': value for name, value in network.task.without_thresholds(bare).items()}
    try:
        if values:
            _write_with(path, values, opened)
        for load in runtimes:
            run = load(opened if values else path)
            for images in batches:
                rows += compare(bare, network, run, images)
    finally:
        opened.unlink(missing_ok=True)
    check_rows(rows)
    return rows


def check_rows(rows: Sequence[Row]) -> None:
    """Raises ParityError where a difference is larger than its limit, or not a number."""
    wrong = [row for row in rows if not row.value <= row.limit]
    if wrong:
        worst = wrong[0]
        raise ParityError(
            f'{len(wrong)} of {len(rows)} comparisons with predict differ by more than they may: {worst.name} at '
            f'{worst.size[0]} x {worst.size[1]} by {worst.value:.1e}, limit {worst.limit:g}'
        )


def row_table(rows: Sequence[Row]) -> list[str]:
    """Lines for a person: one a batch."""
    lines = []
    for row in rows:
        if row.name == rows[0].name:
            found = f', {row.results} results' if row.results else ''
            lines.append(f'{"x".join(map(str, (row.images, *row.size))):>12}{found}:')
        lines[-1] += f'  {row.name} {row.value:.1e}'
    limits = {row.name: row.limit for row in rows}
    return [*lines, 'allowed:  ' + '  '.join(f'{name} {limit:.1e}' for name, limit in limits.items())]


def run_openvino(path: Path) -> Run:
    """An ONNX file as a function of images in OpenVINO, in float32: it computes in bfloat16 where a CPU has it."""
    import openvino

    compiled = openvino.Core().compile_model(str(path), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})

    def run(x: Tensor) -> list[Tensor]:
        found = compiled({0: x.numpy()})
        return [torch.from_numpy(found[n].copy()) for n in range(len(compiled.outputs))]

    return run


def _write_with(path: Path, values: dict[str, float], out: Path) -> None:
    """A copy of an ONNX file with other values of some numbers."""
    import onnx

    model = onnx.load(str(path))
    numbers = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, value in values.items():
        numbers[name].CopyFrom(onnx.numpy_helper.from_array(torch.tensor(value).numpy(), name))
    onnx.save(model, str(out))
