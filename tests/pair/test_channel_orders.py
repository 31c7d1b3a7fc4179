"""All orders of OPEN, CONFIRM, DATA, EOF and CLOSE, from both sides, two of each. Hazards T41, T46.

A `Connection` is the same for a client and a server. Orders that lead to the same state are gone on
from once: what may still come depends on the state and on what is left to be said, and on nothing
else. A state is what the channels' tables hold, not how they came to hold it.
"""

from __future__ import annotations

from collections import Counter, deque

import pytest

from gateway.errors import LocalProtocolError, RemoteProtocolError
from gateway.ssh import messages
from gateway.ssh.channel import ReceiveState, SendState
from gateway.ssh.connection import Connection
from gateway.ssh.numbers import Msg
from gateway.ssh.packets import ROOM, Outbound
from gateway.ssh.windows import Budget
from tests.support.words import Snapshot

COPIES = 2
KINDS = ("open", "confirm", "data", "eof", "close")
WINDOW, PACKET = 1 << 20, 32768
UNKNOWN = 9


class Recorder(Outbound):
    """Keeps payloads instead of sealing them."""

    __slots__ = ("payloads",)

    def __init__(self):
        super().__init__(bytes)
        self.payloads = deque()

    def append(self, payload):
        self.payloads.append(payload)

    def seal_channel_data(self, recipient_channel, data_length, slot=None):
        head = bytes((Msg.CHANNEL_DATA,)) + recipient_channel.to_bytes(4, "big")
        self.payloads.append(head + data_length.to_bytes(4, "big") + bytes(ROOM[:data_length]))


class End:
    """One side: its connection, what it has said, and what it has been told."""

    def __init__(self):
        self.outbound = Recorder()
        self.events = deque()
        self.connection = Connection(
            self.outbound, self.events.append, extensions={}, budget=Budget()
        )

    @property
    def channels(self):
        return self.connection.channels

    def act(self, kind, channel_id):
        """Do what an owner may want. Raises LocalProtocolError where it may not."""
        if kind == "open":
            self.connection.open_channel("test", b"")
            return
        channel = self.channels[channel_id]
        if kind == "confirm":
            if not is_known_to_peer(channel):
                raise LocalProtocolError("our own open is the peer's to confirm")
            self.connection.confirm_channel(channel)
        elif kind == "data":
            assert channel.send(b"d") == 1
        elif kind == "eof":
            channel.send_eof()
        else:
            self.leave(channel)

    def leave(self, channel):
        """Be done with a channel: the peer's open that nobody has granted is refused."""
        if is_known_to_peer(channel) and channel.send_state is SendState.OPENING:
            self.connection.refuse_channel(channel, 1, "no")
        else:
            self.connection.abandon(channel)

    def receive(self, payload):
        if payload[0] == Msg.CHANNEL_DATA:
            self.connection.receive_data(memoryview(payload))
        else:
            self.connection.receive(payload)
        self.events.clear()

    def describe(self):
        """Return what the table holds, whatever the numbers are."""
        return tuple(sorted(Counter(map(self._channel, self.channels.values())).items()))

    def _channel(self, channel):
        return (is_known_to_peer(channel), channel.send_state.value, channel.receive_state.value)

    def check(self):
        """Whoever is in the table is not over, and what it holds of the budget is counted."""
        assert not [channel for channel in self.channels.values() if channel.is_over]
        charged = sum(channel.window.charged for channel in self.channels.values())
        assert self.connection.shares.budget.used == charged


def is_known_to_peer(channel):
    """Whether the peer has given it a number. While it is opening, it is the peer's then."""
    return bool(channel.remote_maximum_packet_size)


# ---- one side against a peer that says anything --------------------------------------------------


def message(kind, channel_id):
    """What the peer may send about a channel of ours."""
    match kind:
        case "open":
            return messages.ChannelOpen("test", 0, WINDOW, PACKET).encode()
        case "confirm":
            return messages.ChannelOpenConfirmation(channel_id, 0, WINDOW, PACKET).encode()
        case "data":
            return bytes((Msg.CHANNEL_DATA, *channel_id.to_bytes(4, "big"), 0, 0, 0, 1)) + b"d"
        case "eof":
            return messages.ChannelEof(channel_id).encode()
        case _:
            return messages.ChannelClose(channel_id).encode()


def clear_up(end):
    """Let every owner leave and a patient peer do its part: nothing may be left."""
    for channel in list(end.channels.values()):
        end.leave(channel)
        if channel.receive_state is ReceiveState.OPENING:
            end.receive(message("confirm", channel.channel_id))
        if channel.receive_state is not ReceiveState.CLOSE_RECEIVED:
            end.receive(message("close", channel.channel_id))
    assert end.channels == {}
    assert end.connection.shares.budget.used == 0
    assert end.connection.shares._active == {}
    assert end.connection.shares._fresh == 0


MAY_SAY = {
    ReceiveState.OPENING: set(),
    ReceiveState.OPEN: {"data", "eof", "close"},
    ReceiveState.EOF_RECEIVED: {"close"},
    ReceiveState.CLOSE_RECEIVED: set(),
}
"""What the peer may say about a channel (RFC 4254 §5.3); CONFIRM answers an open of ours, once."""


def may_say(channel, kind):
    if kind == "confirm":
        return channel.receive_state is ReceiveState.OPENING and not is_known_to_peer(channel)
    return kind in MAY_SAY[channel.receive_state]


class Orders:
    """Goes through all orders of one side's acts and the peer's messages, the short ones first.

    Whoever stands in a known state with less left to be said has nothing new before them.
    """

    def __init__(self, copies):
        self.end = End()
        self.states = {}
        """By table, what was left to be said."""
        self.outcomes = Counter()
        left = {(side, kind): copies for side in ("us", "peer") for kind in KINDS}
        waiting = deque([((), left)])
        self.is_new(left)
        while waiting:
            waiting.extend(self.go_on(*waiting.popleft()))

    def is_new(self, left):
        """Note where we stand; say whether nobody stood there with as much left."""
        known = self.states.setdefault(self.end.describe(), [])
        if any(all(left[kind] <= more[kind] for kind in left) for more in known):
            return False
        known.append(left)
        return True

    def go_on(self, word, left):
        """Say a word again, and try all that may follow it; return what is worth going on from."""
        self.end = End()
        for step in word:
            assert self.step(*step) == "done"
        before = Snapshot(self.end.connection)
        self.end.check()
        clear_up(self.end)
        before.restore()
        for (side, kind), copies in left.items():
            for channel_id in self.targets(kind) if copies else ():
                outcome = self.step(side, kind, channel_id)
                self.outcomes[outcome] += 1
                less = {**left, (side, kind): copies - 1}
                if outcome == "done" and self.is_new(less):
                    yield (*word, (side, kind, channel_id)), less
                before.restore()

    def targets(self, kind):
        """One channel of each sort, as others of its sort are the same, and one that is none."""
        if kind == "open":
            return [0]
        sorts = {
            self.end._channel(channel): number for number, channel in self.end.channels.items()
        }
        return [*sorts.values(), UNKNOWN]

    def step(self, side, kind, channel_id):
        """Do one thing; whatever refuses it has changed nothing."""
        channel = self.end.channels.get(channel_id)
        is_right = kind == "open" or (channel is not None and may_say(channel, kind))
        said, table = len(self.end.outbound.payloads), self.end.describe()
        try:
            if side == "peer":
                self.end.receive(message(kind, channel_id))
            elif channel_id == UNKNOWN:
                return "no such channel"
            else:
                self.end.act(kind, channel_id)
        except LocalProtocolError:
            assert side == "us"
            outcome = "we may not"
        except RemoteProtocolError:
            assert side == "peer"
            outcome = "ends the link"
        else:
            assert side == "us" or is_right, "T41"
            return "done"
        assert side == "us" or not is_right
        assert self.end.describe() == table
        assert len(self.end.outbound.payloads) == said, "no reply to it"
        return outcome


def test_one_side_against_a_peer_that_says_anything():
    """Whatever comes is taken or ends the link, and from every state all can be given back."""
    orders = Orders(COPIES)
    tables = set(orders.states)
    assert len(tables) > 900
    sorts = {sort for table in tables for sort, _ in table}
    halves = {(send, receive) for _, send, receive in sorts}
    assert {send for send, _ in halves} == {state.value for state in SendState}
    assert {receive for _, receive in halves} == {state.value for state in ReceiveState}
    assert (SendState.CLOSE_SENT.value, ReceiveState.CLOSE_RECEIVED.value) not in halves
    assert min(orders.outcomes.values()) > 1000


# ---- two sides that keep to the rules, and what crosses on the way -------------------------------


class Crossings:
    """Goes through all orders of what two owners do and of what arrives meanwhile."""

    def __init__(self, left):
        self.states = {}
        self.steps = 0
        waiting = deque([((), left)])
        self.begin(())
        self.is_new(left)
        while waiting:
            waiting.extend(self.go_on(*waiting.popleft()))

    def begin(self, word):
        self.ends = {"client": End(), "server": End()}
        for step in word:
            assert self.step(*step)

    def describe(self):
        return tuple(
            (
                tuple(
                    (channel.channel_id, channel.remote_channel, end._channel(channel))
                    for channel in end.channels.values()
                ),
                tuple(end.outbound.payloads),
            )
            for end in self.ends.values()
        )

    def is_new(self, left):
        known = self.states.setdefault(self.describe(), [])
        if any(all(left[kind] <= more[kind] for kind in left) for more in known):
            return False
        known.append(left)
        return True

    def go_on(self, word, left):
        self.begin(word)
        before = Snapshot([end.connection for end in self.ends.values()])
        queues = {name: tuple(end.outbound.payloads) for name, end in self.ends.items()}

        def back():
            before.restore()
            for name, end in self.ends.items():
                end.outbound.payloads = deque(queues[name])

        self.clear_up()
        back()
        for name, end in self.ends.items():
            acts = [
                (kind, channel_id)
                for kind in KINDS
                if left[name, kind]
                for channel_id in ([0] if kind == "open" else end.channels)
            ]
            for kind, channel_id in [("deliver", 0), *acts]:
                self.steps += 1
                if self.step(name, kind, channel_id):
                    less = left
                    if kind != "deliver":
                        less = {**left, (name, kind): left[name, kind] - 1}
                    if self.is_new(less):
                        yield (*word, (name, kind, channel_id)), less
                back()

    def step(self, name, kind, channel_id):
        """Do one thing; say whether it was possible. What arrives never breaks the rules."""
        end = self.ends[name]
        if kind == "deliver":
            return self.deliver(name)
        try:
            end.act(kind, channel_id)
        except LocalProtocolError:
            return False
        return True

    def deliver(self, name):
        """Let the oldest message that this side has sent arrive."""
        payloads = self.ends[name].outbound.payloads
        if not payloads:
            return False
        other = self.ends["server" if name == "client" else "client"]
        other.receive(payloads.popleft())
        return True

    def clear_up(self):
        """Let all arrive and every owner leave, until nothing moves: nothing may be left."""
        for _ in range(20):
            while any(self.deliver(name) for name in self.ends):
                pass
            for end in self.ends.values():
                end.check()
                for channel in list(end.channels.values()):
                    end.leave(channel)
            if not any(end.outbound.payloads for end in self.ends.values()):
                break
        for end in self.ends.values():
            assert end.channels == {}
            assert end.connection.shares.budget.used == 0


def budget(client_opens, server_opens, **copies):
    """How often each side may do each thing."""
    left = {(name, kind): copies.get(kind, 0) for name in ("client", "server") for kind in KINDS}
    return {**left, ("client", "open"): client_opens, ("server", "open"): server_opens}


@pytest.mark.parametrize(
    ("left", "states"),
    [
        (budget(1, 0, confirm=COPIES, data=COPIES, eof=COPIES, close=COPIES), 200),
        (budget(2, 0, confirm=1, data=1, eof=1, close=1), 1000),
        (budget(1, 1, confirm=1, close=1), 500),
    ],
    ids=["one channel, two of each", "two channels", "two opens that cross"],
)
def test_whatever_crosses_on_the_way(left, states):
    """No side complains, and when both have left, both tables are empty."""
    assert len(Crossings(left).states) > states
