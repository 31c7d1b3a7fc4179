"""One channel of a link as its owner sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from gateway import events
from gateway.errors import ChannelClosed, ChannelOpenError, GatewayError, printable
from gateway.ssh.channel import OPEN

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.net.link import Link
    from gateway.ssh.channel import Channel


class ChannelPort:
    """A channel as its owner sees it: opened, read from, written to, closed.

    Until the owner sets another sink, what arrives is kept in ``pending``, at most one window of
    it. ``on_change`` is called, never with an await, when anything happened that a waiting owner
    wants to look at: EOF, CLOSE, the loss of the link.
    """

    def __init__(self, link: Link, channel: Channel) -> None:
        self.link = link
        self.channel = channel
        self.pending = bytearray()
        self.eof_received = False
        self.close_received = False
        self.failure: GatewayError | None = None
        self.on_change: Callable[[], object] = nothing
        self.on_writable: Callable[[], object] = nothing
        self.on_request: Callable[[events.ChannelRequested], bool] = _refuse_request
        self.on_reply: Callable[[bool], None] = ignore
        self.on_opened: Callable[[ChannelPort], object] = ignore
        self._credit = trio.lowlevel.ParkingLot()
        channel.sink = self._keep

    def __repr__(self) -> str:
        return f"<ChannelPort {self.channel!r}>"

    def _keep(self, data: memoryview) -> int:
        self.pending += data
        self.on_change()
        return 0

    @property
    def may_send(self) -> bool:
        """Whether data may still be sent, window or not."""
        return self.failure is None and not self.close_received and self.channel.send_state is OPEN

    async def wait_room(self) -> None:
        """Let others run, and wait until ``channel.room()`` is not empty.

        Raises `ChannelClosed` or `ConnectionLost` when it never will be. Others may take
        the room before this task runs again.
        """
        await trio.lowlevel.checkpoint()
        while True:
            if self.failure is not None:
                raise self.failure
            if not self.may_send:
                raise ChannelClosed(f"the channel takes no more data: {self.channel!r}")
            protocol = self.link.protocol
            if not protocol.outbound.accepts_data or not protocol.connection.may_send_bulk:
                await self.link.turns.park()
            elif self.channel.room():
                return
            else:
                await self._credit.park()

    def consumed(self, length: int) -> None:
        """Give back credit for bytes that the sink had kept."""
        if self.failure is None:
            self.channel.consumed(length)
            self.link.flush()

    def send_eof(self) -> None:
        """End our direction, if it is still open."""
        if self.may_send:
            self.channel.send_eof()
            self.link.flush()

    def close(self) -> None:
        """Send CLOSE if that was not done, and forget the channel. Never waits, never raises."""
        self.link.release(self)

    # -- called by the link ------------------------------------------------------------------------

    def happened(self, event: events.OnChannel) -> None:
        """Take an event of this channel."""
        match event:
            case events.ChannelOpened():
                self.confirmed()
            case events.ChannelOpenFailed(_, reason_code, description):
                self.fail(ChannelOpenError(reason_code, printable(description)))
            case events.ChannelWritable():
                self._credit.unpark_all()
                self.on_writable()
            case events.ChannelEofReceived():
                self.eof_received = True
                self.on_change()
            case events.ChannelCloseReceived():
                self.close_received = True
                self._credit.unpark_all()
                self.on_change()
            case events.ChannelReplied(_, success):
                self.on_reply(success)
            case events.ChannelRequested(_, _, want_reply):
                success = self.on_request(event)
                if want_reply:
                    self.link.protocol.connection.reply_request(self.channel, success=success)

    def confirmed(self) -> None:
        """The open was granted, by the peer or by us."""
        self._answered()

    def fail(self, failure: GatewayError) -> None:
        """The open was refused or the link is gone."""
        self.failure = self.failure or failure
        self._answered()
        self._credit.unpark_all()
        self.on_change()

    def _answered(self) -> None:
        on_opened, self.on_opened = self.on_opened, ignore
        on_opened(self)


def nothing() -> None:
    """Do nothing."""


def _refuse_request(_request: events.ChannelRequested) -> bool:
    return False


def ignore(_what: object) -> None:
    """Do nothing about it."""
