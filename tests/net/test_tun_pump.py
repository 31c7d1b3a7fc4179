"""A pump between a device that is a socket pair and a channel over memory."""

from __future__ import annotations

import random
import socket
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from gateway.errors import ConnectionLost
from gateway.ssh import messages
from gateway.tun.packet import FAMILY_INET, FAMILY_INET6, Drop, Mode
from gateway.tun.pump import Pump
from gateway.tun.queue import CAPACITY
from tests.support.memory import linked, make_links, read_all
from tests.support.packets import ipv4, ipv6
from tests.support.tun import FakeDevice

WAIT_S = 60
SMALL = ipv4("10.1.0.1", "10.1.0.2", b"ping")


class Running:
    def __init__(self, links, device, pump, remote, ended) -> None:
        self.links, self.device, self.pump, self.remote = links, device, pump, remote
        self.ended = ended

    def from_peer(self, data: bytes) -> None:
        """Have the peer send one message."""
        assert self.remote.channel.send(data) == len(data)
        self.remote.link.flush()


@asynccontextmanager
async def running(mode=Mode.POINT_TO_POINT, judge=None, peer_version=None, mtu=1500):
    links = make_links()
    device = FakeDevice(mode, mtu)
    ended: list[str] = []
    try:
        with trio.fail_after(WAIT_S):
            async with linked(links):
                local, remote = await links.open_channel()
                if peer_version is not None:
                    local.link.protocol.transport.peer_version = peer_version
                pump = Pump(device, local, judge)
                pump.start(ended.append)
                yield Running(links, device, pump, remote, ended)
                pump.close()
    finally:
        device.close()
    assert len(ended) == 1


def framed(packet: bytes) -> bytes:
    return (FAMILY_INET if packet[0] >> 4 == 4 else FAMILY_INET6) + packet


async def test_packets_of_every_size_pass_both_ways_one_to_one() -> None:
    packets = [
        make(*ends, bytes([size % 256]) * size)
        for make, ends in ((ipv4, ("10.1.0.1", "10.1.0.2")), (ipv6, ("fd00::1", "fd00::2")))
        for size in [*range(1, 60), 576, 1280, 1460, 4000, 16_000, 32_000]
    ]
    async with running(mtu=32_768) as it:
        messages_seen: list[bytes] = []

        def sink(data: memoryview) -> int:
            messages_seen.append(bytes(data))
            return len(data)

        it.remote.channel.sink = sink
        for packet in packets:
            it.device.kernel.send(packet)
            while not messages_seen:
                await trio.sleep(0)
            assert messages_seen.pop() == framed(packet)
            it.from_peer(framed(packet))
            assert await it.device.receive() == packet
        assert (it.pump.packets_in, it.pump.packets_out) == (len(packets), len(packets))
        assert not it.pump.drops


async def test_frames_pass_as_they_are() -> None:
    frame = bytes(range(60))
    async with running(Mode.ETHERNET) as it:
        it.device.kernel.send(frame)
        assert await read_all(it.remote, len(frame)) == frame
        it.from_peer(frame)
        assert await it.device.receive() == frame


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (FAMILY_INET + SMALL[:20], Drop.HEADER_ONLY),
        (FAMILY_INET6 + SMALL, Drop.FAMILY),
        (b"\0\0", Drop.MALFORMED),
        (FAMILY_INET + SMALL + SMALL, Drop.MALFORMED),
    ],
)
async def test_a_bad_message_is_counted_and_the_tunnel_goes_on(data: bytes, reason: Drop) -> None:
    async with running() as it:
        it.from_peer(data)
        it.from_peer(framed(SMALL))
        assert await it.device.receive() == SMALL
        assert it.pump.drops == {reason: 1}


async def test_random_messages_leave_the_tunnel_whole() -> None:
    random_bytes = random.Random(7).randbytes
    async with running() as it:
        for size in range(2000):
            it.from_peer(random_bytes(size % 90 + 1))
            if size % 50 == 0:
                await trio.sleep(0)
        it.from_peer(framed(SMALL))
        while (packet := await it.device.receive()) != SMALL:
            assert len(packet) > 20
        assert sum(it.pump.drops.values()) + it.pump.packets_in == 2001


async def test_bad_packets_of_our_own_kernel_go_no_further() -> None:
    async with running() as it:
        for packet in (SMALL[:20], b"\x10" * 30, bytes(300_000)[: it.pump._largest + 1]):
            it.device.kernel.send(packet)
        it.device.kernel.send(SMALL)
        assert await read_all(it.remote, len(SMALL) + 4) == framed(SMALL)
        assert it.pump.drops == {Drop.HEADER_ONLY: 1, Drop.MALFORMED: 1, Drop.TOO_LARGE: 1}


async def test_a_judge_has_the_last_word() -> None:
    foreign = ipv4("10.9.9.9", "10.1.0.2", b"forged")

    def judge(packet: memoryview) -> Drop | None:
        return Drop.SOURCE if bytes(packet[12:16]) == b"\x0a\x09\x09\x09" else None

    async with running(judge=judge) as it:
        it.from_peer(framed(foreign))
        it.from_peer(framed(SMALL))
        assert await it.device.receive() == SMALL
        assert it.pump.drops == {Drop.SOURCE: 1}


async def test_a_device_that_takes_nothing_loses_packets_only() -> None:
    async with running() as it:
        it.device._ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        sent = 0
        while not it.pump.drops:
            it.from_peer(framed(SMALL))
            sent += 1
            await trio.sleep(0)
        for _ in range(it.pump.packets_in):
            assert await it.device.receive() == SMALL
        it.from_peer(framed(SMALL))
        assert await it.device.receive() == SMALL
        assert it.pump.drops.keys() == {Drop.DEVICE}
        assert it.pump.packets_in + it.pump.drops[Drop.DEVICE] == sent + 1


# ---- windows and queues --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "overhead"), [(b"SSH-2.0-OpenSSH_10.6", 4), (b"SSH-2.0-gateway_0.1", 0)]
)
async def test_the_window_is_counted_as_the_peer_does(version: bytes, overhead: int) -> None:
    """OpenSSH's receiver takes 4 bytes more off its window for a datagram, channels.c."""
    async with running(peer_version=version) as it:
        channel = it.pump._channel
        before = channel.remote_window
        it.device.kernel.send(SMALL)
        await read_all(it.remote, len(SMALL) + 4)
        assert before - channel.remote_window == len(SMALL) + 4 + overhead


async def test_without_credit_packets_wait_whole_and_in_order() -> None:
    async with running() as it:
        channel = it.pump._channel
        channel.remote_window = 100
        sent = [ipv4("10.1.0.1", "10.1.0.2", bytes([number]) * 200) for number in range(20)]
        for packet in sent:
            it.device.kernel.send(packet)
        while it.pump._next is None:
            await trio.sleep(0)
        assert channel.remote_window == 100
        assert not it.remote.pending
        for bytes_to_add in (50, 60, 10, 4 * 224, 20 * 224):
            adjust = messages.ChannelWindowAdjust(channel.channel_id, bytes_to_add)
            it.remote.link.protocol.outbound.append(adjust.encode())
            it.remote.link.flush()
            await trio.testing.wait_all_tasks_blocked(0.001)
        received = await read_all(it.remote, len(sent) * 224)
        assert received == b"".join(map(framed, sent))


async def test_credit_wakes_a_pump_that_was_denied_for_another_reason_last() -> None:
    async with running() as it:
        channel, link = it.pump._channel, it.pump._link
        channel.remote_window = 100
        packet = ipv4("10.1.0.1", "10.1.0.2", bytes(200))
        it.device.kernel.send(packet)
        while it.pump._next is None:
            await trio.sleep(0)
        channel._wants_writable = False  # as when credit came, of which the packet took nothing
        it.pump._send_batch(0)  # the path is full
        it.pump._wait()
        adjust = messages.ChannelWindowAdjust(channel.channel_id, 1000)
        it.remote.link.protocol.outbound.append(adjust.encode())
        it.remote.link.flush()
        assert await read_all(it.remote, 224) == framed(packet)
        assert not link.turns.bulk


async def test_all_that_may_be_in_flight_goes_without_an_answer() -> None:
    """A probe at each quarter of it lets the next go at once: nothing comes that would say so."""
    async with running() as it:
        outbound, meter = it.pump._link.protocol.outbound, it.pump._link.protocol.connection.meter
        while not meter._is_answered:
            await trio.sleep(0)
        it.links.client_carrier._on_ready = lambda _event: None  # as a socket that is never full
        meter._out.target = target = 64 * 1024
        meter._limit()
        before, packet = outbound.data_total, ipv4("10.1.0.1", "10.1.0.2", bytes(1000))
        for _ in range(2 * target // len(packet)):
            it.device.kernel.send(packet)
            await trio.sleep(0)
        for _ in range(1000):
            await trio.sleep(0)
        assert abs(outbound.data_total - before - target) <= len(packet)


async def test_the_device_is_read_while_the_line_is_full_and_old_packets_are_lost() -> None:
    async with running() as it:
        channel = it.pump._channel
        channel.remote_window = 0
        packet = ipv4("10.1.0.1", "10.1.0.2", bytes(1400))
        count = 3 * CAPACITY // 2 // len(packet)
        for _ in range(count):
            it.device.kernel.send(packet)
            await trio.sleep(0)
        queue = it.pump._queue

        def known() -> int:  # one may have been taken, to be the next that goes
            return len(queue) + it.pump.drops[Drop.QUEUE] + (it.pump._next is not None)

        while known() < count:
            await trio.sleep(0)
        assert it.pump.drops[Drop.QUEUE] > count // 4
        assert queue.length_bytes <= CAPACITY


# ---- the end -------------------------------------------------------------------------------------


async def test_the_far_end_closes() -> None:
    async with running() as it:
        it.remote.close()
        while not it.ended:
            await trio.sleep(0)
        assert it.ended == ["the far end closed the tunnel"]
        assert it.pump._channel.is_over


async def test_the_link_is_lost() -> None:
    async with running() as it:
        it.links.link.close("pulled the plug")
        assert it.ended == [str(ConnectionLost("pulled the plug"))]


async def test_the_device_is_taken_away() -> None:
    async with running() as it:
        it.device.kernel.close()
        while not it.ended:
            await trio.sleep(0)
        assert it.ended == ["the device tun9 is gone: File descriptor in bad state"]
        while not it.remote.close_received:
            await trio.sleep(0)
