"""What a training step takes, estimated before there is a GPU: memory a process, and time.

Memory is counted: parameters, gradients, the optimizer's state, and the activations that the backward pass reads. The
last are seen by autograd's saved-tensor hooks while the model runs forward on fake tensors, which have a shape, a type
and a storage but no numbers; so any size takes seconds. The model runs as in training up to its losses: the heads of a
two-stage detector get as many regions as its samplers choose, the maps of a segmentor are enlarged to the image.

Not counted: temporaries of single operators, the losses of detectors, what the allocator and the libraries keep (1 to
2 GB), communication, and reading the data. Time is the multiply-adds of `cost.model_cost`, three times for forward and
backward, once more for what is recomputed, at a stated share of a stated peak.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..zoo import block_classes
from .cost import listed, model_cost

__all__ = ['STATES', 'Estimate', 'Storages', 'estimate', 'without_numbers']

STATES = {'SGD': 1, 'AdamW': 2, 'Adam': 2}  # tensors the optimizer keeps for each parameter
BYTES = 4  # of a weight, a gradient, a number of the optimizer: float32 also under autocast


@dataclass(frozen=True)
class Estimate:
    """A step of one process. Memory in bytes.

    Attributes:
        params: parameters of the model.
        weights: with the unit that is gathered at a time, where they are sharded.
        gradients: with the buckets that several processes send them in.
        optimizer: its state.
        activations: kept for the backward pass, with the largest block that is recomputed at a time.
        macs: multiply-adds of a step, forward and backward.
    """

    params: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    macs: int

    @property
    def memory(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations

    def seconds(self, peak: float, utilisation: float) -> float:
        """At `utilisation` (0 to 1) of `peak` floating-point operations a second, two for a multiply-add."""
        return 2 * self.macs / (peak * utilisation)


def estimate(
    model: nn.Module,
    batch: int,
    size: tuple[int, int],
    *,
    amp: bool = False,
    optimizer: str = 'AdamW',
    strategy: str = 'ddp',
    processes: int = 1,
) -> Estimate:
    """Estimates a training step; `model` stays as it is.

    Args:
        model: A backbone, or a model of mmdet, mmseg or mmpretrain. What its backbone recomputes (`with_cp`) counts.
        batch: Images of a process.
        size: Of an image, (H, W) in pixels.
        amp: Autocast to bfloat16, as AmpOptimWrapper does it.
        optimizer: One of `STATES`.
        strategy: 'ddp' or 'fsdp'.
        processes: Over which weights are sharded, or gradients averaged.

    Raises:
        ValueError: if an argument is out of range.
        RuntimeError: if the model cannot run without numbers.
    """
    if optimizer not in STATES or strategy not in ('ddp', 'fsdp') or batch < 1 or processes < 1:
        raise ValueError(
            f'batch={batch}, optimizer={optimizer!r}, strategy={strategy!r}, processes={processes}: expected positive '
            f'numbers, one of {", ".join(STATES)}, and ddp or fsdp'
        )
    params = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if strategy == 'fsdp':
        units = [_own_params(m) for m in model.modules() if isinstance(m, block_classes())]
        gathered = params - sum(units) + 2 * max(units, default=0)  # the unit of the rest, one block, and the next one
        weights, gradients = params / processes + gathered, trained / processes + gathered
    else:
        weights, gradients = params, trained * (2 if processes > 1 else 1)
    state = STATES[optimizer] * trained / (processes if strategy == 'fsdp' else 1)
    cost = model_cost(model, size)
    return Estimate(
        params=params,
        weights=round(BYTES * weights),
        gradients=round(BYTES * gradients),
        optimizer=round(BYTES * state),
        activations=activation_bytes(model, batch, size, amp=amp),
        macs=batch * (3 * cost.macs + _recomputed_macs(model, size)),
    )


def _own_params(block: nn.Module) -> int:
    """Parameters of a block that are in none of the blocks within it, which are units of their own."""
    within = [m for m in block.modules() if m is not block and isinstance(m, block_classes())]
    return sum(p.numel() for p in block.parameters()) - sum(p.numel() for m in within for p in m.parameters())


def _recomputed_macs(model: nn.Module, size: tuple[int, int]) -> int:
    """Of one more forward pass through the stages that `with_cp` names."""
    backbone = getattr(model, 'backbone', model)
    stages = getattr(backbone, 'with_cp', ())
    if not isinstance(stages, tuple) or not stages:
        return 0
    parts = model_cost(backbone, size).parts
    return sum(parts[f'stages.{i}'].macs for i in stages)


# --------------------------------------------------------------------------------------------------------------------
# Activations


def activation_bytes(model: nn.Module, batch: int, size: tuple[int, int], *, amp: bool = False) -> int:
    """Bytes that the backward pass of a training step reads, weights left out."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    model = without_numbers(model, mode).train()
    kept = Storages(model)
    with mode, _recomputing(model, kept) as recomputed, kept.watching():
        x = torch.empty(batch, getattr(getattr(model, 'backbone', model), 'in_channels', 3), *size)
        try:
            with torch.autocast('cpu', torch.bfloat16, enabled=amp):
                _train_forward(model, x)
        except Exception as error:
            raise RuntimeError(f'{type(model).__name__} does not run on tensors without numbers: {error}') from error
    return kept.bytes + max(recomputed, default=0)


class Storages:
    """The storages that autograd saves, each once; those of weights left out."""

    def __init__(self, model: nn.Module) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        self.found: dict[int, torch.UntypedStorage] = {}
        self.weights = {tensor.untyped_storage()._cdata for tensor in tensors}

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self.found.values())

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.weights:
            self.found[storage._cdata] = storage  # held, so that no address is used twice
        return tensor

    def watching(self) -> torch.autograd.graph.saved_tensors_hooks:
        return torch.autograd.graph.saved_tensors_hooks(self.add, lambda tensor: tensor)


@contextmanager
def _recomputing(model: nn.Module, kept: Storages) -> Iterator[list[int]]:
    """Keeps the inputs alone of the blocks that `with_cp` names; yields what each holds when it is recomputed."""
    recomputed: list[int] = []
    backbone = getattr(model, 'backbone', model)
    stages = getattr(backbone, 'with_cp', ())

    def run_block(stage: int, block: nn.Module, x: Tensor, *context: Any) -> Tensor:
        if stage not in stages:
            return block(x, *context)
        kept.add(x)
        inside = Storages(model)
        with inside.watching():
            out = block(x, *context)
        recomputed.append(inside.bytes)
        return out

    if hasattr(backbone, 'run_block'):
        backbone.run_block = run_block
    yield recomputed


def without_numbers(model: nn.Module, mode: FakeTensorMode, device: str | None = None) -> nn.Module:
    """A copy whose parameters and buffers have no numbers, on `device` or their own; theirs are never copied."""
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        with mode:
            fake = torch.empty_like(mode.from_tensor(tensor.detach()), device=device)
        parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(fake, requires_grad=tensor.requires_grad) if parameter else fake
    return copy.deepcopy(model, memo)


def _train_forward(model: nn.Module, x: Tensor) -> Any:
    """All that a loss would be computed from; it is returned, for as long as it lives its graph is held."""
    if not isinstance(model, BaseModel):
        return model(x)
    if hasattr(model, 'rpn_head') and hasattr(model, 'roi_head'):
        return _train_two_stage(model, x)
    if hasattr(model, 'decode_head'):
        features = model.extract_feat(x)
        heads = [model.decode_head, *listed(getattr(model, 'auxiliary_head', None))]
        enlarge = functools.partial(F.interpolate, size=x.shape[-2:], mode='bilinear')
        return [F.log_softmax(enlarge(head(features)).float(), 1) for head in heads]
    return model(x, mode='tensor') if not hasattr(model, 'head') else model.head(model.extract_feat(x))


def _train_two_stage(model: nn.Module, x: Tensor) -> list[Any]:
    features = model.extract_feat(x)
    outs = [features, model.rpn_head(features)]
    rois = model.roi_head
    samplers = rois.train_cfg if isinstance(rois.train_cfg, (list, tuple)) else [rois.train_cfg]
    counts: dict[str, Callable] = {
        'bbox': lambda sampler: sampler.num,
        'mask': lambda sampler: int(sampler.num * sampler.pos_fraction),
    }
    for kind, count in counts.items():
        extractors = listed(getattr(rois, f'{kind}_roi_extractor', None))
        heads = listed(getattr(rois, f'{kind}_head', None))
        for extractor, head, cfg in zip(extractors, heads, samplers * len(heads), strict=False):
            edges = extractor.roi_layers[0].output_size
            regions = features[0].new_empty(count(cfg.sampler) * len(x), extractor.out_channels, *edges)
            outs.append(head(regions.requires_grad_()))
    return outs
