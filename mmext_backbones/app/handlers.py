"""The handlers of the page's events. They know nothing of gradio."""

import logging
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mmengine.logging import print_log

from ..utils.errors import UserError, first_line
from ..utils.explain import explain
from .captions import Found, failure_text, found_text, note_text
from .finding import Model, model_of
from .models import LoadedModels, Tell, silent
from .pictures import read_picture

__all__ = ['TYPED_OFF', 'Handlers', 'Shown']

TYPED_OFF = (
    'Off, because a config is a program that would be run here. To add models by their paths, start the page with '
    '--typed-paths; or name them at the start: python tools/demo_app.py CONFIG WEIGHTS'
)

TEXT_SCALE = 1.5  # two results share the width of a window

Added = Mapping[str, Model]  # what one person has added by its paths


class Shown(NamedTuple):
    """What one side of the page shows, and what it needs to show it with another threshold."""

    image: np.ndarray | None = None
    text: str = ''
    found: Found | None = None


class Handlers:
    """Every answer is something to show: mistakes become messages, and never tracebacks.

    Args:
        offered: Says which models everybody may choose, now.
        models: Those in memory.
        typed: Whether models can be added by their paths: a config that is named is run.
        uploads: The folder of what visitors upload, of which nothing is a model.
    """

    def __init__(
        self,
        offered: Callable[[], list[Model]],
        models: LoadedModels,
        *,
        typed: bool = False,
        uploads: str | None = None,
    ) -> None:
        self._offered = offered
        self._models = models
        self._typed = typed
        self._uploads = uploads

    def choices(self, added: Added) -> list[str]:
        """Names of the models that can be chosen: what was added last comes first."""
        return list(dict.fromkeys([*reversed(added), *(model.name for model in self._offered())]))

    def look(
        self,
        picture: str | None,
        name: str | None,
        added: Added,
        threshold: float,
        tta: bool,
        tell: Tell = silent,
    ) -> Shown:
        """One model on one picture.

        Args:
            picture: Path of the picture, or None where none was chosen.
            name: Of the model, or None where none was chosen.
            added: The models of this person.
            threshold: Score from which on boxes and masks are shown.
            tta: Whether to predict with test-time augmentation.
            tell: Told what happens now, see `LoadedModels.predict`.
        """
        if picture is None:
            return Shown(text=note_text('Choose a picture first: drop one, or take one of the examples.'))
        if name is None:
            return Shown(text=note_text('Choose a model first.'))
        try:
            prediction, loading = self._models.predict(self._model(name, added), read_picture(picture), tta, tell)
            return self.drawn(Found(name, prediction, loading, tta), threshold)
        except Exception as error:
            return Shown(text=failure_text(message_of(error)))

    def drawn(self, found: Found, threshold: float) -> Shown:
        """What was found, from another score on."""
        return Shown(found.prediction.drawn(threshold, TEXT_SCALE), found_text(found, threshold), found)

    def add(self, config: str, weights: str, added: Added) -> tuple[dict[str, Model], str | None, str]:
        """A model by its paths.

        Returns:
            What this person has added by now, the name of the new model or None, and a message.
        """
        try:
            if not self._typed:
                raise UserError(TYPED_OFF)
            for path in (config, weights):
                if self._uploads is not None and Path(path.strip()).resolve().is_relative_to(
                    Path(self._uploads).resolve()
                ):
                    raise UserError('a file that was uploaded is no model: name one of the machine of this page.')
            model = model_of(config, weights, self.choices(added))
        except Exception as error:
            return dict(added), None, failure_text(message_of(error))
        return {**added, model.name: model}, model.name, note_text(f'Added and chosen: {model.name}')

    def _model(self, name: str, added: Added) -> Model:
        model = added.get(name) or next((model for model in self._offered() if model.name == name), None)
        if model is None:
            raise UserError(f'{name} is no longer there. Load the page again to see what is.')
        return model


def message_of(error: Exception) -> str:
    """What a person is told; what is not known to be a mistake of theirs goes to the log with its traceback."""
    message = explain(error)
    if message is not None:
        return message
    print_log(''.join(traceback.format_exception(error)), 'current', logging.ERROR)
    first = first_line(error)
    return f'This did not work: {type(error).__name__}: {first}\nThe terminal of the page says where it happened.'
