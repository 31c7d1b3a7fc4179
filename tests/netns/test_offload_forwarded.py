"""Traffic of third hosts through tunnels with and without offload: lan, client, server, target.

What leaves for the target and for lan is looked at as tcpdump sees it there: every checksum is
right, and nothing is longer than the cable takes.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from netns.echo import ECHO_PORT
from tests.support.hostile import ears
from tests.support.offload import (
    FAR_DEVICE,
    HEADERS,
    MTU,
    PAIRINGS,
    Pairing,
    Tunnel,
    captured,
    complete_checksums,
    join,
    tunnel,
)
from tests.support.packets import payload_of, udp
from tests.support.programs import Keys, make_keys
from tests.support.vpn import type_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from netns.lab import Host, Lab

pytestmark = pytest.mark.netns

SIZES = range(1, 9001, 11)
BULK = 1_000_000
PATH_S = 60.0


@pytest.fixture(scope="module")
def lab(sites: Lab) -> Lab:
    for name in ("lan", "target"):
        sites[name].start_echo()
    return sites


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"))


@contextlib.contextmanager
def joined(lab: Lab, keys: Keys, pairing: Pairing, mtu: int = MTU) -> Iterator[Tunnel]:
    with tunnel(lab, keys, pairing, mtu) as up:
        join(up)
        yield up


@pytest.fixture(scope="module", params=PAIRINGS, ids=str)
def up(request: pytest.FixtureRequest, lab: Lab, keys: Keys) -> Iterator[Tunnel]:
    with joined(lab, keys, request.param) as found:
        yield found


def both_addresses(host: Host) -> dict[str, str]:
    return {"ipv4": host.ipv4(), "ipv6": host.ipv6()}


# ---- every packet on the wire --------------------------------------------------------------------


@pytest.mark.parametrize("family", HEADERS)
def test_what_is_on_the_cables_is_whole(up: Tunnel, lab: Lab, family: str, tmp_path: Path) -> None:
    """Lan and target leave work to the next host; that one's card, in the way out, does none."""
    lan, target = lab["lan"], lab["target"]
    address = both_addresses(target)[family]
    with (
        complete_checksums((lab["client"], "eth1"), (lab["server"], "eth1")),
        captured(target, "eth0", tmp_path / "target") as at_target,
        captured(lan, "eth0", tmp_path / "lan") as at_lan,
    ):
        for kind in ("tcp", "udp"):
            lan.echo_each(kind, address, SIZES)
        before = [up.sent(host, device) for host, device, _, _ in up.ends]
        lan.echo("tcp", address, BULK)
    for frames in (at_target, at_lan):
        assert frames.bad == []
        assert frames.checked > 2 * len(SIZES)
        assert frames.longest == MTU
    for (host, device, _, _), then in zip(up.ends, before, strict=True):
        packets, size = (a - b for a, b in zip(up.sent(host, device), then, strict=True))
        assert (size > packets * MTU) is up.pairing.is_unfinished


@pytest.mark.parametrize("checksum", ["noudpcsum", "udpcsum"])
def test_networks_inside_of_it(up: Tunnel, lab: Lab, checksum: str) -> None:
    """VXLAN: what the kernel would have a card cut and sum up is inside of UDP."""
    lan, target = lab["lan"], lab["target"]
    with contextlib.ExitStack() as stack:
        for number, (host, other) in enumerate(((lan, target), (target, lan)), start=1):
            type_in(
                host,
                f"ip link add inner9 type vxlan id 9 remote {other.ipv4()} local {host.ipv4()} "
                f"dstport 4789 {checksum}",
                f"ip address add 10.30.0.{number}/24 dev inner9",
                f"ip address add fd30::{number}/64 dev inner9 nodad",
                "ip link set inner9 mtu 1400 up",
            )
            stack.callback(type_in, host, "ip link delete inner9")
        assert up.client.ping(target.ipv4()).received == 1
        for address in ("10.30.0.2", "fd30::2"):
            lan.echo("tcp", address, BULK, timeout_s=PATH_S)
            lan.echo_each("tcp", address, range(1, 9000, 101))
            lan.echo_each("udp", address, range(1, 9000, 101))


@pytest.mark.parametrize("mss", [100, 256])
def test_a_host_that_takes_little(up: Tunnel, lab: Lab, mss: int) -> None:
    """Many small segments of one packet, with TCP's options smaller still."""
    del up
    lan, target = lab["lan"], lab["target"]
    for family, router in (("ipv4", "10.20.0.1"), ("ipv6", "fd20::1")):
        way = f"route replace default via {router} dev eth0"
        type_in(target, f"ip {way} advmss {mss}")
        lan.echo("tcp", both_addresses(target)[family], 200_000, timeout_s=PATH_S)
        type_in(target, f"ip {way}")


# ---- fragments -----------------------------------------------------------------------------------


def fragments_of(packet: bytes, size: int, more: int = 0) -> list[bytes]:
    """Cut a packet; each fragment overlaps the next one by ``more`` bytes."""
    protocol, data = payload_of(packet)
    found = []
    for start in range(0, len(data), size):
        piece = data[start : start + size + more]
        is_last = start + size >= len(data)
        if packet[0] >> 4 == 4:
            place = struct.pack(">HH", 9, start // 8 | (0 if is_last else 0x2000))
            head = packet[:2] + struct.pack(">H", 20 + len(piece)) + place + packet[8:20]
            found.append(head[:10] + bytes(2) + head[12:] + piece)  # the kernel sums it up
        else:
            extension = struct.pack(">BBHI", protocol, 0, start | (not is_last), 9)
            head = packet[:4] + struct.pack(">H", 8 + len(piece)) + bytes([44]) + packet[7:40]
            found.append(head + extension + piece)
    return found


def send_raw(host: Host, packets: list[bytes], destination: str) -> None:
    with host.inside():
        version = socket.AF_INET6 if ":" in destination else socket.AF_INET
        sock = socket.socket(version, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with sock:
        for packet in packets:
            sock.sendto(packet, (destination, 0))


@pytest.mark.parametrize("family", HEADERS)
def test_fragments_in_any_order(up: Tunnel, lab: Lab, family: str) -> None:
    """Those that overlap pass as they are; the server, which tracks connections, drops them."""
    lan, target = lab["lan"], lab["target"]
    source, address = both_addresses(lan)[family], both_addresses(target)[family]
    with lan.inside():
        version = socket.AF_INET6 if family == "ipv6" else socket.AF_INET
        sock = socket.socket(version, socket.SOCK_DGRAM)
    dice = random.Random(7)
    data = dice.randbytes(6000)
    with sock:
        sock.bind((source, 0))
        sock.settimeout(5)
        datagram = udp(source, sock.getsockname()[1], address, ECHO_PORT, data)
        for size in (8, 800, 1400):
            fragments = fragments_of(datagram, max(size, 104))
            for order in (fragments[::-1], dice.sample(fragments, len(fragments))):
                send_raw(lan, order, address)
                assert sock.recv(10_000) == data
        overlapping = fragments_of(datagram, 800, more=80)
        with ears(up.server, FAR_DEVICE) as heard:
            send_raw(lan, overlapping, address)
            assert up.client.ping(address).received == 1  # it came behind them
            arrived = [payload_of(packet) for packet in heard.heard()]
        assert [payload_of(packet) for packet in overlapping] == arrived[: len(overlapping)]
        lan.echo_each("udp", address, range(1, 9000, 500))


# ---- a path that is narrower than its ends -------------------------------------------------------


def known_mtu(host: Host, address: str) -> int | None:
    """What a host was told of the path to an address."""
    (route,) = json.loads(host.run("ip", "-j", "route", "get", address).stdout)
    return next((metric["mtu"] for metric in route.get("metrics", []) if "mtu" in metric), None)


@contextlib.contextmanager
def mtus(*ends: tuple[Host, str, int]) -> Iterator[None]:
    """Have other MTUs, and what was known of paths forgotten afterwards."""
    for host, device, mtu in ends:
        type_in(host, f"ip link set {device} mtu {mtu}")
    try:
        yield
    finally:
        for host, device, _ in ends:
            type_in(host, f"ip link set {device} mtu {MTU}")


def forget_paths(*hosts: Host) -> None:
    for host in hosts:
        type_in(host, "ip -4 route flush cache", "ip -6 route flush cache")


@pytest.mark.parametrize("family", HEADERS)
@pytest.mark.parametrize("cable", [1500, 1300])
def test_too_big_is_said_and_heard(up: Tunnel, lab: Lab, family: str, cable: int) -> None:
    """A card of 9000, a tunnel of 1400, and then a cable that may be narrower still."""
    lan, client, server, target = (lab[name] for name in ("lan", "client", "server", "target"))
    address = both_addresses(target)[family]
    over = HEADERS[family] + 8
    narrowest = min(1400, cable)
    forget_paths(lan, target)
    up.set_mtu(1400)
    join(up)
    try:
        with mtus((lan, "eth0", 9000), (client, "eth1", 9000), (server, "eth1", cable)):
            if family == "ipv4":
                lan.echo("tcp", address, BULK, timeout_s=PATH_S)
            fitting = lan.ping(address, 3, size=narrowest - over, dont_fragment=True)
            assert fitting.received == 3
            refused = lan.ping(address, 1, size=1401 - over, dont_fragment=True)
            assert refused.errors[0] in {"unreachable 4", "too big 0"}
            assert known_mtu(lan, address) in (1400, narrowest)
            if cable < 1400:
                refused = lan.ping(address, 1, size=cable + 1 - over, dont_fragment=True)
                assert refused.errors[0] in {"unreachable 4", "too big 0"}
                assert known_mtu(lan, address) == cable
            lan.echo("tcp", address, BULK, timeout_s=PATH_S)
            target.echo("tcp", both_addresses(lan)[family], BULK, timeout_s=PATH_S)
    finally:
        forget_paths(lan, target)
        up.set_mtu(MTU)
        join(up)
