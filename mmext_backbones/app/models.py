"""A cache of loaded models that drops the least recently used."""

import gc
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import torch

from .finding import Model

__all__ = ['LoadedModels', 'Tell', 'silent']

Tell = Callable[[float, str], None]


def silent(share: float, what: str) -> None:
    """For who does not want to be told."""


class LoadedModels:
    """Predictors by model and kind of test; at most `keep` of them are in memory at any time, also while one loads.

    Args:
        load: Makes a predictor: load(config, weights, tta).
        keep: How many predictors may be in memory, at least 1.
    """

    def __init__(self, load: Callable[[str, str, bool], Any], keep: int) -> None:
        if keep < 1:
            raise ValueError(f'keep={keep}: expected at least 1')
        self._load = load
        self._keep = keep
        self._predictors: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._predictors)

    def predict(self, model: Model, image: Any, tta: bool = False, tell: Tell = silent) -> tuple[Any, float | None]:
        """One picture through one model; one at a time, so that neither memory nor timings are shared.

        Args:
            model: Which one.
            image: What the predictor takes.
            tta: Whether to predict with test-time augmentation.
            tell: Told how much is done, from 0 to 1, and what happens now.

        Returns:
            The prediction, and the seconds that loading took; None where the model was in memory.
        """
        with self._lock:
            key = (model.config, model.weights, _stamp(model.config), _stamp(model.weights), tta)
            seconds = None
            if key not in self._predictors:
                tell(0.1, f'loading {model.name}')
                self._make_room()
                start = time.perf_counter()
                self._predictors[key] = self._load(model.config, model.weights, tta)
                seconds = time.perf_counter() - start
            self._predictors.move_to_end(key)
            tell(0.6, 'predicting')
            return self._predictors[key](image), seconds

    def _make_room(self) -> None:
        while len(self._predictors) >= self._keep:
            self._predictors.popitem(last=False)
            gc.collect()  # models are full of circles
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _stamp(path: str) -> float | None:
    """When a file was written: a training that goes on writes its checkpoint anew."""
    return Path(path).stat().st_mtime if Path(path).is_file() else None
