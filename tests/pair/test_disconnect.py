"""Nothing is sent after SSH_MSG_DISCONNECT (RFC 4253 §11.1), whoever still has something to say."""

from __future__ import annotations

import pytest
import trio.testing

from gateway import events
from gateway.errors import LocalProtocolError, RemoteProtocolError
from gateway.ssh import messages
from gateway.ssh.numbers import Msg
from gateway.ssh.packets import BUFFER_SIZE
from gateway.ssh.transport import Phase, Role
from tests.support.memory import linked, make_links
from tests.support.pair import feed, inject, log_in, make_pair, pair_in_phase, spy_on, take


def logged_in(role):
    """A pair, the side that will break off, its peer, that peer's ears, and an end of a channel."""
    pair = make_pair()
    heard = {Role.CLIENT: spy_on(pair.server), Role.SERVER: spy_on(pair.client)}[role]
    log_in(pair)
    ends = pair.open_channel()
    heard.clear()
    if role is Role.CLIENT:
        return pair.client, pair.server, heard, ends[0]
    return pair.server, pair.client, heard, ends[1]


def say_everything(side, channel):
    """What tasks do that have not heard yet that the link is over."""
    assert channel.send(b"data") == 0
    assert channel.rooms(1000) == []
    assert not channel.takes_datagram(10)
    channel.send_request("x")
    channel.send_extended(1, b"x")
    side.connection.open_channel("test", b"")
    side.connection.send_global_request("x")
    side.connection.explain("x")
    side.outbound.append_transport(messages.Ignore(b"").encode())
    channel.send_eof()
    side.connection.close(channel)


def all_that_leaves(side):
    """Take to the last byte; taking may let what waited go."""
    data = b""
    while more := take(side):
        data += more
    return data


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("how", ["the peer broke the rules", "we say goodbye"])
def test_nothing_follows_our_disconnect(role, how):
    side, peer, heard, channel = logged_in(role)
    channel.send(b"before")
    if how == "we say goodbye":
        side.disconnect("enough")
    else:
        with pytest.raises(RemoteProtocolError):
            inject(side, messages.ServiceRequest("ssh-userauth"))
    say_everything(side, channel)
    feed(peer, all_that_leaves(side))
    assert heard == [Msg.CHANNEL_DATA, Msg.DISCONNECT]
    assert peer.transport.phase is Phase.CLOSED


@pytest.mark.parametrize("role", Role)
def test_what_waited_for_new_keys_does_not_follow_it(role):
    """The lane is full, the peer answers our KEXINIT with nonsense."""
    side, peer, heard, channel = logged_in(role)
    side.transport.start_rekey(0.0)
    channel.send_request("waits")
    side.connection.send_global_request("waits too")
    with pytest.raises(RemoteProtocolError):
        inject(side, messages.ServiceRequest("ssh-userauth"))
    assert side.outbound._lane_bytes == 0
    feed(peer, all_that_leaves(side))
    assert heard == [Msg.KEXINIT, Msg.DISCONNECT]


@pytest.mark.parametrize("role", Role)
def test_what_found_no_room_does_not_follow_it(role):
    side, peer, heard, _channel = logged_in(role)
    while not side.outbound._lane:
        side.outbound.append(messages.Ignore(bytes(30_000)).encode())
    side.disconnect("enough")
    feed(peer, all_that_leaves(side))
    assert set(heard[:-1]) == {Msg.IGNORE}
    assert heard[-1] == Msg.DISCONNECT


@pytest.mark.parametrize("role", Role)
def test_without_room_for_disconnect_nothing_is_said(role):
    side, peer, heard, channel = logged_in(role)
    outbound = side.outbound
    while outbound._fits(bytes(30_000), 0):
        outbound._seal(messages.Ignore(bytes(30_000)).encode())
    while outbound._fits(b"", 0):
        outbound._seal(messages.Ignore(b"").encode())
    assert outbound._end <= BUFFER_SIZE
    side.disconnect("enough")
    assert side.transport.phase is Phase.CLOSED
    say_everything(side, channel)
    feed(peer, all_that_leaves(side))
    assert set(heard) == {Msg.IGNORE}


@pytest.mark.parametrize("role", Role)
def test_nothing_is_said_to_a_peer_that_has_said_goodbye(role):
    side, peer, _, channel = logged_in(role)
    peer.disconnect("bye")
    feed(side, take(peer))
    assert isinstance(side.next_event(), events.PeerDisconnected)
    say_everything(side, channel)
    side.disconnect("bye too")
    assert all_that_leaves(side) == b""


def test_a_host_key_that_is_trusted_too_late_sends_nothing():
    pair, client = pair_in_phase(Role.CLIENT, Phase.KEX_STRICT)
    feed(pair.server, take(client))
    reply = take(pair.server)
    feed(client, reply)
    client.disconnect("the user is too slow")
    goodbye = take(client)
    assert goodbye
    client.accept_host_key()
    assert all_that_leaves(client) == b""
    assert not client.outbound.accepts_data
    with pytest.raises(LocalProtocolError):
        client.transport.start_rekey(0.0)


async def test_who_reads_at_the_end_of_a_batch_reads_for_nobody(autojump_clock):
    """As a tunnel does: it reads its device once more when the batch with the breach is over."""
    links = make_links()
    async with linked(links):
        local, _ = await links.open_channel()
        await trio.testing.wait_all_tasks_blocked()
        heard = spy_on_link(links.server)
        asked = []

        def read_on():
            asked.append(links.link.protocol.outbound.accepts_data)
            local.channel.send(b"more from the device")
            links.link.prod()

        def sink(data):
            links.link.at_batch_end.append(read_on)
            return len(data)

        local.channel.sink = sink
        server = links.server.protocol
        links.accepted[-1].channel.send(b"x")
        server.outbound.append(messages.Pong(b"").encode() + b"?")
        links.server.flush()
        await links.link.ended.wait()
        await links.server.ended.wait()
        assert asked == [False]
        assert heard[-1] == Msg.DISCONNECT
        assert Msg.CHANNEL_DATA not in heard


def spy_on_link(link):
    """Return a list that grows by the numbers of what a link receives from now on."""
    numbers = []
    receive = link.protocol._route

    def route(number, payload, now_s):
        numbers.append(number)
        receive(number, payload, now_s)

    def receive_data(payload):
        numbers.append(payload[0])

    link.protocol._route = route
    link.protocol.connection.receive_data = receive_data
    return numbers
