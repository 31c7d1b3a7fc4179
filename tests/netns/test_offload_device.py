"""Real tun devices: what they give is taken, and what they are given never holds us up (T93)."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio

from gateway.tun import superpump, virtio
from gateway.tun.device import Device
from gateway.tun.packet import Mode
from gateway.tun.superpump import SuperPump
from netns import echo
from netns.echo import ECHO_PORT
from tests.support.memory import linked, make_links
from tests.support.offload import (
    FAR,
    FAR_DEVICE,
    MTU,
    NEAR,
    TCP_OPTIONS,
    UDP_SEGMENT,
    Pairing,
    Tunnel,
    complete_checksums,
    join,
)
from tests.support.offload_rules import HEADER, Said, may_reach_a_device
from tests.support.packets import TCP, echo_request, packet
from tests.support.vpn import type_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from netns.lab import Host, Lab

    Sink = Callable[[memoryview], int]

pytestmark = pytest.mark.netns

LARGEST_RECORD = HEADER + 65_535
ALL_OFFLOADS = 0x6F
MUTATED = 20_000
LONGEST_WRITE_S = 0.020  # of processor time; 1366 segments took 1.8 ms, 54 273 took 49
LOST = 40  # one of so many, where some are


class Cable:
    """Two devices, each of which is given what the other gives; ``records`` are all that passed."""

    def __init__(self, lab: Lab) -> None:
        self.ends: list[Device] = []
        for name, unit in (("client", 0), ("server", 1)):
            with lab[name].inside():
                device = Device.open(Mode.POINT_TO_POINT, unit, offload=True)
            device.leave_unfinished(ALL_OFFLOADS)
            self.ends.append(device)
        self.records: list[bytes] = []
        self.refused: list[bytes] = []
        self.loses = False
        self._stopping, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._carry)
        self._thread.start()

    def _carry(self) -> None:
        near, far = self.ends
        while True:
            ready, _, _ = select.select([near.fd, far.fd, self._stopping], [], [])
            if self._stopping in ready:
                return
            for source, sink in ((near, far), (far, near)):
                with contextlib.suppress(BlockingIOError):
                    while True:
                        self._pass_on(os.read(source.fd, LARGEST_RECORD), sink)

    def _pass_on(self, record: bytes, sink: Device) -> None:
        self.records.append(record)
        if self.loses and len(self.records) % LOST == 0:
            return
        try:
            os.write(sink.fd, record)
        except OSError:
            self.refused.append(record)

    def cut(self) -> None:
        """Carry no more; the devices stay."""
        if self._thread.is_alive():
            os.write(self._stop, b"x")
            self._thread.join()

    def close(self) -> None:
        self.cut()
        for device in self.ends:
            device.close()
        for end in (self._stopping, self._stop):
            os.close(end)


@pytest.fixture(scope="module")
def lab(sites: Lab) -> Lab:
    for name in ("server", "target"):
        sites[name].start_echo()
    return sites


@pytest.fixture
def cable(lab: Lab) -> Iterator[Cable]:
    found = Cable(lab)
    up = Tunnel(lab["client"], lab["server"], Pairing("all", "all"))
    try:
        up.set_mtu(MTU)
        join(up)
        found.refused.clear()  # by a device that was not up yet
        yield found
    finally:
        found.close()


# ---- what the kernel gives -----------------------------------------------------------------------


def send_to_be_cut(lab: Lab, address: str) -> None:
    with lab["client"].inside():
        version = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(version, socket.SOCK_DGRAM)
    with sock:
        sock.connect((address, ECHO_PORT))
        for size in (16, 1200):
            segment = (socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", size))
            sock.sendmsg([echo.noise(size * 40)], [segment])


def send_with_options(lab: Lab, address: str) -> None:
    """TCP behind an option of IPv4 (RFC 791 §3.1), or a header with options of IPv6."""
    padding = bytes([0, 0, 1, 4, 0, 0, 0, 0])
    options = {
        4: (socket.AF_INET, (socket.IPPROTO_IP, socket.IP_OPTIONS, bytes([1, 1, 1, 1]))),
        6: (socket.AF_INET6, (socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, padding)),
    }
    version, option = options[6 if ":" in address else 4]
    with lab["client"].inside():
        sock = socket.socket(version, socket.SOCK_STREAM)
    with sock:
        sock.settimeout(5)
        sock.setsockopt(*option)
        sock.connect((address, ECHO_PORT))
        sock.sendall(echo.noise(50_000))
        assert echo.receive(sock, 50_000) == echo.noise(50_000)


def fill(lab: Lab, cable: Cable) -> list[bytes]:
    """Have all kinds of records pass; return them."""
    for address in (*FAR, lab["target"].ipv4(), lab["target"].ipv6()):
        for kind in ("tcp", "udp"):
            for name in ("client", "lan"):
                lab[name].echo_each(kind, address, range(1, 9000, 97))
        lab["lan"].echo("tcp", address, 500_000)
        send_to_be_cut(lab, address)
        send_with_options(lab, address)
    cable.cut()
    return cable.records


def test_what_the_kernel_gives_is_what_may_be_given(lab: Lab, cable: Cable) -> None:
    records = fill(lab, cable)
    assert {Said.of(record).gso_type for record in records} == {0, 1, 4, 5}
    assert {Said.of(record).flags & 1 for record in records} == {0, 1}
    assert {Said.of(record).csum_start for record in records} >= {20, 24, 40, 48}
    assert [one for one in records if virtio.judge(memoryview(one), MTU) is not None] == []
    assert [one for one in records if not may_reach_a_device(one, MTU)] == []
    assert max(map(len, records)) <= LARGEST_RECORD
    assert cable.refused == []


@pytest.mark.parametrize("mtu", [552, 576])
def test_the_least_segments_of_tcp(lab: Lab, cable: Cable, mtu: int) -> None:
    """Where packets are lost both ways, TCP's options take the most that they may."""
    up = Tunnel(lab["client"], lab["server"], Pairing("all", "all"))
    up.set_mtu(mtu)
    cable.loses = True
    usual = mtu - 20 - 20 - TCP_OPTIONS
    sizes: set[int] = set()
    for _ in range(20):
        lab["client"].echo("tcp", FAR[0], 500_000, timeout_s=60)
        cut = filter(lambda said: said.gso_type, map(Said.of, list(cable.records)))
        sizes = {said.gso_size for said in cut}
        if min(sizes) < usual:
            break
    cable.cut()
    assert min(sizes) < usual
    assert min(sizes) >= virtio.LEAST_GSO_SIZE
    assert [one for one in cable.records if virtio.judge(memoryview(one), mtu) is not None] == []


@pytest.mark.parametrize("offloads", range(0x80))
def test_any_offloads_of_a_peer(lab: Lab, offloads: int) -> None:
    with lab["client"].inside():
        device = Device.open(Mode.POINT_TO_POINT, 5, offload=True)
    try:
        device.leave_unfinished(offloads)
    finally:
        device.close()


def test_no_super_packet_is_longer_than_a_record(lab: Lab, cable: Cable) -> None:
    """gso_max_size of a tun device is 65536, and cannot be made larger."""
    del cable
    shown = lab["client"].run("ip", "-d", "link", "show", "tun0").stdout
    assert "gso_max_size 65536 gso_max_segs 65535 tso_max_size 65536" in shown
    asked = lab["client"].run("ip", "link", "set", "tun0", "gso_max_size", "100000")
    assert asked.returncode != 0


# ---- what it is given ----------------------------------------------------------------------------


class Clock:
    """Stands for os.write: keeps how much processor time the longest took."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.longest_s = 0.0
        self.count = 0
        self._write = os.write
        patch.setattr(superpump.os, "write", self)

    def __call__(self, fd: int, data: Any) -> int:
        began_s = time.thread_time()
        try:
            return self._write(fd, data)
        finally:
            self.count += 1
            self.longest_s = max(self.longest_s, time.thread_time() - began_s)


@contextlib.asynccontextmanager
async def pumped(host: Host, device: Device) -> AsyncIterator[tuple[SuperPump, Sink]]:
    """Have a pump in a host, between a device and a peer that is played by who calls its sink."""
    links = make_links(capacity=1 << 20)
    with host.inside():
        async with linked(links):
            local, _ = await links.open_channel()
            pump = SuperPump(device, local, None)
            yield pump, pump._sink
            local.link.at_batch_end.clear()  # what nobody sent is not to be given back
            local.close()


def drained(device: Device) -> list[bytes]:
    """What a device gives, until it gives nothing."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(os.read(device.fd, LARGEST_RECORD))
    return found


def framed(record: bytes) -> memoryview:
    return memoryview(struct.pack(">I", len(record)) + record)


def mutated(dice: random.Random, records: list[bytes]) -> bytes:
    record = bytearray(dice.choice(records))
    for _ in range(dice.choice((1, 1, 2, 5))):
        record[dice.randrange(min(len(record), 90))] = dice.choice((0, 1, 255, dice.randrange(256)))
    if dice.random() < 0.1:
        del record[dice.randrange(len(record)) :]
    return bytes(record)


@contextlib.contextmanager
def few_neighbours(host: Host) -> Iterator[None]:
    """Have no way to forged addresses: all hosts of this machine share the table of neighbours."""
    halves = ("fd20::", "fd20:0:0:0:8000::", "fd01::", "fd01:0:0:0:8000::")
    ways = ["fd20::2 dev eth1", f"{NEAR[1]} dev {FAR_DEVICE}"]
    ways += [f"unreachable {half}/65" for half in halves]
    type_in(host, *(f"ip -6 route add {way}" for way in ways))
    try:
        yield
    finally:
        type_in(host, *(f"ip -6 route delete {way}" for way in ways))


async def is_answered(sink: Sink, device: Device, near: str, far: str) -> bool:
    drained(device)  # a full queue would take no answer
    sink(framed(bytes(HEADER) + echo_request(near, far)))
    with trio.move_on_after(10):
        while not any(echo_request(far, near)[-4:] in one for one in drained(device)):
            await trio.lowlevel.wait_readable(device.fd)
        return True
    return False


def flood(sink: Sink, clock: Clock, device: Device, captured: list[bytes]) -> None:
    """Have a sink take mutated records, and a tenth random ones; each that may be is written."""
    dice = random.Random(93)
    for number in range(MUTATED):
        random_one = dice.randbytes(dice.randrange(200))
        record = random_one if number % 10 == 0 else mutated(dice, captured)
        before = clock.count
        sink(framed(record))
        wanted = len(record) > HEADER and may_reach_a_device(record, MTU)
        assert clock.count - before == wanted
        if number % 100 == 0:
            drained(device)


async def test_mutated_records_leave_the_device_whole(
    lab: Lab, cable: Cable, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = list({(one[:HEADER], len(one) // 50): one for one in fill(lab, cable)}.values())
    device, server = cable.ends[1], lab["server"]
    with few_neighbours(server):
        async with pumped(server, device) as (pump, sink):
            clock = Clock(monkeypatch)
            flood(sink, clock, device, captured)
            monkeypatch.undo()
            assert MUTATED // 10 < pump.packets_in < MUTATED
            for near, far in zip(NEAR, FAR, strict=True):
                assert await is_answered(sink, device, near, far)
    assert clock.longest_s < LONGEST_WRITE_S


async def test_the_longest_write(lab: Lab, cable: Cable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The most packets of one record, each of which is forwarded, summed up and answered."""
    cable.cut()
    device, target = cable.ends[1], lab["target"]
    tcp = struct.pack(">HHIIBBHHH", 9, 9, 1, 1, 5 << 4, 0x10, 500, 0, 0)
    udp = struct.pack(">HHHH", 9, 9, 8 + 128 * 16, 0)
    lan = lab["lan"]
    worst = [
        virtio.HEADER.pack(1, 1, 40, 48, 20, 16)
        + packet(lan.ipv4(), target.ipv4(), TCP, tcp + bytes(65_495)),
        virtio.HEADER.pack(1, 4, 60, 48, 40, 16)
        + packet(lan.ipv6(), target.ipv6(), TCP, tcp + bytes(65_475)),
        virtio.HEADER.pack(1, 5, 28, 16, 20, 6)
        + packet(lan.ipv4(), target.ipv4(), 17, udp + bytes(128 * 16)),
    ]
    with complete_checksums((lab["server"], "eth1")):
        async with pumped(lab["server"], device) as (pump, sink):
            clock = Clock(monkeypatch)
            for record in worst * 30:
                sink(framed(record))
                drained(device)
            monkeypatch.undo()
            assert pump.packets_in == 90
    assert clock.longest_s < LONGEST_WRITE_S
