"""What the heads of every library offer to the frame: a module of one task, its settings and its comparison."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..recording import BackboneWithNeck

__all__ = ['Row', 'Task', 'as_written']


def as_written(numbers: Tensor) -> list[float]:
    """Numbers of float32 as a config had them: 0.05, not 0.05000000074505806."""
    return [float(f'{number:.7g}') for number in numbers.flatten().tolist()]


class Row(NamedTuple):
    """How far a file is from its model on one batch.

    Attributes:
        size: (H, W) of the images in pixels.
        images: Of the batch.
        name: What is compared.
        value: The difference.
        limit: The largest that is right.
        results: How many objects, pixels or scores were compared.
    """

    size: tuple[int, int]
    images: int
    name: str
    value: float
    limit: float
    results: int = 0


class Task(nn.Module):
    """What a model computes from images that are normalised and padded.

    A family of heads derives from it, and is built by a function `build(model) -> Task` that stands in `kinds.KINDS`.
    It calls the modules of the model and expresses anew what its `predict` does with their maps, without a size that
    depends on values, so that one graph serves all images.

    Attributes:
        task: ``'detection'``, ``'instance segmentation'``, ``'semantic segmentation'`` or ``'classification'``.
        outputs: Names of what `forward` returns, in its order.
        maps: Backbone and neck.
    """

    task: str
    outputs: tuple[str, ...]
    maps: BackboneWithNeck

    def forward(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, ...]:
        """The outputs.

        Args:
            x: [B, 3, H, W], normalised, padded at the right and at the bottom.
            size: (H, W) before the padding; symbols while a graph is recorded.
        """
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """What the file says of this task: entries of the JSON of ``mmext_backbones.whole``, such as ``score_thr``."""
        return {}

    def new_sample(self) -> Any:
        """An empty data sample of the library, for one image."""
        raise NotImplementedError

    def compare(self, samples: Sequence[Any], outputs: Sequence[Tensor], size: tuple[int, int]) -> list[Row]:
        """How far the outputs for a batch are from what the model's `predict` answered.

        Args:
            samples: A data sample for each image.
            outputs: As `forward` returns them.
            size: (H, W) of the images.
        """
        raise NotImplementedError

    def without_thresholds(self, model: nn.Module) -> dict[str, float]:
        """Changes a copy of the model so that every image has results, and says which buffers of the file do the same.

        A threshold hides most of what a network computes for images that are no photographs, and with it what would
        differ.

        Args:
            model: Whose settings are changed.

        Returns:
            Values by the names of buffers of this module; empty where there are no thresholds.
        """
        return {}
