"""The hook by which a backbone takes weights of any known layout, whichever way they are loaded."""

from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from torch import nn

from .containers import plain_names, unwrap
from .fitting import fit
from .layouts import family_of, find_places, strip_prefix

__all__ = ['convert_on_load']


def convert_on_load(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict,
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """A load_state_dict pre-hook: a layout of others, under `prefix`, becomes the module's own.

    What is in the module's layout already, and what is not recognised, is left for torch to accept or to refuse. What
    has no place or another shape is reported as torch does.

    Args:
        module: The backbone that is loaded.
        state_dict: Of the whole model; changed in place.
        prefix: Where the backbone stands in it.
        local_metadata: Not used.
        strict: Not used; torch looks at the lists that follow.
        missing_keys: Not used.
        unexpected_keys: Gets the keys that nothing explains.
        error_msgs: Gets the tensors of another shape.
    """
    family = family_of(type(module))
    mine = strip_prefix(state_dict, prefix)
    if not prefix and any(isinstance(value, Mapping) for value in mine.values()):
        mine = unwrap(mine, 'the state dict', others=True)
    if not find_places(plain_names(mine), family):
        return
    tensors, report = fit(mine, module.state_dict(), family, 'the state dict')
    if not (report.converted or report.resized or set(tensors) - set(mine)):
        return
    if report.others:
        print_log(f'{type(module).__name__}: several networks in one state dict\n{report}', logger='current')
    unexpected_keys += [prefix + key for key in report.unexpected]
    error_msgs += [
        f'size mismatch for {prefix}{key}: {had} in the checkpoint, {wants} in the model'
        for key, (had, wants) in report.wrong_shape.items()
    ]
    for key in [key for key in state_dict if key.startswith(prefix)]:
        del state_dict[key]
    state_dict.update({prefix + key: value for key, value in tensors.items()})
