"""What a link runs over: a TCP socket, a pair of descriptors, a channel of another link, memory.

The two calls that move bytes never wait; they raise `BlockingIOError` instead, and ``watch`` tells
when to try again, so that a batch is one system call and no trip through the scheduler. `OSError`
means that the carrier is broken.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Final, Protocol

from gateway.net import poller

if TYPE_CHECKING:
    from collections.abc import Callable

NOTSENT_LOWAT: Final = 256 * 1024  # a batch; more would stand in the kernel before a keystroke


class Carrier(Protocol):
    """A full-duplex, ordered, reliable carrier of bytes."""

    name: str
    """The far end, for messages: "192.0.2.1 port 22"."""

    def recv_into(self, space: memoryview) -> int:
        """Read what there is into ``space``; 0 at the end. May raise BlockingIOError."""

    def send(self, data: memoryview) -> int:
        """Write as much as goes without waiting. May raise BlockingIOError."""

    def acknowledge(self) -> None:
        """Let the peer know at once what arrived, where that is worth a message of its own."""

    def watch(self, on_ready: Callable[[int], None]) -> None:
        """Call ``on_ready`` with events as `gateway.net.poller` has them, edge-triggered."""

    def close(self) -> None:
        """Close at once; ``on_ready`` is not called any more."""


class SocketCarrier:
    """A connected stream socket, which this object owns from now on."""

    def __init__(self, sock: socket.socket, name: str = "") -> None:
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_LOWAT)
        self.name = name
        self._sock = sock
        self.recv_into = sock.recv_into
        self.send = sock.send

    def acknowledge(self) -> None:
        """See `Carrier`. TCP_QUICKACK holds for a moment only (tcp(7))."""
        with contextlib.suppress(OSError):  # no TCP
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def watch(self, on_ready: Callable[[int], None]) -> None:
        """See `Carrier`."""
        poller.current().watch(self._sock, on_ready)

    def close(self) -> None:
        """See `Carrier`."""
        poller.close(self._sock)


class DescriptorCarrier:
    """Two descriptors, one for each direction: a pipe pair, or standard input and output."""

    def __init__(self, read_fd: int, write_fd: int, name: str = "pipe") -> None:
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        self.name = name
        self._read_fd = read_fd
        self._write_fd = write_fd

    def recv_into(self, space: memoryview) -> int:
        """See `Carrier`."""
        return os.readv(self._read_fd, [space])

    def send(self, data: memoryview) -> int:
        """See `Carrier`."""
        return os.write(self._write_fd, data)

    def acknowledge(self) -> None:
        """See `Carrier`. Pipes have no such thing."""

    def watch(self, on_ready: Callable[[int], None]) -> None:
        """See `Carrier`."""
        for fd in {self._read_fd, self._write_fd}:
            poller.current().watch(fd, on_ready)

    def close(self) -> None:
        """See `Carrier`."""
        for fd in {self._read_fd, self._write_fd} - {-1}:
            poller.current().forget(fd)
            os.close(fd)
        self._read_fd = self._write_fd = -1  # the numbers may be somebody else's soon
