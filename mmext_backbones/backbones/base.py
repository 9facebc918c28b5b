"""The contract of every backbone here.

A backbone maps an image batch [B, in_channels, H, W] of any size to a tuple of maps [B, C_i, ceil(H / s_i),
ceil(W / s_i)], one for each of `out_indices`, finest first. `out_channels` and `out_strides` say what C_i and s_i are.
Stages beyond the last output are not built, so every parameter takes part in every training step.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.model.weight_init import update_init_info
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmext_backbones.layers import fused
from mmext_backbones.ops.padding import crop
from mmext_backbones.ops.torch_versions import TOO_OLD_TO_COMPILE, is_compiling, register_load_state_dict_pre_hook
from mmext_backbones.weights.conversion_hook import convert_on_load
from mmext_backbones.weights.fitting import Report, WeightsError, check_values, fit, unwrap
from mmext_backbones.weights.layouts import family_of
from mmext_backbones.weights.loading import read

from .arguments import check_init_cfg, check_int, check_recompute, check_stages, is_int, is_pretrained, resolve_arch
from .recomputation import recomputes

__all__ = ['DenseBackbone', 'keep_batch_norms', 'resolve_arch']

AUTOCAST_DTYPES = (None, 'bfloat16')
COUNTER = 'num_batches_tracked'  # of batch norms; published weights lack it
OUT_DTYPES = (None, 'float32', 'bfloat16', 'float16')


class DenseBackbone(BaseModule):
    """Base class: checks of the arguments and the input, freezing, activation checkpointing, precision.

    A subclass calls this constructor, then builds its modules in forward order, and calls `freeze` at last; its
    `forward_features` runs them.

    Args:
        level_channels: channels of every map the architecture can return.
        level_strides: stride of every such map, in pixels of the image.
        in_channels: channels of the image.
        out_indices: stages whose maps are returned, ascending.
        frozen_stages: -1 freezes nothing; 0 the stem; n >= 1 the stem and the first n stages with their output norms.
            What is frozen stays in eval mode.
        with_cp: recompute each block in the backward pass instead of keeping its activations: True for all stages, or
            the stages, counted from 0, e.g. ``(0, 1)`` for the two that hold most of the memory.
        recompute: whether norms, GELUs and gates are computed again in the backward pass instead of kept: a third to
            six tenths less memory for a fifth to a third more traffic, and the same numbers. 'auto': where they take
            more than 128 MiB on the CPU or a quarter of the GPU's memory (`recomputation`).
        autocast_dtype: 'bfloat16' computes `forward_features` in it, also where the rest of the model does not (on the
            CPU as well); the maps are float32 then, for heads that make boxes in the type of the maps. None leaves it
            to the caller.
        out_dtype: type of the maps; None for float32 with `autocast_dtype`, else as they come.
        init_cfg: mmengine's initialisation config, e.g. ``dict(type='Pretrained', checkpoint=...)``.
        level_stages: the stage that each map comes from; map i from stage i when None.

    Attributes:
        num_stages: stages that the outputs need.
        with_cp: the stages whose blocks are recomputed.
        KEPT_MAPS: maps of C channels that a block keeps for its backward pass without recomputation, about.
        BLOCK_CLASSES: the classes of the blocks in ``stages.i.blocks``: what a model is split into where its weights
            are sharded over processes, or its activations recomputed.

    Raises:
        ValueError: if an argument is out of range, or an input has another number of axes or channels.
    """

    BLOCK_CLASSES: tuple[type[nn.Module], ...] = ()
    KEPT_MAPS = 20
    _has_values = False  # whether a forward found all tensors to have values, since they were last moved

    def __init__(
        self,
        level_channels: Sequence[int],
        level_strides: Sequence[int],
        *,
        in_channels: int,
        out_indices: Sequence[int],
        frozen_stages: int,
        with_cp: bool | Sequence[int],
        init_cfg: dict | None,
        recompute: bool | str = 'auto',
        autocast_dtype: str | None = None,
        out_dtype: str | None = None,
        level_stages: Sequence[int] | None = None,
    ) -> None:
        check_init_cfg(init_cfg)
        super().__init__(init_cfg)
        register_load_state_dict_pre_hook(self, convert_on_load)
        num_levels = len(level_channels)
        out_indices = check_stages('out_indices', out_indices, num_levels)
        check_int('in_channels', in_channels)
        check_recompute(recompute)
        num_stages = 1 + (out_indices[-1] if level_stages is None else level_stages[out_indices[-1]])
        if not is_int(frozen_stages) or not -1 <= frozen_stages <= num_stages:
            raise ValueError(
                f'frozen_stages={frozen_stages!r}: expected -1 (nothing), 0 (the stem) or up to {num_stages}, '
                f'the number of stages that out_indices={out_indices} builds'
            )
        if autocast_dtype not in AUTOCAST_DTYPES:
            raise ValueError(
                f"autocast_dtype={autocast_dtype!r}: expected None or 'bfloat16' (float16 needs a scaled loss: "
                'AmpOptimWrapper around the whole model)'
            )
        if out_dtype not in OUT_DTYPES:
            raise ValueError(f'out_dtype={out_dtype!r}: expected None or one of {", ".join(OUT_DTYPES[1:])}')
        self.autocast_dtype = autocast_dtype
        self.out_dtype = out_dtype or ('float32' if autocast_dtype else None)
        self.in_channels = in_channels
        self.out_indices = out_indices
        self.frozen_stages = frozen_stages
        self.with_cp = _checkpointed_stages(with_cp, num_stages)
        self.recompute = recompute
        self.num_stages = num_stages
        self._level_channels = tuple(level_channels)
        self._level_strides = tuple(level_strides)

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of each output map."""
        return tuple(self._level_channels[i] for i in self.out_indices)

    @property
    def out_strides(self) -> tuple[int, ...]:
        """Stride of each output map, in pixels of the image."""
        return tuple(self._level_strides[i] for i in self.out_indices)

    @property
    def stage_strides(self) -> tuple[int, ...]:
        """Stride of the map of every stage, in pixels of the image; also of stages that are not built."""
        return self._level_strides

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of the map of every stage, as `stage_strides`."""
        return self._level_channels

    def stem_modules(self) -> list[nn.Module]:
        """The modules before the first stage."""
        raise NotImplementedError

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """The layer of a parameter, for learning rates that decay from layer to layer.

        Layer 0 is the stem, with the embeddings of positions a subclass may hold; layer i the i-th block, counted from
        1 over all stages that are built. The downsampling of a stage belongs to the block before it. The last layer is
        what follows the blocks: output norms, the upsampling of a pyramid, and everything outside the backbone.

        Args:
            param_name: name of the parameter in the whole model.
            prefix: where the backbone stands in that model, e.g. ``'backbone.'``.

        Returns:
            Its depth, from 0 on, and the number of layers, of which there are two more than blocks.
        """
        depths = [len(stage.blocks) for stage in self.stages]
        last = sum(depths) + 1
        depth = last
        if param_name.startswith(prefix):
            name, *path = param_name[len(prefix) :].split('.')
            if name == 'stages':
                stage, part, block = path[:3]
                inside = int(block) + 1 if part == 'blocks' else depths[int(stage)]
                depth = sum(depths[: int(stage)]) + inside
            elif name in self._parameters or self._modules.get(name) in self.stem_modules():
                depth = 0
        return depth, last + 1

    def forward_features(self, x: Tensor) -> tuple[Tensor, ...]:
        """The maps of a checked input."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.check_input(x)
        if self.autocast_dtype is None or x.is_meta:  # which has no autocast
            outs = self._run_features(x)
        else:
            with torch.autocast(x.device.type, getattr(torch, self.autocast_dtype)):
                outs = self._run_features(x)
        return outs if self.out_dtype is None else tuple(out.to(getattr(torch, self.out_dtype)) for out in outs)

    def _run_features(self, x: Tensor) -> tuple[Tensor, ...]:
        if is_compiling():  # modules run as they stand, and compilers choose what to keep
            return self.forward_features(x)
        with fused.recomputing(recomputes(self, x)):
            return self.forward_features(x)

    def check_input(self, x: Tensor) -> None:
        """Raise ValueError unless x is an image batch [B, in_channels, H, W]."""
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f'{type(self).__name__} got an input of shape {tuple(x.shape)}: expected [B, {self.in_channels}, H, W] '
                f'(in_channels={self.in_channels})'
            )
        if not (is_compiling() or x.is_meta or self._has_values):  # a graph is not to ask for the last
            self._check_has_values()

    def _check_has_values(self) -> None:
        """Raise ValueError where tensors are on the meta device: PyTorch would compute from unwritten memory."""
        empty = [name for name, tensor in chain(self.named_parameters(), self.named_buffers()) if tensor.is_meta]
        if empty:
            raise ValueError(
                f'{type(self).__name__} was built on the meta device, and {len(empty)} of its tensors have no values '
                f'yet ({empty[0]}, ...): load_state_dict(weights, assign=True), or to_empty(device=...) and then '
                'load_state_dict(weights)'
            )
        self._has_values = True

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> 'DenseBackbone':
        """torch's hook for every change of device or dtype."""
        self._has_values = False
        return super()._apply(fn, recurse)

    def run_block(self, stage: int, block: nn.Module, x: Tensor, *context: Any) -> Tensor:
        """block(x, *context) of a stage, with its activations recomputed in the backward pass if `with_cp` names it."""
        if TOO_OLD_TO_COMPILE and is_compiling():
            raise RuntimeError(TOO_OLD_TO_COMPILE)
        if stage not in self.with_cp or not torch.is_grad_enabled():
            return block(x, *context)
        if is_compiling():  # a graph counts a batch once, and knows no contexts
            return checkpoint(block, x, *context, use_reentrant=False)
        options = {}
        if _trained_batch_norms(block):
            options['context_fn'] = lambda: (nullcontext(), _no_new_statistics(block))
        return checkpoint(fused.in_this_form(block), x, *context, use_reentrant=False, **options)

    def output(self, i: int, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """The i-th output map: x [B, H, W, C] under `norm{i}` where there is one, as contiguous [B, C, H, W].

        `size` is what is left of H and W where x has tokens of padding at the bottom and right.
        """
        norm = getattr(self, f'norm{i}', None)
        x = x if norm is None else norm(x)
        if size is not None:
            x = crop(x, *size)
        return x.permute(0, 3, 1, 2).contiguous()

    def freeze(self) -> None:
        """Stop the gradients of what `frozen_stages` names, and keep it in eval mode."""
        if self.frozen_stages < 0:
            return
        frozen = self.stem_modules()
        for i in range(self.frozen_stages):
            frozen.append(self.stages[i])
            if hasattr(self, f'norm{i}'):
                frozen.append(getattr(self, f'norm{i}'))
        for module in frozen:
            module.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> 'DenseBackbone':
        super().train(mode)
        self.freeze()
        return self

    def init_weights(self) -> None:
        """Load what `init_cfg` names; without one the constructor's own initialisation stands.

        ``dict(type='Pretrained', checkpoint=..., prefix=None, strict=True)`` goes through `load_pretrained`.

        Raises:
            FileNotFoundError: as `load_pretrained`.
            WeightsError: as `load_pretrained`.
        """
        first = not self.is_init
        cfgs = [self.init_cfg] if isinstance(self.init_cfg, Mapping) else list(self.init_cfg or ())
        pretrained = [cfg for cfg in cfgs if is_pretrained(cfg)]
        configured, self.init_cfg = self.init_cfg, [cfg for cfg in cfgs if cfg not in pretrained]
        try:
            super().init_weights()  # a second call changes nothing but warns
        finally:
            self.init_cfg = configured
        for cfg in pretrained if first else ():
            report = self.load_pretrained(
                **{key: value for key, value in cfg.items() if key not in ('type', '_scope_')}
            )
            print_log(f'{type(self).__name__}: pretrained\n{report}', logger='current')
            if hasattr(self, '_params_init_info'):
                update_init_info(self, init_info=f'Pretrained: loaded from {report.source}')

    def load_pretrained(
        self, checkpoint: str, *, prefix: str | None = None, strict: bool = True, map_location: str = 'cpu'
    ) -> Report:
        """Load published weights of any known layout (`weights.layouts`).

        Args:
            checkpoint: A file or an address, see `weights.loading`.
            prefix: Where the backbone stands in the checkpoint, e.g. ``'backbone.'`` or ``'teacher.'``; when None, the
                network that fills most of the backbone is taken.
            strict: Refuse weights that are not the whole backbone, or that leave a tensor unexplained. Else what fits
                is loaded.
            map_location: As in `torch.load`.

        Returns:
            What became of every tensor.

        Raises:
            FileNotFoundError: if there is no such file.
            WeightsError: if the file is damaged, unsafe, of another family, or, unless `strict` is False, does not
                fill the backbone. Nothing has been loaded then.
        """
        tensors = unwrap(read(checkpoint, map_location), checkpoint, others=True, prefix=prefix)
        wanted = self.state_dict()
        tensors, report = fit(tensors, wanted, family_of(type(self)), checkpoint, prefix)
        check_values(tensors, checkpoint, wanted)
        if strict and not report.complete:
            raise WeightsError(
                f'{type(self).__name__}: the weights do not fit\n{report}\n'
                '(another arch, window or number of stages? strict=False loads what fits)'
            )
        without_values = any(tensor.is_meta for tensor in wanted.values())
        if without_values:  # built on the meta device: what is assigned keeps its own type
            counts = {key: torch.zeros_like(wanted[key], device='cpu') for key in wanted if key.endswith(COUNTER)}
            tensors = counts | {key: tensor.to(wanted[key].dtype) for key, tensor in tensors.items()}
        self.load_state_dict(tensors, strict=False, assign=without_values)
        return report


def _checkpointed_stages(with_cp: bool | Sequence[int], num_stages: int) -> tuple[int, ...]:
    """The stages that `with_cp` names; none or all for False or True.

    Raises:
        ValueError: for anything but a bool or distinct stages. (A stage that `out_indices` leaves out is refused.)
    """
    if isinstance(with_cp, bool):
        return tuple(range(num_stages)) if with_cp else ()
    stages = tuple(with_cp) if isinstance(with_cp, Sequence) and not isinstance(with_cp, str) else (None,)
    if any(type(i) is not int or not 0 <= i < num_stages for i in stages) or len(set(stages)) < len(stages):
        raise ValueError(
            f'with_cp={with_cp!r}: expected True, False or distinct stages from 0 to {num_stages - 1}, as in (0, 1)'
        )
    return tuple(sorted(stages))


def _trained_batch_norms(block: nn.Module) -> list[nn.Module]:
    """The batch norms of a block that update their running statistics."""
    return [m for m in block.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]


@contextmanager
def _no_new_statistics(block: nn.Module) -> Iterator[None]:
    """Batch norms in training normalise as before but leave their running statistics as they are.

    Checkpointing runs a block twice, and the statistics of a batch must count once. (Turning `track_running_stats` off
    would change what autograd saves, which checkpointing compares.)
    """
    norms = _trained_batch_norms(block)
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, num_batches_tracked) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, num_batches_tracked


def keep_batch_norms(model: nn.Module) -> None:
    """Put the batch norms of a model in eval mode, so that they norm by their running statistics and leave them."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
