"""The options and the exit codes that all tools share."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from .explain import explain

TRACEBACK_ENV = 'MMEXT_TRACEBACK'


def add_traceback_option(parser: argparse.ArgumentParser) -> None:
    """The flag `run_cli` looks for."""
    parser.add_argument(
        '--traceback', action='store_true', help=f'show where an error came from (so does {TRACEBACK_ENV}=1)'
    )


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
        print(f'\nError: {message}', file=sys.stderr)
        return 2
