"""The command line of the page, and the server; only this machine is served unless asked otherwise."""

import argparse
import contextlib
import importlib
import ipaddress
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..utils.cli import add_traceback_option
from ..utils.errors import UserError
from .finding import find_runs, models_of
from .handlers import Handlers
from .models import LoadedModels
from .pictures import draw_examples

__all__ = ['main', 'serve']

EXTRA = 'pip install "gradio>=6"'
SESSIONS = 32  # browsers whose last results the server remembers

DESCRIPTION = """Serves a web page that tries trained models on pictures: boxes, masks, segments or classes, one model
or two side by side.

python tools/demo_app.py                                          the runs under work_dirs
python tools/demo_app.py CONFIG WEIGHTS                           one model
python tools/demo_app.py CONFIG_A WEIGHTS_A CONFIG_B WEIGHTS_B    two of them, compared

The page is at http://127.0.0.1:7860 and for this machine only. It works without a network and sends nothing anywhere.
"""


def main(argv: Sequence[str]) -> None:
    """Parses, serves, and returns after Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(
        prog='demo_app.py', description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'models', nargs='*', metavar='CONFIG WEIGHTS', help='pairs of paths (default: all that was trained)'
    )
    parser.add_argument('--work-dirs', default='work_dirs', metavar='DIR', help='where trained runs are looked for')
    parser.add_argument('--host', default='127.0.0.1', help='address to listen at (default: 127.0.0.1, this machine)')
    parser.add_argument('--port', type=int, default=7860, help='port to listen at (default: 7860)')
    parser.add_argument('--device', help='cpu, cuda, cuda:1, ... (default: a GPU where there is one)')
    parser.add_argument('--keep', type=int, default=2, metavar='N', help='models kept in memory (default: 2)')
    parser.add_argument(
        '--share', action='store_true', help='also at a public address of gradio.live, for everybody who has the link'
    )
    parser.add_argument(
        '--typed-paths',
        action='store_true',
        help='let visitors from elsewhere name files of this machine, too: a config is a program that they can run',
    )
    add_traceback_option(parser)
    args = parser.parse_args(argv)
    if args.keep < 1:
        parser.error(f'--keep {args.keep}: expected at least 1')
    if not 1 <= args.port <= 65535:
        parser.error(f'--port {args.port}: expected 1 to 65535')
    signal.signal(signal.SIGTERM, _stop)
    with serve(
        args.models,
        work_dirs=args.work_dirs,
        host=args.host,
        port=args.port,
        device=args.device,
        keep=args.keep,
        share=args.share,
        typed=args.typed_paths or (_is_local(args.host) and not args.share),
    ) as (url, page):
        print(f'The page: {url}   (Ctrl-C stops it)', flush=True)
        if args.share:
            address = page.share_url or 'gradio.live gave no address; is it reached from here?'
            print(f'For everybody who has the link: {address}', flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


@contextlib.contextmanager
def serve(
    paths: Sequence[str] = (),
    *,
    work_dirs: str | Path = 'work_dirs',
    host: str = '127.0.0.1',
    port: int = 7860,
    device: str | None = None,
    keep: int = 2,
    share: bool = False,
    typed: bool = True,
    load: Callable[[str, str, bool], Any] | None = None,
) -> Iterator[tuple[str, Any]]:
    """Serves the page in threads of this process until the context ends.

    Pictures that visitors upload lie in a temporary folder, which goes with the page.

    Args:
        paths: Config, weights, config, weights, ...; what was trained where it is empty.
        work_dirs: Where trained runs are looked for, each time the page is loaded.
        host: Address to listen at.
        port: Port to listen at.
        device: Of the models.
        keep: Models kept in memory.
        share: Whether gradio.live gives the page a public address.
        typed: Whether models can be added by their paths.
        load: Makes a predictor from config, weights and whether to augment; `Predictor` when None.

    Yields:
        The address of the page, and gradio's object of it.

    Raises:
        UserError: without gradio, if the port is taken, or as `models_of` does.
    """
    named = models_of(paths)
    _import_gradio()
    with tempfile.TemporaryDirectory(prefix='mmext_app_') as folder, _environment(GRADIO_TEMP_DIR=folder):
        from .page import CSS, build_page, theme

        handlers = Handlers(lambda: named or find_runs(work_dirs), LoadedModels(load or _loader(device), keep))
        page = build_page(handlers, draw_examples(folder), compare=len(named) > 1, typed=typed, folder=str(work_dirs))
        try:
            _, url, _ = page.queue().launch(
                server_name=host,
                server_port=port,
                share=share,
                prevent_thread_lock=True,
                quiet=True,
                footer_links=[],
                run_history=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                enable_monitoring=False,
                state_session_capacity=SESSIONS,
                allowed_paths=[],
                theme=theme(),
                css=CSS,
            )
        except OSError as error:
            raise UserError(
                f'nothing can listen at {host}:{port}: the port is taken, or the address is not of this machine. '
                'Try another --port.'
            ) from error
        try:
            yield url, page
        finally:
            page.close(verbose=False)


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _import_gradio() -> None:
    """With its telemetry off, which it reads when it is imported."""
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
    for name in ('NO_PROXY', 'no_proxy'):  # gradio asks itself over HTTP whether it runs
        os.environ[name] = ','.join(filter(None, [os.environ.get(name), '127.0.0.1', 'localhost']))
    try:
        gradio = importlib.import_module('gradio')
    except ModuleNotFoundError as error:
        if error.name != 'gradio':
            raise
        raise UserError(f'the web page needs gradio, which is not installed: {EXTRA}') from error
    if int(gradio.__version__.partition('.')[0]) < 6:
        raise UserError(f'the web page needs gradio 6 or later, and {gradio.__version__} is installed: {EXTRA}')


def _loader(device: str | None) -> Callable[[str, str, bool], Any]:
    def load(config: str, weights: str, tta: bool) -> Any:
        from ..inference import Predictor

        return Predictor(config, weights, device=device, tta=tta)

    return load


def _is_local(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return host == 'localhost' or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _stop(*_: object) -> None:
    raise KeyboardInterrupt
