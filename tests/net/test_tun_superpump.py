"""The pump between gateways: records of packets that are left as the kernel gave them."""

from __future__ import annotations

import random
import struct
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from gateway.ssh import messages
from gateway.ssh.packets import ROOM
from gateway.tun.packet import Drop
from gateway.tun.superpump import MESSAGE, SuperPump, make_pump
from gateway.tun.virtio import HEADER, SIZE
from tests.support.memory import linked, make_links
from tests.support.packets import ipv4
from tests.support.tun import FakeDevice

WAIT_S = 60
ALL = 15
PLAIN = HEADER.pack(0, 0, 0, 0, 0, 0)
TCP4 = HEADER.pack(1, 1, 40, 1460, 20, 16)
PING = PLAIN + ipv4("10.1.0.1", "10.1.0.2", b"ping")
SUPER = TCP4 + ipv4("10.1.0.1", "10.1.0.2", bytes(12) + b"\x50" + bytes(60_007), 6)


def record(*given: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(one)) + one for one in given)


class Running:
    def __init__(self, links, device, pump, remote, ended) -> None:
        self.links, self.device, self.pump, self.remote = links, device, pump, remote
        self.ended = ended
        self.messages: list[bytes] = []
        remote.channel.sink = self._keep

    def _keep(self, data: memoryview) -> int:
        self.messages.append(bytes(data))
        return len(data)

    def from_peer(self, data: bytes) -> None:
        """Have the peer send one message."""
        outbound, channel = self.remote.link.protocol.outbound, self.remote.channel
        assert channel.takes_datagram(len(data))
        ROOM[: len(data)] = data
        outbound.seal_channel_data(channel.remote_channel, len(data))
        channel.sent_datagrams(len(data), 0)
        self.remote.link.flush()


@asynccontextmanager
async def running(judge=None, offloads=ALL):
    links = make_links(capacity=1 << 20)
    device = FakeDevice(offloads=offloads)
    ended: list[str] = []
    try:
        with trio.fail_after(WAIT_S):
            async with linked(links):
                local, remote = await links.open_channel()
                pump = make_pump(device, local, judge)
                assert isinstance(pump, SuperPump)
                pump.start(ended.append)
                yield Running(links, device, pump, remote, ended)
                pump.close()
    finally:
        device.close()
    assert len(ended) == 1


@pytest.mark.parametrize("offloads", [ALL, 0])
async def test_records_pass_unsplit_both_ways(offloads: int) -> None:
    """A device that can be given nothing unfinished has headers all the same."""
    async with running(offloads=offloads) as it:
        for one in (PING, SUPER):
            it.device.kernel.send(one)
            while not it.messages:
                await trio.sleep(0)
            assert it.messages.pop() == record(one)
            it.from_peer(record(one))
            assert await it.device.receive() == one
        assert (it.pump.packets_in, it.pump.packets_out) == (2, 2)
        assert not it.pump.drops


async def test_small_packets_share_a_message() -> None:
    async with running() as it:
        for _ in range(50):
            it.device.kernel.send(PING)
        while sum(map(len, it.messages)) < 50 * len(record(PING)):
            await trio.sleep(0)
        assert b"".join(it.messages) == record(*[PING] * 50)
        assert len(it.messages) < 10
        it.from_peer(record(*[PING] * 50))
        for _ in range(50):
            assert await it.device.receive() == PING


async def test_a_message_ends_after_its_size() -> None:
    async with running() as it:
        for _ in range(8):
            it.device.kernel.send(SUPER)
        while sum(map(len, it.messages)) < 8 * len(record(SUPER)):
            await trio.sleep(0)
        assert b"".join(it.messages) == record(*[SUPER] * 8)
        assert max(map(len, it.messages)) < MESSAGE + len(record(SUPER))


@pytest.mark.parametrize(
    ("message", "drops"),
    [
        (b"\0\0", {Drop.MALFORMED: 1}),
        (record(PING)[:-1], {Drop.MALFORMED: 1}),
        (record(PING, b"x" * SIZE), {Drop.MALFORMED: 1}),
        (struct.pack(">I", 0xFFFF_FFFF) + PING, {Drop.MALFORMED: 1}),
        (record(HEADER.pack(1, 1, 40, 1, 20, 16) + SUPER[SIZE:], PING), {Drop.OFFLOAD: 1}),
        (record(PLAIN + PING[SIZE : SIZE + 20], PING), {Drop.HEADER_ONLY: 1}),
    ],
)
async def test_a_bad_record_is_counted_and_the_tunnel_goes_on(message, drops) -> None:
    async with running() as it:
        it.from_peer(message)
        it.from_peer(record(SUPER))
        while (one := await it.device.receive()) != SUPER:
            assert one == PING
        assert it.pump.drops == drops


async def test_random_messages_leave_the_tunnel_whole() -> None:
    dice = random.Random(93)
    async with running() as it:
        for _ in range(1000):
            message = bytearray(record(PING, SUPER[: dice.randrange(20, 200)], PING))
            for _ in range(dice.randrange(3)):
                message[dice.randrange(len(message))] = dice.randrange(256)
            it.from_peer(bytes(message))
            await trio.sleep(0)
            it.device.kernel.setblocking(False)
            while True:
                try:
                    assert len(it.device.kernel.recv(70_000)) > SIZE + 20
                except BlockingIOError:
                    break
        it.from_peer(record(SUPER))
        while await it.device.receive() != SUPER:
            pass


async def test_a_judge_sees_the_packet_itself() -> None:
    foreign = PLAIN + ipv4("10.9.9.9", "10.1.0.2", b"forged")

    def judge(packet: memoryview) -> Drop | None:
        return Drop.SOURCE if bytes(packet[12:16]) == b"\x0a\x09\x09\x09" else None

    async with running(judge) as it:
        it.from_peer(record(foreign, PING))
        assert await it.device.receive() == PING
        assert it.pump.drops == {Drop.SOURCE: 1}


async def test_without_credit_records_wait_whole_and_in_order() -> None:
    async with running() as it:
        channel = it.pump._channel
        channel.remote_window = 100
        sent = [PLAIN + ipv4("10.1.0.1", "10.1.0.2", bytes([n]) * 200) for n in range(20)]
        for one in sent:
            it.device.kernel.send(one)
        while it.pump._next is None:
            await trio.sleep(0)
        size = len(record(sent[0]))
        for bytes_to_add in (50, 60, 10, 4 * size, 20 * size):
            adjust = messages.ChannelWindowAdjust(channel.channel_id, bytes_to_add)
            it.remote.link.protocol.outbound.append(adjust.encode())
            it.remote.link.flush()
            await trio.testing.wait_all_tasks_blocked(0.001)
        while sum(map(len, it.messages)) < 20 * size:
            await trio.sleep(0)
        assert b"".join(it.messages) == record(*sent)
