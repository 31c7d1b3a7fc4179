"""A fault at every read and write of a whole link's life, and a flipped bit at every offset."""

from __future__ import annotations

import errno
import itertools

import pytest
import trio
import trio.testing

from gateway.errors import ConnectionLost, GatewayError, RemoteProtocolError
from gateway.ssh.algorithms import DEFAULT_CIPHERS, Preferences
from gateway.ssh.transport import Phase, Role
from tests.support.memory import assert_released, make_links, read_all, send_all
from tests.support.pair import feed, log_in, make_pair, take

DATA = bytes(range(256)) * 300
WORST_CASE_S = 100.0  # of virtual time


class FaultAt:
    """Fails the N-th operation of one kind, counted from 0."""

    def __init__(self, operation, number, strike):
        self.operation = operation
        self.remaining = number
        self.strike = strike
        self.struck = False

    def __call__(self, operation):
        if operation != self.operation or self.struck:
            return
        if not self.remaining:
            self.struck = True
            self.strike()
        self.remaining -= 1


def reset():
    raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


async def session(links, failures):
    """Log in, open a channel, get DATA back from it, close, as far as it goes."""
    try:
        await links.log_in()
        port = await links.link.open_channel("test", b"")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, port, DATA)
            assert await read_all(port, len(DATA)) == DATA
        port.send_eof()
        port.close()
        await trio.testing.wait_all_tasks_blocked()
        links.link.close("the session is over")
    except* GatewayError as group:
        failures.extend(_leaves(group))


def _leaves(group):
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def echo(port):
    """Send back what comes, as far as there is room; the windows here are larger than DATA."""

    def sink(data):
        port.channel.send(data)
        return len(data)

    port.channel.sink = sink


async def live(side, operation, number, kind):
    """Run a link's life with one fault; return whether it happened and what the client saw."""
    links = make_links(capacity=16 * 1024)
    links.on_accept = echo
    carrier = links.client_carrier if side == "client" else links.server_carrier
    link = links.link if side == "client" else links.server

    def end():
        links.client_carrier.inbox.is_closed = links.client_carrier.outbox.is_closed = True
        for pipe in (carrier.inbox, carrier.outbox):
            pipe.data.clear()
            pipe.tell()

    strike = {"reset": reset, "end": end, "cancel": link._scope.cancel}[kind]
    fault = carrier.before = FaultAt(operation, number, strike)
    failures = []
    with trio.fail_after(WORST_CASE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(links.client.run)
            nursery.start_soon(links.server.run)
            await session(links, failures)
            await links.link.ended.wait()
    for end_of_link in (links.link, links.server):
        assert_released(end_of_link)
        with pytest.raises(ConnectionLost):
            await end_of_link.open_channel("test", b"")
    assert trio.lowlevel.current_statistics().tasks_living <= 4, "the nursery is empty"
    return fault.struck, failures, links


@pytest.mark.parametrize("kind", ["reset", "end", "cancel"])
@pytest.mark.parametrize("operation", ["read", "write"])
@pytest.mark.parametrize("side", ["client", "server"])
def test_a_fault_at_every_read_and_write(side, operation, kind):
    seen = 0
    for number in itertools.count():
        struck, failures, links = trio.run(
            live, side, operation, number, kind, clock=trio.testing.MockClock(autojump_threshold=0)
        )
        if not struck:
            break
        seen += 1
        assert all(isinstance(error, GatewayError) for error in failures)
        assert isinstance(links.link.failure, GatewayError)
        assert str(links.link.failure)
    assert failures == [], "without a fault all goes well"
    assert seen >= 8


def test_everybody_who_waits_for_a_channel_learns_that_the_link_is_lost():
    async def main():
        links = make_links()
        links.accepts = False
        failures = []

        async def open_one():
            with pytest.raises(ConnectionLost) as caught:
                await links.link.open_channel("test", b"")
            failures.append(str(caught.value))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(links.client.run)
            nursery.start_soon(links.server.run)
            await links.log_in()
            for _ in range(5):
                nursery.start_soon(open_one)
            await trio.testing.wait_all_tasks_blocked()
            links.server.close()
        assert len(failures) == 5
        assert_released(links.link)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


# ---- damage on the way (T22) ---------------------------------------------------------------------


def connected_server(cipher):
    pair = log_in(make_pair(client_offers=Preferences(ciphers=(cipher,))))
    _, remote = pair.open_channel()
    delivered = bytearray()
    remote.sink = lambda data: delivered.extend(data) or len(data)
    return pair, remote, delivered


def sealed_data(pair, data):
    """Return the packet with which the client sends ``data`` on its first channel."""
    pair.client.connection.channels[0].send(data)
    return take(pair.client)


@pytest.mark.parametrize("cipher", DEFAULT_CIPHERS)
def test_a_flipped_bit_at_every_offset_is_detected(cipher):
    follow_up = bytes(300_000)  # whatever a wrong packet_length makes it wait for
    for offset in itertools.count():
        pair, _, delivered = connected_server(cipher)
        packet = bytearray(sealed_data(pair, b"d" * 50))
        if offset == len(packet):
            break
        packet[offset] ^= 1 << offset % 8
        with pytest.raises(RemoteProtocolError, match=r"tag is wrong|packet_length"):
            feed(pair.server, bytes(packet) + follow_up)
        assert pair.server.transport.phase is Phase.CLOSED
        assert delivered == b""
    feed(pair.server, packet)
    assert delivered == b"d" * 50
    assert offset > 70


@pytest.mark.parametrize("cipher", DEFAULT_CIPHERS)
def test_a_packet_removed_repeated_or_swapped_is_detected(cipher):
    def packets():
        pair, _remote, delivered = connected_server(cipher)
        sealed = [sealed_data(pair, piece) for piece in (b"one", b"two")]
        return pair.server, delivered, sealed

    for order, arrives in (((1,), b""), ((0, 0), b"one"), ((1, 0), b"")):
        server, delivered, sealed = packets()
        *before, last = order
        for index in before if arrives else ():
            feed(server, sealed[index])
        with pytest.raises(RemoteProtocolError, match=r"tag is wrong|packet_length"):
            feed(server, sealed[last if arrives else order[0]])
        assert delivered == arrives


@pytest.mark.parametrize("role", list(Role))
def test_a_flipped_bit_anywhere_in_the_handshake_lets_nobody_in(role):
    """Every seventh byte that one side gets, one bit of it flipped.

    The padding of the packets in clear is the one thing that no hash covers.
    """
    logins = 0
    for number in itertools.count():
        pair = make_pair()
        target = pair.client if role is Role.CLIENT else pair.server
        flip = Flip(target, number * 7)
        try:
            pump_with(pair, flip)
        except RemoteProtocolError:
            assert flip.done
        if not flip.done:
            break
        logins += target.transport.phase is Phase.CONNECTION
    assert number > 100
    assert logins <= 6, "three packets, at most 11 bytes of padding each"


class Flip:
    """Flips one bit of what one side receives, at an offset."""

    def __init__(self, target, offset):
        self.target = target
        self.offset = offset
        self.done = False

    def __call__(self, target, data):
        if target is not self.target or self.done:
            return data
        if self.offset < len(data):
            self.done = True
            changed = bytearray(data)
            changed[self.offset] ^= 1 << self.offset % 8
            return bytes(changed)
        self.offset -= len(data)
        return data


def pump_with(pair, change):
    """Carry bytes until nothing moves, each batch through ``change``."""
    moved = True
    while moved:
        moved = False
        for source, target in ((pair.client, pair.server), (pair.server, pair.client)):
            data = take(source)
            if data:
                moved = True
                feed(target, change(target, data))
            pair._collect()
