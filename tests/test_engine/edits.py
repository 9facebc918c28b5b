"""Edits of a config, as the tests make them."""

from collections.abc import Callable

from mmengine.config import Config

from mmext_backbones.config.editing import Change, ConfigEditor


def edited(edit: Callable, cfg: Config, *args: object, **kwargs: object) -> list[Change]:
    """The changes that an edit leaves behind."""
    editor = ConfigEditor(cfg)
    edit(editor, *args, **kwargs)
    return editor.changes
