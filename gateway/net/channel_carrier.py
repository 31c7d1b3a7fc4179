"""A link on a channel of another link: the next hop of -J.

What arrives is copied once, from the outer link's receive buffer into the inner one's: the sink of
the channel notes views, and at the end of the outer batch the inner link reads them. What it does
not take then, because it is congested, is kept: one window at most, for credit is given as it is
taken. The other way the inner link's batch is sealed as it is, as far as window and room go; the
rest waits for the peer's credit or for a turn in the outer link. How much is in flight is the inner
link's to decide, whose probes see the whole way; the outer one does not limit it again.

An event comes as from the poller: once, when something changed. But for data, it comes in the next
round, when the outer link has finished what it is doing.
"""

from __future__ import annotations

import errno
import logging
from collections import deque
from typing import TYPE_CHECKING, Final

from gateway.net import poller

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.net.port import ChannelPort

log = logging.getLogger(__name__)

_HALF_CLOSED: Final = poller.ENDED & ~poller.BROKEN


class ChannelCarrier:
    """An open channel, which this object owns from now on."""

    def __init__(self, port: ChannelPort, name: str) -> None:
        self.name = name
        self._port = port
        self._link = port.link
        self._gathered: deque[memoryview] = deque()  # of this batch; valid until its end
        self._on_ready: Callable[[int], None] | None = None
        self._waits_for_turn = False

    def recv_into(self, space: memoryview) -> int:
        """See `Carrier`."""
        port, gathered = self._port, self._gathered
        length = min(len(space), len(port.pending))
        if length:
            with memoryview(port.pending) as pending:
                space[:length] = pending[:length]
            del port.pending[:length]
        while gathered and length < len(space):
            view = gathered.popleft()
            count = min(len(view), len(space) - length)
            space[length : length + count] = view[:count]
            length += count
            if count < len(view):
                gathered.appendleft(view[count:])
        if length:
            port.consumed(length)
        elif port.failure is not None:
            raise OSError(errno.ECONNRESET, str(port.failure))
        elif not port.eof_received and not port.close_received:
            raise BlockingIOError
        return length

    def send(self, data: memoryview) -> int:
        """See `Carrier`."""
        port = self._port
        if not port.may_send:
            raise OSError(errno.EPIPE, str(port.failure or "the channel was closed"))
        sent = port.channel.send(data)
        self._link.flush()
        if not sent and port.may_send:  # flush may have made room
            sent = port.channel.send(data)
            self._link.flush()
        if not sent:
            if port.channel.has_credit(1) and not self._waits_for_turn:  # else on_writable tells
                self._waits_for_turn = True
                self._link.turns.wait(self._take_turn, is_bulk=False)
            raise BlockingIOError
        return sent

    def acknowledge(self) -> None:
        """See `Carrier`. What acknowledges is another machine's kernel: see `Link.acknowledge`."""

    def watch(self, on_ready: Callable[[int], None]) -> None:
        """See `Carrier`."""
        port = self._port
        self._on_ready = on_ready
        port.channel.sink = self._sink
        port.on_change = self._changed
        port.on_writable = self._writable
        poller.current().again(self._begin)

    def close(self) -> None:
        """See `Carrier`."""
        self._on_ready = None
        self._gathered.clear()
        self._port.close()

    def _tell(self, event: int) -> None:
        if self._on_ready is not None:
            self._on_ready(event)

    def _begin(self) -> None:
        self._tell(poller.OUTPUT | poller.INPUT)
        self._tell_of_end()

    def _sink(self, data: memoryview) -> int:
        """Note what arrived. Called while the outer link reads."""
        if not self._gathered:
            self._link.at_batch_end.append(self._deliver)
        self._gathered.append(data)
        return 0

    def _deliver(self) -> None:
        """Let the inner link read, and keep what it does not. Its defects are not the outer's."""
        try:
            self._tell(poller.INPUT)
        except Exception:
            log.exception("internal error in the link to %s", self.name)
        for view in self._gathered:
            self._port.pending += view
        self._gathered.clear()

    def _take_turn(self) -> None:
        self._waits_for_turn = False
        self._tell(poller.OUTPUT)

    def _writable(self) -> None:
        self._tell(poller.OUTPUT)

    def _changed(self) -> None:
        poller.current().again(self._tell_of_end)

    def _tell_of_end(self) -> None:
        port = self._port
        if port.failure is not None:
            self._tell(poller.ENDED)
        elif port.eof_received or port.close_received:
            self._tell(poller.INPUT | _HALF_CLOSED)
