"""`gateway connect --vpn` in the lab: what is reached, and that nothing of it stays behind."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from netns.state import difference
from tests.support.hostile import send_nonsense
from tests.support.programs import GATEWAY, eventually
from tests.support.vpn import (
    Site,
    guardian_of,
    is_gone,
    kill_and_wait,
    running_site,
    sent_bytes,
)
from tests.support.vpn import unchanged as leaves_unchanged

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from netns.lab import Lab

pytestmark = pytest.mark.netns

SUBNETS = "10.20.0.0/24,fd20::/64"
TARGET = ("10.20.0.2", "fd20::2")
OTHER = ("10.20.1.2", "fd20:0:0:1::2")
STORM = 70_000  # bytes that no few pings are worth: WireGuard's bound in its own tests


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vpn")


@pytest.fixture(scope="module")
def lab(routed: Lab) -> Lab:
    """The client reaches the server; target and other only the server does."""
    for name in ("target", "other"):
        routed[name].start_echo()
    return routed


@pytest.fixture(scope="module", params=["serve", "debian", "newest"])
def site(request: pytest.FixtureRequest, lab: Lab, folder: Path) -> Iterator[Site]:
    with running_site(request.param, lab, folder / request.param) as site:
        yield site


@pytest.fixture
def unchanged(site: Site) -> Iterator[None]:
    """Both hosts are afterwards as they were before."""
    with leaves_unchanged(site.client, site.server):
        yield


# ---- what is reached -----------------------------------------------------------------------------


def reaches(site: Site, address: str) -> bool:
    return site.client.ping(address, 1, timeout_s=1).received > 0


@pytest.mark.usefixtures("unchanged")
def test_a_subnet_answers(site: Site) -> None:
    for address in TARGET:
        assert not reaches(site, address), "already without a VPN"
    with site.vpn("--vpn", SUBNETS):
        for address in TARGET:
            assert site.client.ping(address, 3).received == 3
            for size in (1, 1400, 8000):
                site.client.echo("udp", address, size)
            site.client.echo("tcp", address, 300_000)
        for address in OTHER:
            assert not reaches(site, address), "nobody asked for this subnet"
    for address in TARGET:
        assert not reaches(site, address), "the VPN has ended"


@pytest.mark.usefixtures("unchanged")
def test_what_is_excluded_stays_outside(site: Site) -> None:
    with site.vpn("--vpn", "10.20.0.0/16", "--exclude", "10.20.1.0/24"):
        assert reaches(site, "10.20.0.2")
        assert not reaches(site, "10.20.1.2")


@pytest.mark.usefixtures("unchanged")
def test_the_servers_own_network_may_be_inside(site: Site) -> None:
    """The tunnel does not swallow itself (T71), and works over IPv6 too."""
    for address in (site.server.ipv4(), site.server.ipv6()):
        with site.vpn("--vpn", "10.99.2.0/24,10.20.0.0/24,fd99:2::/64,fd20::/64", address=address):
            before = sent_bytes(site.client)
            for target in TARGET:
                assert site.client.ping(target, 3).received == 3
            assert sent_bytes(site.client) - before < STORM


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("site", ["debian"], indirect=True)
def test_a_tunnel_in_the_tunnel(site: Site) -> None:
    """The second one's login is to the far end of the first (T71)."""
    with site.vpn("--vpn", "10.20.0.0/24", "--address", "10.7.0.2/30"):
        with site.vpn("--vpn", "10.20.1.0/24", address="10.7.0.1"):
            before = sent_bytes(site.client)
            for target in (TARGET[0], OTHER[0]):
                assert site.client.ping(target, 3).received == 3
            assert sent_bytes(site.client) - before < STORM
        assert reaches(site, TARGET[0])


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("site", ["debian", "newest"], indirect=True)
def test_nonsense_does_not_stop_it(site: Site) -> None:
    """With our own server: test_tunnel_hazards.py. sshd itself stops at 20 bytes or less (T69)."""
    with site.vpn("--vpn", SUBNETS) as connect:
        send_nonsense(site.client, "tun0", (1 + number % 1500 for number in range(10_000)))
        send_nonsense(site.server, "tun0", (21 + number % 1480 for number in range(10_000)))
        for address in TARGET:
            assert site.client.ping(address, 3).received == 3
            site.client.echo("tcp", address, 300_000)
    said = connect.wait_for_line("packets lost in the tunnel: .*", 5)[0]
    assert "no more than a header" in said
    assert "malformed" in said


# ---- what stays behind ---------------------------------------------------------------------------


# Here it is the client that matters, so that one sshd is enough.
one_of_each = pytest.mark.parametrize("site", ["serve", "debian"], indirect=True)


@one_of_each
@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_it(site: Site, number: signal.Signals) -> None:
    with site.vpn("--vpn", SUBNETS) as connect:
        connect.process.send_signal(number)
        assert connect.process.wait(60) == 255


@pytest.mark.usefixtures("unchanged")
def test_the_client_is_killed(site: Site) -> None:
    with site.vpn("--vpn", SUBNETS) as connect:
        guardian = guardian_of(connect)
        connect.kill()
        eventually(lambda: is_gone(guardian), "the guardian has done its work")


@one_of_each
@pytest.mark.usefixtures("unchanged")
def test_client_and_guardian_are_killed(site: Site) -> None:
    before = site.client.snapshot()
    with site.vpn("--vpn", SUBNETS) as connect:
        kill_and_wait(guardian_of(connect))
        connect.kill()
    assert difference(before, site.client.snapshot())
    done = site.client.run(*GATEWAY, "cleanup")
    assert done.returncode == 0, done.stderr
    assert "ip rule" in done.stdout + done.stderr


@one_of_each
@pytest.mark.usefixtures("unchanged")
def test_the_next_one_cleans_up_too(site: Site) -> None:
    with site.vpn("--vpn", SUBNETS) as connect:
        kill_and_wait(guardian_of(connect))
        connect.kill()
    with site.vpn("--vpn", SUBNETS):
        assert reaches(site, TARGET[0])
