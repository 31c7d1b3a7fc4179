"""Listening sockets: which addresses a bind address means, and the accept loop."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Final

import trio

from gateway.errors import NetworkSetupError
from gateway.net.poller import Readiness

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from ipaddress import IPv4Address, IPv6Address

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


async def serve(
    listener: socket.socket,
    handler: Callable[[socket.socket], Awaitable[None]],
    nursery: trio.Nursery,
) -> None:
    """Accept until the listener is closed, one task for each client.

    The handler owns the socket and must not raise.
    """
    ready = Readiness(listener)
    while True:
        try:
            client, _ = listener.accept()
        except BlockingIOError:
            try:
                await ready.wait()
            except trio.ClosedResourceError:
                return
        except OSError as error:
            if error.errno in _EXHAUSTED:
                await trio.sleep(EXHAUSTED_PAUSE_S)
            elif error.errno in (errno.EBADF, errno.EINVAL):
                return
            # Anything else is about one client that left already (accept(2), "Error handling").
        else:
            client.setblocking(False)
            nursery.start_soon(handler, client)


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
