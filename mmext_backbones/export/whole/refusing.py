"""What cannot be exported is refused by its name, with what can."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ...utils.errors import UserError

__all__ = ['Unsupported', 'behaves_as', 'refuse_settings']


class Unsupported(UserError):
    """A part of a model, or a setting of it, that no file can hold."""

    def __init__(self, what: str, known: Sequence[str]) -> None:
        super().__init__(
            f'{what}: it cannot be exported with the whole model. There {"are" if len(known) > 1 else "is"} '
            f'{", ".join(known)}. Without --whole the backbone is exported, with --neck also its neck.'
        )


def behaves_as(part: Any, reference: type, methods: Sequence[str]) -> bool:
    """Whether methods of an object are those of a class: what a class derived from it leaves as they are counts."""
    return isinstance(part, reference) and all(
        getattr(type(part), name) is getattr(reference, name) for name in methods
    )


def refuse_settings(where: str, settings: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuses settings that what is expressed anew does not follow.

    Args:
        where: What they are of, for the message.
        settings: By name.
        known: What each has to be; a tuple names several values.
    """
    for name, right in known.items():
        values = right if isinstance(right, tuple) else (right,)
        if name in settings and settings[name] not in values:
            raise Unsupported(f'{where} has {name}={settings[name]!r}', [f'{name}={value!r}' for value in values])


def title(part: nn.Module | None) -> str:
    """Name of the class of a part."""
    return type(part).__name__
