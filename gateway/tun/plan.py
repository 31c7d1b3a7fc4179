"""What `gateway connect --vpn` changes on this machine, decided before anything is touched.

Theory of operation, with T the number of a routing table that is ours and also the mark that our
SSH socket carries (SO_MARK):

- T has a route into the tunnel for every subnet, and a `throw` for what stays direct: what the
  person excludes, and the networks inside a subnet that this machine is directly in. Nothing is
  added to the main table, so nothing of anybody else's is replaced and a lookup that T does not
  answer goes on as if we were not there.
- `not fwmark T lookup T` sends everything but the carrier there. The carrier looks in the main
  table, whatever the subnets are: it can not be swallowed by its own tunnel.
- A server inside a subnet of ours has one rule more: `to SERVER tcp port PORT lookup main`, not for
  what we send but for strict rp_filter, which looks up the way back to the sender of what arrives
  and knows no mark. With the port of our socket in it, no other program's packets match it, so
  it opens no door beside the tunnel (TunnelCrack's ServerIP, CVE-2023-36672).
- A full tunnel has `default` in T as well, for both families: where the lease has no address, it
  says `unreachable`, and nothing leaks. What main knows of *private* networks comes first (`to
  10.0.0.0/8 lookup main`, …), so printers and containers stay reachable; a network that claims
  public addresses, or pushes routes for half the Internet by DHCP, gets nothing by it (LocalNet of
  TunnelCrack, TunnelVision CVE-2024-3661). A prefix up to /7 never counts as private knowledge.
- Subnets that were named come before private networks, and these before the rest: three priorities,
  and the same table twice, first without its default.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv6Address,
    IPv6Network,
    collapse_addresses,
    ip_network,
)
from typing import TYPE_CHECKING, Final

from gateway.errors import NetworkSetupError
from gateway.tun.steps import (
    FIRST_TABLE,
    MAIN,
    PROTOCOL,
    Address,
    Family,
    Link,
    Route,
    Rule,
    Setting,
    Step,
)

if TYPE_CHECKING:
    from gateway.tun.facts import Facts, Interface, KnownRoute, Network

# The order in which rules are asked; a gateway adds its table's distance from FIRST_TABLE. All come
# after the local table (0) and before the main one (32766).
PRIORITY_CARRIER: Final = 20_000
PRIORITY_SUBNETS: Final = 21_000
PRIORITY_PRIVATE: Final = 22_000
PRIORITY_EVERYTHING: Final = 23_000

LINK_LOCAL: Final = ip_network("fe80::/10")  # RFC 4291 §2.5.6
# What may stay local in a full tunnel (RFC 1918, RFC 3927, RFC 4193).
PRIVATE: Final[tuple[Network, ...]] = (
    *map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16")),
    ip_network("fc00::/7"),
    LINK_LOCAL,
)
# A route as wide as this is a default route in disguise.
DISGUISED_DEFAULT: Final = 7
SMALLEST_IPV6_MTU: Final = 1280  # RFC 8200 §5


@dataclass(frozen=True)
class Carrier:
    """The connection that the tunnel's packets travel in.

    ``local_port`` is that of our socket, once it is connected; 0 stands for every port.
    """

    address: IPv4Address | IPv6Address
    port: int
    local_port: int = 0


@dataclass(frozen=True)
class Wanted:
    """What a person asked for, and what the server gave."""

    device: str
    lease: tuple[Interface, ...]
    mtu: int
    subnets: tuple[Network, ...] = ()
    excludes: tuple[Network, ...] = ()
    full_tunnel: bool = False
    peers: tuple[IPv4Address | IPv6Address, ...] = ()


def family_of(what: Interface | Network | IPv4Address | IPv6Address) -> Family:
    """Return the name that the kernel's sysctls have for the family of an address or a network."""
    return "ipv4" if what.version == 4 else "ipv6"


def client_plan(wanted: Wanted, carrier: Carrier, table: int, facts: Facts) -> tuple[Step, ...]:
    """Return the steps, in the order in which they are made.

    ``table`` is a number of the guardian's, and the mark of the carrier. Raises `NetworkSetupError`
    with one sentence where the wish cannot be fulfilled beside what the machine has.
    """
    subnets = check(wanted, facts)
    stays_direct = (*wanted.excludes, *_connected_inside(subnets, wanted.device, facts))
    routes = [
        Route(table, family_of(network), str(network), kind="throw")
        for network in _merged(stays_direct)
        if wanted.full_tunnel or any(_overlap(network, subnet) for subnet in subnets)
    ]
    routes += [_into_tunnel(str(subnet), family_of(subnet), wanted, table) for subnet in subnets]
    families: list[Family] = ["ipv4", "ipv6"] if facts.ipv6 else ["ipv4"]
    if wanted.full_tunnel:
        routes += [_into_tunnel("default", family, wanted, table) for family in families]
    return (
        *device_steps(wanted.device, wanted.lease, wanted.mtu, facts, wanted.peers),
        *routes,
        *_rules(wanted, subnets, carrier, table, families),
    )


def device_steps(
    device: str,
    addresses: tuple[Interface, ...],
    mtu: int,
    facts: Facts,
    peers: tuple[IPv4Address | IPv6Address, ...] = (),
) -> tuple[Step, ...]:
    """Return the steps for a tunnel's device itself: settings, MTU, up, addresses.

    The device speaks only when it is spoken to: no address of its own making and no question for
    routers, and without an IPv6 address none of that family.
    """
    has_ipv6 = any(address.version == 6 for address in addresses)
    settings: tuple[Step, ...] = ()
    if facts.ipv6:
        name, value = ("accept_ra", "0") if has_ipv6 else ("disable_ipv6", "1")
        settings = (Setting("ipv6", device, name, value),)
    peer_of = {peer.version: str(peer) for peer in peers}
    return (
        *settings,
        Link(device, mtu, quiet=has_ipv6),
        *(Address(device, str(lease), peer_of.get(lease.version, "")) for lease in addresses),
    )


def _into_tunnel(destination: str, family: Family, wanted: Wanted, table: int) -> Route:
    sources = [str(lease.ip) for lease in wanted.lease if family_of(lease) == family]
    if not sources:
        return Route(table, family, destination, kind="unreachable")
    return Route(table, family, destination, wanted.device, preferred_source=sources[0])


def _rules(
    wanted: Wanted,
    subnets: tuple[Network, ...],
    carrier: Carrier,
    table: int,
    families: list[Family],
) -> list[Rule]:
    offset = table - FIRST_TABLE
    rules = []
    if wanted.full_tunnel or any(carrier.address in subnet for subnet in subnets):
        rules += [
            Rule(
                family_of(carrier.address),
                PRIORITY_CARRIER + offset,
                MAIN,
                to=str(ip_network(carrier.address)),
                protocol="tcp",
                source_port=carrier.local_port,
                destination_port=carrier.port,
            )
        ]
    if wanted.full_tunnel:
        rules += [
            Rule(
                family_of(network),
                PRIORITY_PRIVATE + offset,
                MAIN,
                to=str(network),
                suppress=DISGUISED_DEFAULT,
            )
            for network in PRIVATE
            if family_of(network) in families
        ]
        rules += [
            Rule(family, PRIORITY_EVERYTHING + offset, table, not_mark=table) for family in families
        ]
    for family in sorted({family_of(subnet) for subnet in subnets}):
        suppress = 0 if wanted.full_tunnel else -1
        priority = PRIORITY_SUBNETS + offset
        rules.append(Rule(family, priority, table, not_mark=table, suppress=suppress))
    return rules


# ---- the checks ----------------------------------------------------------------------------------


def check(wanted: Wanted, facts: Facts) -> tuple[Network, ...]:
    """Return the subnets, merged. Raises `NetworkSetupError` with the first reason against one."""
    for lease in wanted.lease:
        _check_lease(lease, wanted, facts)
    for subnet in wanted.subnets:
        _check_subnet(subnet, wanted, facts)
    subnets = _merged(wanted.subnets)
    for subnet in subnets:
        for theirs in _tunnels_of_others(facts):
            _check_beside(subnet, theirs, wanted, facts)
    if wanted.full_tunnel and (other := _full_tunnel_of_another(facts)):
        raise NetworkSetupError(
            f"another gateway sends everything through {other.device or 'its tunnel'} already:"
            " end it first, or leave out --full-tunnel"
        )
    return subnets


def _check_lease(lease: Interface, wanted: Wanted, facts: Facts) -> None:
    for device, address in facts.addresses:
        if address.ip == lease.ip and device != wanted.device:
            raise NetworkSetupError(
                f"the tunnel's address {lease.ip} is an address of {device} on this machine"
                " already: end what uses it, or ask the server for another with --address"
            )
    if lease.version == 6 and not facts.ipv6:
        raise NetworkSetupError(
            f"the tunnel's address is {lease.ip}, and this machine's kernel has no IPv6:"
            " turn it on, or use IPv4 alone"
        )
    if lease.version == 6 and wanted.mtu < SMALLEST_IPV6_MTU:
        raise NetworkSetupError(
            f"an MTU of {wanted.mtu} is too small for IPv6: --mtu {SMALLEST_IPV6_MTU} or more"
        )


def _check_subnet(subnet: Network, wanted: Wanted, facts: Facts) -> None:
    if subnet.prefixlen == 0:
        raise NetworkSetupError(f"{subnet} is everything: write --full-tunnel instead")
    if subnet.is_loopback or subnet.is_multicast or subnet.is_link_local:
        raise NetworkSetupError(
            f"{subnet} means something else on every machine and cannot go through a tunnel:"
            " leave it out"
        )
    if not any(lease.version == subnet.version for lease in wanted.lease):
        ours, other = ("IPv6", "IPv4") if subnet.version == 6 else ("IPv4", "IPv6")
        raise NetworkSetupError(
            f"{subnet} needs an {ours} address for the tunnel, and the server gave none:"
            f" name {other} subnets alone, or with a stock sshd give one with --address"
        )
    if any(inside(subnet, exclude) for exclude in wanted.excludes):
        raise NetworkSetupError(f"{subnet} is excluded as a whole: leave one of the two out")
    for route in main_routes(wanted.device, facts):
        if not route.via_gateway and inside(subnet, route.destination):
            part = "" if subnet == route.destination else f"part of {route.destination}, "
            raise NetworkSetupError(
                f"{subnet} is {part}the network that this machine is itself in through"
                f" {route.device}: through the tunnel it would lose its neighbours;"
                " leave it out, or move to a network with other addresses"
            )
        if route.via_gateway and subnet == route.destination:
            raise NetworkSetupError(
                f"this machine has a route to {subnet} already, through {route.device}:"
                f" remove it first (ip route del {subnet}), or leave the subnet out"
            )


def _check_beside(subnet: Network, theirs: KnownRoute, wanted: Wanted, facts: Facts) -> None:
    """Refuse a subnet that overlaps another gateway's, unless one of the two leaves it out."""
    if not _overlap(subnet, theirs.destination) or theirs.destination.prefixlen == 0:
        return
    left_out_there = (
        route.destination
        for route in facts.routes
        if route.table == theirs.table and route.kind == "throw"
    )
    if any(inside(subnet, network) for network in left_out_there):
        return
    if any(inside(theirs.destination, exclude) for exclude in wanted.excludes):
        return
    raise NetworkSetupError(
        f"{subnet} overlaps {theirs.destination}, which another gateway carries through"
        f" {theirs.device}: end that one, or --exclude what belongs to the other"
    )


def inside(inner: Network, outer: Network) -> bool:
    """Say whether a network is another one or a part of it, never across families."""
    if isinstance(inner, IPv6Network):
        return isinstance(outer, IPv6Network) and inner.subnet_of(outer)
    return not isinstance(outer, IPv6Network) and inner.subnet_of(outer)


def _overlap(one: Network, other: Network) -> bool:
    return inside(one, other) or inside(other, one)


def _merged(networks: tuple[Network, ...]) -> tuple[Network, ...]:
    four = [network for network in networks if not isinstance(network, IPv6Network)]
    six = [network for network in networks if isinstance(network, IPv6Network)]
    return (*collapse_addresses(four), *collapse_addresses(six))


def main_routes(device: str, facts: Facts) -> list[KnownRoute]:
    """Return what the main table knows but default routes, link-local ones and our own device's."""
    return [
        route
        for route in facts.routes
        if route.table == MAIN
        and route.kind == "unicast"
        and route.device != device
        and route.destination.prefixlen > 0
        and not inside(route.destination, LINK_LOCAL)
    ]


def _connected_inside(
    subnets: tuple[Network, ...], device: str, facts: Facts
) -> tuple[Network, ...]:
    return tuple(
        route.destination
        for route in main_routes(device, facts)
        if not route.via_gateway and any(inside(route.destination, subnet) for subnet in subnets)
    )


def _tunnels_of_others(facts: Facts) -> list[KnownRoute]:
    return [
        route
        for route in facts.routes
        if route.table != MAIN and route.protocol == PROTOCOL and route.kind == "unicast"
    ]


def _full_tunnel_of_another(facts: Facts) -> KnownRoute | None:
    return next(
        (route for route in _tunnels_of_others(facts) if route.destination.prefixlen == 0), None
    )
