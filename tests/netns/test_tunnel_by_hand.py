"""The recipe of ssh(1), `-w` and a few `ip` commands: with our client, our server, or both."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest

from tests.support.programs import GATEWAY, Keys, eventually
from tests.support.vpn import (
    NOBODY,
    Site,
    as_nobody,
    openssh_or_skip,
    running_site,
    type_in,
    unchanged,
    with_tun_node,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from netns.lab import Host, Lab
    from scripts.child import Child

pytestmark = pytest.mark.netns

WAYS = ("gateway-debian", "gateway-newest", "debian-serve", "newest-serve", "gateway-serve")
DEVICE_S = 60.0


@dataclass
class Way:
    """A client and a server. ``program`` is what stands in ssh's place."""

    lab: Lab
    site: Site
    program: list[str]

    @contextlib.contextmanager
    def tunnel(self, *options: str, kind: str = "tun") -> Iterator[Child]:
        """Have device 0 on the client and device 1 on the server, without addresses."""
        client, server = self.site.client, self.site.server
        with unchanged(client, server):
            process = client.start(*self.program, "-N", *options, *self.site.options())
            try:
                eventually(lambda: has(client, f"{kind}0"), process.last_words(), DEVICE_S)
                eventually(lambda: has(server, f"{kind}1"), process.last_words(), DEVICE_S)
                yield process
            finally:
                process.stop()


def has(host: Host, device: str) -> bool:
    return host.run("ip", "link", "show", device).returncode == 0


@pytest.fixture(scope="module")
def lab(sites: Lab) -> Lab:
    for name in ("target", "lan"):
        sites[name].start_echo()
    return sites


@pytest.fixture(scope="module", params=WAYS)
def way(
    request: pytest.FixtureRequest, lab: Lab, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Way]:
    client, server = request.param.split("-")
    folder = tmp_path_factory.mktemp(request.param)
    with running_site(server, lab, folder / "keys") as site:
        if client == "gateway":
            program = [*GATEWAY, "connect", "-v"]
        else:
            program = openssh_or_skip(client, folder).on_this_machine("ssh", "-v")
        yield Way(lab, site, program)


def test_two_networks_joined_by_routes(way: Way) -> None:
    with way.tunnel("-w", "0:1"):
        type_in(
            way.site.client,
            "ip address add 10.1.1.1 peer 10.1.1.2 dev tun0",
            "ip address add fd01::1/64 dev tun0 nodad",
            "ip link set tun0 up",
            "ip route add 10.20.0.0/24 via 10.1.1.2",
            "ip route add fd20::/64 via fd01::2 dev tun0",
        )
        type_in(
            way.site.server,
            "ip address add 10.1.1.2 peer 10.1.1.1 dev tun1",
            "ip address add fd01::2/64 dev tun1 nodad",
            "ip link set tun1 up",
            "ip route add 10.50.0.0/24 via 10.1.1.1",
            "ip route add fd50::/64 via fd01::1 dev tun1",
        )
        for address in ("10.1.1.2", "fd01::2"):
            assert way.site.client.ping(address, 3).received == 3
        lan, target = way.lab["lan"], way.lab["target"]
        for address in (target.ipv4(), target.ipv6()):
            assert lan.ping(address, 3, size=1400).received == 3
            lan.echo("tcp", address, 300_000)
            lan.echo("udp", address, 8000)
            assert lan.seen_as("tcp", address) in lan.addresses, "without NAT"


def mac(host: Host, device: str) -> str:
    return json.loads(host.run("ip", "-j", "link", "show", device).stdout)[0]["address"]


@contextlib.contextmanager
def bridged(host: Host, tap: str) -> Iterator[None]:
    """Join a host's network and its tap device."""
    try:
        type_in(
            host,
            "ip link add bridge9 type bridge",
            *(f"ip link set {device} master bridge9" for device in ("eth1", tap)),
            *(f"ip link set {device} up" for device in (tap, "bridge9")),
        )
        yield
    finally:
        type_in(host, "ip link delete bridge9")


@contextlib.contextmanager
def in_one_network(*hosts: Host) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for number, host in enumerate(hosts, start=1):
            for address in (f"10.30.0.{number}/24 broadcast +", f"fd30::{number}/64 nodad"):
                type_in(host, f"ip address add {address} dev eth0")
                stack.callback(type_in, host, f"ip address delete {address.split()[0]} dev eth0")
        yield


def test_two_networks_joined_by_bridges(way: Way) -> None:
    """What only neighbours hear is heard: ARP, IPv6 neighbour discovery, broadcasts."""
    lan, target = way.lab["lan"], way.lab["target"]
    with (
        unchanged(lan, target),
        in_one_network(lan, target),
        way.tunnel("-o", "Tunnel=ethernet", "-w", "0:1", kind="tap"),
        bridged(way.site.client, "tap0"),
        bridged(way.site.server, "tap1"),
    ):
        for address in ("10.30.0.2", "fd30::2"):
            assert lan.ping(address, 3, size=1400).received == 3
            lan.echo("tcp", address, 300_000)
            lan.echo("udp", address, 8000)
            (neighbour,) = json.loads(lan.run("ip", "-j", "neighbour", "show", address).stdout)
            assert neighbour["lladdr"] == mac(target, "eth0")
        assert heard_broadcast(lan, target)


def heard_broadcast(speaker: Host, listener: Host) -> bool:
    with listener.inside():
        ears = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with speaker.inside():
        mouth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with ears, mouth:
        ears.bind(("10.30.0.255", 0))
        ears.settimeout(5)
        mouth.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        mouth.sendto(b"anybody?", ("10.30.0.255", ears.getsockname()[1]))
        return ears.recv(100) == b"anybody?"


# ---- without root --------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["gateway-serve", "gateway-debian"], indirect=True)
def test_a_device_made_for_an_ordinary_user(way: Way, tmp_path: Path) -> None:
    site, client = way.site, way.site.client
    os.chown(tmp_path, NOBODY, NOBODY)
    key = Keys(tmp_path).user
    key.write_bytes(site.keys.user.read_bytes())
    key.chmod(0o600)
    os.chown(key, NOBODY, NOBODY)
    with unchanged(client, site.server):
        type_in(
            client,
            f"ip tuntap add dev tun5 mode tun user {NOBODY}",
            "ip address add 10.1.1.1 peer 10.1.1.2 dev tun5",
            "ip link set tun5 up",
        )
        theirs = replace(site, keys=Keys(tmp_path), known_hosts=tmp_path / "known_hosts")
        process = client.start(
            *with_tun_node("666", *as_nobody(*GATEWAY, "connect", "-v", "-N", "-w", "5:any")),
            *theirs.options(),
        )
        try:
            process.wait_for_line("tunnel through tun5", DEVICE_S)
            type_in(
                site.server,
                "ip address add 10.1.1.2 peer 10.1.1.1 dev tun0",
                "ip link set tun0 up",
            )
            assert client.ping("10.1.1.2", 3).received == 3
        finally:
            process.stop()
        assert has(client, "tun5"), "it is not ours to remove"
        type_in(client, "ip tuntap delete dev tun5 mode tun")
