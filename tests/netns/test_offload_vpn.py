"""A VPN with an MTU of the user's choice: the server has its own, and so have the cables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.offload import HEADERS, IPV6_LEAST_MTU, MTU, sizes_for
from tests.support.vpn import Site, running_site, unchanged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netns.echo import Kind
    from netns.lab import Lab

pytestmark = pytest.mark.netns

MTUS = (577, 1281, 1499, 9000, 16_380)
CONFIG = """
[[rules]]
allow = "tun"
to = ["10.20.0.0/24", "fd20::/64"]
[tunnel]
pool = ["10.213.0.0/24", "fdb3:d38b:9530::/64"]
"""


@pytest.fixture(scope="module")
def lab(sites: Lab) -> Lab:
    sites["target"].start_echo()
    return sites


@pytest.fixture(scope="module")
def site(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running_site("serve", lab, tmp_path_factory.mktemp("site"), CONFIG) as found:
        yield found


@pytest.mark.parametrize("mtu", MTUS)
def test_odd_mtus_of_a_vpn(mtu: int, lab: Lab, site: Site) -> None:
    """--mtu on the client; the server has 1500."""
    families = HEADERS if mtu >= IPV6_LEAST_MTU else ("ipv4",)
    target = {"ipv4": lab["target"].ipv4(), "ipv6": lab["target"].ipv6()}
    subnets = {"ipv4": "10.20.0.0/24", "ipv6": "fd20::/64"}
    wanted = ",".join(subnets[family] for family in families)
    client = lab["client"]
    kinds: tuple[Kind, ...] = ("tcp", "udp")
    with unchanged(client), site.vpn("--vpn", wanted, "--mtu", str(mtu)):
        for family in families:
            size = max(mtu, MTU) - HEADERS[family] - 8
            found = client.ping(target[family], size=size, dont_fragment=mtu > MTU)
            assert len(found.errors) == (mtu > MTU), "how narrow the cable is"
            for kind in kinds:
                sizes = sizes_for(kind, family, mtu) + sizes_for(kind, family, MTU)
                client.echo_each(kind, target[family], sorted(set(sizes)))
