"""Which targets may be opened (`gateway serve --permit-open`).

Without a rule everything may be opened but the box itself and what is link-local (metadata services
live there). With rules only what a rule names. A wildcard does not name the box: its own
addresses need a rule that says them, or says a name that resolves to them.

The address that is dialled is the one that is checked; see `gateway.net.dial`.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

from gateway.errors import GatewayError

if TYPE_CHECKING:
    from collections.abc import Callable


class PermissionDenied(GatewayError):
    """Policy said no. The message names the rule."""


@dataclass(frozen=True, slots=True)
class OpenRule:
    """One ``HOST:PORT``; None stands for ``*``."""

    host: str | None
    port: int | None

    def __str__(self) -> str:
        host = "*" if self.host is None else f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{'*' if self.port is None else self.port}"

    def names(self, host: str, address: IPv4Address | IPv6Address) -> bool:
        """Say whether this rule names the requested host, or the address itself."""
        if self.host is None:
            return False
        if self.host.lower().rstrip(".") == host.lower().rstrip("."):
            return True
        try:
            return ip_address(self.host) == address
        except ValueError:
            return False


@dataclass(frozen=True, slots=True)
class OpenPolicy:
    """All rules; ``is_own`` says whether an address is this machine's."""

    rules: tuple[OpenRule, ...]
    is_own: Callable[[IPv4Address | IPv6Address], bool]

    def check(self, host: str, port: int, address: IPv4Address | IPv6Address) -> str:
        """Return the rule that allows this target, or raise `PermissionDenied` with the one that
        forbids it.
        """
        plain = unmapped(address)
        rules = [rule for rule in self.rules if rule.port in (None, port)]
        for rule in rules:
            if rule.names(host, plain):
                return f"--permit-open {rule}"
        if reason := special(plain):
            raise PermissionDenied(f"denied: {plain} is {reason}; name it in --permit-open")
        if self.is_own(plain):
            raise PermissionDenied(
                f"denied: {plain} is the jump box itself; name it in --permit-open"
            )
        if not self.rules:
            return "no --permit-open: everything but the box itself"
        for rule in rules:
            if rule.host is None:
                return f"--permit-open {rule}"
        raise PermissionDenied("denied: no --permit-open names it")


def unmapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address inside an IPv4-mapped or NAT64 one (RFC 4291 §2.5.5.2, RFC 6052)."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.packed[:12] == bytes.fromhex("0064ff9b0000000000000000"):
            return IPv4Address(address.packed[12:])
    return address


def special(address: IPv4Address | IPv6Address) -> str:
    """Say why an address is no ordinary target, or "" if it is one."""
    if address.is_unspecified:
        return "unspecified, which means the box itself"
    if address.is_loopback:
        return "the loopback of the jump box"
    if address.is_link_local:
        return "link-local"
    if address.is_multicast:
        return "multicast"
    if address in (IPv4Address("255.255.255.255"), IPv6Address("fd00:ec2::254")):
        return "broadcast or a metadata service"
    return ""
