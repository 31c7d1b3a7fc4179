"""What is special about an address: what a jump box must not open just because it can (T55).

Everything here is about the address that is dialled, never about how somebody spelled it: what the
resolver makes of ``0x7f.1``, ``2130706433`` or a name is looked at afterwards. The list is that of
OWASP's SSRF prevention, without private networks: to reach those is what a jump box is for.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# 64:ff9b::/96, RFC 6052 §2.1.
_NAT64: Final = bytes.fromhex("0064ff9b0000000000000000")
_MAPPED: Final = bytes.fromhex("00000000000000000000ffff")

_SPECIAL: Final[tuple[tuple[Network, str], ...]] = tuple(
    (ip_network(text), reason)
    for text, reason in (
        ("0.0.0.0/32", "unspecified, which means the box itself"),
        ("::/128", "unspecified, which means the box itself"),
        ("127.0.0.0/8", "the loopback of the jump box"),
        ("::1/128", "the loopback of the jump box"),
        ("169.254.0.0/16", "link-local, where metadata services live"),
        ("fe80::/10", "link-local"),
        ("224.0.0.0/4", "multicast"),
        ("ff00::/8", "multicast"),
        ("255.255.255.255/32", "the broadcast address"),
        ("fd00:ec2::254/128", "a metadata service"),
        ("100.64.0.0/10", "carrier-grade NAT, shared with strangers"),  # RFC 6598
    )
)


def unmapped(address: Address) -> Address:
    """Return the IPv4 address inside an IPv4-mapped or NAT64 one (RFC 4291 §2.5.5.2, RFC 6052)."""
    if isinstance(address, IPv6Address) and address.packed[:12] in (_MAPPED, _NAT64):
        return IPv4Address(address.packed[12:])
    return address


def unmapped_network(network: Network) -> Network:
    """Return the IPv4 network inside an IPv6 one, where all of it is IPv4-mapped or NAT64."""
    address = network.network_address
    if network.prefixlen >= 96 and (plain := unmapped(address)) is not address:
        return ip_network((plain, network.prefixlen - 96))
    return network


def special_range(address: Address) -> tuple[Network, str] | None:
    """Return the range that makes an address no ordinary target, and why; None for all others."""
    for network, reason in _SPECIAL:
        if address in network:
            return network, reason
    return None


def lies_within(inner: Network, outer: Network) -> bool:
    """Say whether every address of ``inner`` is one of ``outer``, whatever their versions."""
    return (
        inner.version == outer.version
        and inner.prefixlen >= outer.prefixlen
        and inner.network_address in outer
    )
