"""A socket and a channel, joined: bytes both ways, half-closes one to one, resets passed on.

THEORY OF OPERATION

No task moves bytes here. The poller says that the socket has something: ``_upload`` reads it
straight into the outbound rooms, several packets in one call, seals them and flushes. It reads no
more than may be sent, so nothing waits in clear. Without room it waits for its turn in the link, or
for the peer's credit; with much to send it lets others have theirs.

The other way, the channel's sink notes views of what arrived, and the link calls ``_deliver`` at
the end of its batch, which writes them in one call. Only when the socket would block is the rest
kept in ``pending``, until the poller says that there is room; from then on data goes behind what is
pending. Credit is given for what the socket took, so at most one window is ever kept.

The end: EOF becomes a FIN, after what is pending, and the other way round; CLOSE is sent when both
directions ended. A broken socket closes the channel at once. A lost link resets the socket, at
once too, so that the program at its end cannot take a cut-off download for a whole one; but what
was complete by then is still delivered.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING, Final

import trio

from gateway.errors import ChannelClosed, ConnectionLost
from gateway.net import poller

if TYPE_CHECKING:
    from gateway.net.link import ChannelPort

GATHER_MAXIMUM: Final = 512  # views in one sendmsg; the kernel takes 1024, UIO_MAXIOV
DRAIN_SIZE: Final = 256 * 1024  # bytes offered to a slow socket at once
BATCHES_AT_ONCE: Final = 4  # read before others have their turn
BULK: Final = 16 * 1024  # who reads as much at once is in no hurry for a turn
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER with a time of 0


class Relay:
    """One socket and one channel; both are this object's from now on. Call ``run`` once."""

    def __init__(self, sock: socket.socket, port: ChannelPort) -> None:
        self._sock = sock
        self._port = port
        self._pending = port.pending
        self._gathered: list[memoryview] = []  # of this batch; valid until its end
        self._may_have_input = True
        self._has_ended_input = False
        self._waits_for_turn = False
        self._is_bulk = False
        self._upload_is_over = False
        self._was_shut_down = False
        self._is_broken = False  # the socket: nothing can be delivered, so the channel ends at once
        self._is_cut_off = False  # the link was lost before both directions had ended
        self._over = trio.Event()

    async def run(self, early_data: bytes = b"") -> None:
        """Carry until both directions ended, then close both. ``early_data`` goes out first."""
        port = self._port
        if self._sock.family in (socket.AF_INET, socket.AF_INET6):
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        port.channel.sink = self._sink
        port.on_change = self._advance
        self._advance()
        try:
            if early_data:
                await self._send_early(early_data)
            port.on_writable = self._upload
            poller.current().watch(self._sock, self._socket_ready)
            await self._over.wait()
        finally:
            self._over.set()
            port.on_change = port.on_writable = _nothing
            if self._is_cut_off:
                self._reset_on_close()
            port.close()
            poller.close(self._sock)

    def _socket_ready(self, event: int) -> None:
        """Take an event of the poller. A defect of our own ends this channel and no other."""
        try:
            if event & poller.WRITABLE and self._pending:
                self._write_pending()
            if event & poller.READABLE:
                self._may_have_input = True
                self._has_ended_input = bool(event & poller.ENDED)
                if not self._waits_for_turn:
                    self._upload()
        except Exception:
            self._break()
            raise

    # -- socket to channel -------------------------------------------------------------------------

    async def _send_early(self, early_data: bytes) -> None:
        view = memoryview(early_data)
        try:
            while view:
                await self._port.wait_room()
                view = view[self._port.channel.send(view) :]
                self._port.link.flush()
        except (ChannelClosed, ConnectionLost):
            self._end_upload()  # _advance saw it too

    def _take_turn(self) -> None:
        self._waits_for_turn = False
        self._upload()

    def _wait_for_turn(self) -> None:
        self._waits_for_turn = True
        self._port.link.turns.wait(self._take_turn, is_bulk=self._is_bulk)

    def _upload(self) -> None:
        """Read and send while there is input, credit and room, a few batches at most."""
        turns = self._port.link.turns
        for _ in range(BATCHES_AT_ONCE):
            if not self._may_have_input or self._upload_is_over:
                return
            if not self._port.may_send:
                self._end_upload()
                return
            rooms = self._rooms()
            if not rooms:
                return
            self._send_batch(rooms)
            self._port.link.flush()
            if self._is_bulk and turns.has_bulk:
                self._wait_for_turn()
                return
        poller.current().again(self._upload)

    def _rooms(self) -> list[memoryview]:
        """Where to read into; if there is nowhere, what to wait for is arranged."""
        link, channel = self._port.link, self._port.channel
        rooms = channel.rooms(self._limit())
        if not rooms and channel.remote_window:
            link.flush()  # makes room, or asks the path for leave to send more
            rooms = channel.rooms(self._limit())
            if not rooms and channel.remote_window:
                self._wait_for_turn()
        return rooms  # empty for want of credit: on_writable tells of it

    def _limit(self) -> int:
        """How much the path takes now, for who sends much."""
        if not self._is_bulk:
            return BULK
        return max(self._port.link.bulk_limit(), 0)

    def _send_batch(self, rooms: list[memoryview]) -> None:
        try:
            length = os.readv(self._sock.fileno(), rooms)
        except BlockingIOError:
            self._may_have_input = False
            return
        except OSError:
            self._break()
            self._upload_is_over = True
            return
        if not length:
            self._port.send_eof()
            self._end_upload()
            return
        self._port.channel.send_rooms(length)
        is_all = length < sum(map(len, rooms))
        self._is_bulk = length >= BULK or not is_all
        if is_all and not self._has_ended_input:
            self._may_have_input = False

    def _end_upload(self) -> None:
        self._upload_is_over = True
        self._advance()

    # -- channel to socket -------------------------------------------------------------------------

    def _sink(self, data: memoryview) -> int:
        """Note what arrived; ``_deliver`` writes it. Called while the link reads."""
        if self._pending:
            self._pending += data
            return 0
        gathered = self._gathered
        if not gathered:
            self._port.link.at_batch_end.append(self._deliver)
        gathered.append(data)
        if len(gathered) >= GATHER_MAXIMUM:
            self._deliver()
        return 0

    def _deliver(self) -> None:
        """Write what was gathered in one call; keep what the socket does not take."""
        gathered, self._gathered = self._gathered, []
        if not gathered:
            return
        length = sum(map(len, gathered))
        try:
            sent = self._sock.sendmsg(gathered)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._break()
            sent = length
        if sent:
            self._port.channel.consumed(sent)
        if sent < length:
            for view in gathered:
                self._pending += view[sent:]
                sent = max(0, sent - len(view))
            self._write_pending()  # epoll tells of room only after a send that found none

    def _write_pending(self) -> None:
        written = 0
        try:
            while self._pending:
                with memoryview(self._pending) as view:
                    sent = self._sock.send(view[:DRAIN_SIZE])
                del self._pending[:sent]
                written += sent
        except BlockingIOError:
            pass
        except OSError:
            self._break()
            return
        if written:
            self._port.consumed(written)
        if not self._pending:
            self._advance()

    # -- the end -----------------------------------------------------------------------------------

    def _break(self) -> None:
        self._is_broken = True
        self._advance()

    def _advance(self) -> None:
        """Act on what has ended: once what is pending was written, except if it cannot be."""
        port = self._port
        if isinstance(port.failure, ConnectionLost):
            whole = port.close_received or (port.eof_received and self._upload_is_over)
            if not whole:
                self._is_cut_off = True
                self._over.set()
        if self._is_broken:
            self._over.set()
        if self._pending or self._gathered or self._over.is_set():
            return
        if port.failure is not None or port.close_received:
            self._over.set()
        elif port.eof_received:
            if not self._was_shut_down:
                self._was_shut_down = True
                try:
                    self._sock.shutdown(socket.SHUT_WR)
                except OSError:
                    self._break()
            if self._upload_is_over:
                self._over.set()

    def _reset_on_close(self) -> None:
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        except OSError:
            return


def _nothing() -> None:
    pass
