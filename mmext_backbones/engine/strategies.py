"""FSDP for mmengine's FlexibleRunner: weights, gradients and optimizer state sharded over processes.

`wrap_blocks` is the policy that splits a model into the blocks of our backbones. `FSDPStrategy` is mmengine's, brought
to work: as it stands in mmengine 0.10.7, under torch 2.1 and later,

- the optimizer is built from the wrapped model. Wrappers stand in the names of its modules, so `custom_keys` of more
  than one level and layer-wise learning rates miss their parameters. Here it is built before.
- gradients are clipped by the norm of the part that a process holds, another one on each. Here, by that of all.
- a run cannot be resumed: torch changed the order of the arguments by which an optimizer's state is sharded.
- checkpoints are a folder of shards that only as many processes can read. Here one file as any other run writes it.
- without a GPU it asks for one.
"""

from typing import Any

import torch
from mmengine._strategy import FSDPStrategy as BaseFSDPStrategy
from mmengine._strategy.base import BaseStrategy
from mmengine.device import get_device
from mmengine.optim import BaseOptimWrapper, OptimWrapper
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ..registry import FUNCTIONS, STRATEGIES
from ..utils.errors import UserError
from ..zoo import block_classes

__all__ = ['FSDPStrategy', 'wrap_blocks']


@FUNCTIONS.register_module()
def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """FSDP's `auto_wrap_policy`: each block a unit; stem, norms, neck and heads are the unit of the whole model.

    A block within a block is a unit of its own: the attentions of MaxViT.

    Args:
        module: Part of a model.
        recurse: Whether FSDP asks if the inside of `module` is to be looked at, or else if it is to be a unit.
        nonwrapped_numel: Its parameters that are in no unit yet; not used.
    """
    return recurse or isinstance(module, block_classes())


@STRATEGIES.register_module()
class FSDPStrategy(BaseFSDPStrategy):
    """Fully sharded data parallel, a unit a block, on GPUs or (gloo) CPUs.

    Args:
        model_wrapper: Arguments of mmengine's MMFullyShardedDataParallel over these defaults: `auto_wrap_policy` is
            `wrap_blocks`, `use_orig_params` True.
        state_dict_cfg: 'full' for checkpoints as any other run writes them; see mmengine's strategy for others.
        **kwargs: Of mmengine's strategy.

    Raises:
        ValueError: if `use_orig_params` is False: groups of parameters could not be told apart.
        UserError: on the CPU with a torch whose FSDP needs a GPU (2.1).
    """

    def __init__(
        self, *, model_wrapper: dict | None = None, state_dict_cfg: str | dict = 'full', **kwargs: Any
    ) -> None:
        defaults = {
            'type': 'MMFullyShardedDataParallel',
            'auto_wrap_policy': f'{FUNCTIONS.scope}.{wrap_blocks.__name__}',
            'use_orig_params': True,
        }
        model_wrapper = {**defaults, **(model_wrapper or {})}
        if not model_wrapper['use_orig_params']:
            raise ValueError('use_orig_params=False: expected True, which keeps the groups of the optimizer')
        if get_device() == 'cpu':
            _check_sharding_on_cpu()
            model_wrapper.setdefault('device_id', torch.device('cpu'))
        self._optimizer_cfg: Any = None
        super().__init__(model_wrapper=model_wrapper, state_dict_cfg=state_dict_cfg, **kwargs)
        if get_device() == 'cpu':  # where torch would free what it has "offloaded" before it is read
            self.state_dict_config.offload_to_cpu = False
            self.optim_state_dict_config.offload_to_cpu = False

    def prepare(self, model: nn.Module | dict, *, optim_wrapper: Any = None, **kwargs: Any) -> Any:
        self._optimizer_cfg = optim_wrapper
        return super().prepare(model, optim_wrapper=optim_wrapper, **kwargs)

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        cfg, self._optimizer_cfg = self._optimizer_cfg, None
        if isinstance(cfg, dict):
            if cfg.get('type') == 'AmpOptimWrapper':
                cfg.setdefault('use_fsdp', True)
            self._optimizer_cfg = BaseStrategy.build_optim_wrapper(self, cfg, model)
        return super()._wrap_model(model)

    def build_optim_wrapper(self, optim_wrapper: Any, model: nn.Module | None = None) -> BaseOptimWrapper:
        """The wrapper that was built from the names of the bare model; FSDP shards its parameters in place."""
        wrapper, self._optimizer_cfg = self._optimizer_cfg, None
        if not isinstance(wrapper, OptimWrapper):
            return super().build_optim_wrapper(optim_wrapper, model)
        sharded = {id(parameter) for parameter in model.parameters()}
        assert all(id(p) in sharded for group in wrapper.optimizer.param_groups for p in group['params'])
        if wrapper.clip_grad_kwargs and wrapper.clip_func is torch.nn.utils.clip_grad_norm_:
            wrapper.clip_func = lambda parameters, **kwargs: model.clip_grad_norm_(**kwargs)
        return wrapper

    def optim_state_dict(self) -> dict:
        """The state by names of parameters, on the first process; with what the wrapper adds, a loss scale."""
        sharded = self.optim_wrapper.state_dict()
        extras = {key: value for key, value in sharded.items() if key not in ('state', 'param_groups')}
        return {**FullyShardedDataParallel.optim_state_dict(self.model, self.optim_wrapper.optimizer), **extras}

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Of a checkpoint of this strategy, or of a run without it, whose state goes by numbers."""
        extras = {key: value for key, value in state_dict.items() if key not in ('state', 'param_groups')}
        names = [self.id_to_name[id(p)] for group in self.optim_wrapper.optimizer.param_groups for p in group['params']]
        state_dict = _named({key: state_dict[key] for key in ('state', 'param_groups')}, names)
        sharded = FullyShardedDataParallel.optim_state_dict_to_load(
            self.model, self.optim_wrapper.optimizer, state_dict
        )
        self.optim_wrapper.load_state_dict({**sharded, **extras})


def _check_sharding_on_cpu() -> None:
    """FSDP asks for streams with a priority; torch 2.1's stand-in for the CPU takes no argument."""
    try:
        torch.cpu.Stream(priority=0)
    except TypeError:
        raise UserError(
            f'FSDP of torch {torch.__version__} shards a model on GPUs only: take torch 2.2 or later, or train without '
            '--strategy fsdp'
        ) from None


def _named(state_dict: dict, names: list[str]) -> dict:
    """An optimizer's state by the names of parameters; torch's own goes by their numbers in the order of the groups."""
    order = [key for group in state_dict['param_groups'] for key in group['params']]
    if all(isinstance(key, str) for key in order):
        return state_dict
    to_name = dict(zip(order, names, strict=True))
    return {
        'state': {to_name[key]: value for key, value in state_dict['state'].items()},
        'param_groups': [
            {**group, 'params': [to_name[key] for key in group['params']]} for group in state_dict['param_groups']
        ],
    }
