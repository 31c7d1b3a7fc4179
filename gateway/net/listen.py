"""Listening sockets: which addresses a bind address means, and how clients are accepted.

Clients are accepted by a function that the poller calls; a task wakes only when descriptors or
memory ran out, to wait a little.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any, Final

import trio

from gateway.errors import NetworkSetupError
from gateway.net import poller

if TYPE_CHECKING:
    from collections.abc import Callable
    from ipaddress import IPv4Address, IPv6Address

    Welcome = Callable[[socket.socket, Any], None]

BACKLOG: Final = 512
EXHAUSTED_PAUSE_S: Final = 0.1  # before accepting again when descriptors or memory ran out
_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

LOOPBACK: Final = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
WILDCARD: Final = ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::"))  # noqa: S104 - as asked


def addresses_to_bind(host: str | None) -> tuple[tuple[int, str], ...]:
    """Say what a bind address means: None and "localhost" are loopback, "" and "*" all (ssh(1))."""
    if host is None or host == "localhost":
        return LOOPBACK
    if host in ("", "*"):
        return WILDCARD
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise NetworkSetupError(
            f"cannot listen on {host}: {error}: use an address of this machine"
        ) from error
    return tuple((int(entry[0]), str(entry[4][0])) for entry in found)


def open_listeners(host: str | None, port: int) -> list[socket.socket]:
    """Bind and listen; with port 0 every family gets the same free port.

    One family may be missing on this machine, but not both. Raises `NetworkSetupError`.
    """
    listeners: list[socket.socket] = []
    failure: OSError | None = None
    for family, address in addresses_to_bind(host):
        wanted = port or (listeners[0].getsockname()[1] if listeners else 0)
        try:
            listeners.append(_listen(family, address, wanted))
        except OSError as error:
            if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL) or (not port and listeners):
                failure = failure or error
                continue
            for listener in listeners:
                listener.close()
            raise _setup_error(address, wanted, error) from error
    if not listeners:
        raise _setup_error(host or "localhost", port, failure or OSError("no address"))
    return listeners


def _listen(family: int, address: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # its clients inherit it
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _setup_error(address: str, port: int, error: OSError) -> NetworkSetupError:
    what = f"cannot listen on {address} port {port}"
    match error.errno:
        case errno.EADDRINUSE:
            return NetworkSetupError(
                f"{what}: another program uses this port: end it, or choose another port"
            )
        case errno.EACCES:
            return NetworkSetupError(
                f"{what}: only root may use ports below 1024: choose a higher port"
            )
        case errno.EADDRNOTAVAIL:
            return NetworkSetupError(f"{what}: this machine has no such address")
    return NetworkSetupError(f"{what}: {error.strerror or error}")


class _Acceptor:
    """Accepts from one listener until it is closed or something runs out."""

    def __init__(self, listener: socket.socket, welcome: Welcome) -> None:
        self._listener = listener
        self._welcome = welcome
        self._stopped = trio.Event()
        self._is_exhausted = False

    async def run_until_exhausted(self) -> bool:
        """Accept; return True when descriptors or memory ran out, False at the end."""
        if self._listener.fileno() < 0:
            return False
        self._stopped = trio.Event()
        self._is_exhausted = False
        poller.current().watch_listener(self._listener, self._ready)
        try:
            await self._stopped.wait()
        finally:
            poller.current().forget(self._listener)
        return self._is_exhausted

    def _ready(self, event: int) -> None:
        if event == poller.CLOSED:
            self._stopped.set()
            return
        try:
            client, address = self._listener.accept()
        except OSError as error:
            self._is_exhausted = error.errno in _EXHAUSTED
            if self._is_exhausted or error.errno in (errno.EBADF, errno.EINVAL):
                poller.current().forget(self._listener)  # or it would be told again before we wake
                self._stopped.set()
            # Anything else is about one client that left already (accept(2), "Error handling").
        else:
            client.setblocking(False)
            self._welcome(client, address)


async def serve(listener: socket.socket, welcome: Welcome) -> None:
    """Accept until the listener is closed, with `poller.close`, or this task is cancelled.

    ``welcome`` gets the non-blocking socket and the address of each client, and must not raise.
    """
    acceptor = _Acceptor(listener, welcome)
    while await acceptor.run_until_exhausted():  # noqa: ASYNC110 - nobody tells of free ones
        await trio.sleep(EXHAUSTED_PAUSE_S)


def describe(sockaddr: object) -> str:
    """Return "address port n" for what getpeername returned."""
    if isinstance(sockaddr, tuple) and len(sockaddr) >= 2:
        return f"{sockaddr[0]} port {sockaddr[1]}"
    return (
        os.fsdecode(sockaddr) if isinstance(sockaddr, str | bytes) and sockaddr else "unix socket"
    )


def is_own_address(address: IPv4Address | IPv6Address) -> bool:
    """Say whether an address belongs to this machine: the kernel lets only those be bound."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True
