"""New keys at every moment of a session, asked for by either side or by both at once. Hazard T13.

The session has what may be on its way just then: the end of the login, an open that nobody has
answered, requests without a reply, data both ways, EOF and CLOSE.
"""

from __future__ import annotations

import itertools
import os

import pytest

from gateway import events
from gateway.ssh.algorithms import Preferences
from gateway.ssh.flow import INITIAL_WINDOW
from gateway.ssh.numbers import Msg
from gateway.ssh.packets import DATA_LIMIT
from gateway.ssh.transport import Phase
from tests.support.pair import (
    assert_only_kex_between_kexinit_and_newkeys,
    feed,
    make_pair,
    spy_on,
    take,
)

STEP = 150  # bytes that arrive at once: whole packets, and parts of them
UPLOAD, DOWNLOAD = os.urandom(3000), os.urandom(2500)
FIRST, SECOND = b"first", b"second"
STARTERS = [("client",), ("server",), ("client", "server")]


class Session:
    """A client and a server that do all they can, a step at a time."""

    def __init__(self):
        self.pair = make_pair(client_offers=Preferences(kex=("curve25519-sha256",)))
        self.sides = {"client": self.pair.client, "server": self.pair.server}
        self.heard = {name: spy_on(side) for name, side in self.sides.items()}
        self.got = {"client": bytearray(), "server": bytearray()}
        self.sent = {"client": 0, "server": 0}
        self.ends = {}
        self.second = None
        self.replies = 0
        self.over = []
        self.turns = itertools.cycle((("client", "server"), ("server", "client")))
        self.has_all = False

    def step(self):
        """Let a few bytes arrive, one way and then the other; say whether there were any."""
        source, target = next(self.turns)
        if data := take(self.sides[source], STEP):
            feed(self.sides[target], data)
        self.pair._collect()
        for event in self.pair.client_events:
            self.client_acts(event)
        for event in self.pair.server_events:
            self.server_acts(event)
        self.pair.client_events.clear()
        self.pair.server_events.clear()
        self.send()
        return bool(data)

    def send(self):
        for name, data in (("client", UPLOAD), ("server", DOWNLOAD)):
            channel = self.ends.get(name)
            if channel is None or self.sent[name] == len(data):
                continue
            self.sent[name] += channel.send(memoryview(data)[self.sent[name] :][:700])
            if self.sent[name] == len(data):
                channel.send_eof()

    def client_acts(self, event):
        connection = self.pair.client.connection
        match event:
            case events.Authenticated():
                connection.send_global_request("nobody-knows@test")
                connection.open_channel("test", FIRST).sink = self.sink("client")
                connection.open_channel("test", SECOND)
            case events.ChannelOpened(0):
                self.ends["client"] = connection.channels[0]
                connection.channels[0].send_request("x")
            case events.ChannelOpened(channel_id):
                connection.close(connection.channels[channel_id])
            case events.ChannelCloseReceived(channel_id):
                self.over.append(channel_id)
                if channel_id in connection.channels:
                    connection.close(connection.channels[channel_id])
            case events.GlobalReplied() | events.ChannelReplied():
                self.replies += 1

    def server_acts(self, event):
        connection = self.pair.server.connection
        match event:
            case events.GlobalRequested():
                connection.reply_global(success=False)
            case events.ChannelOpenRequested(channel_id, _, which):
                channel = connection.channels[channel_id]
                if which == SECOND:
                    self.second = channel  # it has to wait
                    return
                channel.sink = self.sink("server")
                connection.confirm_channel(channel)
                self.ends["server"] = channel
            case events.ChannelRequested(channel_id):
                connection.reply_request(connection.channels[channel_id], success=True)
            case events.ChannelEofReceived():
                self.has_all = True
            case events.ChannelCloseReceived(channel_id) if channel_id in connection.channels:
                connection.close(connection.channels[channel_id])
        end = self.ends.get("server")
        if self.has_all and self.sent["server"] == len(DOWNLOAD):
            connection.close(end)
            if self.second is not None:
                connection.confirm_channel(self.second)
                self.second = None

    def sink(self, name):
        return lambda data: self.got[name].extend(data) or len(data)

    def start_rekey(self, name):
        """Ask for new keys, if that may be done now."""
        transport = self.sides[name].transport
        if transport.phase is not Phase.CONNECTION:
            return False
        transport.start_rekey(0.0)
        return True

    def run(self, at, starters):
        """Go through it; ask for new keys in step ``at``, or as soon after it as is possible."""
        waiting, idle = list(starters), 0
        for number in itertools.count():
            if number >= at:
                waiting = [name for name in waiting if not self.start_rekey(name)]
            idle = 0 if self.step() or waiting else idle + 1
            if idle == 2:
                return number
        raise AssertionError

    def check(self):
        assert self.got == {"client": DOWNLOAD, "server": UPLOAD}
        assert self.replies == 2
        assert self.over == [0, 1]
        for name, side in self.sides.items():
            assert side.transport.phase is Phase.CONNECTION
            assert side.connection.channels == {}
            assert side.outbound.accepts_data
            assert_only_kex_between_kexinit_and_newkeys(self.heard[name])


@pytest.mark.parametrize("starters", STARTERS, ids=" and ".join)
def test_new_keys_at_every_step_of_a_session(starters):
    plain = Session()
    steps = plain.run(0, ())
    plain.check()
    assert steps > 60
    exchanges = set()
    for at in range(steps):
        session = Session()
        session.run(at, starters)
        session.check()
        counts = {name: heard.count(Msg.NEWKEYS) for name, heard in session.heard.items()}
        assert counts["client"] == counts["server"]
        exchanges.add(counts["client"])
    assert exchanges <= {2, 3}, "at once is one exchange; one after the other are two"
    assert 2 in exchanges


@pytest.mark.parametrize("starters", STARTERS, ids=" and ".join)
@pytest.mark.parametrize("sender", ["client", "server"])
def test_new_keys_while_data_waits_and_while_the_window_is_full(starters, sender):
    """Not a byte more than the window while keys change, and not one lost."""
    session = Session()
    pair = session.pair
    pair.pump()
    local, remote = pair.open_channel()
    source, sink = (local, remote) if sender == "client" else (remote, local)
    got = bytearray()
    sink.sink = lambda data: got.extend(data) or 0
    data = os.urandom(INITIAL_WINDOW + 100_000)
    for heard in session.heard.values():
        heard.clear()
    sent = source.send(data)
    assert 0 < sent <= DATA_LIMIT
    for name in starters:
        assert session.start_rekey(name)  # all that was sealed has not left
    pair.pump()
    sent += source.send(memoryview(data)[sent:])
    pair.pump()
    assert len(got) == sent == INITIAL_WINDOW
    for name in starters:
        assert session.start_rekey(name)  # the window is full
    pair.pump()
    assert source.send(memoryview(data)[sent:]) == 0
    sink.consumed(INITIAL_WINDOW)
    for name in starters:
        assert session.start_rekey(name)  # the credit is on its way, or waits
    pair.pump()
    sent += source.send(memoryview(data)[sent:])
    pair.pump()
    assert sent == len(data)
    assert got == data
    for heard in session.heard.values():
        assert heard.count(Msg.NEWKEYS) == 3
        assert_only_kex_between_kexinit_and_newkeys(heard)
