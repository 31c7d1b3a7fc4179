"""`--full-tunnel` from behind a home router: the world sees the server, neighbours stay neighbours.

The client's kernel checks strictly where packets come from (rp_filter 1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.vpn import Site, running_site, sent_bytes, unchanged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netns.lab import Lab

pytestmark = pytest.mark.netns

ROLES = ("client", "server", "world", "lan", "router")
ONLY_IPV4 = """
[[rules]]
allow = "tun"
to = ["tun"]
[tunnel]
pool = ["10.213.0.0/24"]
"""


@pytest.fixture(scope="module")
def lab(nated: Lab) -> Lab:
    for name in ("world", "lan", "target"):
        nated[name].start_echo()
    for device in ("all", "eth0"):
        nated["client"].sysctl(f"net.ipv4.conf.{device}.rp_filter", "1")
    return nated


@pytest.fixture(scope="module", params=["serve", "debian", "newest"])
def site(
    request: pytest.FixtureRequest, lab: Lab, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    kind, _, version = request.param.partition(" ")
    extra = ONLY_IPV4 if version else ""
    with running_site(kind, lab, tmp_path_factory.mktemp("keys"), extra) as site:
        yield site


def test_the_world_sees_the_server(site: Site, lab: Lab) -> None:
    client, server, world, lan, router = map(lab.__getitem__, ROLES)
    outside = next(address for address in router.addresses if address.startswith("198."))
    assert client.seen_as("tcp", world.ipv4()) == outside
    assert client.seen_as("tcp", world.ipv6()) == client.ipv6()
    with unchanged(client, server), site.vpn("--full-tunnel"):
        for address in (world.ipv4(), world.ipv6()):
            assert client.seen_as("tcp", address) in server.addresses
            assert client.seen_as("udp", address) in server.addresses
            assert client.ping(address, 3).received == 3
            client.echo("tcp", address, 300_000)
        before = sent_bytes(client)
        assert client.ping(world.ipv4(), 10, size=1000).received == 10
        assert 10_000 < sent_bytes(client) - before < 20_000, "nothing goes round"
        assert client.seen_as("tcp", lan.ipv4()) == client.ipv4(), "a neighbour"
        assert client.ping("10.20.0.2", 3).received == 3, "behind the server"


def test_what_is_excluded_is_reached_directly(site: Site, lab: Lab) -> None:
    client, server, world, *_ = map(lab.__getitem__, ROLES)
    excluded = f"{world.ipv4()}/32,{world.ipv6()}/128"
    with unchanged(client, server), site.vpn("--full-tunnel", "--exclude", excluded):
        assert client.seen_as("tcp", world.ipv4()) not in server.addresses
        assert client.seen_as("tcp", world.ipv6()) == client.ipv6()
        assert client.ping("10.20.0.2", 3).received == 3


@pytest.mark.parametrize("site", ["serve ipv4", "debian"], indirect=True)
def test_a_family_without_an_address_does_not_leak(site: Site, lab: Lab) -> None:
    client, server, world, *_ = map(lab.__getitem__, ROLES)
    ours = ["--address", "10.9.0.2/30"] if site.is_stock else []
    assert client.ping(world.ipv6(), 1).received == 1
    with unchanged(client, server), site.vpn("--full-tunnel", *ours):
        assert client.seen_as("tcp", world.ipv4()) in server.addresses
        assert set(client.ping(world.ipv6(), 3).errors.values()) == {"No route to host"}
        with pytest.raises(OSError, match="No route to host"):
            client.seen_as("tcp", world.ipv6())
