"""One SSH link on trio: what moves its bytes, and its channels as `ChannelPort` objects.

THEORY OF OPERATION

The carrier calls ``_carrier_ready`` (see `gateway.net.poller`); no task wakes for it. Reading is:
receive a batch, let the protocol process it (channel data reaches its sink inside that call), let
the sinks write what they gathered, dispatch the events, flush. The link's one task, ``_watch``,
looks at the clock: keepalive, rekeying by time, replies that nobody reads.

``flush`` is a plain function: whoever has put something into the outbound buffer calls it once, at
the end of its batch, and the bytes leave in one system call. If the carrier is full, the rest goes
when it has room again. Who finds no room for data meanwhile waits for a turn: `Turns` says in which
order.

Nothing in a link raises for what the network does: the first error goes to ``_fail``, which ends
``run``; every port learns about it, and ``failure`` says what it was. The nursery that runs a link
never sees an exception from it, so one broken link breaks nothing else.

Between two awaits nothing else runs. Everything in here relies on that: there is no lock.
"""

from __future__ import annotations

from collections import deque
from itertools import count
from typing import TYPE_CHECKING, Final

import trio

from gateway import events
from gateway.errors import (
    ChannelClosed,
    ChannelOpenError,
    ConnectionLost,
    GatewayError,
    RemoteProtocolError,
    printable,
)
from gateway.net import poller
from gateway.net.turns import Turns
from gateway.ssh.channel import SendState
from gateway.ssh.connection import KEEPALIVE
from gateway.ssh.numbers import Disconnect
from gateway.ssh.transport import Phase

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.net.carrier import Carrier
    from gateway.ssh.channel import Channel
    from gateway.ssh.protocol import Protocol

# ---- our own choices -----------------------------------------------------------------------------
WATCH_INTERVAL_S: Final = 5.0
CONGESTION_DEADLINE_S: Final = 30.0  # a peer that asks but never reads the answers is cut off
GOODBYE_DEADLINE_S: Final = 1.0  # for DISCONNECT to leave
# sshd leaves Nagle's algorithm on (RFC 1122 §4.2.3.4): it sends nothing small before it knows that
# the last small thing arrived, which a delayed acknowledgement tells 40 ms late.
SMALL_BATCH: Final = 4096  # bytes received at once
LONG_RTT_S: Final = 0.005  # not worth a packet below; infinite while unknown
# A turn is little enough that most have as much to send when theirs comes, and each has several of
# them while what may be in flight goes out once.
LARGEST_TURN: Final = 64 * 1024  # bytes
TURNS: Final = 16
BATCHES_AT_ONCE: Final = 4  # received before other links have their turn

_link_ids = count(1)


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
        self.on_change: Callable[[], object] = _nothing
        self.on_writable: Callable[[], object] = _nothing
        self.on_request: Callable[[events.ChannelRequested], bool] = _refuse_request
        self.on_reply: Callable[[bool], None] = _ignore_reply
        self.on_opened: Callable[[ChannelPort], object] = _ignore_answer
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
        return (
            self.failure is None
            and not self.close_received
            and self.channel.send_state is SendState.OPEN
        )

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
        on_opened, self.on_opened = self.on_opened, _ignore_answer
        on_opened(self)


def _nothing() -> None:
    pass


def _nothing_due(_now_s: float) -> None:
    pass


def _ignore_answer(_port: ChannelPort) -> None:
    pass


def _refuse_request(_request: events.ChannelRequested) -> bool:
    return False


def _ignore_global_reply(_reply: events.GlobalReplied) -> None:
    pass


def _ignore_reply(_success: bool) -> None:  # noqa: FBT001 - a callback's only argument
    pass


class Link:
    """An SSH protocol on a carrier. ``handler`` gets the events that concern no single channel."""

    def __init__(
        self,
        protocol: Protocol,
        carrier: Carrier,
        *,
        handler: Callable[[events.Event], None],
        alive_interval_s: float = 0.0,
        alive_count_max: int = 3,
    ) -> None:
        self.link_id = next(_link_ids)
        self.protocol = protocol
        self.carrier = carrier
        self.failure: GatewayError | None = None
        self.ended_by = "network"  # or "us" or "peer", as in `events.LinkClosed`
        self.turns = Turns()
        self.ended = trio.Event()
        self.on_tick: Callable[[float], object] = _nothing_due
        """Called every WATCH_INTERVAL_S with the time, for who has to end a link in time."""
        self.at_batch_end: list[Callable[[], None]] = []  # who kept views into the receive buffer
        self._handler = handler
        self._alive_interval_s = alive_interval_s
        self._alive_deadline_s = alive_interval_s * alive_count_max
        self._alive = False
        self._heard_s = 0.0
        self._current_time = trio.lowlevel.current_clock().current_time
        self._ports: dict[int, ChannelPort] = {}
        self._scope = trio.CancelScope()
        self._may_have_input = False
        self._has_ended_input = False
        self._carrier_is_full = False
        self._is_congested = False  # reading waits until replies have left
        self._sent = trio.lowlevel.ParkingLot()
        self._awaited_replies: deque[Callable[[events.GlobalReplied], None]] = deque()

    def __repr__(self) -> str:
        return f"<Link {self.link_id} {self.carrier.name} {self.protocol!r}>"

    @property
    def is_lost(self) -> bool:
        """Whether nothing can be carried any more."""
        return self.failure is not None

    # -- moving bytes ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Carry bytes until the link ends; ``failure`` says why. Raises nothing for the network."""
        self._heard_s = trio.current_time()
        try:
            with self._scope:
                self.carrier.watch(self._carrier_ready)
                self.flush()
                await self._watch()
        finally:
            self._fail(ConnectionLost("the link was closed"), "us")
            await self._say_goodbye()
            self.protocol.discard()
            self.carrier.close()

    def _carrier_ready(self, event: int) -> None:
        """Take an event of the poller. A defect of our own ends this link and no other."""
        try:
            if event & poller.WRITABLE and self._carrier_is_full:
                self._carrier_is_full = False
                self._sent.unpark_all()
                if self.failure is None:
                    self.flush()
            if event & poller.READABLE and self.failure is None:
                self._may_have_input = True
                self._has_ended_input = bool(event & poller.ENDED)
                self._read()
            if self.turns.are_awaited:
                self._give_turns()
        except Exception as error:
            self._fail(ConnectionLost(f"internal error: {error!r}"))
            raise

    def _read(self) -> None:
        """Receive what there is, a few batches at most."""
        try:
            for _ in range(BATCHES_AT_ONCE):
                if not self._receive_batch():
                    return
        except ConnectionLost as error:
            self._fail(ConnectionLost(f"connection to {self.carrier.name} lost: {error}"))
        except GatewayError as error:
            self._end_batch()
            self.dispatch()
            self._fail(error, "us")
        except OSError as error:
            self._fail(ConnectionLost(f"connection to {self.carrier.name} lost: {error.strerror}"))
        else:
            poller.current().again(self._read_on)

    def _receive_batch(self) -> bool:
        """Receive and process once; say whether there may be more."""
        protocol, inbound = self.protocol, self.protocol.inbound
        self._is_congested = not protocol.may_read
        if self._is_congested or self.failure is not None:
            return False
        space = inbound.space()
        try:
            length = self.carrier.recv_into(space)
        except BlockingIOError:
            inbound.idle()
            self._may_have_input = False
            return False
        if length < SMALL_BATCH and protocol.connection.meter.min_rtt_s > LONG_RTT_S:
            self.carrier.acknowledge()
        self._heard_s = trio.current_time()
        protocol.received(length, self._heard_s)
        self._end_batch()
        self.dispatch()
        self.flush()
        self._may_have_input = length == len(space) or self._has_ended_input
        return self._may_have_input

    def _read_on(self) -> None:
        if self._may_have_input:
            self._carrier_ready(poller.ENDED if self._has_ended_input else poller.INPUT)

    def _end_batch(self) -> None:
        """Let the sinks write what they gathered; the receive buffer is good until here."""
        if self.at_batch_end:
            for deliver in self.at_batch_end:
                deliver()
            self.at_batch_end.clear()
        self.protocol.inbound.idle()

    def _give_turns(self) -> None:
        outbound, connection = self.protocol.outbound, self.protocol.connection
        self.turns.give(outbound, connection)
        self.flush()
        if self.turns.may_go_on(outbound, connection):
            poller.current().again(self._give_turns)

    async def _watch(self) -> None:
        """Look at the clock. Any byte from the peer counts as life (RFC 4254 has no keepalive)."""
        interval_s = min(self._alive_interval_s or WATCH_INTERVAL_S, WATCH_INTERVAL_S)
        asked_s = congested_since_s = None
        while True:
            await trio.sleep(interval_s)
            now_s = trio.current_time()
            self.on_tick(now_s)
            try:
                self.protocol.tick(now_s)
            except RemoteProtocolError as error:
                self._fail(error)
                return
            if self.protocol.may_read:
                congested_since_s = None
            else:
                congested_since_s = congested_since_s or now_s
                if now_s - congested_since_s > CONGESTION_DEADLINE_S:
                    self._fail(ConnectionLost("the peer does not read the replies it asked for"))
                    return
            silent_s = now_s - self._heard_s
            if self._alive:
                if silent_s >= self._alive_deadline_s:
                    self._fail(
                        ConnectionLost(
                            f"connection to {self.carrier.name} lost: "
                            f"not a sign of life for {silent_s:.0f} s"
                        )
                    )
                    return
                if silent_s >= self._alive_interval_s and (
                    asked_s is None or now_s - asked_s >= self._alive_interval_s
                ):
                    asked_s = now_s
                    self._ask(KEEPALIVE, b"", _ignore_global_reply)
            self.flush()
            self._give_turns()

    def start_keepalive(self) -> None:
        """Begin to probe an idle peer; not before the login, when some peers would stumble."""
        self._alive = self._alive_interval_s > 0

    def flush(self) -> None:
        """Send what the outbound buffer holds, as far as the carrier takes it now."""
        protocol, outbound = self.protocol, self.protocol.outbound
        if self._carrier_is_full:
            return
        if outbound.data_to_send() is None and protocol.connection.may_send_bulk:
            return
        protocol.transport.rekey_if_due(self._heard_s)
        if protocol.transport.phase is Phase.CONNECTION:
            protocol.connection.probe_if_due(self._current_time())
        try:
            while (data := outbound.data_to_send()) is not None:
                outbound.data_sent(self.carrier.send(data))
        except BlockingIOError:
            self._carrier_is_full = True
            return
        except OSError as error:
            self._fail(ConnectionLost(f"connection to {self.carrier.name} lost: {error.strerror}"))
            return
        if self._is_congested and protocol.may_read:
            self._is_congested = False
            poller.current().again(self._read_on)

    async def _say_goodbye(self) -> None:
        """Let DISCONNECT leave, within a deadline; the carrier may be gone already."""
        self.protocol.disconnect()
        outbound = self.protocol.outbound
        with trio.move_on_after(GOODBYE_DEADLINE_S, shield=True):
            try:
                while (data := outbound.data_to_send()) is not None:
                    try:
                        outbound.data_sent(self.carrier.send(data))
                    except BlockingIOError:
                        self._carrier_is_full = True
                        await self._sent.park()
            except OSError:
                return

    def _fail(self, failure: GatewayError, ended_by: str = "network") -> None:
        if self.failure is not None:
            return
        self.failure = failure
        self.ended_by = ended_by
        self.ended.set()
        self._scope.cancel()
        for port in list(self._ports.values()):
            port.fail(ConnectionLost(str(failure)))
        self._ports.clear()
        self.turns.discard()

    def bulk_limit(self) -> int:
        """How many bytes the path takes now from one that sends much; a turn, if others wait."""
        meter = self.protocol.connection.meter
        limit = min(meter.send_until - self.protocol.outbound.data_total, meter.send_step)
        if self.turns.has_bulk:
            limit = min(limit, LARGEST_TURN, meter.target_out // TURNS)
        return max(limit, 0)

    def close(self, reason: str = "closed by us") -> None:
        """End the link; ``run`` returns soon after."""
        self._fail(ConnectionLost(reason), "us")

    def disconnect(self, description: str, reason_code: int = Disconnect.BY_APPLICATION) -> None:
        """End the link and tell the peer why; ``run`` returns soon after."""
        if self.failure is None:
            self.protocol.disconnect(description, reason_code)
            self._fail(ConnectionLost(description), "us")

    # -- events ------------------------------------------------------------------------------------

    def dispatch(self) -> None:
        """Act on what the protocol said: after every batch, and after a call that may emit."""
        while (event := self.protocol.next_event()) is not None:
            match event:
                case events.OnChannel(channel_id):
                    if port := self._ports.get(channel_id):
                        port.happened(event)
                    elif isinstance(event, events.ChannelRequested):
                        self._refuse_request(event)
                case events.GlobalReplied():
                    self._awaited_replies.popleft()(event)
                case events.PeerDisconnected(reason_code, description):
                    self._fail(
                        ConnectionLost(
                            f"{self.carrier.name} disconnected: {printable(description)} "
                            f"(reason code {reason_code})"
                        ),
                        "peer",
                    )
                case _:
                    self._handler(event)

    def _refuse_request(self, event: events.ChannelRequested) -> None:
        """A request for a channel whose owner has left already."""
        channel = self.protocol.connection.channels.get(event.channel_id)
        if event.want_reply and channel is not None:
            self.protocol.connection.reply_request(channel, success=False)

    # -- global requests ---------------------------------------------------------------------------

    def _ask(
        self, name: str, specific: bytes, on_reply: Callable[[events.GlobalReplied], None]
    ) -> None:
        """Send a global request; replies come in the order of the requests (RFC 4254 §4)."""
        self._awaited_replies.append(on_reply)
        self.protocol.connection.send_global_request(name, specific)

    async def global_request(self, name: str, specific: bytes) -> events.GlobalReplied:
        """Send a global request and wait for its answer. Raises `ConnectionLost`."""
        replies: list[events.GlobalReplied] = []
        answered = trio.Event()

        def on_reply(reply: events.GlobalReplied) -> None:
            replies.append(reply)
            answered.set()

        self._ask(name, specific, on_reply)
        self.flush()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._set_at_end, answered)
            await answered.wait()
            nursery.cancel_scope.cancel()
        if not replies:
            raise ConnectionLost(str(self.failure))
        return replies[0]

    async def answers(self, deadline_s: float) -> bool:
        """Ask the peer for a sign of life; say whether it came within ``deadline_s``."""
        with trio.move_on_after(deadline_s):
            try:
                await self.global_request(KEEPALIVE, b"")
            except ConnectionLost:
                return False
            return True
        return False

    async def _set_at_end(self, event: trio.Event) -> None:
        await self.ended.wait()
        event.set()

    # -- channels ----------------------------------------------------------------------------------

    def ask_for_channel(
        self,
        channel_type: str,
        type_specific: bytes,
        on_opened: Callable[[ChannelPort], object],
    ) -> ChannelPort:
        """Open a channel; ``on_opened`` is called with the answer: ``failure`` if it was no.

        Raises `ConnectionLost`. Released before the answer, it leaves no channel behind: CLOSE
        follows as soon as the peer confirms, and ``on_opened`` is not called.
        """
        if self.failure is not None:
            raise ConnectionLost(str(self.failure))
        channel = self.protocol.connection.open_channel(channel_type, type_specific)
        port = self._ports[channel.channel_id] = ChannelPort(self, channel)
        port.on_opened = on_opened
        self.protocol.connection.probe_if_due(self._current_time(), is_opening=True)
        self.flush()
        return port

    async def open_channel(self, channel_type: str, type_specific: bytes) -> ChannelPort:
        """Open a channel and wait for the answer.

        Raises `ChannelOpenError` or `ConnectionLost`. Cancelled, it leaves no channel behind.
        """
        answered = trio.Event()
        port = self.ask_for_channel(channel_type, type_specific, lambda _port: answered.set())
        try:
            await answered.wait()
            if port.failure is not None:
                raise port.failure
        except BaseException:
            self.release(port)
            raise
        return port

    def confirm_channel(self, channel_id: int) -> ChannelPort:
        """Grant the peer's open."""
        channel = self.protocol.connection.channels.get(channel_id)
        if channel is None or self.failure is not None:
            raise ConnectionLost("the link is gone")
        self.protocol.connection.confirm_channel(channel)
        port = self._ports[channel_id] = ChannelPort(self, channel)
        port.confirmed()
        self.protocol.connection.probe_if_due(trio.current_time(), is_opening=True)
        self.flush()
        return port

    def refuse_channel(self, channel_id: int, reason_code: int, description: str) -> None:
        """Refuse the peer's open."""
        channel = self.protocol.connection.channels.get(channel_id)
        if channel is not None and self.failure is None:
            self.protocol.connection.refuse_channel(channel, reason_code, description)
            self.flush()

    def release(self, port: ChannelPort) -> None:
        """The owner is done with a channel, whatever its state."""
        self._ports.pop(port.channel.channel_id, None)
        port.pending.clear()
        connection = self.protocol.connection
        if self.failure is None and port.channel.channel_id in connection.channels:
            connection.abandon(port.channel)
            self.flush()
