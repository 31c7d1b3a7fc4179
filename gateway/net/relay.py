"""A socket and a channel, joined: bytes both ways, half-closes one to one, resets passed on.

THEORY OF OPERATION

Towards the channel: one task waits until the socket is readable, then reads straight into the
outbound room and seals, as long as there is room and data, and flushes once. It reads no more than
may be sent, so nothing waits in clear.

Towards the socket: no task. The channel's sink runs inside the link's read loop and writes to the
socket at once. Only when the socket would block is the rest kept in ``pending`` and ``_drain``
woken, once; from then on data goes behind what is pending. Credit is given for what the socket
took, so at most one window is ever kept.

The end: EOF becomes a FIN, after what is pending, and the other way round; CLOSE is sent when both
directions ended. A broken socket closes the channel at once. A lost link resets the socket, at
once too, so that the program at its end cannot take a cut-off download for a whole one; but what
was complete by then is still delivered.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Final

import trio

from gateway.errors import ChannelClosed, ConnectionLost

if TYPE_CHECKING:
    from gateway.net.link import ChannelPort

DRAIN_SIZE: Final = 256 * 1024  # bytes offered to a slow socket at once
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER with a time of 0


class Relay:
    """One socket and one channel; both are this object's from now on. Call ``run`` once."""

    def __init__(self, sock: socket.socket, port: ChannelPort) -> None:
        self._sock = sock
        self._port = port
        self._pending = port.pending
        self._wanted = trio.Event()
        self._upload_is_over = False
        self._is_broken = False  # the socket: nothing can be delivered, so the channel ends at once
        self._is_cut_off = False  # the link was lost before both directions had ended
        self._scope = trio.CancelScope()

    async def run(self, early_data: bytes = b"") -> None:
        """Carry until both directions ended, then close both. ``early_data`` goes out first."""
        port = self._port
        if self._sock.family in (socket.AF_INET, socket.AF_INET6):
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        port.channel.sink = self._sink
        port.on_change = self._channel_changed
        self._channel_changed()
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._drain)
                    await self._upload(early_data)
        finally:
            port.on_change = _nothing
            if self._is_cut_off:
                self._reset_on_close()
            port.close()
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()

    # -- socket to channel -------------------------------------------------------------------------

    async def _upload(self, early_data: bytes) -> None:
        port, sock, link = self._port, self._sock, self._port.link
        channel = port.channel
        try:
            await self._send_early(early_data)
            while port.may_send:
                room = channel.room()
                if not room:
                    link.flush()
                    await port.wait_room()
                    continue
                try:
                    length = sock.recv_into(room)
                except BlockingIOError:
                    link.flush()
                    await trio.lowlevel.wait_readable(sock)
                    continue
                if not length:
                    break
                channel.send_room(length)
                if length < len(room):  # most likely that was all: one send, then wait
                    link.flush()
                    await trio.lowlevel.wait_readable(sock)
            port.send_eof()
        except (ChannelClosed, ConnectionLost):
            pass  # _drain saw it too, and still delivers what is pending
        except OSError:
            self._is_broken = True
        self._upload_is_over = True
        self._wake()

    async def _send_early(self, early_data: bytes) -> None:
        view = memoryview(early_data)
        while view:
            await self._port.wait_room()
            view = view[self._port.channel.send(view) :]
            self._port.link.flush()

    # -- channel to socket -------------------------------------------------------------------------

    def _sink(self, data: memoryview) -> int:
        """Write to the socket; keep what it does not take. Called from the link's read loop."""
        length = len(data)
        if self._pending:
            self._pending += data
            return 0
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._is_broken = True
            self._wake()
            return length
        if sent < length:
            self._pending += data[sent:]
            self._wake()
        return sent

    def _wake(self) -> None:
        self._wanted.set()

    def _channel_changed(self) -> None:
        port = self._port
        if isinstance(port.failure, ConnectionLost):
            whole = port.close_received or (port.eof_received and self._upload_is_over)
            if not whole:
                self._is_cut_off = True
                self._scope.cancel()
        self._wake()

    async def _drain(self) -> None:
        """Write what is pending, then act on CLOSE, loss and EOF; end when both directions have."""
        port = self._port
        was_shut_down = False
        try:
            while True:
                while self._pending and not self._is_broken:
                    await trio.lowlevel.wait_writable(self._sock)
                    self._write_pending()
                if self._is_broken or port.failure is not None or port.close_received:
                    break
                if port.eof_received and not was_shut_down:
                    was_shut_down = True
                    self._sock.shutdown(socket.SHUT_WR)
                if was_shut_down and self._upload_is_over:
                    return
                await self._wanted.wait()
                self._wanted = trio.Event()
        except OSError:
            self._is_broken = True
        self._scope.cancel()

    def _write_pending(self) -> None:
        with memoryview(self._pending) as view:
            try:
                sent = self._sock.send(view[:DRAIN_SIZE])
            except BlockingIOError:
                return
        del self._pending[:sent]
        self._port.consumed(sent)

    def _reset_on_close(self) -> None:
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        except OSError:
            return


def _nothing() -> None:
    pass
