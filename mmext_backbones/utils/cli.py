"""The options and the exit codes that all tools share."""

import argparse
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import UserError
from .explain import explain
from .printable import printable

VERBS = {'check_dataset': 'check-data'}  # tools that the installed command calls otherwise
TRACEBACK_ENV = 'MMEXT_TRACEBACK'


def add_traceback_option(parser: argparse.ArgumentParser) -> None:
    """The flag `run_cli` looks for."""
    parser.add_argument(
        '--traceback', action='store_true', help=f'show where an error came from (so does {TRACEBACK_ENV}=1)'
    )


def command_line(tool: str, *arguments: object) -> str:
    """A command that can be typed as it stands, quoted where it has to be.

    Where this process was started by the installed command, tools are verbs of it: ``mmext train``.

    Args:
        tool: A script, such as ``'tools/train.py'``.
        *arguments: In their order; None and an empty string among them are left out.
    """
    start, installed = ['python', tool], sys.argv[:1] and sys.argv[0].startswith('mmext ')
    if installed and tool.startswith('tools/'):
        name = Path(tool).stem
        start = ['mmext', VERBS.get(name, name)]
    words = [os.fspath(each) if isinstance(each, os.PathLike) else str(each) for each in arguments if each is not None]
    return shlex.join([*start, *filter(None, words)])


def check_threshold(threshold: float) -> None:
    """Whether it is a score.

    Raises:
        UserError: if not.
    """
    if not 0 <= threshold <= 1:
        raise UserError(f'--threshold {threshold}: expected a score from 0 to 1.')


def square(argv: Sequence[str]) -> list[str]:
    """Arguments in which one number behind --size, the edge of a square, is two, for a parser that expects H and W."""
    words = [*argv, '', '']
    squares = [
        at + 1
        for at, word in enumerate(argv)
        if word == '--size' and words[at + 1].isdecimal() and not words[at + 2].isdecimal()
    ]
    return [word for at, word in enumerate(argv) for word in ([word, word] if at in squares else [word])]


def run_cli(main: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Runs a tool and turns its end into an exit code.

    Args:
        main: The tool: takes the arguments, returns an exit code or None for 0.
        argv: The arguments; those of the process when None.

    Returns:
        What `main` returned, 2 after a mistake that could be explained, 130 after Ctrl-C.

    Raises:
        Exception: whatever `explain` does not recognise, with its traceback.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='backslashreplace')  # a screen that lacks a character ends no run
    try:
        return main(argv) or 0
    except KeyboardInterrupt:
        print('\nStopped by Ctrl-C.', file=sys.stderr)
        return 130
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        if '--traceback' in argv or os.environ.get(TRACEBACK_ENV, '0') not in ('', '0'):
            traceback.print_exception(error)
        print(f'\nError: {printable(message)}', file=sys.stderr)
        return 2
