"""tun@openssh.com (OpenSSH PROTOCOL §2.3), and our request for an address to use with it.

PROTOCOL.md has the bytes of the request. What a server lends is looked at here before anybody acts
on it: addresses that a host can have, in networks of a sensible size, each spelled in one way only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_interface,
    ip_network,
)
from typing import Final

from gateway.errors import RemoteProtocolError, printable
from gateway.ssh import wire
from gateway.ssh.messages import Boolean, Record, Rest, UInt32

Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

# ---- OpenSSH PROTOCOL §2.3, misc.h ---------------------------------------------------------------
CHANNEL_TYPE: Final = "tun@openssh.com"
POINT_TO_POINT: Final = 1
ETHERNET: Final = 2
ANY_UNIT: Final = 0x7FFF_FFFF
MAXIMUM_UNIT: Final = 0x7FFF_FFFD

# ---- PROTOCOL.md ---------------------------------------------------------------------------------
LEASE_REQUEST: Final = "tunnel-lease@gateway.internal"
OFFLOAD_CHANNEL_TYPE: Final = "tun-offload@gateway.internal"
MAXIMUM_ROUTES: Final = 512
MTU_BOUNDS: Final = (576, 65_535)
IPV6_MINIMUM_MTU: Final = 1280  # RFC 8200 §5
SHORTEST_PREFIX: Final = {4: 16, 6: 32}  # of the network that an address is part of

_FORM: Final = re.compile("[0-9a-f:.]{2,39}/[0-9]{1,3}", re.ASCII)


@dataclass(frozen=True, slots=True)
class TunOpen(Record):
    """The type-specific fields of "tun@openssh.com"."""

    tunnel_mode: UInt32
    remote_unit_number: UInt32 = ANY_UNIT

    @property
    def kind(self) -> str:
        """What rules call the device, "tun" or "tap"; "" for a mode that does not exist."""
        return {POINT_TO_POINT: "tun", ETHERNET: "tap"}.get(self.tunnel_mode, "")

    @property
    def unit(self) -> int | None:
        """The number of the device that is asked for; None for any. See `problem`."""
        return None if self.remote_unit_number == ANY_UNIT else self.remote_unit_number

    @property
    def problem(self) -> str:
        """Why there is no such device, or ""."""
        if not self.kind:
            return f"there is no tunnel mode {self.tunnel_mode}"
        if self.unit is not None and self.unit > MAXIMUM_UNIT:
            return f"there is no unit {self.unit}"
        return ""


@dataclass(frozen=True, slots=True)
class OffloadOpen(Record):
    """The type-specific fields of `OFFLOAD_CHANNEL_TYPE`: those of "tun@openssh.com", and more.

    ``offloads`` are TUN_F_* of linux/if_tun.h: what the client's device may be given unfinished.
    """

    tunnel_mode: UInt32
    remote_unit_number: UInt32
    offloads: UInt32
    later: Rest = b""

    @property
    def plain(self) -> TunOpen:
        """The same without them."""
        return TunOpen(self.tunnel_mode, self.remote_unit_number)


@dataclass(frozen=True, slots=True)
class OffloadConfirmation(Record):
    """What the confirmation says besides: the same of the server's device."""

    offloads: UInt32
    later: Rest = b""


@dataclass(frozen=True, slots=True)
class LeaseRequest(Record):
    """The request-specific fields of `LEASE_REQUEST`; ``later`` is for fields of later versions."""

    wants_ipv4: Boolean
    wants_ipv6: Boolean
    later: Rest = b""


@dataclass(frozen=True, slots=True)
class LeaseReply:
    """What a server lends to a link: addresses, at most one per family, and what goes with them.

    Both tuples of addresses have the same families in the same order. ``routes`` are networks that
    the server offers to reach; whether any of them is used is the client's decision.
    """

    client_addresses: tuple[Interface, ...]
    server_addresses: tuple[Interface, ...]
    mtu: int
    routes: tuple[Network, ...] = ()

    def encode(self) -> bytes:
        """Return the response-specific data; of the routes those that a client may take."""
        routes = [str(network) for network in self.routes if _is_for_hosts(network)]
        return b"".join(
            (
                wire.name_list(tuple(map(str, self.client_addresses))),
                wire.name_list(tuple(map(str, self.server_addresses))),
                wire.uint32(self.mtu),
                wire.name_list(tuple(routes[:MAXIMUM_ROUTES])),
            )
        )

    @classmethod
    def decode_untrusted(cls, data: bytes) -> LeaseReply:
        """Parse a reply; what follows its fields is of a later version."""
        reader = wire.Reader(data)
        client_addresses = _interfaces_untrusted(reader.name_list())
        server_addresses = _interfaces_untrusted(reader.name_list())
        mtu = reader.uint32()
        routes = reader.name_list()
        _check_pairs_untrusted(client_addresses, server_addresses)
        has_ipv6 = any(interface.version == 6 for interface in client_addresses)
        if not max(MTU_BOUNDS[0], IPV6_MINIMUM_MTU if has_ipv6 else 0) <= mtu <= MTU_BOUNDS[1]:
            raise RemoteProtocolError(f"a lease with an MTU of {mtu}")
        if len(routes) > MAXIMUM_ROUTES:
            raise RemoteProtocolError(f"a lease with {len(routes)} routes")
        return cls(client_addresses, server_addresses, mtu, tuple(map(_route_untrusted, routes)))


def _interfaces_untrusted(texts: tuple[str, ...]) -> tuple[Interface, ...]:
    if not 1 <= len(texts) <= 2:
        raise RemoteProtocolError(f"a lease with {len(texts)} addresses for one side")
    return tuple(map(_interface_untrusted, texts))


def _interface_untrusted(text: str) -> Interface:
    try:
        interface = ip_interface(text) if _FORM.fullmatch(text) else None
    except ValueError:
        interface = None
    if interface is None or str(interface) != text:
        raise RemoteProtocolError(f"a lease with the address {printable(text, 60)}")
    network = interface.network
    if not _is_usable(interface.ip) or network.prefixlen < SHORTEST_PREFIX[interface.version]:
        raise RemoteProtocolError(f"a lease with an address that is for no host: {interface}")
    return interface


def _check_pairs_untrusted(
    client_addresses: tuple[Interface, ...], server_addresses: tuple[Interface, ...]
) -> None:
    """Refuse all but one pair of neighbours per family."""
    if len({interface.version for interface in client_addresses}) < len(client_addresses):
        raise RemoteProtocolError("a lease with two addresses of one family")
    if [interface.network for interface in client_addresses] != [
        interface.network for interface in server_addresses
    ]:
        raise RemoteProtocolError("a lease whose two sides are of different networks")
    for client, server in zip(client_addresses, server_addresses, strict=True):
        if client.ip == server.ip:
            raise RemoteProtocolError(f"a lease with {client.ip} for both sides")


def _route_untrusted(text: str) -> Network:
    try:
        network = ip_network(text) if _FORM.fullmatch(text) else None
    except ValueError:
        network = None
    if network is None or str(network) != text:
        raise RemoteProtocolError(f"a lease with the route {printable(text, 60)}")
    if not _is_for_hosts(network):
        raise RemoteProtocolError(f"a lease with a route to what is no host's: {network}")
    return network


def _is_for_hosts(network: Network) -> bool:
    """Say whether a network is more than a part of the loopback, of multicast and the like."""
    return network.prefixlen < 8 or _is_usable(network.network_address)


def _is_usable(address: IPv4Address | IPv6Address) -> bool:
    """Say whether a host can have an address (RFC 6890)."""
    return not (
        address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_reserved
        or address.is_unspecified
        or (address.version == 4 and address.packed[0] == 0)
    )
