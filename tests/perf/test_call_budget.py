"""How many calls one packet may cost: the hot path has no room for one more.

Counted with `sys.setprofile`: calls of Python functions, and of C functions apart. The budgets are
what the code needs today. Raise one only with a measurement that says it is worth it; lower it
whenever a call is saved.
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import asynccontextmanager

import pytest
import trio

from gateway.net import poller
from gateway.tun.pump import PACKETS_AT_ONCE
from gateway.tun.superpump import make_pump
from gateway.tun.virtio import HEADER
from tests.support.memory import linked, make_links
from tests.support.packets import ipv4
from tests.support.pair import logged_in_pair
from tests.support.tun import FakeDevice

PACKETS = 100

# Calls for one packet, of Python functions and of C functions:
SEAL_PYTHON = 4  # room, send_room, seal_channel_data, the cipher's seal_into
SEAL_C = 3  # pack_into, to_bytes, encrypt_into
OPEN_PYTHON = 4  # next_payload, open_in_place, receive_data twice; credit comes once per batch
OPEN_C = 7  # unpack_from twice, to_bytes, decrypt_into, get, len twice
SINK = 1  # of this test
BATCH = 20  # calls that a batch may cost besides, however large it is


class Calls:
    """Counts calls while it is entered."""

    def __init__(self):
        self.python = Counter()
        self.c = Counter()

    def __enter__(self):
        sys.setprofile(self._count)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)

    def _count(self, frame, event, arg):
        if event == "call":
            self.python[frame.f_code.co_name] += 1
        elif event == "c_call":
            self.c[arg.__name__] += 1


def seal(channel, size):
    for _ in range(PACKETS):
        room = channel.room()
        assert room
        channel.send_room(size)


@pytest.fixture
def ends():
    pair = logged_in_pair()
    local, remote = pair.open_channel()
    remote.sink = [].append  # as a relay's: what it takes it says at the end of the batch
    return pair, local, remote


@pytest.mark.parametrize("size", [100, 1500, 2500])
def test_sealing_a_packet(ends, size):
    _, local, _ = ends
    with Calls() as calls:
        seal(local, size)
    assert calls.python.total() <= SEAL_PYTHON * PACKETS + BATCH, calls.python
    assert calls.c.total() <= SEAL_C * PACKETS + BATCH, calls.c


@pytest.mark.parametrize("size", [100, 1500, 2500])
def test_opening_a_packet(ends, size):
    pair, local, remote = ends
    seal(local, size)
    view = pair.client.outbound.data_to_send()
    space = pair.server.inbound.space()
    assert len(view) <= len(space)
    space[: len(view)] = view
    with Calls() as calls:
        pair.server.received(len(view), 0.0)
    assert remote.bytes_in == PACKETS * size
    assert calls.python.total() <= OPEN_PYTHON * PACKETS + BATCH, calls.python
    assert calls.c.total() <= (OPEN_C + SINK) * PACKETS + BATCH, calls.c


def test_a_batch_costs_the_same_whatever_is_in_it(ends):
    """No call that grows with the number of channels or of earlier packets."""
    pair, local, _ = ends
    counts = []
    for _ in range(2):
        seal(local, 100)
        view = pair.client.outbound.data_to_send()
        pair.server.inbound.space()[: len(view)] = view
        with Calls() as calls:
            pair.server.received(len(view), 0.0)
        pair.client.outbound.data_sent(len(view))
        counts.append(calls.python.total())
        for _ in range(200):
            pair.open_channel()
    assert counts[1] <= counts[0] + 5


# ---- a tunnel's packets --------------------------------------------------------------------------

TUN_SEAL_PYTHON, TUN_SEAL_C = 2, 6  # seal_channel_data, seal_into; readv, len, … and as above
TUN_OPEN_PYTHON, TUN_OPEN_C = 6, 12  # as OPEN, the sink, judge_ip; write, unpack_from, get, len
TUN_BATCH = 50  # of a pump: flush, window adjusts, the poller
PROBE = 14  # and who goes on after it

# Between gateways: a record, and what a large one costs besides, for it has its own message.
RECORD_OUT_PYTHON, RECORD_OUT_C = 0, 2  # readv, pack_into
SUPER_OUT_PYTHON, SUPER_OUT_C = 2, 4  # as above
RECORD_IN_PYTHON, RECORD_IN_C = 1, 5  # judge; unpack_from, len, write
SUPER_IN_PYTHON, SUPER_IN_C = OPEN_PYTHON + 2, OPEN_C + 2  # _transport, _can_be_cut
ALL = 15  # offloads
SMALL = HEADER.pack(0, 0, 0, 0, 0, 0) + ipv4("10.1.0.1", "10.1.0.2", bytes(100))
SUPER = HEADER.pack(1, 1, 40, 1460, 20, 16) + ipv4(
    "10.1.0.1", "10.1.0.2", bytes(12) + b"\x50" + bytes(60_007), 6
)


@asynccontextmanager
async def pumps(offloads):
    """Two pumps, each between a device that is a socket pair and the other."""
    links = make_links(capacity=1 << 20)
    devices = FakeDevice(offloads=offloads), FakeDevice(offloads=offloads)
    async with linked(links):
        ports = await links.open_channel()
        both = [make_pump(device, port, None) for device, port in zip(devices, ports, strict=True)]
        for pump in both:
            pump.start(lambda _reason: None)
        yield links, both, devices
        for pump in both:
            pump.close()
    for device in devices:
        device.close()


def deliver(protocol, wire):
    """Have a protocol receive what is on the wire; return the calls."""
    view = bytes(wire)
    wire.clear()
    space = protocol.inbound.space()
    space[: len(view)] = view
    with Calls() as calls:
        protocol.received(len(view), 0.0)
    return calls


async def count_calls(offloads, packet, count):
    """Return the calls of one who sends a batch, and of one who gets it."""
    async with pumps(offloads) as (links, (near, far), (here, there)):
        server, wire = links.server.protocol, links.server_carrier.inbox.data
        if wire:
            deliver(server, wire)  # what the login left
        for _ in range(count):
            here.kernel.send(packet)
        with Calls() as sending:
            near._device_ready(poller.INPUT)
        assert near.packets_out == count
        receiving = deliver(server, wire)
        assert far.packets_in == count
        assert there.kernel.recv(len(packet) + 1) == packet
    return sending, receiving


@pytest.mark.parametrize("size", [100, 1400])
async def test_a_packet_of_a_tunnel(size):
    packet = ipv4("10.1.0.1", "10.1.0.2", bytes(size))
    sending, receiving = await count_calls(None, packet, PACKETS_AT_ONCE)
    assert sending.python.total() <= TUN_SEAL_PYTHON * PACKETS_AT_ONCE + TUN_BATCH, sending.python
    assert sending.c.total() <= TUN_SEAL_C * PACKETS_AT_ONCE + TUN_BATCH, sending.c
    limit = TUN_OPEN_PYTHON * PACKETS_AT_ONCE + TUN_BATCH
    assert receiving.python.total() <= limit, receiving.python
    assert receiving.c.total() <= TUN_OPEN_C * PACKETS_AT_ONCE + TUN_BATCH, receiving.c


@pytest.mark.parametrize("kind", ["small", "super"])
async def test_a_packet_between_gateways(kind):
    """A small one costs no message; a large one has its own."""
    packet, count = (SUPER, 3) if kind == "super" else (SMALL, PACKETS_AT_ONCE)
    own = (SUPER_OUT_PYTHON, SUPER_OUT_C, SUPER_IN_PYTHON, SUPER_IN_C, PROBE)
    out_python, out_c, in_python, in_c, probe = own if kind == "super" else (0, 0, 0, 0, 0)
    sending, receiving = await count_calls(ALL, packet, count)
    for calls, python, c in (
        (sending, RECORD_OUT_PYTHON + out_python, RECORD_OUT_C + out_c),
        (receiving, RECORD_IN_PYTHON + in_python, RECORD_IN_C + in_c),
    ):
        assert calls.python.total() <= python * count + TUN_BATCH + probe, calls.python
        assert calls.c.total() <= c * count + TUN_BATCH, calls.c


# ---- one packet that comes alone, as a ping does -------------------------------------------------

# From the poller's call to the carrier's, and from the carrier's bytes to the device:
ALONE_OUT_PYTHON, ALONE_OUT_C = 12, 7
ALONE_IN_PYTHON, ALONE_IN_C = 13, 16  # with __exit__ and setprofile
OF_THE_CARRIER = 4  # of this test: send, _check_open, before; setprofile


@pytest.mark.parametrize("offloads", [None, ALL])
async def test_a_packet_that_comes_alone(offloads):
    packet = ipv4("10.1.0.1", "10.1.0.2", bytes(64))
    packet = packet if offloads is None else HEADER.pack(0, 0, 0, 0, 0, 0) + packet
    async with pumps(offloads) as (links, (near, far), (here, there)):
        server, wire = links.server.protocol, links.server_carrier.inbox.data
        if wire:
            deliver(server, wire)
        here.kernel.send(packet)
        links.client_carrier.before = lambda _operation: sys.setprofile(None)
        with Calls() as sending:
            near._device_ready(poller.INPUT)
        links.client_carrier.before = lambda _operation: None
        receiving = deliver(server, wire)
        assert there.kernel.recv(len(packet) + 1) == packet
        assert near.packets_out == far.packets_in == 1
    assert sending.python.total() <= ALONE_OUT_PYTHON + OF_THE_CARRIER, sending.python
    assert sending.c.total() <= ALONE_OUT_C + OF_THE_CARRIER, sending.c
    assert receiving.python.total() <= ALONE_IN_PYTHON, receiving.python
    assert receiving.c.total() <= ALONE_IN_C, receiving.c


async def test_a_packet_leaves_after_a_rest_before_the_next_is_looked_for():
    async with pumps(ALL) as (links, (near, far), (here, _)):
        for _ in range(3):
            here.kernel.send(SMALL)
        near._poller.was_at_rest = True
        near._device_ready(poller.INPUT)
        assert near.packets_out == 1
        assert links.server_carrier.inbox.data
        with trio.fail_after(30):
            while far.packets_in < 3:
                await trio.lowlevel.checkpoint()
    assert near.packets_out == 3
