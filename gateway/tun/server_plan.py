"""What `gateway serve` changes on its machine for tunnels: once for itself, once per client.

Theory of operation: the pool is the set of addresses that clients get. Each client has a device of
its own with the server's address and the client's as its peer, which also is the route to it; no
device is ever named in the firewall, since the routing table knows already which address is behind
which device. One table of nftables, ours alone, holds the rest:

- *spoofed* (before connection tracking): who sends from an address of the pool must come through
  the device that the route back leads into. The pump checks the same for what comes out of a
  tunnel; this is for what others on the network send (hazards T70, T73).
- *passing*: nothing between clients; from outside only what answers (T73, T74); nothing that
  belongs to a single network, such as router advertisements and redirects (T79); so many
  connections per client (T82). Where it was us who turned forwarding on, this machine forwards
  nothing for anybody else: it was no router before.
- *incoming*: clients reach nothing of this machine but echo, so no service of it by accident (T79),
  and no tunnel in the tunnel is ever decapsulated here (T80).
- *leaving*: random source ports, from a range in which this machine listens nowhere, so no
  client's connection can stand where somebody's to this machine would (T74, CVE-2021-3773).
- *segments*: a TCP connection's segments fit the routes of both its directions (T72).
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_interface
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from gateway.errors import NetworkSetupError
from gateway.tun.plan import device_steps, family_of, inside, main_routes
from gateway.tun.steps import Setting, Step, Switch, Table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.tun.facts import Facts, Network

FIRST_PORT: Final = 1024
LAST_PORT: Final = 65_535
# Fewer ports than this would be a limit of its own (T74's remedy must not become T82).
FEWEST_PORTS: Final = 4096
FLOWS_PER_CLIENT: Final = 4096  # connections that are tracked at the same time

_IN_NFT: Final = {"ipv4": "ip", "ipv6": "ip6"}


def server_base_plan(
    pool: Iterable[Network],
    listening: Iterable[int],
    table: int,
    facts: Facts,
    flows_per_client: int = FLOWS_PER_CLIENT,
    *,
    masquerade: bool = True,
) -> tuple[Step, ...]:
    """Return the steps that a server with tunnels needs once.

    ``pool`` has one network of a family or both, ``listening`` the ports of this machine that
    something listens on, ``table`` is the guardian's number; without ``masquerade`` packets go on
    with the clients' own addresses. Raises `NetworkSetupError`.
    """
    networks = tuple(pool)
    for network in networks:
        _check_pool(network, facts)
    families = [family_of(network) for network in networks]
    not_routers = [family for family in families if family not in facts.forwarding]
    chains = (
        _sets(networks, flows_per_client)
        + _spoofed(networks)
        + _forward(networks, not_routers)
        + _input(networks)
        + (_masquerade(networks, masquerade_ports(listening)) if masquerade else "")
        + _clamp(networks)
    )
    # The firewall first: there is no moment in which this machine forwards without it.
    return (Table(f"gateway-{table}", chains), *(Switch(family) for family in families))


def server_plan(
    device: str,
    server_addresses: Iterable[IPv4Address | IPv6Address],
    lease: Iterable[IPv4Address | IPv6Address],
    mtu: int,
    facts: Facts,
) -> tuple[Step, ...]:
    """Return the steps for the device of one client, whose addresses are ``lease``."""
    peers = tuple(lease)
    families = {peer.version for peer in peers}
    addresses = tuple(
        ip_interface(address) for address in server_addresses if address.version in families
    )
    settings: list[Step] = []
    for address in addresses:
        family = family_of(address)
        names = {"accept_redirects": "0"}
        if family == "ipv4":
            # rp_filter: the kernel's own check that the lease is behind this device
            names |= {"send_redirects": "0", "rp_filter": "1"}
        settings += [Setting(family, device, name, value) for name, value in names.items()]
    return (*settings, *device_steps(device, addresses, mtu, facts, peers))


def masquerade_ports(listening: Iterable[int]) -> tuple[int, int]:
    """Return the first and last of the most ports in a row of which none is listened on."""
    taken = sorted({port for port in listening if FIRST_PORT <= port <= LAST_PORT})
    edges = [FIRST_PORT - 1, *taken, LAST_PORT + 1]
    gaps = [(low + 1, high - 1) for low, high in pairwise(edges)]
    first, last = max(gaps, key=lambda gap: gap[1] - gap[0])
    if last - first + 1 < FEWEST_PORTS:
        raise NetworkSetupError(
            f"this machine listens on so many ports that no {FEWEST_PORTS} in a row are left for"
            " the connections of clients: listen on fewer"
        )
    return first, last


def _check_pool(network: Network, facts: Facts) -> None:
    if network.version == 6 and not facts.ipv6:
        raise NetworkSetupError(
            f"the pool {network} is IPv6, and this machine's kernel has no IPv6:"
            " turn it on, or leave that pool out"
        )
    for route in main_routes("", facts):
        if inside(network, route.destination) or inside(route.destination, network):
            raise NetworkSetupError(
                f"the pool {network} overlaps {route.destination}, which this machine reaches"
                f" through {route.device}: choose addresses that nothing here uses"
            )


# ---- the table -----------------------------------------------------------------------------------


def _each(networks: tuple[Network, ...], line: str) -> str:
    """Return a rule once for the network of each family: {f} is ip or ip6, {v} 4 or 6."""
    return "".join(
        f"\t\t{line.format(f=_IN_NFT[family_of(network)], v=network.version)}\n"
        for network in networks
    )


def _chain(name: str, kind: str, hook: str, priority: str, rules: str) -> str:
    head = f"\t\ttype {kind} hook {hook} priority {priority}; policy accept;\n"
    return f"\tchain {name} {{\n{head}{rules}\t}}\n"


def _sets(networks: tuple[Network, ...], flows: int) -> str:
    text = ""
    for network in networks:
        kind = f"ipv{network.version}_addr"
        text += f"\tset pool{network.version} {{\n\t\ttype {kind}; flags interval;\n"
        text += f"\t\telements = {{ {network} }}\n\t}}\n"
        # One element per client that has connections; the kernel removes those that have none.
        text += f"\tset flows{network.version} {{\n"
        text += f"\t\ttype {kind}; flags dynamic; size 65535;\n\t}}\n"
        verb = f"{_IN_NFT[family_of(network)]} saddr ct count over {flows}"
        text += f"\tchain count{network.version} {{\n"
        text += f"\t\tadd @flows{network.version} {{ {verb} }} counter drop\n\t}}\n"
    return text


def _spoofed(networks: tuple[Network, ...]) -> str:
    rules = _each(networks, "{f} saddr @pool{v} fib saddr . iif oif missing counter drop")
    return _chain("spoofed", "filter", "prerouting", "raw", rules)


def _forward(networks: tuple[Network, ...], not_routers: Iterable[str]) -> str:
    rules = _each(networks, "{f} saddr @pool{v} {f} daddr @pool{v} counter drop")
    for network in networks:
        if network.version == 4:
            rules += "\t\tip saddr @pool4 icmp type redirect counter drop\n"
        else:
            neighbours = "nd-router-solicit, nd-router-advert, nd-neighbor-solicit, "
            neighbours += "nd-neighbor-advert, nd-redirect"
            rules += f"\t\tip6 saddr @pool6 icmpv6 type {{ {neighbours} }} counter drop\n"
    rules += _each(networks, "{f} saddr @pool{v} ct state new jump count{v}")
    rules += _each(networks, "{f} saddr @pool{v} accept")
    rules += _each(networks, "{f} daddr @pool{v} ct state established,related accept")
    rules += _each(networks, "{f} daddr @pool{v} counter drop")
    for family in not_routers:
        # Two gateways on one machine are let through: the other's table decides about those.
        rules += f'\t\tmeta nfproto {family} iifname != "tun*" oifname != "tun*" counter drop\n'
    return _chain("passing", "filter", "forward", "filter", rules)


def _input(networks: tuple[Network, ...]) -> str:
    rules = '\t\tiif "lo" accept\n'
    rules += _each(networks, "{f} saddr @pool{v} ct state established,related accept")
    for network in networks:
        echo = "icmp type echo-request" if network.version == 4 else "icmpv6 type echo-request"
        rules += f"\t\t{_IN_NFT[family_of(network)]} saddr @pool{network.version} {echo} accept\n"
    rules += _each(networks, "{f} saddr @pool{v} counter drop")
    return _chain("incoming", "filter", "input", "filter", rules)


def _masquerade(networks: tuple[Network, ...], ports: tuple[int, int]) -> str:
    first, last = ports
    out = "{f} saddr @pool{v} {f} daddr != @pool{v} "
    to_ports = f"meta l4proto {{{{ tcp, udp }}}} masquerade to :{first}-{last} fully-random"
    rules = _each(networks, out + to_ports) + _each(networks, out + "masquerade fully-random")
    return _chain("leaving", "nat", "postrouting", "srcnat", rules)


def _clamp(networks: tuple[Network, ...]) -> str:
    size = "tcp flags syn / syn,rst tcp option maxseg size set rt mtu"
    rules = _each(networks, "{f} saddr @pool{v} " + size)
    rules += _each(networks, "{f} daddr @pool{v} " + size)
    return _chain("segments", "filter", "forward", "mangle", rules)
