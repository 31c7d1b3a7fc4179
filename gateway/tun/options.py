"""What the command line says about a VPN: subnets, addresses, MTU."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network

Network = IPv4Network | IPv6Network
Interface = IPv4Interface | IPv6Interface


@dataclass(frozen=True, slots=True)
class VpnOptions:
    """What `gateway connect --vpn` and its companions ask for.

    ``addresses`` are ours, given by hand, at most one of each family, and ``peers`` those of the
    far end; without them the server is asked for a lease. ``mtu`` is None for what the server says.
    """

    subnets: tuple[Network, ...] = ()
    excludes: tuple[Network, ...] = ()
    full_tunnel: bool = False
    addresses: tuple[Interface, ...] = ()
    mtu: int | None = None
    remote_setup: bool = False
    dry_run: bool = False
