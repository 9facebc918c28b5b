"""What stands before the page: requests under foreign names, from other sites and without bound are refused.

A web site that a person has open can send requests to servers on that person's machine: by a form or a script of its
own, or by giving its name the address of this machine (DNS rebinding). The first names another origin than the page's,
the second another host. An ASGI middleware; it knows nothing of gradio.
"""

import ipaddress
import os
import re
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

__all__ = ['MOST_BYTES', 'Guard', 'is_loopback']

MOST_BYTES = 32 << 20  # of a request: a picture of 50 megapixels as a JPEG
ROOM = 1 << 30  # bytes of uploads that are kept at a time

Receive = Callable[[], Awaitable[dict]]
Send = Callable[[dict], Awaitable[None]]


class Guard:
    """Lets requests through whose host and origin are those of the page, and whose body is bounded.

    Args:
        app: What answers them.
        names: Host names of the page, besides ``localhost`` and addresses. A set that grows is looked at anew.
        origins: Host names under which other servers hand the page on; a request may come from there.
        loopback: Whether the page is for this machine only: then addresses of the network are foreign, too.
        uploads: The folder that uploads are kept in.
    """

    def __init__(
        self, app: Any, *, names: Collection[str], origins: Collection[str], loopback: bool, uploads: Path
    ) -> None:
        self.app = app
        self.names = names
        self.origins = origins
        self.loopback = loopback
        self.uploads = uploads

    async def __call__(self, scope: dict, receive: Receive, send: Send) -> None:
        if scope['type'] not in ('http', 'websocket'):
            await self.app(scope, receive, send)
            return
        status, reason = self._refusal(scope)
        if status:
            await _answer(scope, send, status, reason)
            return
        begun, left = False, MOST_BYTES

        async def bounded() -> dict:
            nonlocal left
            message = await receive()
            left -= len(message.get('body') or b'')
            if left < 0:
                raise _TooLargeError
            return message

        async def watched(message: dict) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, bounded if scope['type'] == 'http' else receive, watched)
        except _TooLargeError:
            if not begun:
                await _answer(scope, send, 413, TOO_LARGE)

    def _refusal(self, scope: dict) -> tuple[int, str]:
        """Status and reason; 0 for what may pass."""
        headers: dict[bytes, list[str]] = {}
        for name, value in scope['headers']:
            headers.setdefault(name.lower(), []).append(value.decode('latin-1'))
        hosts, origins = headers.get(b'host', []), headers.get(b'origin', [])
        if len(hosts) != 1 or not self._is_ours(_host(hosts[0])):
            return 421, 'This page is not served under that name. To serve it: --allow-host NAME'
        if len(origins) > 1 or (origins and not self._may_come_from(origins[0], hosts[0])):
            return 403, 'This page takes no requests from other sites.'
        length = headers.get(b'content-length', ['0'])[0]
        if length.isdecimal() and int(length[:20]) > MOST_BYTES:
            return 413, TOO_LARGE
        if scope['path'].rstrip('/').endswith('/upload') and _size(self.uploads) > ROOM:
            return 507, 'Too many pictures were uploaded within the last hour. Try again later.'
        return 0, ''

    def _is_ours(self, host: str) -> bool:
        if host == 'localhost' or host in self.names or host in self.origins:
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return address.is_loopback or not self.loopback  # no name leads to it, so none was bent

    def _may_come_from(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        return parts.netloc.lower() == host.lower() or _host(parts.netloc) in self.origins


class _TooLargeError(Exception):
    """A body that goes on beyond what its length may be."""


TOO_LARGE = f'Too large: at most {MOST_BYTES >> 20} MiB are taken.'


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return host == 'localhost' or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host(netloc: str) -> str:
    """The host of ``host:port``, in small letters; empty where it is anything else."""
    match = re.fullmatch(r'(?:\[([0-9a-f:.]+)\]|([\w.-]+))(?::\d*)?', netloc.lower(), re.ASCII)
    return (match[1] or match[2]).removesuffix('.') if match else ''


def _size(folder: Path) -> int:
    return sum(
        os.lstat(os.path.join(root, name)).st_size
        for root, _, names in os.walk(folder)
        for name in names
        if os.path.lexists(os.path.join(root, name))
    )


async def _answer(scope: dict, send: Send, status: int, reason: str) -> None:
    if scope['type'] == 'websocket':
        await send({'type': 'websocket.close', 'code': 1008, 'reason': reason})
        return
    headers = [(b'content-type', b'text/plain; charset=utf-8'), (b'x-content-type-options', b'nosniff')]
    headers += [(b'connection', b'close')]  # the rest of the request is not read
    await send({'type': 'http.response.start', 'status': status, 'headers': headers})
    await send({'type': 'http.response.body', 'body': reason.encode()})
