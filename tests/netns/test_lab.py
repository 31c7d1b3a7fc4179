"""The lab itself: every path that is drawn works, every other does not, and a change is seen."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from netns import echo
from netns.lab import Lab, ip, namespaces, remove_abandoned
from netns.state import difference
from netns.topologies import ROUTED, TOPOLOGIES, with_routes
from tests.support.programs import eventually, running

if TYPE_CHECKING:
    from netns.lab import Host
    from netns.topologies import Topology

pytestmark = pytest.mark.netns

README = Path(__file__).parent.parent.parent / "netns" / "README.md"
ADDRESS = re.compile(r"[0-9]+(?:\.[0-9]+){3}/[0-9]+|[0-9a-f:]+::[0-9a-f]*/[0-9]+")
BOTH = ("ipv4", "ipv6")


def ways(host: Host, *others: Host) -> set[tuple[str, str]]:
    """Those of the other hosts, with the family, that answer this one's pings."""
    return {
        (other.name, family)
        for other in others
        for family in BOTH
        if host.ping(getattr(other, family)(), timeout_s=0.5).received
    }


def every(*names: str) -> set[tuple[str, str]]:
    return {(name, family) for name in names for family in BOTH}


# ---- what is drawn -------------------------------------------------------------------------------


@pytest.mark.parametrize("topology", TOPOLOGIES.values(), ids=TOPOLOGIES)
def test_the_drawing_shows_what_there_is(topology: Topology) -> None:
    ends = [end for host in topology.hosts for end in topology.ends(host)]
    shown = ADDRESS.findall(topology.drawing)
    assert sorted(shown) == sorted(address for end in ends for address in end.addresses)
    assert re.findall(r"─ ([a-z]+) ─", topology.drawing) == list(topology.hosts)
    assert {end.device for end in ends} <= set(re.findall(r"[a-z]+\d", topology.drawing))
    assert {end.host for end in ends} == set(topology.hosts)
    assert f"`{topology.name}`" in README.read_text()
    assert topology.drawing in README.read_text()


# ---- paths ---------------------------------------------------------------------------------------


def test_the_target_is_reached_only_from_the_server(routed: Lab) -> None:
    client, router, server, target, other = routed.hosts.values()
    assert ways(client, router, server, target, other) == every("router", "server")
    assert ways(server, client, router, target, other) == every(
        "client", "router", "target", "other"
    )
    assert ways(target, client, router, server, other) == set()
    assert client.ping(target.ipv4()).errors == {0: "unreachable 0"}
    assert client.ping(target.ipv6()).errors == {0: "unreachable 0"}


def test_a_server_that_forwards_needs_the_target_to_know_the_way_back() -> None:
    """What a VPN without masquerading meets, and `with_routes` as its remedy."""
    to_private = ("10.20.0.0/24 via 10.99.2.2", "fd20::/64 via fd99:2::2")
    back = ("10.99.0.0/16 via 10.20.0.1", "fd99:1::/64 via fd20::1")
    for returns, reached in (((), set()), (back, every("target"))):
        topology = with_routes(with_routes(ROUTED, "router", *to_private), "target", *returns)
        with Lab(topology) as lab:
            lab["server"].sysctl("net.ipv4.ip_forward", "1")
            lab["server"].sysctl("net.ipv6.conf.all.forwarding", "1")
            assert ways(lab["client"], lab["target"]) == reached


def test_who_reaches_whom_through_the_masquerading_router(nated: Lab) -> None:
    outside = [nated[name] for name in ("server", "world")]
    inside = [nated[name] for name in ("client", "lan")]
    for host in inside:
        assert ways(host, *outside, *inside) == every("server", "world", "client", "lan")
        assert ways(host, nated["target"]) == set()
    for host in outside:
        assert ways(host, *inside) == {("client", "ipv6"), ("lan", "ipv6")}


def test_the_world_sees_the_router_in_ipv4_and_the_client_in_ipv6(nated: Lab) -> None:
    client, world = nated["client"], nated["world"]
    server = world.start_echo()
    for kind in ("tcp", "udp"):
        assert client.seen_as(kind, world.ipv4()) == "198.18.1.2"
        assert client.seen_as(kind, world.ipv6()) == client.ipv6()
    server.stop()


def test_bytes_come_back_as_they_were_sent(routed: Lab) -> None:
    client, server = routed["client"], routed["server"]
    program = server.start_echo()
    for address in (server.ipv4(), server.ipv6()):
        for size in (0, 1, 1472, 1473, 65000):
            client.echo("udp", address, size)
        client.echo("tcp", address, 3_000_000)
    program.kill()
    with pytest.raises(ConnectionRefusedError):
        client.echo("tcp", server.ipv4(), 1)


def test_bytes_that_come_back_changed_are_noticed(routed: Lab, monkeypatch) -> None:
    client, server = routed["client"], routed["server"]
    program = server.start_echo()
    monkeypatch.setattr(echo, "ECHO_PORT", echo.WHO_PORT)
    for kind in ("tcp", "udp"):
        with pytest.raises(echo.WrongBytesError, match="9 bytes came back of 50"):
            client.echo(kind, server.ipv4(), 50)
    program.stop()


def test_what_does_not_fit_is_not_sent_when_it_must_not_be_split(routed: Lab) -> None:
    client, server = routed["client"], routed["server"]
    for address, fits in ((server.ipv4(), 1472), (server.ipv6(), 1452)):
        assert client.ping(address, size=fits, dont_fragment=True).received == 1
        found = client.ping(address, size=fits + 1, dont_fragment=True)
        assert found.errors == {0: "Message too long"}
        assert client.ping(address, 3, size=4000).received == 3


# ---- what a host is set to -----------------------------------------------------------------------


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_snapshots_are_equal_when_nothing_was_changed(request, topology: str) -> None:
    lab: Lab = request.getfixturevalue(topology.replace("-", "_"))
    before = {host.name: host.snapshot() for host in lab.hosts.values()}
    first, last = lab[topology_first(lab)], [host for host in lab.hosts.values() if host.addresses]
    for host in last:  # what was learnt of neighbours, and what was counted, is not a change
        first.ping(host.ipv4(), timeout_s=0.1)
        first.ping(host.ipv6(), timeout_s=0.1)
    for host in lab.hosts.values():
        assert difference(before[host.name], host.snapshot()) == ""


def topology_first(lab: Lab) -> str:
    return lab.topology.hosts[0]


CHANGES = {
    "sysctl net.ipv4.conf.eth0.send_redirects 0": ["sysctl net.ipv4.conf.eth0.send_redirects: "],
    "ip rule add fwmark 5 table 77 priority 100": ["rule -4 100: "],
    "ip -6 rule add fwmark 5 table 77 priority 100": ["rule -6 100: "],
    "ip route add 10.55.0.0/16 dev eth0 table 77": ["route -4 77 unicast 10.55.0.0/16 eth0: "],
    "ip -6 route add blackhole fd55::/32": ["route -6 main blackhole fd55::/32 lo: "],
    "ip address add 10.99.0.9/32 dev lo": [
        "address lo 10.99.0.9/32: ",
        "route -4 local local 10.99.0.9 lo: ",
    ],
    "ip link set eth0 mtu 1400": ["link eth0: "],
    "nft add table inet gateway": ["nft table inet gateway: "],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen_and_named(two_hosts: Lab, change: str) -> None:
    client = two_hosts["client"]
    before = client.snapshot()
    program, *arguments = change.split()
    if program == "sysctl":
        client.sysctl(*arguments)
    else:
        assert client.run(program, *arguments).returncode == 0
    lines = difference(before, client.snapshot()).splitlines()
    for expected in CHANGES[change]:
        assert any(line[2:].startswith(expected) for line in lines), lines


def test_counters_and_handles_are_no_change(two_hosts: Lab) -> None:
    client, server = two_hosts["client"], two_hosts["server"]
    rules = (
        "table inet t { counter seen { }; chain c { type filter hook input priority 0; "
        "counter name seen; counter accept; }; }"
    )
    assert client.run("nft", rules).returncode == 0
    before = client.snapshot()
    assert client.ping(server.ipv4()).received == 1
    assert client.snapshot() == before
    assert client.run("nft", "flush ruleset; " + rules).returncode == 0
    assert client.snapshot() == before
    assert client.run("nft", "add rule inet t c drop").returncode == 0
    assert "drop" in difference(before, client.snapshot())


def test_a_lost_carrier_is_no_change(two_hosts: Lab) -> None:
    client, server = two_hosts["client"], two_hosts["server"]
    before = client.snapshot()
    ip("-n", server.namespace, "link", "set", "eth0", "down")
    assert "NO-CARRIER" in ip("-n", client.namespace, "link", "show", "eth0")
    assert difference(before, client.snapshot()) == ""


# ---- leaving -------------------------------------------------------------------------------------


HOLD_A_LAB = """
import sys
from netns.lab import Lab
from netns.topologies import TWO_HOSTS
with Lab(TWO_HOSTS) as lab:
    child = lab["server"].start("sleep", "1000")
    print("held", lab.prefix, child.process.pid, flush=True)
    sys.stdin.read()
    child.process.wait()
"""


def test_a_lab_whose_maker_was_killed_goes_when_the_next_one_comes(two_hosts: Lab) -> None:
    del two_hosts  # there can be a lab
    with running(sys.executable, "-c", HOLD_A_LAB, PYTHONPATH=str(README.parent.parent)) as maker:
        match = maker.wait_line(r"held (\S+) (\d+)")
        prefix, left_running = match[1], int(match[2])
        maker.signal(signal.SIGKILL)
        maker.wait()
    assert len(namespaces(prefix)) == 2
    with Lab(TOPOLOGIES["two-hosts"]) as lab:
        assert namespaces(prefix) == []
        assert len(namespaces(lab.prefix)) == 2
    assert not set(remove_abandoned()) & {prefix}
    eventually(lambda: not os.path.exists(f"/proc/{left_running}"), "the program went with it")  # noqa: PTH110


# ---- by hand -------------------------------------------------------------------------------------


def netns(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "netns", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_a_command_in_a_host_of_a_topology(two_hosts: Lab) -> None:
    del two_hosts  # there can be a lab
    assert "192.168.7.3/24" in netns("nated", "lan", "ip", "-brief", "address").stdout
    assert "10.99.0.2/24" in netns("server", "ip", "-brief", "address").stdout


def test_the_topologies_are_listed_and_a_wrong_name_is_told() -> None:
    listed = netns("list").stdout
    assert all(topology.drawing in listed for topology in TOPOLOGIES.values())
    done = netns("routed", "lan")
    assert done.returncode == 2
    assert "the lab routed has no host 'lan': name one of client, router, server" in done.stderr
