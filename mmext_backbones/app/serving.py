"""The command line of the page, and the server; only this machine is served unless asked otherwise."""

import argparse
import contextlib
import importlib
import os
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..runtime import RUNTIMES
from ..utils.cli import add_traceback_option
from ..utils.errors import UserError
from .finding import find_runs, models_of
from .guard import MOST_BYTES, Guard, is_loopback
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

The page is at http://127.0.0.1:7860 and for this machine only, all its accounts; --login asks for a password. It works
without a network and sends nothing anywhere.
"""
USER = 'me'  # who logs in


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
    parser.add_argument(
        '--runtime',
        choices=['torch', *RUNTIMES],
        default='torch',
        help='what computes: for the others, on the CPU, a model is exported when it is first used (default: torch)',
    )
    parser.add_argument('--keep', type=int, default=2, metavar='N', help='models kept in memory (default: 2)')
    parser.add_argument(
        '--share', action='store_true', help='also at a public address of gradio.live, for everybody who has the link'
    )
    parser.add_argument(
        '--typed-paths',
        action='store_true',
        help='let who reaches the page add models by their paths here: a config is a program, which they can run',
    )
    parser.add_argument(
        '--login', action='store_true', help='ask for a password, which is drawn at each start and printed'
    )
    parser.add_argument(
        '--allow-host',
        action='append',
        default=[],
        metavar='NAME',
        help='serve under this host name, too, as where another server hands the page on (default: localhost, '
        'addresses and, with --host, the names of this machine)',
    )
    add_traceback_option(parser)
    args = parser.parse_args(argv)
    if args.keep < 1:
        parser.error(f'--keep {args.keep}: expected at least 1')
    if not 1 <= args.port <= 65535:
        parser.error(f'--port {args.port}: expected 1 to 65535')
    signal.signal(signal.SIGTERM, _stop)
    password = secrets.token_urlsafe(12) if args.login else None
    with serve(
        args.models,
        work_dirs=args.work_dirs,
        host=args.host,
        port=args.port,
        device=args.device,
        runtime=args.runtime,
        keep=args.keep,
        share=args.share,
        typed=args.typed_paths,
        password=password,
        allow_hosts=args.allow_host,
    ) as (url, page):
        print(f'The page: {url}   (Ctrl-C stops it)', flush=True)
        print(_whom(args.host, args.share, password, args.typed_paths), flush=True)
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
    runtime: str = 'torch',
    keep: int = 2,
    share: bool = False,
    typed: bool = False,
    password: str | None = None,
    allow_hosts: Sequence[str] = (),
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
        runtime: What computes, as for `Predictor`.
        keep: Models kept in memory.
        share: Whether gradio.live gives the page a public address.
        typed: Whether models can be added by their paths: a config that is named is run.
        password: What visitors are asked for, with the name ``me``; nothing when None.
        allow_hosts: Further host names under which the page is served.
        load: Makes a predictor from config, weights and whether to augment; `Predictor` when None.

    Yields:
        The address of the page, and gradio's object of it.

    Raises:
        UserError: without gradio, if the port is taken, or as `models_of` does.
    """
    named = models_of(paths)
    _import_gradio()
    own_names = set() if is_loopback(host) else {socket.gethostname().lower(), socket.getfqdn().lower(), host.lower()}
    with tempfile.TemporaryDirectory(prefix='mmext_app_') as folder, _settings(folder):
        from starlette.middleware import Middleware

        from .page import CSS, build_page, theme

        models = LoadedModels(load or _loader(device, runtime), keep)
        handlers = Handlers(lambda: named or find_runs(work_dirs), models, typed=typed, uploads=folder)
        guard = Middleware(
            Guard,
            names=own_names,
            origins={name.lower().partition(':')[0] for name in allow_hosts},
            loopback=is_loopback(host),
            uploads=Path(folder),
        )
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
                max_file_size=MOST_BYTES,
                app_kwargs={'middleware': [guard]},
                auth=None if password is None else (USER, password),
                theme=theme(),
                css=CSS,
            )
        except OSError as error:
            raise UserError(
                f'nothing can listen at {host}:{port}: the port is taken, or the address is not of this machine. '
                'Try another --port.'
            ) from error
        if page.share_url:
            own_names.add(urlsplit(page.share_url).hostname)
        try:
            yield url, page
        finally:
            page.close(verbose=False)


@contextlib.contextmanager
def _settings(folder: str) -> Iterator[None]:
    """The environment of gradio: where uploads go, and no further processes that serve files past the guard."""
    values = {'GRADIO_TEMP_DIR': folder, 'GRADIO_NUM_WORKERS': '0'}
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


def _loader(device: str | None, runtime: str = 'torch') -> Callable[[str, str, bool], Any]:
    def load(config: str, weights: str, tta: bool) -> Any:
        from ..inference import Predictor

        return Predictor(config, weights, device=device, tta=tta, runtime=runtime)

    return load


def _whom(host: str, share: bool, password: str | None, typed: bool) -> str:
    """Who can use the page, for who starts it."""
    who = 'every account of this machine' if is_loopback(host) else f'everybody who reaches {host}'
    who = 'everybody who has the link' if share else who
    able = ', and can run programs as you (--typed-paths)' if typed else ''
    if password is None:
        return f'It answers {who}{able}. --login asks for a password.'
    return f'It answers {who} and has the password{able}. Log in as {USER!r} with {password}'


def _stop(*_: object) -> None:
    raise KeyboardInterrupt
