"""One SSH link on trio: what moves its bytes, and its channels as `ChannelPort` objects.

THEORY OF OPERATION

The carrier calls ``_carrier_ready`` (see `gateway.net.poller`); no task wakes for it. Reading is:
receive a batch, let the protocol process it (channel data reaches its sink inside that call), let
the sinks write what they gathered, dispatch the events, flush. The link's one task, ``_watch``,
looks at the clock: keepalive, rekeying by time, replies that nobody reads, and at their time the
ends that the owner knows of (``on_tick`` and ``look_by``).

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
from math import inf
from typing import TYPE_CHECKING, Final

import trio

from gateway import events
from gateway.errors import (
    ChannelClosed,
    ConnectionLost,
    GatewayError,
    RemoteProtocolError,
    printable,
)
from gateway.net import poller
from gateway.net.port import ChannelPort, ignore
from gateway.net.turns import Turns
from gateway.ssh.channel import SendState
from gateway.ssh.connection import KEEPALIVE
from gateway.ssh.messages import (
    DirectStreamlocal,
    DirectTcpip,
    ForwardedStreamlocal,
    ForwardedTcpip,
    Ignore,
)
from gateway.ssh.numbers import Disconnect
from gateway.ssh.packets import RECEIVE_SIZE
from gateway.ssh.transport import CONNECTION, Phase

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.net.carrier import Carrier
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
# Among many busy links each has little in flight, and small packets would slow all of them: so one
# of few streams may have all of its share in one turn, up to this.
SMALL_TURN: Final = 16 * 1024
TURNS: Final = 16
# Channels that are a connection of somebody (RFC 4254 §7; OpenSSH PROTOCOL §2.4).
FORWARDS: Final = frozenset(
    opened.channel_type
    for opened in (DirectTcpip, ForwardedTcpip, DirectStreamlocal, ForwardedStreamlocal)
)
BATCHES_AT_ONCE: Final = 4  # received before other links have their turn …
# … or, of small messages, about so many: each costs time, however few bytes it has, and 256 KiB are
# 7 000 of the smallest.
MESSAGES_AT_ONCE: Final = 128
MANY_MESSAGES: Final = 64  # in a batch: they are small

_link_ids = count(1)


class Answer:
    """The peer's answer to a global request, once it is there."""

    def __init__(self) -> None:
        self.on_arrival: Callable[[events.GlobalReplied], object] = ignore
        """Called before anything else that the peer has sent is looked at."""
        self._answered = trio.Event()
        self._outcome: events.GlobalReplied | ConnectionLost | None = None

    def arrived(self, outcome: events.GlobalReplied | ConnectionLost) -> None:
        """Wake who waits."""
        self._outcome = outcome
        self._answered.set()
        if isinstance(outcome, events.GlobalReplied):
            self.on_arrival(outcome)

    async def wait(self) -> events.GlobalReplied:
        """Return it. Raises `ConnectionLost`."""
        await self._answered.wait()
        if isinstance(self._outcome, events.GlobalReplied):
            return self._outcome
        raise self._outcome or ConnectionLost("there was no answer")


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
        self.on_tick: Callable[[float], object] = ignore
        """Called with the time at least every WATCH_INTERVAL_S, and as `look_by` says."""
        self.peer_sends_singly = False
        """Whether the peer sends small things that nothing of ours answers; see SMALL_BATCH."""
        self.acknowledge: Callable[[], object] = carrier.acknowledge
        """Lets the peer know what arrived. `prod` does that if the connection ends before the peer:
        then the kernel that delays acknowledgements is another machine's, and what makes it send
        one is data for the peer."""
        self._owes_acknowledgement = False
        self.at_batch_end: list[Callable[[], None]] = []  # who kept views into the receive buffer
        self._handler = handler
        self._alive_interval_s = alive_interval_s
        self._alive_deadline_s = alive_interval_s * alive_count_max
        self._alive = False
        self._heard_s = 0.0
        self._current_time = trio.lowlevel.current_clock().current_time
        self._ports: dict[int, ChannelPort] = {}
        self._scope = trio.CancelScope()
        self._nap = trio.CancelScope()
        self._may_have_input = False
        self._receive_size = RECEIVE_SIZE  # how much is read at once
        self._has_ended_input = False
        self._carrier_is_full = False
        self._is_congested = False  # reading waits until replies have left
        self._sent = trio.lowlevel.ParkingLot()
        self._released = trio.lowlevel.ParkingLot()
        self._awaited_answers: deque[Answer] = deque()

    def __repr__(self) -> str:
        return f"<Link {self.link_id} {self.carrier.name} {self.protocol!r}>"

    @property
    def is_lost(self) -> bool:
        """Whether nothing can be carried any more."""
        return self.failure is not None

    @property
    def is_silent(self) -> bool:
        """Whether the peer owes us a sign of life, though perhaps not for long enough."""
        silent_s = trio.current_time() - self._heard_s
        return self._alive and silent_s >= 2 * self._alive_interval_s

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
                if self._receive_size < RECEIVE_SIZE:
                    break
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
        self._is_congested = protocol.outbound.is_congested
        if self._is_congested or self.failure is not None:
            return False
        space = inbound.space()[: self._receive_size]
        before = inbound.sequence_number
        try:
            length = self.carrier.recv_into(space)
        except BlockingIOError:
            inbound.idle()
            self._may_have_input = False
            return False
        self._heard_s = self._current_time()
        protocol.received(length, self._heard_s)
        self._end_batch()
        self.dispatch()
        self.flush()
        if length < SMALL_BATCH:
            self._acknowledge()
        messages = inbound.sequence_number - before  # negative behind NEWKEYS, which is few
        is_full = length == len(space)
        if messages > MANY_MESSAGES:
            self._receive_size = min(length * MESSAGES_AT_ONCE // messages, RECEIVE_SIZE)
        elif is_full and self._receive_size < RECEIVE_SIZE:
            self._receive_size = min(2 * self._receive_size, RECEIVE_SIZE)
        self._may_have_input = is_full or self._has_ended_input
        return self._may_have_input

    def _acknowledge(self) -> None:
        """Do not let a peer with Nagle's algorithm wait for a delayed acknowledgement."""
        if self.protocol.connection.meter.min_rtt_s > LONG_RTT_S:
            self.acknowledge()
        elif self.peer_sends_singly and not self._owes_acknowledgement:
            self._owes_acknowledgement = True
            poller.current().at_rest(self._pay_acknowledgement)

    def _pay_acknowledgement(self) -> None:
        self._owes_acknowledgement = False
        if self.failure is None:
            self.acknowledge()

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
        self.turns.give(self.protocol.outbound, self.protocol.connection)
        self.flush()

    async def _watch(self) -> None:
        """Look at the clock. Any byte from the peer counts as life (RFC 4254 has no keepalive)."""
        interval_s = min(self._alive_interval_s or WATCH_INTERVAL_S, WATCH_INTERVAL_S)
        asked_s = congested_since_s = None
        while True:
            now_s = trio.current_time()
            lost_s = self._heard_s + self._alive_deadline_s if self._alive else inf
            self._nap = trio.CancelScope(deadline=min(now_s + interval_s, lost_s))
            self.on_tick(now_s)
            with self._nap:
                await trio.sleep_forever()
            due_s, now_s = self._nap.deadline, trio.current_time()
            if now_s - due_s > interval_s:
                self._heard_s = now_s  # we were stopped ourselves: nobody could be heard
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
                if now_s >= self._heard_s + self._alive_deadline_s:
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
                    self.ask(KEEPALIVE, b"")
            self.flush()
            self._give_turns()

    def look_by(self, time_s: float) -> None:
        """Have ``on_tick`` called at that time at the latest."""
        self._nap.deadline = min(self._nap.deadline, time_s)

    def start_keepalive(self) -> None:
        """Begin to probe an idle peer; not before the login, when some peers would stumble."""
        self._alive = self._alive_interval_s > 0

    def flush(self) -> None:
        """Send what the outbound buffer holds, as far as the carrier takes it now.

        What waits goes first: only then are keys and path looked at, which may add to it.
        """
        if self._carrier_is_full:
            return
        protocol, outbound = self.protocol, self.protocol.outbound
        data = outbound.data_to_send()
        if data is None and protocol.connection.may_send_bulk:
            return
        try:
            while data is not None:
                outbound.data_sent(self.carrier.send(data))
                data = outbound.data_to_send()
            protocol.transport.rekey_if_due(self._heard_s)
            if protocol.transport.phase is CONNECTION:
                protocol.connection.probe_if_due(self._current_time())
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
        if self.turns.are_awaited and self.turns.may_go_on(outbound, protocol.connection):
            poller.current().again(self._give_turns)  # a probe lets more be sent

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
        for answer in self._awaited_answers:
            answer.arrived(ConnectionLost(str(failure)))
        self._awaited_answers.clear()
        self._released.unpark_all()
        self.turns.discard()

    def bulk_limit(self) -> int:
        """How many bytes the path takes now from one that sends much; a turn, if others wait."""
        meter = self.protocol.connection.meter
        limit = min(meter.send_until - self.protocol.outbound.data_total, meter.send_step)
        if self.turns.bulk:
            share = min(meter.target_out // (len(self.turns.bulk) + 1), SMALL_TURN)
            limit = min(limit, max(meter.target_out // TURNS, share), LARGEST_TURN)
        return max(limit, 0)

    def close(self, reason: str = "closed by us") -> None:
        """End the link; ``run`` returns soon after."""
        self._fail(ConnectionLost(reason), "us")

    def disconnect(self, description: str, reason_code: int = Disconnect.BY_APPLICATION) -> None:
        """End the link and tell the peer why; ``run`` returns soon after."""
        if self.failure is None:
            self.protocol.disconnect(description, reason_code)
            self._fail(ConnectionLost(description), "us")

    def prod(self) -> None:
        """Send a message that means nothing (RFC 4253 §11.2)."""
        if self.failure is None and self.protocol.transport.phase is Phase.CONNECTION:
            self.protocol.outbound.append(Ignore(b"").encode())
            self.flush()

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
                    if self._awaited_answers:  # else the link was lost within this batch
                        self._awaited_answers.popleft().arrived(event)
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

    def ask(self, name: str, specific: bytes) -> Answer:
        """Send a global request with the next flush; answers come in their order (RFC 4254 §4).

        Raises `ConnectionLost`.
        """
        if self.failure is not None:
            raise ConnectionLost(str(self.failure))
        answer = Answer()
        self._awaited_answers.append(answer)
        self.protocol.connection.send_global_request(name, specific)
        return answer

    async def global_request(self, name: str, specific: bytes) -> events.GlobalReplied:
        """Send a global request and wait for its answer. Raises `ConnectionLost`."""
        answer = self.ask(name, specific)
        self.flush()
        return await answer.wait()

    async def answers(self, deadline_s: float) -> bool:
        """Ask the peer for a sign of life; say whether it came within ``deadline_s``."""
        with trio.move_on_after(deadline_s):
            try:
                await self.global_request(KEEPALIVE, b"")
            except ConnectionLost:
                return False
            return True
        return False

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

    def confirm_channel(self, channel_id: int, type_specific: bytes = b"") -> ChannelPort:
        """Grant the peer's open; ``type_specific`` is what its type says besides."""
        channel = self.protocol.connection.channels.get(channel_id)
        if channel is None or self.failure is not None:
            raise ConnectionLost("the link is gone")
        self.protocol.connection.confirm_channel(channel, type_specific)
        port = self._ports[channel_id] = ChannelPort(self, channel)
        port.confirmed()
        self.protocol.connection.probe_if_due(trio.current_time(), is_opening=True)
        self.flush()
        return port

    def refuse_channel(self, channel_id: int, reason_code: int, description: str) -> None:
        """Refuse the peer's open; one that was granted already is closed instead."""
        channel = self.protocol.connection.channels.get(channel_id)
        if channel is None or self.failure is not None:
            return
        if channel.send_state is SendState.OPENING:
            self.protocol.connection.refuse_channel(channel, reason_code, description)
            self.flush()
        elif port := self._ports.get(channel_id):
            self.release(port)
            port.fail(ChannelClosed(description))

    @property
    def carries_forwards(self) -> bool:
        """Whether a connection is forwarded over it now."""
        return any(port.channel.channel_type in FORWARDS for port in self._ports.values())

    async def wait_forwards(self) -> None:
        """Wait until no connection is forwarded any more, or the link has ended."""
        while self.carries_forwards:
            await self._released.park()

    def release(self, port: ChannelPort) -> None:
        """The owner is done with a channel, whatever its state."""
        self._ports.pop(port.channel.channel_id, None)
        self._released.unpark_all()
        port.pending.clear()
        connection = self.protocol.connection
        if self.failure is None and port.channel.channel_id in connection.channels:
            connection.abandon(port.channel)
            self.flush()
