"""Listening sockets: which addresses a bind address means, and how clients are accepted.

Clients are accepted by a function that the poller calls; a task wakes only when descriptors or
memory ran out, to wait a little.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from gateway.errors import NetworkSetupError, printable
from gateway.net import poller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from ipaddress import IPv4Address, IPv6Address

    Welcome = Callable[[socket.socket, Any], None]
    Addresses = tuple[tuple[int, str], ...]  # family and address

BACKLOG: Final = 512
EXHAUSTED_PAUSE_S: Final = 0.1  # before accepting again when descriptors or memory ran out
# Without IPv6 on this machine, and under torsocks, which has none.
NO_FAMILY: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.ENOSYS)
_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
SOCKET_MASK: Final = 0o177  # umask of a socket's file, as OpenSSH: for its user alone

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER with a time of 0
_LISTENS: Final = "0A"  # TCP_LISTEN, <net/tcp_states.h>
LOOPBACK: Final = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
WILDCARD: Final = ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::"))  # noqa: S104 - as asked
_MEANINGS: Final = {None: LOOPBACK, "localhost": LOOPBACK, "": WILDCARD, "*": WILDCARD}


def addresses_to_bind(host: str | None) -> Addresses:
    """Say what a bind address means: None and "localhost" are loopback, "" and "*" all (ssh(1)).

    Any other is an address: nothing is looked up. Raises `NetworkSetupError`.
    """
    if host in _MEANINGS:
        return _MEANINGS[host]
    flags = socket.AI_PASSIVE | socket.AI_NUMERICHOST
    with _explained(host):
        return _addresses(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=flags))


async def _look_up(host: str | None) -> Addresses:
    """As `addresses_to_bind`, for names too; a cancel does not wait for the resolver."""
    if host in _MEANINGS:
        return _MEANINGS[host]
    kind, flags = socket.SOCK_STREAM, socket.AI_PASSIVE
    with _explained(host):
        return _addresses(await trio.socket.getaddrinfo(host, None, type=kind, flags=flags))


def _addresses(found: Iterable[tuple[Any, ...]]) -> Addresses:
    return tuple((int(entry[0]), str(entry[4][0])) for entry in found)


@contextmanager
def _explained(host: str | None) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeError) as error:
        raise NetworkSetupError(
            f"cannot listen on {host}: {error}: use an address of this machine"
        ) from error


def open_listeners(host: str | None, port: int) -> list[socket.socket]:
    """Bind and listen on what `addresses_to_bind` says; with port 0 both families get the same one.

    A family may be missing on this machine, but not both. Raises `NetworkSetupError`.
    """
    return _open_listeners(host, addresses_to_bind(host), port, socket.AF_UNSPEC)


async def open_listeners_by_name(
    host: str | None, port: int, only: int = socket.AF_UNSPEC
) -> list[socket.socket]:
    """Bind and listen as `open_listeners`, where ``host`` may be a name that is looked up first.

    ``only`` is the family to use. A cancel does not wait for the resolver, and leaves nothing open.
    Raises `NetworkSetupError`.
    """
    return _open_listeners(host, await _look_up(host), port, only)


def _open_listeners(
    host: str | None, addresses: Addresses, port: int, only: int
) -> list[socket.socket]:
    listeners: list[socket.socket] = []
    failure: OSError | None = None
    for family, address in addresses:
        if only not in (socket.AF_UNSPEC, family):
            continue
        wanted = port or (listeners[0].getsockname()[1] if listeners else 0)
        try:
            listeners.append(_listen(family, address, wanted))
        except OSError as error:
            if error.errno in NO_FAMILY or (not port and listeners):
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


@dataclass(frozen=True, slots=True)
class SocketFile:
    """The file of a unix socket that listens, told apart from another one at its path."""

    path: str
    device: int
    inode: int

    def remove(self) -> None:
        """Remove the file if it is still ours."""
        try:
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == (self.device, self.inode):
                Path(self.path).unlink()
        except OSError:
            return


@dataclass(frozen=True, slots=True)
class Sockets:
    """What listens at one place: its sockets, at least one, and the file of a unix one."""

    sockets: tuple[socket.socket, ...]
    file: SocketFile | None

    def close(self) -> None:
        """Listen no more, from this moment on; harmless if that was done."""
        if self.sockets[0].fileno() < 0:  # a file with our number may be another's by now
            return
        if self.file is not None:
            self.file.remove()
        for sock in self.sockets:
            poller.close(sock)


def open_unix_listener(path: str, mask: int = SOCKET_MASK) -> tuple[socket.socket, SocketFile]:
    """Make a socket file with this umask, and listen. An existing file is left alone.

    Raises `NetworkSetupError`.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setblocking(False)
        before = os.umask(mask)
        try:
            sock.bind(path)
        finally:
            os.umask(before)
        found = os.lstat(path)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        what = f"cannot listen on {printable(path)}"
        if error.errno == errno.EADDRINUSE:
            raise NetworkSetupError(
                f"{what}: there is such a file already: remove it, or choose another path"
            ) from error
        raise NetworkSetupError(f"{what}: {error.strerror or error}") from error
    return sock, SocketFile(path, found.st_dev, found.st_ino)


def remove_socket(path: str) -> None:
    """Remove what an earlier program has left at a path, if it is a socket.

    Raises `NetworkSetupError`.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise NetworkSetupError(
                f"cannot listen on {printable(path)}: the file there is no socket: "
                "choose another path"
            )
        Path(path).unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        raise NetworkSetupError(
            f"cannot remove the socket {printable(path)}: {error.strerror}"
        ) from error


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
        poller.current().watch_level(self._listener, self._ready)
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


def reset(sock: socket.socket) -> None:
    """Close with RST, so that a client cannot take it for a normal end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    poller.close(sock)


def describe(sockaddr: object) -> str:
    """Return "address port n" for what getpeername returned."""
    if isinstance(sockaddr, tuple) and len(sockaddr) >= 2:
        return f"{sockaddr[0]} port {sockaddr[1]}"
    if isinstance(sockaddr, str | bytes) and sockaddr:
        return printable(os.fsdecode(sockaddr))  # chosen by who connects
    return "unix socket"


def is_own_address(address: IPv4Address | IPv6Address) -> bool:
    """Say whether an address belongs to this machine: the kernel lets only those be bound."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True


def listening_ports() -> frozenset[int]:
    """Return the ports on which anything of this machine listens now, TCP and UDP (proc(5))."""
    ports = set()
    for protocol in ("tcp", "tcp6", "udp", "udp6"):
        try:
            lines = Path(f"/proc/net/{protocol}").read_text("ascii").splitlines()[1:]
        except OSError:  # a kernel without that family
            continue
        for line in lines:
            _, local, _, state, *_ = line.split()
            if state == _LISTENS or protocol.startswith("udp"):
                ports.add(int(local.rpartition(":")[2], 16))
    return frozenset(ports)
