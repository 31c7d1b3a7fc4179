"""Every byte arrives, whatever of offload either gateway has: sizes, families, MTUs."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import pytest

from netns import echo
from netns.echo import CHUNK, ECHO_PORT
from tests.support.offload import (
    FAR,
    IPV6_LEAST_MTU,
    MTU,
    PAIRINGS,
    UDP_SEGMENT,
    Pairing,
    Tunnel,
    sizes_for,
    tunnel,
)
from tests.support.programs import Keys, make_keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netns.echo import Kind
    from netns.lab import Lab

pytestmark = pytest.mark.netns

LARGEST = 9000
MTUS = (577, 1281, 1499, 9000, 16_380)
BULK = 3_000_000
FAMILIES = {"ipv4": FAR[0], "ipv6": FAR[1]}


@pytest.fixture(scope="module")
def lab(sites: Lab) -> Lab:
    sites["server"].start_echo()
    return sites


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module", params=PAIRINGS, ids=str)
def pairing(request: pytest.FixtureRequest) -> Pairing:
    found: Pairing = request.param
    return found


@pytest.fixture(scope="module")
def up(lab: Lab, keys: Keys, pairing: Pairing) -> Iterator[Tunnel]:
    with tunnel(lab, keys, pairing) as found:
        yield found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_every_size(up: Tunnel, kind: Kind, family: str) -> None:
    up.client.echo_each(kind, FAMILIES[family], range(1, LARGEST + 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_packets_are_unfinished_where_both_ends_take_that(up: Tunnel, family: str) -> None:
    """What the other tests of this file rely on: that the pairings are what they are named."""
    up.client.echo("tcp", FAMILIES[family], BULK, timeout_s=60)
    for host, device, _, _ in up.ends:
        before = up.sent(host, device)
        up.client.echo("tcp", FAMILIES[family], BULK, timeout_s=60)
        packets, size = (
            now - then for now, then in zip(up.sent(host, device), before, strict=True)
        )
        assert size > BULK
        assert (size > packets * MTU) is up.pairing.is_unfinished


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [16, 100, 1200, 1400])
def test_datagrams_that_are_to_be_cut(up: Tunnel, family: str, size: int) -> None:
    """UDP_SEGMENT: one call of the sender is many datagrams for who gets it."""
    address = FAMILIES[family]
    with up.client.inside():
        version = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(version, socket.SOCK_DGRAM)
    with sock:
        sock.settimeout(5)
        sock.connect((address, ECHO_PORT))
        for count in (2, 10, 32):
            data = echo.noise(size * count - size // 2)
            segment = (socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", size))
            sock.sendmsg([data], [segment])
            cut = [data[start : start + size] for start in range(0, len(data), size)]
            assert sorted(sock.recv(CHUNK) for _ in cut) == sorted(cut)


@pytest.mark.parametrize("mtu", MTUS)
def test_odd_mtus(up: Tunnel, mtu: int) -> None:
    """Typed while the tunnel is up, as for ssh -w."""
    up.set_mtu(mtu)
    for family, address in FAMILIES.items():
        if family == "ipv4" or mtu >= IPV6_LEAST_MTU:
            up.client.echo_each("tcp", address, sizes_for("tcp", family, mtu))
            up.client.echo_each("udp", address, sizes_for("udp", family, mtu))
