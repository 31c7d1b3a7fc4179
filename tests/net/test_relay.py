"""A relay between a real socket and a channel over memory: half-closes, resets, slow readers."""

from __future__ import annotations

import os
import socket
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from gateway.net.relay import Relay
from gateway.net.stream import ChannelStream
from gateway.ssh.flow import INITIAL_WINDOW
from gateway.ssh.transport import RekeyLimit
from tests.support.memory import linked, make_links

WAIT_S = 60  # a real clock here: sockets and trio's autojump clock do not mix
KERNEL_BUFFER = 16 * 1024  # much less than a window, also doubled and at both ends


async def tcp_pair():
    """Two ends of a TCP connection, as the program at the far end would hold one."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BUFFER)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BUFFER)
    near.setblocking(False)
    return trio.SocketStream(trio.socket.from_stdlib_socket(far)), near


class Joined:
    """A relay that runs: ``app`` is the program's end, ``port`` the far end of the channel."""

    def __init__(self, links, app, port, done, scope):
        self.links = links
        self.scope = scope
        self.app = app
        self.port = port
        self.done = done

    @property
    def far(self):
        """The far end of the channel as a stream."""
        return ChannelStream(self.port)


@asynccontextmanager
async def joined(early_data=b"", before_run=None, rekey_limit=None):
    links = make_links(rekey_limit=rekey_limit)
    app, sock = await tcp_pair()
    with trio.fail_after(WAIT_S):
        async with linked(links), trio.open_nursery() as nursery:
            local, remote = await links.open_channel()
            if before_run:
                await before_run(local, remote)
            done = trio.Event()

            scope = trio.CancelScope()

            async def run():
                ended = trio.Event()
                relay = Relay(sock, local)
                relay.start(ended.set, early_data)
                with scope:
                    await ended.wait()
                relay.close()
                done.set()

            nursery.start_soon(run)
            yield Joined(links, app, remote, done, scope)
            await app.aclose()
            nursery.cancel_scope.cancel()


async def receive_exactly(stream, count):
    got = bytearray()
    while len(got) < count:
        piece = await stream.receive_some()
        assert piece, f"ended after {len(got)} of {count} bytes"
        got += piece
    return bytes(got)


async def test_half_closes_are_carried_one_to_one():
    async with joined() as it:
        far = it.far
        await it.app.send_all(b"question")
        await it.app.send_eof()
        assert await receive_exactly(far, 8) == b"question"
        assert await far.receive_some() == b""
        assert it.port.eof_received
        assert not it.port.close_received, "the answer is still to come"
        await far.send_all(b"answer")
        assert await receive_exactly(it.app, 6) == b"answer"
        assert not it.done.is_set()
        await far.send_eof()
        assert await it.app.receive_some() == b""
        await it.done.wait()
        await far.aclose()


async def test_the_far_end_may_finish_first():
    async with joined() as it:
        far = it.far
        await far.send_all(b"banner")
        await far.send_eof()
        assert await receive_exactly(it.app, 6) == b"banner"
        assert await it.app.receive_some() == b""
        assert not it.done.is_set()
        await it.app.send_all(b"thanks")
        await it.app.send_eof()
        assert await receive_exactly(far, 6) == b"thanks"
        assert await far.receive_some() == b""
        await it.done.wait()


async def test_both_channel_tables_are_empty_after_the_end():
    async with joined() as it:
        far = it.far
        await it.app.send_eof()
        assert await far.receive_some() == b""
        await far.aclose()
        await it.done.wait()
        await until(lambda: not it.links.link.protocol.connection.channels)
        await until(lambda: not it.links.server.protocol.connection.channels)


async def test_a_close_delivers_what_came_before_it():
    async with joined() as it:
        far = it.far
        data = os.urandom(INITIAL_WINDOW)  # sent whole, however little the program reads
        await far.send_all(data)
        await far.aclose()
        assert await receive_exactly(it.app, len(data)) == data
        assert await it.app.receive_some() == b""
        await it.done.wait()


async def test_a_reset_of_the_socket_closes_the_channel():
    async with joined() as it:
        far = it.far
        it.app.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        it.app.socket.close()
        await it.done.wait()
        assert await far.receive_some() == b""
        assert it.port.close_received
        assert not it.port.eof_received, "nobody is told that all went well"


@pytest.mark.parametrize("state", ["after its own end", "after the far end", "data waits"])
async def test_a_reset_in_any_other_state_closes_the_channel(state):
    """T61: also half closed in either direction, and while the program has not read all."""
    async with joined() as it:
        far = it.far
        match state:
            case "after its own end":
                await it.app.send_eof()
                assert await far.receive_some() == b""
            case "after the far end":
                await far.send_eof()
                assert await it.app.receive_some() == b""
            case _:
                await far.send_all(bytes(INITIAL_WINDOW))
                await until(lambda: pending(it))
        it.app.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        it.app.socket.close()
        await it.done.wait()
        await until(lambda: it.port.close_received)
        it.port.close()
        await until(lambda: not it.links.link.protocol.connection.channels)
        assert it.links.link.failure is None


@pytest.mark.parametrize("code", [0, 1, 2, 0xFFFF_FFFF])
async def test_extended_data_is_dropped_and_its_credit_given_back(code):
    """T43: on a channel that is not a session's, more than a window of it, between the data."""
    async with joined() as it:
        channel, far = it.port.channel, it.far
        for _ in range(3):
            left = INITIAL_WINDOW
            while left:
                await it.port.wait_room()
                left -= channel.send_extended(code, bytes(min(left, 100_000)))
                it.port.link.flush()
            await far.send_all(b"data")
            assert await receive_exactly(it.app, 4) == b"data"
        assert it.links.link.failure is None


async def test_a_lost_link_resets_the_socket():
    """A cut-off download must not look like a whole one."""
    async with joined() as it:
        await it.far.send_all(b"half of a downl")
        assert await receive_exactly(it.app, 15) == b"half of a downl"
        it.links.server.close()
        with pytest.raises(trio.BrokenResourceError) as caught:
            await it.app.receive_some()
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        await it.done.wait()


async def test_a_lost_link_ends_the_relay_of_a_program_that_does_not_read():
    async with joined() as it:
        await it.far.send_all(bytes(INITIAL_WINDOW))
        await until(lambda: pending(it))
        it.links.link.close()
        with trio.fail_after(30):
            await it.done.wait()


def pending(it):
    """Bytes that wait for the program to read."""
    return sum(len(port.pending) for port in it.links.link._ports.values())


async def until(condition):
    while not condition():
        await trio.testing.wait_all_tasks_blocked(0.01)


async def test_a_slow_reader_stops_only_itself_and_holds_one_window():
    async with joined() as it, trio.open_nursery() as nursery:
        total = 6 * INITIAL_WINDOW
        nursery.start_soon(it.far.send_all, bytes(total))
        await until(lambda: it.port.channel.remote_window == 0)
        assert 0 < pending(it) <= INITIAL_WINDOW
        local, remote = await it.links.open_channel()
        remote.channel.send(b"another channel moves")
        it.links.server.flush()
        await until(lambda: bytes(local.pending) == b"another channel moves")
        local.close()
        assert 0 < pending(it) <= INITIAL_WINDOW
        assert len(await receive_exactly(it.app, total)) == total


async def test_early_data_goes_first():
    async with joined(early_data=b"sent before the reply, ") as it:
        await it.app.send_all(b"and after it")
        got = await receive_exactly(it.far, 35)
        assert got == b"sent before the reply, and after it"


async def test_early_data_larger_than_the_window():
    early = os.urandom(INITIAL_WINDOW + 100_000)
    async with joined(early_data=early) as it:
        assert await receive_exactly(it.far, len(early)) == early


async def test_what_arrives_before_the_relay_runs_is_not_lost():
    async def banner(local, remote):
        remote.channel.send(b"220 hello\r\n")
        remote.link.flush()
        while not local.pending:
            await trio.testing.wait_all_tasks_blocked()

    async with joined(before_run=banner) as it:
        await it.far.send_all(b"more")
        assert await receive_exactly(it.app, 15) == b"220 hello\r\nmore"


async def test_eof_before_the_relay_runs_is_not_lost():
    async def at_once(local, remote):
        remote.channel.send(b"bye")
        remote.send_eof()
        while not local.eof_received:
            await trio.testing.wait_all_tasks_blocked()

    async with joined(before_run=at_once) as it:
        assert await receive_exactly(it.app, 3) == b"bye"
        assert await it.app.receive_some() == b""


async def test_close_before_the_relay_runs_is_not_lost():
    async def at_once(local, remote):
        remote.channel.send(b"bye")
        remote.close()
        while not local.close_received:
            await trio.testing.wait_all_tasks_blocked()

    async with joined(before_run=at_once) as it:
        assert await receive_exactly(it.app, 3) == b"bye"
        assert await it.app.receive_some() == b""
        await it.done.wait()


async def test_both_ways_at_once_while_both_sides_rekey():
    data = os.urandom(3 * 1024 * 1024)
    async with joined(rekey_limit=RekeyLimit(bytes=256 * 1024)) as it:
        far = it.far
        got = {}

        async def check(name, stream):
            got[name] = await receive_exactly(stream, len(data))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.app.send_all, data)
            nursery.start_soon(far.send_all, data)
            nursery.start_soon(check, "app", it.app)
            nursery.start_soon(check, "far", far)
        assert got == {"app": data, "far": data}
        assert it.links.link.protocol.transport._kex_count > 5


async def test_cancelling_a_relay_closes_both_its_ends():
    async with joined() as it:
        await it.app.send_all(b"x")
        assert await receive_exactly(it.far, 1) == b"x"
        it.scope.cancel()
        await it.done.wait()
        assert await it.app.receive_some() == b""
        await until(lambda: it.port.close_received)


@pytest.mark.parametrize("ended_by", ["close", "eof both ways"])
async def test_what_was_complete_survives_the_loss_of_the_link(ended_by):
    """The far end sent all and ended; only then the link went, with a reader that is slow."""
    data = os.urandom(INITIAL_WINDOW)
    async with joined() as it:
        far = it.far
        if ended_by == "eof both ways":
            await it.app.send_eof()
            assert await far.receive_some() == b""
        await far.send_all(data)
        await (far.aclose() if ended_by == "close" else far.send_eof())
        local = next(iter(it.links.link._ports.values()))
        await until(lambda: local.close_received or local.eof_received)
        assert pending(it)
        it.links.link.close()
        assert await receive_exactly(it.app, len(data)) == data
        assert await it.app.receive_some() == b""
