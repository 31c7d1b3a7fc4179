"""What a machine's network looks like before we touch it, as far as a plan has to know.

`netlink.py` asks the kernel; here it is data, so that plans are pure and tests need no machine.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from ipaddress import (
    IPv4Interface,
    IPv4Network,
    IPv6Interface,
    IPv6Network,
    ip_interface,
    ip_network,
)
from typing import Any

Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network


@dataclass(frozen=True)
class KnownRoute:
    """One route that exists: where it leads, and who made it (rtm_protocol).

    ``via_gateway``: into ``device`` through another host, so the subnet is not directly connected.
    """

    table: int
    destination: Network
    device: str = ""
    via_gateway: bool = False
    kind: str = "unicast"
    protocol: int = 0


@dataclass(frozen=True)
class Facts:
    """Addresses by device, and the routes of the main table and of tables of ours.

    ``ipv6`` is false on a kernel without that family. ``forwarding`` names the families that this
    machine forwards without us: those that another gateway turned on are not among them.
    """

    addresses: tuple[tuple[str, Interface], ...] = ()
    routes: tuple[KnownRoute, ...] = ()
    ipv6: bool = True
    forwarding: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return {
            "addresses": [(device, str(address)) for device, address in self.addresses],
            "routes": [
                {**dataclasses.asdict(route), "destination": str(route.destination)}
                for route in self.routes
            ],
            "ipv6": self.ipv6,
            "forwarding": self.forwarding,
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Facts:
        """Return the facts that `to_json` wrote."""
        return cls(
            tuple((device, ip_interface(address)) for device, address in fields["addresses"]),
            tuple(
                KnownRoute(**{**route, "destination": ip_network(route["destination"])})
                for route in fields["routes"]
            ),
            fields["ipv6"],
            tuple(fields["forwarding"]),
        )
