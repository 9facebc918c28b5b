"""Conversion of state dicts by a table of rules."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor


class UnknownKeys(ValueError):
    """Keys that no rule of a table knows.

    Attributes:
        keys: All of them.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        super().__init__(f'{len(keys)} keys of an unknown layout, among them {", ".join(keys[:5])}')
        self.keys = list(keys)


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
        UnknownKeys: for keys that no rule matches.
        ValueError: for two keys that would get one name.
    """
    known = _any_of(tuple(rule.pattern for rule in rules)).fullmatch
    unknown = [key for key in state_dict if not known(key)]
    if unknown:
        raise UnknownKeys(unknown)
    converted: dict[str, Tensor] = {}
    for old, tensor in state_dict.items():
        rule, match = next((rule, match) for rule in rules if (match := re.fullmatch(rule.pattern, old)))
        if rule.key is None:
            continue
        new = match.expand(rule.key)
        if new in converted:
            raise ValueError(f'{old}: another key was already converted to {new}')
        converted[new] = tensor if rule.value is None else rule.value(tensor)
    return converted


@functools.lru_cache
def _any_of(patterns: tuple[str, ...]) -> re.Pattern:
    """One pattern instead of many: files with very many further keys are looked through in one pass."""
    return re.compile('|'.join(f'(?:{pattern})' for pattern in patterns))
