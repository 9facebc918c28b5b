"""Conversion of state dicts by a table of rules."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor


class Rule(NamedTuple):
    """What becomes of the keys that `pattern` matches in full.

    `key` is the new name (a `re` template); None drops the tensor. `value` changes the tensor, if anything must.
    """

    pattern: str
    key: str | None
    value: Callable[[Tensor], Tensor] | None = None


def convert(state_dict: Mapping[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    """Apply to every entry the first rule that matches it.

    Raises:
        ValueError: for keys that no rule matches, and for two keys that would get one name.
    """
    converted: dict[str, Tensor] = {}
    unknown = []
    for old, tensor in state_dict.items():
        for rule in rules:
            match = re.fullmatch(rule.pattern, old)
            if match:
                break
        else:
            unknown.append(old)
            continue
        if rule.key is None:
            continue
        new = match.expand(rule.key)
        if new in converted:
            raise ValueError(f'{old}: another key was already converted to {new}')
        converted[new] = tensor if rule.value is None else rule.value(tensor)
    if unknown:
        raise ValueError(f'{len(unknown)} keys of an unknown layout, among them {", ".join(unknown[:5])}')
    return converted
