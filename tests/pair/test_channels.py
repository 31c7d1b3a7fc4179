"""Channels in memory: states, windows, and hostile peers. Hazards T38-T47, T62."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import events
from gateway.errors import LocalProtocolError, RemoteProtocolError
from gateway.ssh import connection as connection_module
from gateway.ssh import messages
from gateway.ssh.channel import (
    RECEIVE_TABLE,
    SEND_TABLE,
    Channel,
    ChannelEvent,
    ReceiveState,
    SendState,
)
from gateway.ssh.flow import INITIAL_WINDOW, PathMeter
from gateway.ssh.numbers import Msg, OpenFailure
from gateway.ssh.packets import MAXIMUM_DATA, Outbound
from gateway.ssh.transport import Phase, Role
from gateway.ssh.windows import Budget, Shares
from tests.support.pair import inject, logged_in_pair, take

WINDOW = INITIAL_WINDOW


def channel_data(channel_id, data, length=None):
    claimed = len(data) if length is None else length
    return (
        bytes((Msg.CHANNEL_DATA,))
        + channel_id.to_bytes(4, "big")
        + claimed.to_bytes(4, "big")
        + data
    )


def all_events(protocol):
    return list(iter(protocol.next_event, None))


def an_open_channel():
    """A pair, its server, and the server's end of one open channel."""
    pair = logged_in_pair()
    _, remote = pair.open_channel()
    return pair, pair.server, remote


def open_with(channel_id=0, window=WINDOW, packet=32768):
    return messages.ChannelOpen("test", channel_id, window, packet)


# ---- the tables ----------------------------------------------------------------------------------


@pytest.mark.parametrize("from_peer", [True, False])
@pytest.mark.parametrize("event", ChannelEvent)
@pytest.mark.parametrize("receive", ReceiveState)
@pytest.mark.parametrize("send", SendState)
def test_every_state_with_every_event(send, receive, event, from_peer):
    channel = Channel(7, "test", Outbound(bytes), Shares(PathMeter(), Budget()))
    channel.send_state, channel.receive_state = send, receive
    before = repr(channel)
    assert before == f"<Channel 7 test send={send.value} receive={receive.value}>"
    new = SEND_TABLE.get((send, event)), RECEIVE_TABLE.get((receive, event))
    if new == (None, None):
        error = RemoteProtocolError if from_peer else LocalProtocolError
        with pytest.raises(error, match="is not possible now"):
            channel.change(event, from_peer=from_peer)
        assert repr(channel) == before
    else:
        channel.change(event, from_peer=from_peer)
        assert channel.send_state is (new[0] or send)
        assert channel.receive_state is (new[1] or receive)


def test_the_end_cannot_be_left():
    assert not [key for key in SEND_TABLE if key[0] is SendState.CLOSE_SENT]
    assert not [key for key in RECEIVE_TABLE if key[0] is ReceiveState.CLOSE_RECEIVED]


def test_every_state_leads_to_the_end():
    for table, end in (
        (SEND_TABLE, SendState.CLOSE_SENT),
        (RECEIVE_TABLE, ReceiveState.CLOSE_RECEIVED),
    ):
        good = {end}
        for _ in range(10):
            good |= {state for (state, _), new in table.items() if new in good}
        assert good == set(type(end))


# ---- windows (T39, T40, T47, P16) ----------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["send", "send back", "read", "read back"]),
            st.integers(1, 3 * WINDOW // 2),
        ),
        max_size=30,
    )
)
def test_credit_is_conserved_and_who_reads_always_gets_on(steps):
    """No byte of a window is ever lost or made: sender's credit + on the way + unread = window."""
    pair = logged_in_pair()
    ends = pair.open_channel()
    unread = [0, 0]

    def keep(index):
        def sink(data):
            unread[index] += len(data)
            return 0

        return sink

    for index, end in enumerate(ends):
        end.sink = keep(index)
    chunk = bytes(WINDOW * 2)

    def read(index, most):
        count = min(unread[index], most)
        unread[index] -= count
        ends[index].consumed(count)
        pair.pump()

    def check():
        for receiver, sender in ((0, 1), (1, 0)):
            end = ends[receiver]
            assert end.window.granted == ends[sender].remote_window, "both count the same"
            assert end.window.held == unread[receiver]
            assert 0 <= end.window.granted + end.window.held <= WINDOW

    for what, amount in steps:
        sender = ends[1] if "back" in what else ends[0]
        if what.startswith("send"):
            sender.send(memoryview(chunk)[:amount])
            pair.pump()
        else:
            read(0 if "back" in what else 1, amount)
        check()
    for index in (0, 1):
        read(index, unread[index])
        check()
        assert ends[1 - index].room(), "everything was read, so more may come"


def test_a_reader_that_paused_with_a_full_window_always_resumes():
    """T47: byte by byte, then all; credit comes at the latest when a quarter was read."""
    pair = logged_in_pair()
    local, remote = pair.open_channel()
    remote.sink = lambda data: 0
    while local.send(bytes(MAXIMUM_DATA)):
        pair.pump()
    pair.pump()
    assert (local.remote_window, remote.window.granted) == (0, 0)
    assert not local.room()
    for _ in range(1000):
        remote.consumed(1)
    pair.pump()
    assert not local.room(), "small credits are collected"
    remote.consumed(WINDOW // 4 - 1000)
    pair.pump()
    assert len(local.room()) > 0
    assert events.ChannelWritable(local.channel_id) in pair.client_events


@pytest.mark.parametrize("beyond", [1, 1000, MAXIMUM_DATA])
def test_data_beyond_the_window_ends_the_link(beyond):
    _, server, remote = an_open_channel()
    got = bytearray()
    remote.sink = lambda data: (got.extend(data) and 0) or 0
    for _ in range(WINDOW // MAXIMUM_DATA):
        inject(server, channel_data(remote.channel_id, bytes(MAXIMUM_DATA)))
    left = remote.window.granted
    with pytest.raises(RemoteProtocolError, match="exceed the window"):
        inject(server, channel_data(remote.channel_id, bytes(min(left + beyond, 262_100))))
    assert len(got) + left == WINDOW
    assert server.transport.phase is Phase.CLOSED


@pytest.mark.parametrize("claimed", [0, 2, 4, 0xFFFF_FFFF])
def test_data_whose_length_is_a_lie(claimed):
    _, server, remote = an_open_channel()
    with pytest.raises(RemoteProtocolError, match="length field"):
        inject(server, channel_data(remote.channel_id, b"abc", claimed))


@pytest.mark.parametrize("cut", range(1, 9))
def test_data_without_its_header(cut):
    _, server, remote = an_open_channel()
    with pytest.raises(RemoteProtocolError, match="length field"):
        inject(server, channel_data(remote.channel_id, b"")[:cut])


def test_a_window_that_overflows_ends_the_link():
    _, server, remote = an_open_channel()
    inject(server, messages.ChannelWindowAdjust(remote.channel_id, 0xFFFF_FFFF - WINDOW))
    assert remote.remote_window == 0xFFFF_FFFF
    with pytest.raises(RemoteProtocolError, match=r"2\^32-1"):
        inject(server, messages.ChannelWindowAdjust(remote.channel_id, 1))


def test_a_flood_of_window_adjusts_costs_nothing():
    _, server, remote = an_open_channel()
    for add in (0, 1):
        for _ in range(3000):
            inject(server, messages.ChannelWindowAdjust(remote.channel_id, add))
    assert remote.remote_window == WINDOW + 3000
    assert server.next_event() is None
    assert server.outbound.data_to_send() is None


def test_a_huge_window_is_used_packet_by_packet():
    pair = logged_in_pair()
    inject(pair.server, open_with(window=0xFFFF_FFFF, packet=0xFFFF_FFFF))
    (request,) = all_events(pair.server)
    channel = pair.server.connection.channels[request.channel_id]
    pair.server.connection.confirm_channel(channel)
    assert len(channel.room()) == MAXIMUM_DATA


# ---- packet sizes (T38) --------------------------------------------------------------------------


@pytest.mark.parametrize("size", range(9))
def test_packet_sizes_that_lead_nowhere_are_refused(size):
    pair = logged_in_pair()
    with pytest.raises(RemoteProtocolError, match=f"maximum packet size of {size} bytes"):
        inject(pair.server, open_with(packet=size))
    pair = logged_in_pair()
    channel = pair.client.connection.open_channel("test", b"")
    with pytest.raises(RemoteProtocolError, match=f"maximum packet size of {size} bytes"):
        inject(
            pair.client,
            messages.ChannelOpenConfirmation(channel.channel_id, 0, WINDOW, size),
        )


@pytest.mark.parametrize("size", [9, 1000, 32768, 0xFFFF_FFFF])
def test_the_peers_packet_size_is_respected(size):
    pair = logged_in_pair()
    channel = pair.client.connection.open_channel("test", b"")
    inject(pair.client, messages.ChannelOpenConfirmation(channel.channel_id, 0, WINDOW, size))
    assert len(channel.room()) == min(size, MAXIMUM_DATA)
    assert channel.send(bytes(50)) == 50


# ---- numbers (T41, T42) --------------------------------------------------------------------------


def about(channel_id):
    """Every message about a channel."""
    return [
        messages.ChannelOpenConfirmation(channel_id, 0, WINDOW, 32768),
        messages.ChannelOpenFailure(channel_id, 1, "no"),
        messages.ChannelWindowAdjust(channel_id, 1),
        channel_data(channel_id, b"x"),
        messages.ChannelExtendedData(channel_id, 1, b"x"),
        messages.ChannelEof(channel_id),
        messages.ChannelClose(channel_id),
        messages.ChannelRequest(channel_id, "x", True),
        messages.ChannelSuccess(channel_id),
        messages.ChannelFailure(channel_id),
    ]


def name(message):
    return "ChannelData" if isinstance(message, bytes) else type(message).__name__


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("number", [0, 5, 0xFFFF_FFFF])
@pytest.mark.parametrize("message", about(0), ids=name)
def test_channels_that_do_not_exist(role, number, message):
    pair = logged_in_pair()
    target = pair.client if role is Role.CLIENT else pair.server
    index = [name(m) for m in about(0)].index(name(message))
    with pytest.raises(RemoteProtocolError, match="does not exist"):
        inject(target, about(number)[index])
    assert target.transport.phase is Phase.CLOSED


@pytest.mark.parametrize("message", about(0), ids=name)
def test_the_peer_says_nothing_on_a_channel_that_we_have_not_confirmed(message):
    pair = logged_in_pair()
    inject(pair.server, open_with())
    all_events(pair.server)
    with pytest.raises(RemoteProtocolError):
        inject(pair.server, message)
    assert all_events(pair.server) == []


@pytest.mark.parametrize("message", about(0)[2:], ids=name)
def test_the_peer_says_nothing_on_a_channel_that_it_has_not_confirmed(message):
    pair = logged_in_pair()
    pair.client.connection.open_channel("test", b"")
    with pytest.raises(RemoteProtocolError):
        inject(pair.client, message)
    assert all_events(pair.client) == []


@pytest.mark.parametrize("message", about(0), ids=name)
def test_what_crosses_our_close_is_ignored(message):
    _, server, remote = an_open_channel()
    assert remote.channel_id == 0
    server.connection.close(remote)
    take(server)
    if name(message) in ("ChannelOpenConfirmation", "ChannelOpenFailure"):
        with pytest.raises(RemoteProtocolError):
            inject(server, message)
        return
    inject(server, message)
    assert server.outbound.data_to_send() is None, "no reply, no credit"
    for event in all_events(server):
        assert isinstance(event, events.ChannelEofReceived | events.ChannelCloseReceived)
    assert (name(message) == "ChannelClose") == (server.connection.channels == {})


@pytest.mark.parametrize("message", about(0), ids=name)
def test_nothing_follows_the_peers_close(message):
    _, server, _ = an_open_channel()
    inject(server, messages.ChannelClose(0))
    all_events(server)
    with pytest.raises(RemoteProtocolError):
        inject(server, message)
    assert all_events(server) == []


@pytest.mark.parametrize("message", [about(0)[i] for i in (3, 4, 5)], ids=name)
def test_no_data_follows_the_peers_eof(message):
    _, server, _ = an_open_channel()
    inject(server, messages.ChannelEof(0))
    with pytest.raises(RemoteProtocolError):
        inject(server, message)


@pytest.mark.parametrize(
    "reply",
    [
        messages.RequestSuccess(b"x"),
        messages.RequestFailure(),
        messages.ChannelSuccess(0),
        messages.ChannelFailure(0),
    ],
    ids=name,
)
def test_replies_that_nobody_waits_for_are_dropped(reply):
    """T42."""
    _, server, remote = an_open_channel()
    for _ in range(2000):
        inject(server, reply)
    assert all_events(server) == []
    remote.send_request("x")
    server.connection.send_global_request("x")
    inject(server, reply, reply)
    assert len(all_events(server)) == 1, "one question, one answer"


@pytest.mark.parametrize("code", [0, 1, 2, 0xFFFF_FFFF])
def test_extended_data_of_any_type_never_pins_the_window(code):
    """T43."""
    pair = logged_in_pair()
    _, remote = pair.open_channel()
    for _ in range(3 * WINDOW // 100_000):
        inject(pair.server, messages.ChannelExtendedData(0, code, bytes(100_000)))
        take(pair.server)
        assert remote.window.held == 0
    inject(pair.server, messages.ChannelExtendedData(0, code, b""))


def test_extended_data_counts_against_the_window():
    _, server, remote = an_open_channel()
    remote.extended_sink = lambda code, data: 0
    for _ in range(WINDOW // 200_000):
        inject(server, messages.ChannelExtendedData(0, 1, bytes(200_000)))
    with pytest.raises(RemoteProtocolError, match="do not fit"):
        inject(server, messages.ChannelExtendedData(0, 1, bytes(200_000)))


# ---- opening (T44, T45, T62) ---------------------------------------------------------------------


def test_refused_opens_leave_nothing():
    """T44."""
    pair = logged_in_pair()
    server = pair.server
    before = None
    for number in range(20_000):
        inject(server, open_with(number))
        event = server.next_event()
        channel = server.connection.channels[event.channel_id]
        server.connection.refuse_channel(channel, OpenFailure.CONNECT_FAILED, "x" * 5000)
        take(server)
        if number == 1000:
            before = sys.getallocatedblocks()
    assert server.connection.channels == {}
    assert sys.getallocatedblocks() - before < 2000


def test_the_table_is_bounded_and_places_come_back(monkeypatch):
    """T45: code 4 at the limit; a number is never used twice."""
    monkeypatch.setattr(connection_module, "MAXIMUM_CHANNELS", 50)
    pair = logged_in_pair()
    client, server = pair.client.connection, pair.server.connection
    pairs = [pair.open_channel() for _ in range(50)]
    one_more = client.open_channel("test", b"")
    pair.pump()
    assert pair.client_events.pop() == events.ChannelOpenFailed(
        one_more.channel_id, OpenFailure.RESOURCE_SHORTAGE, "too many channels"
    )
    local, remote = pairs[20]
    assert local.send(b"the others go on") == 16
    client.close(local)
    pair.pump()
    assert len(server.channels) == 50, "closed by one side only"
    server.close(remote)
    pair.pump()
    assert len(server.channels) == 49
    _, newest = pair.open_channel()
    assert newest.channel_id == 50


def test_the_limit_is_opensshs():
    assert connection_module.MAXIMUM_CHANNELS == 16_384


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("confirm", "close follows"), ("refuse", "nothing follows"), ("nothing", "waits")],
)
def test_an_abandoned_open(answer, expected):
    """T62: the owner leaves while the open is on its way."""
    pair = logged_in_pair()
    client, server = pair.client.connection, pair.server.connection
    channel = client.open_channel("test", b"")
    pair.pump()
    client.abandon(channel)
    client.abandon(channel)
    remote = server.channels[0]
    if answer == "confirm":
        server.confirm_channel(remote)
    elif answer == "refuse":
        server.refuse_channel(remote, 1, "no")
    pair.pump()
    assert pair.client_events == [], "its owner has left"
    if expected == "close follows":
        assert pair.server_events[-1] == events.ChannelCloseReceived(0)
        server.close(remote)
        pair.pump()
    assert len(client.channels) == (expected == "waits")
    assert len(server.channels) == (expected == "waits")


def test_ten_thousand_abandoned_opens_leave_nothing():
    pair = logged_in_pair()
    client, server = pair.client.connection, pair.server.connection
    for _ in range(20):
        for _ in range(500):
            client.abandon(client.open_channel("test", b""))
        pair.pump()
        for channel in list(server.channels.values()):
            server.confirm_channel(channel)
        pair.pump()
        for channel in list(server.channels.values()):
            server.close(channel)
        pair.pump()
        pair.server_events.clear()
    assert (client.channels, server.channels) == ({}, {})


def test_a_refusal_is_told_with_its_reason():
    pair = logged_in_pair()
    channel = pair.client.connection.open_channel("direct-tcpip", b"")
    pair.pump()
    pair.server.connection.refuse_channel(pair.server.connection.channels[0], 2, "no route")
    pair.pump()
    assert pair.client_events == [events.ChannelOpenFailed(channel.channel_id, 2, "no route")]
    assert pair.client.connection.channels == {}


# ---- the end (T46) -------------------------------------------------------------------------------


def test_half_close_is_exact_both_ways():
    pair = logged_in_pair()
    local, remote = pair.open_channel()
    got = bytearray()
    local.sink = lambda data: got.extend(data) or len(data)
    local.send_eof()
    pair.pump()
    assert pair.server_events == [events.ChannelEofReceived(remote.channel_id)]
    with pytest.raises(LocalProtocolError):
        local.room()
    with pytest.raises(LocalProtocolError):
        local.send_eof()
    remote.send(b"answer")
    remote.send_eof()
    pair.pump()
    assert got == b"answer"
    assert pair.client_events == [events.ChannelEofReceived(local.channel_id)]
    assert (len(pair.client.connection.channels), len(pair.server.connection.channels)) == (1, 1)
    pair.client.connection.close(local)
    pair.server.connection.close(remote)
    pair.pump()
    assert pair.client.connection.channels == {} == pair.server.connection.channels


def test_close_twice_is_sent_once():
    pair = logged_in_pair()
    local, _ = pair.open_channel()
    for _ in range(3):
        pair.client.connection.close(local)
    pair.pump()
    assert pair.server_events == [events.ChannelCloseReceived(0)]
    with pytest.raises(RemoteProtocolError, match="close is not possible now"):
        inject(pair.server, messages.ChannelClose(0))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), max_size=12))
def test_any_sequence_of_messages_ends_cleanly(sequence):
    """T46: two channels of the peer, one of ours, messages in any order, twice or more."""
    pair = logged_in_pair()
    server = pair.server
    inject(server, open_with(0), open_with(1))
    all_events(server)
    server.connection.confirm_channel(server.connection.channels[0])
    server.connection.open_channel("test", b"")
    try:
        for kind, channel_id in sequence:
            inject(server, about(channel_id)[kind])
            for event in all_events(server):
                channel = server.connection.channels.get(event.channel_id)
                if isinstance(event, events.ChannelCloseReceived) and channel:
                    server.connection.close(channel)
    except RemoteProtocolError:
        assert server.transport.phase is Phase.CLOSED
    server.discard()
    assert server.outbound._wire is None
    assert server.inbound._buffer is None
