"""What has to be typed on a stock sshd host, as root, so that it is the far end of a VPN.

THEORY OF OPERATION

sshd opens the device of a tun@openssh.com channel and does nothing else. The rest is a list of
steps, each a command and the one that undoes it, made from what `PROBE` said about the host: which
tools it has, whether we are root, and which switches are on already. `script` puts them into one
command for an exec channel: it does the steps, says `READY`, and waits until its standard input
ends; then it undoes, last first, exactly what it did. So the host is as it was also after a client
that was killed.

Everything in a command is a number, an address or a word of ours; names of devices that the host
told are used in the one form that no shell and no tool could misread, and ignored otherwise.

Turning on forwarding changes more than one switch (Linux, inet_forward_change and
addrconf_fixup_forwarding): that of each device; for IPv4 `conf.all.accept_redirects`, which becomes
1 when forwarding is turned off again; and for IPv6 the routes are lost that were learnt from router
advertisements, unless accept_ra is 2.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from dataclasses import dataclass, field
from ipaddress import (
    IPv4Interface,
    IPv4Network,
    IPv6Interface,
    IPv6Network,
    ip_interface,
)
from typing import TYPE_CHECKING, Final

from gateway.errors import NetworkSetupError, RemoteProtocolError, printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

# ---- our own choices -----------------------------------------------------------------------------
# Pairs of addresses for a host that lends none, /31 (RFC 3021) and /127 (RFC 6164): apart from the
# default pools of `gateway serve`, and of the same private networks.
PAIRS_IPV4: Final = IPv4Network("10.213.128.0/17")
PAIRS_IPV6: Final = IPv6Network("fdb3:d38b:9530:8000::/64")
MAXIMUM_OUTPUT: Final = 1 << 20  # bytes of an answer to `PROBE`

READY: Final = "gateway-ready"
_PATH: Final = "PATH=$PATH:/usr/sbin:/sbin"  # where no login shell but root's looks
_TOOLS: Final = ("ip", "sysctl", "nft", "iptables", "ip6tables", "sudo")
PROBE: Final = "sh -c " + shlex.quote(
    f"{_PATH}; echo uid=$(id -u); "
    f"for t in {' '.join(_TOOLS)}; do command -v $t >/dev/null && echo tool=$t; done; "
    "for d in /sys/class/net/*; do echo device=${d##*/}; done; "
    "ip -6 route show default; "
    "cd /proc/sys/net && grep . /dev/null ipv4/ip_forward ipv4/conf/all/accept_redirects "
    "ipv4/conf/*/forwarding ipv6/conf/*/forwarding ipv6/conf/*/accept_ra; true"
)
"""The command whose output `parse_probe_untrusted` reads; it changes nothing."""

_UID: Final = re.compile("uid=([0-9]{1,10})", re.ASCII)
_TOOL: Final = re.compile(f"tool=({'|'.join(_TOOLS)})")
_DEVICE: Final = re.compile(r"device=(\S{1,15})")
_SETTING: Final = re.compile(
    r"(ipv4/ip_forward|ipv[46]/conf/[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}/"
    r"(?:forwarding|accept_ra|accept_redirects)):([0-9])",
    re.ASCII,
)
# As "default via fe80::1 dev eth0 proto ra", or one of several ways to go.
_LEARNT: Final = re.compile(
    r"(?:default via \S+ dev (?=\S+ proto ra\b)|\s+nexthop via \S+ dev )"
    r"([A-Za-z0-9_][A-Za-z0-9_.-]{0,14}) .*",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class RemoteHost:
    """What is known of a host; by default nothing, and it is taken to be a usual one.

    ``settings`` has values below /proc/sys/net by their path; ``ra_devices`` are those by which a
    default route was learnt.
    """

    is_root: bool = True
    tools: frozenset[str] = frozenset(_TOOLS)
    devices: frozenset[str] = frozenset()
    settings: Mapping[str, int] = field(default_factory=dict)
    ra_devices: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class RemoteTunnel:
    """What a host is to be the far end of.

    ``pairs`` has the host's address and ours, with the prefix length, for each family. Packets to
    ``subnets`` are forwarded, and with ``masquerades`` go on with the host's own address.
    """

    kind: str  # "tun" or "tap"
    unit: int
    pairs: tuple[tuple[Interface, Interface], ...]
    subnets: tuple[Network, ...]
    mtu: int
    masquerades: bool = True

    @property
    def device(self) -> str:
        """The name that sshd gives the device."""
        return f"{self.kind}{self.unit}"


Command = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """A command, and what undoes it; without that another step's undoing is enough."""

    do: Command
    undo: Command | None = None


# ---- what the host says --------------------------------------------------------------------------


def parse_probe_untrusted(output: bytes) -> RemoteHost:
    """Read the output of `PROBE`. Lines of others, of a login script for instance, are ignored."""
    if len(output) > MAXIMUM_OUTPUT:
        raise RemoteProtocolError(f"the host says more than {MAXIMUM_OUTPUT} bytes about itself")
    lines = output.decode("utf-8", "replace").split("\n")
    matches = {
        pattern: [match for line in lines if (match := pattern.fullmatch(line))]
        for pattern in (_UID, _TOOL, _DEVICE, _SETTING, _LEARNT)
    }
    if len(matches[_UID]) != 1:
        raise RemoteProtocolError("the host's shell does not say which user we are")
    settings = {match[1]: int(match[2]) for match in matches[_SETTING]}
    named = {match[1] for match in matches[_DEVICE]}
    return RemoteHost(
        is_root=int(matches[_UID][0][1]) == 0,
        tools=frozenset(match[1] for match in matches[_TOOL]),
        devices=frozenset(named | {path.split("/")[2] for path in settings if "/conf/" in path}),
        settings=settings,
        ra_devices=frozenset(match[1] for match in matches[_LEARNT]),
    )


def free_unit(kind: str, devices: Collection[str]) -> int:
    """Return the lowest number that no device of a host has."""
    unit = 0
    while f"{kind}{unit}" in devices:
        unit += 1
    return unit


def default_pairs(host: str, unit: int) -> tuple[tuple[Interface, Interface], ...]:
    """Return the same addresses for the same host and unit always: the host's, and ours, twice.

    Which of the 16 384 pairs of IPv4 it is, is drawn by a hash; two hosts may have the same.
    """
    drawn = int.from_bytes(hashlib.sha256(f"{host} {unit}".encode()).digest())
    pairs: list[tuple[Interface, Interface]] = []
    for network in (PAIRS_IPV4, PAIRS_IPV6):
        first = drawn % (network.num_addresses // 2) * 2
        length = network.max_prefixlen - 1
        pairs.append(
            (ip_interface((network[first], length)), ip_interface((network[first + 1], length)))
        )
    return tuple(pairs)


# ---- what has to be done -------------------------------------------------------------------------


def plan(tunnel: RemoteTunnel, host: RemoteHost) -> tuple[Step, ...]:
    """Return the steps. Raises `NetworkSetupError` if the host lacks what they need."""
    versions = {server.version for server, _ in tunnel.pairs}
    subnets = [network for network in tunnel.subnets if network.version in versions]
    families = {network.version for network in subnets}
    steps = [
        *_device(tunnel),
        *(_forwarding_ipv4(host) if 4 in families else ()),
        *(_forwarding_ipv6(host) if 6 in families else ()),
        *(_masquerading(tunnel, subnets, host) if tunnel.masquerades and subnets else ()),
    ]
    missing = {step.do[0] for step in steps} - host.tools
    if missing:
        raise NetworkSetupError(
            f"the host has no {' and no '.join(sorted(missing))}: install it there (iproute2, "
            "procps, nftables)"
        )
    if not host.is_root and "sudo" not in host.tools:
        raise NetworkSetupError(
            "only root may set up a tunnel on the host, and it has no sudo: log in as root, or "
            "leave out --remote-setup to see what its administrator has to type"
        )
    return tuple(steps)


def _device(tunnel: RemoteTunnel) -> Iterator[Step]:
    device = tunnel.device
    up = ("ip", "link", "set", "dev", device, "mtu", str(tunnel.mtu), "up")
    yield Step(up, ("ip", "link", "set", "dev", device, "down"))
    for server, client in tunnel.pairs:
        if tunnel.kind == "tap":
            address: Command = (str(server),)
        else:
            address = (str(server.ip), "peer", str(client.ip))
        yield Step(
            ("ip", "addr", "add", *address, "dev", device),
            ("ip", "addr", "del", *address, "dev", device),
        )


def _forwarding_ipv4(host: RemoteHost) -> Iterator[Step]:
    if host.settings.get("ipv4/ip_forward"):
        return
    if host.settings.get("ipv4/conf/all/accept_redirects") == 0:
        yield _keep("ipv4/conf/all/accept_redirects", 0)
    yield from _keep_forwarding("ipv4", host)
    yield _switch("ipv4/ip_forward", 0, 1)


def _forwarding_ipv6(host: RemoteHost) -> Iterator[Step]:
    if host.settings.get("ipv6/conf/all/forwarding"):
        return
    for device in sorted(host.ra_devices):
        if host.settings.get(f"ipv6/conf/{device}/accept_ra") == 1:
            yield _switch(f"ipv6/conf/{device}/accept_ra", 1, 2)
    yield from _keep_forwarding("ipv6", host)
    yield _switch("ipv6/conf/all/forwarding", 0, 1)


def _keep_forwarding(family: str, host: RemoteHost) -> Iterator[Step]:
    """A device that forwards already would stop with all others, when it is undone."""
    for path, value in sorted(host.settings.items()):
        if value and re.fullmatch(f"{family}/conf/(?!all/)[^/]+/forwarding", path):
            yield _keep(path, value)


def _keep(path: str, value: int) -> Step:
    """Do nothing, and afterwards have it as it was: what undoes a later step may change it."""
    return _switch(path, value, value)


def _switch(path: str, before: int, after: int) -> Step:
    name = f"net/{path}"
    if "." not in path:  # as there may be in the name of a device
        name = name.replace("/", ".")
    return Step(("sysctl", "-w", f"{name}={after}"), ("sysctl", "-w", f"{name}={before}"))


def _masquerading(
    tunnel: RemoteTunnel, subnets: Sequence[Network], host: RemoteHost
) -> Iterator[Step]:
    """Source NAT for our own address only, with ports that nobody can guess (CVE-2021-3773)."""
    clients = {client.version: client.ip for _, client in tunnel.pairs}
    device = tunnel.device
    if "nft" not in host.tools and "iptables" in host.tools:
        for network in subnets:
            tool = "iptables" if network.version == 4 else "ip6tables"
            rule = ("POSTROUTING", "-s", str(clients[network.version]), "-d", str(network),
                    "!", "-o", device, "-j", "MASQUERADE", "--random-fully")  # fmt: skip
            yield Step((tool, "-t", "nat", "-A", *rule), (tool, "-t", "nat", "-D", *rule))
        return
    table = ("inet", f"gateway-{device}")
    yield Step(("nft", "create", "table", *table), ("nft", "delete", "table", *table))
    hook = "{ type nat hook postrouting priority 100 ; }"
    yield Step(("nft", "add", "chain", *table, "postrouting", hook))
    for network in subnets:
        family = "ip" if network.version == 4 else "ip6"
        yield Step(
            ("nft", "add", "rule", *table, "postrouting",
             family, "saddr", str(clients[network.version]), family, "daddr", str(network),
             "oifname", "!=", device, "masquerade", "fully-random")
        )  # fmt: skip


# ---- as text -------------------------------------------------------------------------------------


def instructions(host_name: str, tunnel: RemoteTunnel, steps: Sequence[Step]) -> str:
    """Return what the administrator of a host has to type, one command a line."""
    heading = (
        f"On {printable(host_name)}, as root, these commands make {tunnel.device} the far end of "
        "the tunnel; --remote-setup runs them, and undoes them at the end:"
    )
    return "\n".join((heading, *(shlex.join(step.do) for step in steps)))


def script(steps: Sequence[Step], host: RemoteHost) -> str:
    """Return the command for an exec channel that does the steps and, at the end, undoes them.

    It writes `READY` and a newline when all is done, and its standard error says what failed.
    """
    inner = f"echo {READY} >&3; cat"
    for step in reversed(steps):
        undo = f"; {_line(step.undo, host)}" if step.undo else ""
        inner = f"{_line(step.do, host)} && {{ {inner}{undo}; }}"
    # Neither the end of the connection nor a full pipe may keep it from undoing.
    return "sh -c " + shlex.quote(
        f'trap "" HUP INT TERM PIPE; {_PATH}; exec 3>&1 >/dev/null; {inner}'
    )


def _line(command: Command, host: RemoteHost) -> str:
    return shlex.join(command if host.is_root else ("sudo", "-n", *command))
