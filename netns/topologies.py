"""The networks of the lab, as data: hosts, the cables between them, and what each host is told."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from netns.emulator import Line

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class End:
    """One end of a cable: the device it is in its host, and that device's addresses."""

    host: str
    device: str
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cable:
    """What joins two hosts; with a line it is slow, long or lossy, as `netns.emulator` says."""

    left: End
    right: End
    line: Line | None = None

    @property
    def hosts(self) -> tuple[str, str]:
        """From where to where."""
        return self.left.host, self.right.host


@dataclass(frozen=True)
class Machine:
    """A host before it exists. A switch has no addresses: a bridge joins all its devices.

    ``routes`` are what `ip route add` takes, ``sysctls`` are added to `BASE_SYSCTLS` and override
    them, ``nft`` is a ruleset.
    """

    name: str
    routes: tuple[str, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    nft: str = ""
    is_switch: bool = False


@dataclass(frozen=True)
class Topology:
    """Machines, each a namespace with a loopback device of its own, and no way out."""

    name: str
    what: str
    machines: tuple[Machine, ...]
    cables: tuple[Cable, ...]
    drawing: str

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names, the first one is where a shell is opened."""
        return tuple(machine.name for machine in self.machines)

    def ends(self, host: str) -> list[End]:
        """The devices of a host."""
        return [
            end for cable in self.cables for end in (cable.left, cable.right) if end.host == host
        ]


BASE_SYSCTLS = {
    # As Debian sets it: a reply may leave by another device than the one a packet came by.
    "net.ipv4.conf.all.rp_filter": "2",
    "net.ipv4.conf.default.rp_filter": "2",
    # Every packet without a way is answered, not one a second.
    "net.ipv4.icmp_ratelimit": "0",
    "net.ipv6.icmp.ratelimit": "0",
}
FORWARDS = {"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1"}

# The private network behind the server of every topology that has a target.
TARGET_CABLE = Cable(
    End("server", "eth1", ("10.20.0.1/24", "fd20::1/64")),
    End("target", "eth0", ("10.20.0.2/24", "fd20::2/64")),
)


def with_routes(topology: Topology, host: str, *routes: str) -> Topology:
    """The same with more routes in one host: a way back to the VPN's clients for the target, say.

    The target has none of itself, so what it answers to has the server's address.
    """
    machines = tuple(
        replace(machine, routes=machine.routes + routes) if machine.name == host else machine
        for machine in topology.machines
    )
    return replace(topology, machines=machines)


def with_line(topology: Topology, left: str, right: str, line: Line) -> Topology:
    """The same with a line between two hosts that have a cable."""
    cables = tuple(
        replace(cable, line=line) if cable.hosts == (left, right) else cable
        for cable in topology.cables
    )
    if cables == topology.cables:
        raise ValueError(f"{topology.name} has no cable from {left} to {right}")
    return replace(topology, cables=cables)


# Addresses for documentation (RFC 5737) could be mistaken for unreachable ones in tests; those on
# private networks are private (RFC 1918, RFC 4193), those on the internet of "nated" are from
# RFC 2544's block, which no private network has, and for IPv6 from RFC 3849's.
TWO_HOSTS = Topology(
    name="two-hosts",
    what="a client and a server on one cable",
    machines=(Machine("client"), Machine("server")),
    cables=(
        Cable(
            End("client", "eth0", ("10.99.0.1/24", "fd99::1/64")),
            End("server", "eth0", ("10.99.0.2/24", "fd99::2/64")),
        ),
    ),
    drawing="""\
    ┌── client ────────┐            ┌── server ────────┐
    │ 10.99.0.1/24     │            │     10.99.0.2/24 │
    │ fd99::1/64       eth0 ──── eth0       fd99::2/64 │
    │ lo               │            │               lo │
    └──────────────────┘            └──────────────────┘
      no default route                no default route
""",
)

ROUTED = Topology(
    name="routed",
    what="client, router, server, and two private networks behind the server",
    machines=(
        Machine("client", routes=("default via 10.99.1.1", "default via fd99:1::1")),
        Machine("router", sysctls=FORWARDS),
        Machine("server", routes=("default via 10.99.2.1", "default via fd99:2::1")),
        Machine("target"),
        Machine("other"),
    ),
    cables=(
        Cable(
            End("client", "eth0", ("10.99.1.2/24", "fd99:1::2/64")),
            End("router", "eth0", ("10.99.1.1/24", "fd99:1::1/64")),
        ),
        Cable(
            End("router", "eth1", ("10.99.2.1/24", "fd99:2::1/64")),
            End("server", "eth0", ("10.99.2.2/24", "fd99:2::2/64")),
        ),
        TARGET_CABLE,
        Cable(
            End("server", "eth2", ("10.20.1.1/24", "fd20:0:0:1::1/64")),
            End("other", "eth0", ("10.20.1.2/24", "fd20:0:0:1::2/64")),
        ),
    ),
    drawing="""\
    ┌── client ───────────────────────────┐  default: router
    │ eth0  10.99.1.2/24  fd99:1::2/64    │
    └──┬──────────────────────────────────┘
       │
    ┌──┴─ router ─────────────────────────┐  forwards; knows no way to 10.20.* and fd20:*
    │ eth0  10.99.1.1/24  fd99:1::1/64    │
    │ eth1  10.99.2.1/24  fd99:2::1/64    │
    └──┬──────────────────────────────────┘
       │
    ┌──┴─ server ─────────────────────────┐  default: router; does not forward
    │ eth0  10.99.2.2/24  fd99:2::2/64    │
    │ eth1  10.20.0.1/24  fd20::1/64      │
    │ eth2  10.20.1.1/24  fd20:0:0:1::1/64│
    └──┬───────────────────────────────┬──┘
       │ eth1                          └───── eth2 ────┐
    ┌──┴─ target ────────────────────────┐ ┌── other ──┴────────────────────────┐
    │ eth0  10.20.0.2/24  fd20::2/64     │ │ eth0 10.20.1.2/24 fd20:0:0:1::2/64 │
    └────────────────── no default route ┘ └────────────────── no default route ┘
""",
)

MASQUERADES = """
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat;
        oifname "eth1" masquerade
    }
}
"""

NATED = Topology(
    name="nated",
    what="the client in a LAN behind a masquerading router, the server on an internet",
    machines=(
        Machine("client", routes=("default via 192.168.7.1", "default via 2001:db8:7::1")),
        Machine("lan", routes=("default via 192.168.7.1", "default via 2001:db8:7::1")),
        Machine("switch", is_switch=True),
        Machine(
            "router",
            routes=("default via 198.18.1.1", "default via 2001:db8:1::1"),
            sysctls=FORWARDS,
            nft=MASQUERADES,
        ),
        Machine("internet", routes=("2001:db8:7::/64 via 2001:db8:1::2",), sysctls=FORWARDS),
        Machine("server", routes=("default via 198.18.2.1", "default via 2001:db8:2::1")),
        Machine("world", routes=("default via 198.18.3.1", "default via 2001:db8:3::1")),
        Machine("target"),
    ),
    cables=(
        Cable(
            End("client", "eth0", ("192.168.7.2/24", "2001:db8:7::2/64")), End("switch", "port0")
        ),
        Cable(End("lan", "eth0", ("192.168.7.3/24", "2001:db8:7::3/64")), End("switch", "port1")),
        Cable(
            End("router", "eth0", ("192.168.7.1/24", "2001:db8:7::1/64")), End("switch", "port2")
        ),
        Cable(
            End("router", "eth1", ("198.18.1.2/24", "2001:db8:1::2/64")),
            End("internet", "eth0", ("198.18.1.1/24", "2001:db8:1::1/64")),
        ),
        Cable(
            End("server", "eth0", ("198.18.2.2/24", "2001:db8:2::2/64")),
            End("internet", "eth1", ("198.18.2.1/24", "2001:db8:2::1/64")),
        ),
        Cable(
            End("world", "eth0", ("198.18.3.2/24", "2001:db8:3::2/64")),
            End("internet", "eth2", ("198.18.3.1/24", "2001:db8:3::1/64")),
        ),
        TARGET_CABLE,
    ),
    drawing="""\
    ┌── client ───────────────────────────────┐ ┌── lan ──────────────────────────────────┐
    │ eth0  192.168.7.2/24  2001:db8:7::2/64  │ │ eth0  192.168.7.3/24  2001:db8:7::3/64  │
    └──┬──────────────────────────────────────┘ └──┬────────────── default: router ───────┘
       │ port0                                     │ port1
    ┌──┴─ switch ──────────────────────────────────┴───┐
    └──┬───────────────────────────────────────────────┘
       │ port2
    ┌──┴─ router ─────────────────────────────┐  forwards; IPv4 leaves eth1 with the address
    │ eth0  192.168.7.1/24  2001:db8:7::1/64  │  of eth1 (masquerade), IPv6 with its own
    │ eth1  198.18.1.2/24   2001:db8:1::2/64  │  default: internet
    └──┬──────────────────────────────────────┘
       │
    ┌──┴─ internet ───────────────────────────┐  forwards; knows no way to 192.168.*, 10.*
    │ eth0  198.18.1.1/24   2001:db8:1::1/64  │  and fd20:*
    │ eth1  198.18.2.1/24   2001:db8:2::1/64  │
    │ eth2  198.18.3.1/24   2001:db8:3::1/64  │
    └──┬───────────────────────────────────┬──┘
       │ eth1                              └─────── eth2 ──────┐
    ┌──┴─ server ─────────────────────────────┐ ┌── world ─────┴──────────────────────────┐
    │ eth0  198.18.2.2/24   2001:db8:2::2/64  │ │ eth0  198.18.3.2/24  2001:db8:3::2/64   │
    │ eth1  10.20.0.1/24    fd20::1/64        │ └────────────────── default: internet ────┘
    └──┬────────────────── default: internet ─┘
       │ eth1
    ┌──┴─ target ─────────────────────────────┐
    │ eth0  10.20.0.2/24    fd20::2/64        │
    └──────────────────── no default route ───┘
""",
)

SLOW_LINE = Line(
    rate_mbit=20, delay_ms=20, buffer_bytes=100_000, loss=0.005, reorder=0.005, late_ms=4
)
SLOW = replace(
    with_line(ROUTED, "client", "router", SLOW_LINE),
    name="slow",
    what="routed, with a slow, long and lossy line between client and router",
    drawing=ROUTED.drawing.replace(
        "       │\n",
        "       ┊  20 Mbit/s with a buffer of 100 kB, 20 ms each way;\n"
        "       ┊  0.5 % are lost, 0.5 % overtaken by those of the next 4 ms\n",
        1,
    ),
)

SITES = Topology(
    name="sites",
    what="two private networks, each behind a host that reaches the other one",
    machines=(
        Machine("client", sysctls=FORWARDS),
        Machine("server", sysctls=FORWARDS),
        Machine("lan", routes=("default via 10.50.0.1", "default via fd50::1")),
        Machine("target", routes=("default via 10.20.0.1", "default via fd20::1")),
    ),
    cables=(
        Cable(
            End("client", "eth0", ("10.99.0.1/24", "fd99::1/64")),
            End("server", "eth0", ("10.99.0.2/24", "fd99::2/64")),
        ),
        Cable(
            End("client", "eth1", ("10.50.0.1/24", "fd50::1/64")),
            End("lan", "eth0", ("10.50.0.2/24", "fd50::2/64")),
        ),
        TARGET_CABLE,
    ),
    drawing="""\
    ┌── client ──────────────┐              ┌── server ──────────────┐
    │ eth0  10.99.0.1/24     ├──────────────┤ eth0  10.99.0.2/24     │  both forward; neither
    │       fd99::1/64       │              │       fd99::2/64       │  knows a way to the other's
    │ eth1  10.50.0.1/24     │              │ eth1  10.20.0.1/24     │  network
    │       fd50::1/64       │              │       fd20::1/64       │
    └──┬─────────────────────┘              └──┬─────────────────────┘
       │ eth1                                  │ eth1
    ┌──┴─ lan ───────────────┐              ┌──┴─ target ────────────┐
    │ eth0  10.50.0.2/24     │              │ eth0  10.20.0.2/24     │
    │       fd50::2/64       │              │       fd20::2/64       │
    └── default: client ─────┘              └── default: server ─────┘
""",
)

TOPOLOGIES = {topology.name: topology for topology in (TWO_HOSTS, ROUTED, NATED, SLOW, SITES)}
