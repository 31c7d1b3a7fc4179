"""A TCP connection through proxies: the first one is dialled, each is asked for the next.

All of it happens on one socket, from which no byte is read that belongs to what comes after the
proxies: what has arrived is looked at (MSG_PEEK) before as much of it as is ours is taken.
"""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING, Final

from gateway.errors import ConnectionLost, RemoteProtocolError, printable
from gateway.net.dial import dial, resolve
from gateway.net.poller import Readiness
from gateway.socks.client import Socks4aClient, Socks5Client
from gateway.socks.upstream import ProxyRefused, Scheme

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.net.dial import DialOptions
    from gateway.socks.upstream import Handshake, UpstreamProxy

log = logging.getLogger(__name__)

LOOK_SIZE: Final = 4096  # bytes looked at in one call


async def dial_through(
    proxies: Sequence[UpstreamProxy], host: str, port: int, options: DialOptions
) -> socket.socket:
    """Connect to ``host`` through one or more proxies; return a non-blocking socket.

    ``options`` are for the connection to the first proxy, whose name alone is looked up here. The
    time is the caller's. Raises `DialError` for the first proxy, `ConnectionLost` for what a proxy
    says, and `ConfigError` for a name that it cannot be told.
    """
    first, *others = proxies
    targets = [*((proxy.host, proxy.port) for proxy in others), (host, port)]
    sock = await dial(first.host, first.port, options)
    ready = Readiness(sock)
    try:
        for proxy, (next_host, next_port) in zip(proxies, targets, strict=True):
            log.debug("%s: asking for %s port %d", proxy, printable(next_host), next_port)
            await _ask(sock, ready, proxy, next_host, next_port, options)
    except BaseException:
        ready.close()
        sock.close()
        raise
    ready.close()
    return sock


async def _ask(
    sock: socket.socket,
    ready: Readiness,
    proxy: UpstreamProxy,
    host: str,
    port: int,
    options: DialOptions,
) -> None:
    """Have a proxy connect to a host. Raises `ConnectionLost`."""
    target = f"{printable(host)} port {port}"
    if proxy.scheme is Scheme.SOCKS5:
        host = (await resolve(host, port, family=options.family))[0].sockaddr[0]
    handshake = _handshake(proxy, host, port)
    try:
        while True:
            await _send(sock, ready, handshake.data_to_send())
            if handshake.is_done:
                return
            data = await _look(sock, ready)
            if not data:
                raise ConnectionLost(
                    f"the {proxy} closed the connection instead of making one to {target}: "
                    "its log may say why"
                )
            sock.recv(handshake.receive(data))
    except (ProxyRefused, RemoteProtocolError) as error:
        raise ConnectionLost(f"the {proxy} makes no connection to {target}: {error}") from error
    except OSError as error:
        raise ConnectionLost(
            f"the connection to the {proxy} broke: {error.strerror}: its log may say why"
        ) from error


def _handshake(proxy: UpstreamProxy, host: str, port: int) -> Handshake:
    match proxy.scheme:
        case Scheme.SOCKS5 | Scheme.SOCKS5H:
            return Socks5Client(host, port, proxy.user, proxy.password)
        case Scheme.SOCKS4A:
            return Socks4aClient(host, port, proxy.user)
        case Scheme.HTTP:
            from gateway.socks.http_connect import HttpConnect  # noqa: PLC0415 - loads h11

            return HttpConnect(host, port, proxy.user, proxy.password)


async def _send(sock: socket.socket, ready: Readiness, data: bytes) -> None:
    while data:
        try:
            data = data[sock.send(data) :]
        except BlockingIOError:
            await ready.wait()


async def _look(sock: socket.socket, ready: Readiness) -> bytes:
    """Return what has arrived, and leave it there; nothing at the end."""
    while True:
        try:
            return sock.recv(LOOK_SIZE, socket.MSG_PEEK)
        except BlockingIOError:
            await ready.wait()
