"""A VPN beside what only a full kernel has: netem's lines, and VRFs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from netns.lab import Lab
from netns.topologies import ROUTED, SLOW
from tests.support.vpn import running_site, unchanged

if TYPE_CHECKING:
    from pathlib import Path

    from netns.lab import Host

pytestmark = [pytest.mark.netns, pytest.mark.full_kernel]

TARGET = ("10.20.0.2", "fd20::2")
VRF = (
    "link add red type vrf table 100",
    "link set red up",
    "link add red0 type dummy",
    "link set red0 master red up",
    "address add 10.66.0.1/24 dev red0",
    "route add 10.20.0.0/24 via 10.66.0.2 vrf red",
)


def test_bytes_arrive_through_a_vpn_over_a_line_of_netem(tmp_path: Path) -> None:
    with Lab(SLOW, by_netem=True) as lab:
        lab["target"].start_echo()
        client, server = lab["client"], lab["server"]
        with (
            running_site("serve", lab, tmp_path) as site,
            unchanged(client, server),
            site.vpn("--vpn", "10.20.0.0/24,fd20::/64"),
        ):
            for address in TARGET:
                pings = client.ping(address, 20, timeout_s=10)
                assert pings.received == 20, "TCP repeats what the line loses"
                assert min(pings.times_ms) >= 40
                client.echo("tcp", address, 300_000, timeout_s=60)


def way_in_vrf(client: Host) -> str:
    found = client.run("ip", "-j", "route", "get", TARGET[0], "vrf", "red")
    [route] = json.loads(found.stdout)
    return str(route["dev"])


@pytest.mark.parametrize("tunnel", [("--full-tunnel",), ("--vpn", "10.20.0.0/24")], ids=" ".join)
def test_a_vrf_keeps_its_ways_beside_a_vpn(tunnel: tuple[str, ...], tmp_path: Path) -> None:
    """Its rule (l3mdev, 1000) is asked before ours; its networks are none of the main table."""
    with Lab(ROUTED) as lab:
        client = lab["client"]
        for words in VRF:
            done = client.run("ip", *words.split())
            assert done.returncode == 0, done.stderr
        with (
            running_site("serve", lab, tmp_path) as site,
            unchanged(client, lab["server"]),
            site.vpn(*tunnel),
        ):
            assert client.ping(TARGET[0], 3, timeout_s=10).received == 3
            assert way_in_vrf(client) == "red0"
