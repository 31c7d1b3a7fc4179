"""Links on channels of other links, both ends in memory."""

from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
import trio.testing

from gateway.net.channel_carrier import ChannelCarrier
from gateway.ssh.transport import RekeyLimit
from tests.support.memory import linked, make_links, read_all, send_all

DATA = bytes(range(256)) * 12_000


@asynccontextmanager
async def nested(depth, **options):
    """Links in each other, the outermost first; each is logged in to over the one before."""
    async with AsyncExitStack() as stack:
        chain = [await stack.enter_async_context(linked(make_links(**options)))]
        for number in range(depth):
            carriers = [
                ChannelCarrier(port, f"{end} {number + 2}")
                for end, port in zip(
                    ("server", "client"), await chain[-1].open_channel(), strict=True
                )
            ]
            links = make_links(carriers=tuple(carriers), **options)
            chain.append(await stack.enter_async_context(linked(links)))
        yield chain


async def carry(links, data=DATA):
    """Send data both ways at once on a channel of a link."""
    ours, theirs = await links.open_channel()
    got = {}

    async def check(port):
        got[port] = await read_all(port, len(data)) == data

    async with trio.open_nursery() as nursery:
        for port in (ours, theirs):
            nursery.start_soon(send_all, port, data)
            nursery.start_soon(check, port)
    assert got == {ours: True, theirs: True}
    ours.close()
    theirs.close()


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("capacity", [1000, 64 * 1024, 1024 * 1024])
async def test_data_both_ways(depth, capacity, autojump_clock):
    async with nested(depth, capacity=capacity) as chain:
        await carry(chain[-1], DATA[: capacity * 50])


async def test_links_that_rekey_all_the_time(autojump_clock):
    async with nested(2, rekey_limit=RekeyLimit(100_000)) as chain:
        await carry(chain[-1])


async def test_a_reader_that_stops_is_bounded_at_every_level(autojump_clock):
    async with nested(1) as (outer, inner):
        ours, theirs = await inner.open_channel()
        with trio.move_on_after(100):
            await send_all(ours, DATA * 10)
        windows = sum(
            channel.window.held for channel in outer.server.protocol.connection.channels.values()
        )
        assert len(theirs.pending) < len(DATA) * 10
        assert windows == 0, "what the inner link has taken is the outer's no more"
        await carry(inner)


async def test_when_the_outer_link_dies_the_inner_ones_end_with_its_reason(autojump_clock):
    async with nested(2) as (outer, middle, inner):
        ours, _ = await inner.open_channel()
        outer.link.close("the cable was cut")
        with trio.fail_after(1):
            await inner.link.ended.wait()
            await middle.link.ended.wait()
        assert str(inner.link.failure) == (
            "connection to server 3 lost: connection to server 2 lost: the cable was cut"
        )
        assert ours.failure is not None


async def test_when_the_far_end_goes_the_channel_tells(autojump_clock):
    async with nested(1) as (outer, inner):
        outer.accepted[-1].close()
        with trio.fail_after(1):
            await inner.link.ended.wait()
        assert str(inner.link.failure) == "connection to server 2 lost: the peer closed it"
        assert not outer.link.is_lost


async def test_goodbye_reaches_the_far_end_and_the_channel_is_closed(autojump_clock):
    async with nested(1) as (outer, inner):
        inner.link.close()
        with trio.fail_after(1):
            await inner.server.ended.wait()
        assert "disconnected" in str(inner.server.failure)
        await trio.testing.wait_all_tasks_blocked()
        for link in (outer.link, outer.server):
            assert link.protocol.connection.channels == {}


async def test_a_hop_that_is_silent_and_one_that_is_not(autojump_clock):
    """Each link probes its own peer, so it is seen who is to blame."""
    for frozen in (True, False):
        async with nested(1, alive_interval_s=5) as (outer, inner):
            if frozen:
                outer.server_carrier.outbox.is_frozen = True
            else:
                inner.server_carrier.send = len  # which goes nowhere
            with trio.fail_after(60):
                await inner.link.ended.wait()
            assert "lost: not a sign of life for 15 s" in str(inner.link.failure)
            assert inner.link.is_silent
            assert outer.link.is_silent == frozen


async def test_something_small_is_answered_where_others_acknowledge(autojump_clock):
    """Or the peer's next small thing waits 40 ms for the kernel of the host before it."""
    async with nested(1) as (_, inner):
        _, theirs = await inner.open_channel()
        counts = []
        nothing = inner.link.carrier.acknowledge
        for acknowledge in (nothing, nothing, inner.link.prod):  # a probe is answered at first
            inner.link.acknowledge, inner.link.peer_sends_singly = acknowledge, True
            before = inner.server.protocol.inbound.packets_since_newkeys
            theirs.channel.send(b"small")
            theirs.link.flush()
            await trio.sleep(0.01)
            counts.append(inner.server.protocol.inbound.packets_since_newkeys - before)
    assert counts[1:] == [0, 1]
