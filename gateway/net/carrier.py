"""What a link runs over: a TCP socket, a pair of descriptors, a channel of another link, memory.

Five calls. The two that move bytes never wait; they raise `BlockingIOError` instead, so that a
batch is one system call and no trip through the scheduler. `OSError` means that the carrier is
broken.
"""

from __future__ import annotations

import os
import socket
from typing import Protocol

import trio


class Carrier(Protocol):
    """A full-duplex, ordered, reliable carrier of bytes."""

    name: str
    """The far end, for messages: "192.0.2.1 port 22"."""

    def recv_into(self, space: memoryview) -> int:
        """Read what there is into ``space``; 0 at the end. May raise BlockingIOError."""

    def send(self, data: memoryview) -> int:
        """Write as much as goes without waiting. May raise BlockingIOError."""

    async def wait_readable(self) -> None:
        """Return when ``recv_into`` may have something."""

    async def wait_writable(self) -> None:
        """Return when ``send`` may take something."""

    def close(self) -> None:
        """Close at once; whoever waits is woken with `trio.ClosedResourceError`."""


class SocketCarrier:
    """A connected stream socket, which this object owns from now on."""

    def __init__(self, sock: socket.socket, name: str = "") -> None:
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.name = name
        self._sock = sock
        self.recv_into = sock.recv_into
        self.send = sock.send

    async def wait_readable(self) -> None:
        """See `Carrier`."""
        await trio.lowlevel.wait_readable(self._sock)

    async def wait_writable(self) -> None:
        """See `Carrier`."""
        await trio.lowlevel.wait_writable(self._sock)

    def close(self) -> None:
        """See `Carrier`."""
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()


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

    async def wait_readable(self) -> None:
        """See `Carrier`."""
        await trio.lowlevel.wait_readable(self._read_fd)

    async def wait_writable(self) -> None:
        """See `Carrier`."""
        await trio.lowlevel.wait_writable(self._write_fd)

    def close(self) -> None:
        """See `Carrier`."""
        for fd in {self._read_fd, self._write_fd} - {-1}:
            trio.lowlevel.notify_closing(fd)
            os.close(fd)
        self._read_fd = self._write_fd = -1  # the numbers may be somebody else's soon
