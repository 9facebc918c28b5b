"""What is made once: tensors that follow from sizes, in bounded memory, and what is loaded at its first use."""

import functools
import threading
from collections.abc import Callable
from typing import TypeVar

import torch

from .torch_versions import is_compiling

Function = TypeVar('Function', bound=Callable)

LIMIT = 2**22  # elements of a kept tensor: 16 MiB in float32, a shifted-window mask for a map of 290 x 290 tokens


def cache_tensors(entries: int, elements: Callable[..., int]) -> Callable[[Function], Function]:
    """functools.lru_cache for functions that make tensors: what has more than `LIMIT` elements is made anew each time.

    What is kept serves inference and training alike. A recorded network computes its own: a tensor of the recording has
    no data, and must not stay behind.

    Args:
        entries: results that are kept, of the arguments used last.
        elements: how many elements the result has, from the same arguments.
    """

    def decorate(function: Function) -> Function:
        @functools.lru_cache(maxsize=entries)
        @functools.wraps(function)
        def kept(*args):
            with torch.inference_mode(False):
                return function(*args)

        @functools.wraps(function)
        def call(*args):
            recorded = is_compiling() or torch._C._len_torch_dispatch_stack()
            return function(*args) if recorded or elements(*args) > LIMIT else kept(*args)

        return call

    return decorate


def load_once(function: Function) -> Function:
    """functools.cache for functions that load something: of the threads that ask first, one runs it, the others wait.

    functools.cache lets each of them run it.
    """
    results: dict[tuple, object] = {}
    lock = threading.RLock()

    @functools.wraps(function)
    def call(*args):
        if args not in results:
            with lock:
                if args not in results:
                    results[args] = function(*args)
        return results[args]

    call.cache_clear = results.clear
    return call
