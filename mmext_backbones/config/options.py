"""The command-line option --cfg-options: parsed, and applied to a config."""

import argparse
import ast
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.runner import Runner

from ..utils.errors import UserError, did_you_mean

__all__ = ['add_config_options', 'apply_options', 'option_words']

DICTS = re.compile(r'[\[(\s]*\{')  # how a dict, or a list of them, begins; `epoch_{}.pth` is a name


def add_config_options(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds --cfg-options; `what` says what it overrides."""
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE', help=what)


class ConfigOptions(DictAction):
    """KEY=VALUE pairs as mmengine reads them; dicts, and lists of them, as Python writes them.

    ``a.b=1,2``, ``a=[(1,2),x]``, ``a="{'b': (1, 2)}"``. What cannot be read ends in a message of the parser: mmengine
    would cut a dict at its commas, or never come back from it.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Sequence[str],
        option_string: str | None = None,
    ) -> None:
        for pair in values:
            key, equals, value = pair.partition('=')
            if not key or not equals:
                parser.error(f'argument {option_string}: {pair!r}: expected KEY=VALUE')
            try:
                super().__call__(parser, namespace, [pair], option_string)
            except (ValueError, TypeError, SyntaxError, AssertionError, RecursionError):
                wanted = 'a dict as Python writes it' if DICTS.match(value) else 'brackets in pairs, or none'
                parser.error(f'argument {option_string}: {pair!r}: expected {wanted}')

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        """A value; mmengine calls it for each."""
        return ast.literal_eval(val.strip()) if DICTS.match(val) else DictAction._parse_iterable(val)


def option_words(options: Mapping[str, Any] | None) -> list[str]:
    """Options as they would be typed, with ``--cfg-options`` before them; nothing for none."""
    return ['--cfg-options', *(f'{key}={value}' for key, value in options.items())] if options else []


# What mmengine and the tools read from a config, for the sake of misspelt options.
KNOWN_KEYS = [
    *list(inspect.signature(Runner.__init__).parameters)[1:],
    *('auto_scale_lr', 'runner_type', 'strategy', 'compile', 'tta_model', 'tta_pipeline', 'model_wrapper_cfg'),
    *('sync_bn', 'find_unused_parameters', 'activation_checkpointing', 'efficient_conv_bn_eval', 'bad_data'),
]


def apply_options(cfg: Config, options: dict[str, Any] | None) -> None:
    """Applies ``--cfg-options``. A key that starts with a name neither the config nor mmengine knows is a mistake.

    Raises:
        UserError: for such a key, or one that leads through a value that is no dict or list.
    """
    for key in options or {}:
        top = key.partition('.')[0]
        if top not in cfg and top not in KNOWN_KEYS:
            raise UserError(
                f'--cfg-options {key}: the config has no {top!r}.{did_you_mean(top, [*cfg.keys(), *KNOWN_KEYS])}'
            )
    try:
        cfg.merge_from_dict(options or {})
    except (KeyError, TypeError, IndexError, AssertionError, AttributeError) as error:
        raise UserError(f'--cfg-options {options}: cannot be applied to the config: {error}') from error
