"""A channel as a trio stream: trio's own battery for half-closeable streams, and our additions."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio
import trio.testing

from gateway.net.stream import ChannelStream
from gateway.ssh.flow import INITIAL_WINDOW
from tests.support.memory import linked, make_links


async def stream_pair(stack):
    links = await stack.enter_async_context(linked(make_links()))
    local, remote = await links.open_channel()
    return links, ChannelStream(local), ChannelStream(remote)


async def test_trios_own_battery(autojump_clock):
    async with AsyncExitStack() as stack:

        async def make():
            _, *pair = await stream_pair(stack)
            return tuple(pair)

        async def make_clogged():
            _, one, two = await stream_pair(stack)
            for stream in (one, two):
                channel = stream.port.channel
                while channel.send(b"x" * 65536):
                    stream.port.link.flush()
                    await trio.testing.wait_all_tasks_blocked()
            return one, two

        await trio.testing.check_half_closeable_stream(make, make_clogged)


async def test_every_byte_arrives_once_and_credit_follows(autojump_clock):
    async with AsyncExitStack() as stack:
        _, one, two = await stream_pair(stack)
        data = bytes(range(251)) * (3 * INITIAL_WINDOW // 251)
        got = bytearray()

        async def receive():
            async for piece in two:
                got.extend(piece)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await one.send_all(data)
            await one.send_eof()
        assert got == data


async def test_the_other_direction_goes_on_after_eof(autojump_clock):
    async with AsyncExitStack() as stack:
        _, one, two = await stream_pair(stack)
        await one.send_eof()
        assert await two.receive_some() == b""
        await two.send_all(b"an answer to all of it")
        assert await one.receive_some() == b"an answer to all of it"
        await two.send_eof()
        assert await one.receive_some() == b""
        await one.aclose()
        await two.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert one.port.link.protocol.connection.channels == {}
        assert two.port.link.protocol.connection.channels == {}


async def test_what_had_arrived_is_read_before_the_loss_of_the_link_shows(autojump_clock):
    async with AsyncExitStack() as stack:
        links, one, two = await stream_pair(stack)
        await two.send_all(b"last words")
        await trio.testing.wait_all_tasks_blocked()
        links.server.close()
        await links.link.ended.wait()
        assert await one.receive_some() == b"last words"
        with pytest.raises(trio.BrokenResourceError):
            await one.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await one.send_all(b"x")
        await one.aclose()


async def test_sizes_are_respected(autojump_clock):
    async with AsyncExitStack() as stack:
        _, one, two = await stream_pair(stack)
        await one.send_all(b"abcdef")
        await trio.testing.wait_all_tasks_blocked()
        assert await two.receive_some(2) == b"ab"
        assert await two.receive_some(100) == b"cdef"
        with pytest.raises(ValueError, match="at least 1"):
            await two.receive_some(0)
