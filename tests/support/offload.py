"""Tunnels by hand between gateways of which each has offload or not: hosts, devices, addresses."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.programs import GATEWAY, Keys, eventually
from tests.support.vpn import Site, serve_command, type_in, unchanged

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from netns.echo import Kind
    from netns.lab import Host, Lab

LESSER = [sys.executable, "-m", "tests.support.lesser_gateway"]
PROGRAMS = {"all": GATEWAY, "none": [*LESSER, "whole"], "older": [*LESSER, "older"]}
"""By what of offload it has; "older" is one that does not know the channel."""

UP_S = 30.0
NEAR, FAR = ("10.1.1.1", "fd01::1"), ("10.1.1.2", "fd01::2")
NEAR_DEVICE, FAR_DEVICE = "tun0", "tun1"
IPV6_LEAST_MTU = 1280
MTU = 1500
UDP_SEGMENT = 103  # linux/udp.h
TCP_OPTIONS = 12  # timestamps
HEADERS = {"ipv4": 20, "ipv6": 40}


@dataclass(frozen=True)
class Pairing:
    """What the client and the server have of offload."""

    near: str
    far: str

    def __str__(self) -> str:
        return f"{self.near}-{self.far}"

    @property
    def is_unfinished(self) -> bool:
        """Whether packets are left unfinished between the two."""
        return self.near == self.far == "all"


PAIRINGS = [
    *(Pairing(near, far) for near in ("all", "none") for far in ("all", "none")),
    Pairing("all", "older"),
    Pairing("older", "all"),
]


@dataclass
class Tunnel:
    """One that is up."""

    client: Host
    server: Host
    pairing: Pairing

    @property
    def ends(self) -> tuple[tuple[Host, str, tuple[str, str], tuple[str, str]], ...]:
        """Host, device, its own addresses and the other's, of both ends."""
        return (
            (self.client, NEAR_DEVICE, NEAR, FAR),
            (self.server, FAR_DEVICE, FAR, NEAR),
        )

    def set_mtu(self, mtu: int) -> None:
        """Give both devices an MTU, and the addresses of the families that take it."""
        for host, device, (own4, own6), (other4, _) in self.ends:
            commands = [
                f"ip link set {device} mtu {mtu} up",
                f"ip address replace {own4} peer {other4} dev {device}",
            ]
            if mtu >= IPV6_LEAST_MTU:  # otherwise the kernel has taken it away
                commands.append(f"ip address replace {own6}/64 dev {device} nodad")
            type_in(host, *commands)

    def sent(self, host: Host, device: str) -> tuple[int, int]:
        """How many packets and bytes the kernel gave to a device so far."""
        (link,) = json.loads(host.run("ip", "-s", "-j", "link", "show", device).stdout)
        sent = link["stats64"]["tx"]
        return sent["packets"], sent["bytes"]


def join(tunnel: Tunnel) -> None:
    """Have the networks behind both hosts reach each other."""
    near4, near6 = NEAR
    far4, far6 = FAR
    type_in(
        tunnel.client,
        f"ip route replace 10.20.0.0/24 via {far4}",
        f"ip route replace fd20::/64 via {far6} dev {NEAR_DEVICE}",
    )
    type_in(
        tunnel.server,
        f"ip route replace 10.50.0.0/24 via {near4}",
        f"ip route replace fd50::/64 via {near6} dev {FAR_DEVICE}",
    )


@contextlib.contextmanager
def tunnel(lab: Lab, keys: Keys, pairing: Pairing, mtu: int = MTU) -> Iterator[Tunnel]:
    """Have a tunnel with addresses between the hosts "client" and "server" of a lab."""
    client, server = lab["client"], lab["server"]
    arguments = serve_command(keys)[len(GATEWAY) :]
    with unchanged(client, server):
        serve = server.start(*PROGRAMS[pairing.far], *arguments)
        serve.wait_for_line(r"listening on \S+:2222", UP_S)
        site = Site("serve", client, server, keys, serve, keys.folder / "known_hosts")
        connect = client.start(
            *PROGRAMS[pairing.near], "connect", "-v", "-N", "-w", "0:1", *site.options()
        )
        try:
            connect.wait_for_line("tunnel through", UP_S)
            eventually(
                lambda: not server.run("ip", "link", "show", FAR_DEVICE).returncode,
                connect.last_words(),
            )
            found = Tunnel(client, server, pairing)
            found.set_mtu(mtu)
            yield found
        finally:
            connect.stop()
            serve.stop()


# ---- sizes ---------------------------------------------------------------------------------------


def around_multiples(*units: int) -> list[int]:
    """Sizes within two bytes of small multiples of units."""
    found = {
        unit * count + more for unit in units for count in range(1, 7) for more in range(-2, 3)
    }
    return sorted(size for size in found if size <= 64_000)


def sizes_for(kind: Kind, family: str, mtu: int) -> list[int]:
    room = mtu - HEADERS[family]
    if kind == "tcp":
        return around_multiples(room - 20, room - 20 - TCP_OPTIONS)
    return around_multiples(room - 8, room // 8 * 8)  # of one packet, and of fragments


# ---- what is on a cable --------------------------------------------------------------------------


@dataclass
class Frames:
    """What tcpdump found, a packet each."""

    packets: list[str]

    @property
    def bad(self) -> list[str]:
        """Those with a wrong checksum, of TCP, UDP or IP."""
        return [one for one in self.packets if re.search(r"\(incorrect|bad (udp )?cksum", one)]

    @property
    def checked(self) -> int:
        """How many have a checksum of TCP or UDP that is right."""
        return sum("(correct)" in one or "udp sum ok" in one for one in self.packets)

    @property
    def longest(self) -> int:
        """The length of the longest packet, without what is around it."""
        return max(map(_length, self.packets))


def _length(packet: str) -> int:
    if found := re.search(r"^IP .* length (\d+)\)", packet):
        return int(found[1])
    found = re.search(r"^IP6 .* payload length: (\d+)\)", packet)
    assert found is not None, packet
    return int(found[1]) + 40


@contextlib.contextmanager
def captured(host: Host, device: str, file: Path) -> Iterator[Frames]:
    """Have tcpdump look at every TCP and UDP packet that comes to a device in the with block."""
    only = "tcp or udp or ip[6:2] & 0x3fff != 0 or ip6 proto 44"
    frames = Frames([])
    tcpdump = host.start(
        "tcpdump", "-i", device, "-Q", "in", "-n", "-s", "0", "-B", "65536", "-Z", "root",
        "--immediate-mode", "-w", str(file), only,
    )  # fmt: skip
    tcpdump.wait_for_line("listening on", UP_S)
    try:
        yield frames
    finally:
        tcpdump.process.send_signal(signal.SIGINT)
        tcpdump.process.wait(UP_S)
    tcpdump.wait_for_line("^0 packets dropped by kernel", UP_S)
    shown = host.run("tcpdump", "-n", "-vv", "-t", "-r", str(file))
    assert shown.returncode == 0, shown.stderr
    frames.packets += re.sub(r"\n[ \t]+", " ", shown.stdout).splitlines()


@contextlib.contextmanager
def complete_checksums(*ends: tuple[Host, str]) -> Iterator[None]:
    """Have devices send what a network card would: segments, with their checksums computed."""
    for host, device in ends:
        type_in(host, f"ethtool -K {device} tx off")
    try:
        yield
    finally:
        for host, device in ends:
            type_in(host, f"ethtool -K {device} tx on tso on")
