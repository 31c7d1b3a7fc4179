"""A channel as a trio stream, for whoever wants to read and write rather than relay.

It behaves like any `trio.abc.HalfCloseableStream` and raises trio's errors; trio's own battery of
tests for such streams passes on it.
"""

from __future__ import annotations

import operator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio

from gateway.errors import ChannelClosed, ConnectionLost, LocalProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.net.port import ChannelPort

DEFAULT_RECEIVE_SIZE: Final = 64 * 1024


class ChannelStream(trio.abc.HalfCloseableStream):
    """One channel; ``aclose`` closes it. Credit goes back for what ``receive_some`` returned."""

    def __init__(self, port: ChannelPort) -> None:
        self.port = port
        self._changed = trio.lowlevel.ParkingLot()
        self._is_closed = False
        self._eof_sent = False
        self._sender_is_busy = False
        self._receiver_is_busy = False
        port.on_change = self._changed.unpark_all

    # -- sending -----------------------------------------------------------------------------------

    @contextmanager
    def _sending(self) -> Iterator[None]:
        if self._sender_is_busy:
            raise trio.BusyResourceError("another task is sending on this channel")
        self._sender_is_busy = True
        try:
            yield
        except (ChannelClosed, ConnectionLost, LocalProtocolError) as error:
            if self._is_closed:
                raise trio.ClosedResourceError from None
            raise trio.BrokenResourceError(str(error)) from error
        finally:
            self._sender_is_busy = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``; wait where the window or the link is full."""
        with self._sending():
            if self._is_closed or self._eof_sent:
                raise trio.ClosedResourceError("this side has ended its data")
            await trio.lowlevel.checkpoint()
            view = memoryview(data)
            while view:
                await self.port.wait_room()
                view = view[self.port.channel.send(view) :]
                self.port.link.flush()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait for credit and room."""
        with self._sending():
            if self._is_closed or self._eof_sent:
                raise trio.ClosedResourceError("this side has ended its data")
            await trio.lowlevel.checkpoint()
            await self.port.wait_room()

    async def send_eof(self) -> None:
        """Send EOF; receiving goes on."""
        with self._sending():
            if self._is_closed:
                raise trio.ClosedResourceError("the channel is closed")
            self._eof_sent = True
            self.port.send_eof()
            await trio.lowlevel.checkpoint()

    # -- receiving ---------------------------------------------------------------------------------

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return some bytes, or b"" after the peer's EOF or CLOSE."""
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be at least 1")
        if self._receiver_is_busy:
            raise trio.BusyResourceError("another task is receiving on this channel")
        self._receiver_is_busy = True
        try:
            await trio.lowlevel.checkpoint()
            return await self._take(max_bytes or DEFAULT_RECEIVE_SIZE)
        finally:
            self._receiver_is_busy = False

    async def _take(self, max_bytes: int) -> bytes:
        port = self.port
        while True:
            if self._is_closed:
                raise trio.ClosedResourceError("the channel is closed")
            if port.pending:
                data = bytes(port.pending[:max_bytes])
                del port.pending[:max_bytes]
                port.consumed(len(data))
                return data
            if port.eof_received or port.close_received:
                return b""
            if port.failure is not None:
                raise trio.BrokenResourceError(str(port.failure)) from port.failure
            await self._changed.park()

    async def aclose(self) -> None:
        """Close the channel both ways."""
        if not self._is_closed:
            self._is_closed = True
            self.port.close()
            self.port.fail(ChannelClosed("closed by us"))
        await trio.lowlevel.checkpoint()
