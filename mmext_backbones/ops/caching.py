"""Tensors kept from call to call, in bounded memory."""

import functools
from collections.abc import Callable
from typing import TypeVar

Function = TypeVar('Function', bound=Callable)

LIMIT = 2**22  # elements of a kept tensor: 16 MiB in float32, a shifted-window mask for a map of 290 x 290 tokens


def keep_last(entries: int, elements: Callable[..., int]) -> Callable[[Function], Function]:
    """functools.lru_cache for functions that make tensors: what has more than `LIMIT` elements is made anew each time.

    Args:
        entries: results that are kept, of the arguments used last.
        elements: how many elements the result has, from the same arguments.
    """

    def decorate(function: Function) -> Function:
        kept = functools.lru_cache(maxsize=entries)(function)

        @functools.wraps(function)
        def call(*args):
            return kept(*args) if elements(*args) <= LIMIT else function(*args)

        return call

    return decorate
