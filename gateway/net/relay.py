"""A socket and a channel, joined: bytes both ways, half-closes one to one, resets passed on.

THEORY OF OPERATION

No task moves bytes here. The poller says that the socket has something: ``_upload`` reads it
straight into the outbound rooms, several packets in one call, seals them and flushes. It reads no
more than may be sent, so nothing waits in clear. Without room it waits for its turn in the link, or
for the peer's credit; with much to send it lets others have theirs.

Early data, what the program sent before the far end was there, goes the same way, first.

The other way, the channel's sink notes views of what arrived, and the link calls ``_deliver`` at
the end of its batch, which writes them in one call. Only when the socket would block is the rest
kept in ``pending``, until the poller says that there is room (it is asked to, the first time); from
then on data goes behind what is pending. Credit is given for what the socket took, so at most one
window is ever kept.

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

from gateway.errors import ConnectionLost
from gateway.net import poller
from gateway.net.port import nothing

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.net.port import ChannelPort

GATHER_MAXIMUM: Final = 512  # views in one sendmsg; the kernel takes 1024, UIO_MAXIOV
DRAIN_SIZE: Final = 256 * 1024  # bytes offered to a slow socket at once
BATCHES_AT_ONCE: Final = 4  # read before others have their turn
BULK: Final = 16 * 1024  # who reads as much at once is in no hurry for a turn
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER with a time of 0


class Relay:
    """One socket and one channel; both are this object's once ``start`` is called."""

    __slots__ = (
        "_awaits_room",
        "_early_data",
        "_fd",
        "_gathered",
        "_has_ended_input",
        "_is_broken",
        "_is_bulk",
        "_is_over",
        "_link",
        "_may_have_input",
        "_on_end",
        "_pending",
        "_poller",
        "_port",
        "_sock",
        "_upload_is_over",
        "_waits_for_turn",
        "_was_shut_down",
    )

    def __init__(self, sock: socket.socket, port: ChannelPort) -> None:
        self._sock = sock
        self._fd = sock.fileno()
        self._port = port
        self._link = port.link
        self._poller = poller.current()
        self._pending = port.pending
        self._gathered: list[memoryview] = []  # of this batch; valid until its end
        self._early_data = memoryview(b"")
        self._may_have_input = False
        self._has_ended_input = False
        self._waits_for_turn = False
        self._is_bulk = False
        self._upload_is_over = False
        self._was_shut_down = False
        self._awaits_room = False
        self._is_broken = False  # the socket: nothing can be delivered, so the channel ends at once
        self._is_over = False
        self._on_end: Callable[[], object] = nothing

    def start(
        self,
        on_end: Callable[[], object],
        early_data: bytes = b"",
        events: int | None = None,
    ) -> None:
        """Carry until both directions ended, then close both and call ``on_end``, once.

        ``early_data`` goes out first. ``events`` are what the poller told of a socket that was
        watched before; None if it was not. It is non-blocking, without Nagle's delay.
        """
        port = self._port
        self._on_end = on_end
        port.channel.sink = self._sink
        port.on_change = self._advance
        port.on_writable = self._upload
        if events is None:
            self._poller.watch_input(self._sock, self._socket_ready)
        else:
            self._poller.hand_over(self._sock, self._socket_ready)
        if self._pending:
            self._write_pending()
        self._advance()
        if early_data:
            self._early_data = memoryview(early_data)
            events = (events or 0) | poller.INPUT
        if events:
            self._socket_ready(events)

    def close(self) -> None:
        """End both at once; harmless if they have ended."""
        if self._is_over:
            return
        self._is_over = self._upload_is_over = True
        self._gathered.clear()
        port = self._port
        port.on_change = port.on_writable = nothing
        port.close()
        self._poller.close(self._sock)
        self._on_end()

    def _socket_ready(self, event: int) -> None:
        """Take an event of the poller. A defect of our own ends this channel and no other."""
        try:
            if event & poller.WRITABLE and self._pending:
                self._write_pending()
            if event & poller.READABLE:
                self._may_have_input = True
                if event & poller.ENDED:
                    self._has_ended_input = True
                self._upload()
            if event & poller.BROKEN and self._upload_is_over:
                self._break()  # a reset after its own end, which no read would meet
        except Exception:
            self._break()
            raise

    # -- socket to channel -------------------------------------------------------------------------

    def _take_turn(self) -> None:
        self._waits_for_turn = False
        self._send_batches()

    def _wait_for_turn(self) -> None:
        self._waits_for_turn = True
        self._link.turns.wait(self._take_turn, is_bulk=self._is_bulk)

    def _upload(self) -> None:
        """Something that was missing is there: input or credit. Nobody overtakes those who wait."""
        if self._waits_for_turn:
            return
        if self._is_bulk and self._link.turns.bulk:
            self._wait_for_turn()
        else:
            self._send_batches()
            self._link.flush()

    def _send_batches(self) -> None:
        """Read and send while there is input, credit and room, a few batches at most."""
        link, channel = self._link, self._port.channel
        for _ in range(BATCHES_AT_ONCE):
            if not self._may_have_input or self._upload_is_over:
                return
            if not self._port.may_send:
                self._end_upload()
                return
            rooms = channel.rooms(self._limit()) or self._wait_for_rooms()
            if not rooms:
                return
            self._send_batch(rooms)
            if self._is_bulk and link.turns.bulk:
                self._wait_for_turn()
                return  # whoever gives the turns flushes once for all
            link.flush()
        self._poller.again(self._upload)

    def _wait_for_rooms(self) -> list[memoryview]:
        """There is no room to read into: make some, or arrange to be told of it."""
        link, channel = self._link, self._port.channel
        if not channel.remote_window:
            return []  # on_writable tells of the peer's credit
        link.flush()  # makes room, or asks the path for leave to send more
        rooms = channel.rooms(self._limit())
        if not rooms and channel.remote_window:
            self._wait_for_turn()
        return rooms

    def _limit(self) -> int:
        """How much may go now."""
        return self._link.bulk_limit() if self._is_bulk else BULK

    def _send_batch(self, rooms: list[memoryview]) -> None:
        if self._early_data:
            self._early_data = self._early_data[self._port.channel.send(self._early_data) :]
            return
        try:
            length = os.readv(self._fd, rooms)
        except BlockingIOError:
            self._may_have_input = False
            return
        except OSError:
            self._break()
            return
        if not length:
            self._port.send_eof()
            self._end_upload()
            return
        self._port.channel.send_rooms(length)
        is_all = length < len(rooms[0]) or length < sum(map(len, rooms))
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
            self._link.at_batch_end.append(self._deliver)
        gathered.append(data)
        if len(gathered) >= GATHER_MAXIMUM:
            self._deliver()
        return 0

    def _deliver(self) -> None:
        """Write what was gathered in one call; keep what the socket does not take."""
        gathered, self._gathered = self._gathered, []
        if not gathered:
            return
        first, *others = gathered
        length = sum(map(len, gathered))
        try:
            sent = self._sock.sendmsg(gathered) if others else self._sock.send(first)
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
            self._write_pending()  # edge-triggered: room is told of after a send that found none

    def _write_pending(self) -> None:
        written = 0
        try:
            while self._pending:
                with memoryview(self._pending) as view:
                    sent = self._sock.send(view[:DRAIN_SIZE])
                del self._pending[:sent]
                written += sent
        except BlockingIOError:
            if not self._awaits_room:
                self._awaits_room = True
                self._poller.await_room(self._sock)
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
        if self._is_over:
            return
        port = self._port
        if port.failure is not None and self._is_cut_off(port):
            self._reset_on_close()
            self.close()
        elif self._is_broken:
            self.close()
        elif self._pending or self._gathered:
            return
        elif port.failure is not None or port.close_received:
            self.close()
        elif port.eof_received:
            if self._upload_is_over:
                self.close()
            else:
                self._shut_down()

    def _is_cut_off(self, port: ChannelPort) -> bool:
        """Whether the link was lost before all had arrived that was to come."""
        whole = port.close_received or (port.eof_received and self._upload_is_over)
        return isinstance(port.failure, ConnectionLost) and not whole

    def _shut_down(self) -> None:
        if self._was_shut_down:
            return
        self._was_shut_down = True
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._break()

    def _reset_on_close(self) -> None:
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        except OSError:
            return
