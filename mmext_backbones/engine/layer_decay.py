"""Layer-wise learning-rate decay."""

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mmengine.logging import MMLogger, print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from ..registry import OPTIM_WRAPPER_CONSTRUCTORS
from ..utils.words import plural

__all__ = ['LayerDecayOptimWrapperConstructor']


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor, with each learning rate scaled by the layer of its parameter.

    The scale is ``layer_decay_rate ** (num_layers - 1 - depth)``, where ``(depth, num_layers)`` is what the backbone's
    ``get_layer_depth(param_name, prefix)`` answers: 1 for the last layer, least for the stem. It multiplies what
    mmengine's own rules (``custom_keys``, ``norm_decay_mult``, ``bias_lr_mult``, ...) make of the base learning rate;
    weight decays are theirs alone. Any number of backbones may stand anywhere in the model, those of mmpretrain too;
    parameters outside of them have scale 1.

    Source: Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification" (arXiv 1801.06146), whose
    discriminative fine-tuning divides the rate from layer to layer; for images Bao et al., "BEiT" (arXiv 2106.08254).

    Args:
        optim_wrapper_cfg: config of the optimizer wrapper; its optimizer names a learning rate.
        paramwise_cfg: mmengine's rules, and ``layer_decay_rate``, above 0 and at most 1, which keeps all rates.

    Raises:
        ValueError: without a ``layer_decay_rate`` in its range or a learning rate; at the call, if the model has no
            backbone that knows its layers, or would train one parameter in two groups.
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        rate = self.paramwise_cfg.get('layer_decay_rate')
        if not isinstance(rate, (int, float)) or not 0 < rate <= 1:
            raise ValueError(
                f'paramwise_cfg: layer_decay_rate={rate!r}: expected a number above 0 and at most 1 '
                f'(the keys given are {", ".join(self.paramwise_cfg) or "none"})'
            )
        if self.base_lr is None:
            raise ValueError(f'optimizer={dict(self.optimizer_cfg)}: expected a learning rate, lr=...')

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = '', is_dcn_module: bool | None = None
    ) -> None:
        """Add the parameter groups of a module and, where it is the whole model (no prefix), scale and join them."""
        if prefix:  # mmengine's method calls this one for every child
            super().add_params(params, module, prefix, is_dcn_module)
            return
        groups: list[dict] = []
        with _without_paramwise_lines():  # one for each parameter, with the rate before its scale
            super().add_params(groups, module, prefix, is_dcn_module)
        params += self._scaled(groups, module)

    def _scaled(self, groups: list[dict], model: nn.Module) -> list[dict]:
        """mmengine's groups of one parameter each, their rates scaled, joined to as few as there are options."""
        rate = self.paramwise_cfg['layer_decay_rate']
        backbones = _backbones(model)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        num_layers: dict[str, int] = {}
        scales = []
        for group in groups:
            (parameter,) = group['params']
            name = names[id(parameter)]
            scale = 1.0
            for prefix, get_layer_depth in backbones.items():
                if name.startswith(prefix):
                    depth, num_layers[prefix] = get_layer_depth(name, prefix)
                    scale = rate ** (num_layers[prefix] - 1 - depth)
            scales.append(scale)
            group['lr'] = group.get('lr', self.base_lr) * scale
            if self.base_wd is not None:
                group.setdefault('weight_decay', self.base_wd)
        groups = _joined(groups, names)
        if groups:
            layers = [
                f'{plural(count, "layer")} in {prefix.rstrip(".") or "the model"}'
                for prefix, count in num_layers.items()
            ]
            print_log(
                f'learning rates decay by {rate} a layer: {", ".join(layers) or "every backbone is frozen"}; scales '
                f'from {min(scales):.4g} to {max(scales):.4g} in {plural(len(groups), "parameter group")}',
                logger='current',
            )
        return groups


def _backbones(model: nn.Module) -> dict[str, Callable[[str, str], tuple[int, int]]]:
    """Prefix -> `get_layer_depth` of every outermost module that has one.

    mmpretrain's classifiers and self-supervisors have a method of that name too, without a prefix, that asks
    their backbone; they are passed over.
    """
    found: dict[str, Callable] = {}
    for name, module in model.named_modules():
        method = getattr(module, 'get_layer_depth', None)
        if method is None or 'prefix' not in inspect.signature(method).parameters:
            continue
        prefix = f'{name}.' if name else ''
        if not prefix.startswith(tuple(found)):
            found[prefix] = method
    if not found:
        raise ValueError(
            f'{type(model).__name__} has no backbone that knows its layers: layer-wise learning-rate decay needs a '
            'submodule with the method get_layer_depth(param_name, prefix), as every backbone of mmext_backbones and '
            'some of mmpretrain have it'
        )
    return found


def _joined(groups: list[dict], names: dict[int, str]) -> list[dict]:
    """One group for each distinct set of options, in the order of their first parameters."""
    joined: list[tuple[dict, list[nn.Parameter]]] = []
    seen = set()
    for group in groups:
        (parameter,) = group.pop('params')
        if id(parameter) in seen:
            raise ValueError(
                f'{names[id(parameter)]} is used at two places of the model: expected bypass_duplicate=True in '
                'paramwise_cfg'
            )
        seen.add(id(parameter))
        members = next((members for options, members in joined if options == group), None)
        if members is None:
            joined.append((group, [parameter]))
        else:
            members.append(parameter)
    return [{'params': members, **options} for options, members in joined]


@contextmanager
def _without_paramwise_lines() -> Iterator[None]:
    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith('paramwise_options')

    logger = MMLogger.get_current_instance()
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
