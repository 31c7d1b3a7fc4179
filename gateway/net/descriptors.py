"""Descriptors that other programs have too, such as standard input and output, without a thread.

O_NONBLOCK belongs to the open file, so to set it would change what a shell or a pipe's other
programs see. A pipe or a terminal is opened once more instead (proc(5), /proc/PID/fd), with a file
of our own that does not block; a socket is asked for each transfer (MSG_DONTWAIT); a file on a disk
does not keep anybody waiting. What cannot be opened again, as a terminal of another user's, is read
and written by a thread.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, Self

import trio

from gateway.net.poller import Readiness

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNK_SIZE: Final = 64 * 1024
# Linux's Documentation/admin-guide/devices.txt.
_MEMORY: Final = 1  # the major number of /dev/null and its like, which are always ready
_PTMX: Final = os.makedev(5, 2)  # opened again it is another terminal


class Descriptor:
    """One direction of a shared descriptor. One task at a time may read; writers wait in line."""

    def __init__(
        self,
        own: int | socket.socket | None,
        read: Callable[[int], bytes],
        write: Callable[[memoryview], int],
        *,
        is_input: bool,
    ) -> None:
        self._own = own
        self._is_input = is_input
        self._read = read
        self._write = write
        self._in_thread = own is None
        self._ready: Readiness | None = None
        self.lock = trio.Lock()  # held by who writes, or wants nobody else to

    @classmethod
    def for_reading(cls, number: int) -> Self:
        """Read what a descriptor's number stands for now."""
        return cls._open(number, os.O_RDONLY)

    @classmethod
    def for_writing(cls, number: int) -> Self:
        """Write to what a descriptor's number stands for now."""
        return cls._open(number, os.O_WRONLY)

    @classmethod
    def _open(cls, number: int, access: int) -> Self:
        status = os.fstat(number)
        if stat.S_ISSOCK(status.st_mode):
            sock = socket.socket(fileno=os.dup(number))
            return cls(
                sock,
                lambda most: sock.recv(most, socket.MSG_DONTWAIT),
                lambda data: sock.send(data, socket.MSG_DONTWAIT),
                is_input=access == os.O_RDONLY,
            )
        own = _own(number, access, status)
        is_input = access == os.O_RDONLY
        if own is None:
            return cls(None, partial(_read, number), partial(_write, number), is_input=is_input)
        return cls(own, partial(os.read, own), partial(os.write, own), is_input=is_input)

    async def read(self) -> bytes:
        """Return what there is, at most CHUNK_SIZE bytes; nothing at the end. Raises `OSError`."""
        if self._in_thread:
            return await trio.to_thread.run_sync(self._read, CHUNK_SIZE, abandon_on_cancel=True)
        await trio.lowlevel.checkpoint()
        while True:
            try:
                return self._read(CHUNK_SIZE)
            except BlockingIOError:
                await self._wait()

    async def write_all(self, data: bytes | bytearray) -> None:
        """Write all of it. Raises `OSError`."""
        async with self.lock:
            await self.write_locked(data)

    def write_now(self, data: memoryview) -> int:
        """Write what can be written without waiting; return how much that was, also on errors."""
        if self._own is None or self.lock.locked():
            return 0
        try:
            return self._write(data)
        except OSError:
            return 0

    async def write_locked(self, data: bytes | bytearray) -> None:
        """As ``write_all``, for who holds the lock."""
        view = memoryview(data)
        while view:
            if self._in_thread:
                count = await trio.to_thread.run_sync(self._write, view, abandon_on_cancel=True)
            else:
                count = await self._write_some(view)
            view = view[count:]

    async def _write_some(self, view: memoryview) -> int:
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            try:
                return self._write(view)
            except BlockingIOError:
                await self._wait()

    async def _wait(self) -> None:
        """Wait until it is worth another try. Raises `OSError` if it cannot be waited for."""
        if self._own is None:
            raise OSError(errno.EBADF, "closed")
        if self._ready is None:
            self._ready = Readiness(self._own, is_input=self._is_input)
        await self._ready.wait()

    def close(self) -> None:
        """Close what was opened here; harmless if it is closed."""
        if self._ready is not None:
            self._ready.close()
        own, self._own = self._own, None
        if isinstance(own, int):
            os.close(own)
        elif own is not None:
            own.close()


def _own(number: int, access: int, status: os.stat_result) -> int | None:
    """Return a descriptor of our own that keeps nobody waiting, or None."""
    mode, device = status.st_mode, status.st_rdev
    is_tty = stat.S_ISCHR(mode) and os.isatty(number) and device != _PTMX
    if stat.S_ISFIFO(mode) or is_tty:
        with suppress(OSError):
            return _open_again(number, access)
        return None
    if stat.S_ISCHR(mode) and os.major(device) != _MEMORY:
        return None
    return os.dup(number)  # with the place in a file where it is


def _open_again(number: int, access: int) -> int:
    return os.open(f"/proc/self/fd/{number}", access | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


# In a thread: who has the descriptor too may have made it non-blocking.


def _read(number: int, most: int) -> bytes:
    while True:
        try:
            return os.read(number, most)
        except BlockingIOError:
            select.select([number], [], [])


def _write(number: int, data: memoryview) -> int:
    while True:
        try:
            return os.write(number, data)
        except BlockingIOError:
            select.select([], [number], [])
