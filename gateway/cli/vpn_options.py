"""The options of `gateway connect` that make it a VPN. All of them are ours, so all are long."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network
from typing import TYPE_CHECKING, Final

from gateway.errors import ConfigError, printable
from gateway.tun.options import Interface, Network, VpnOptions

if TYPE_CHECKING:
    import argparse

SMALLEST_MTU: Final = 576  # RFC 791 §3.1: what every host takes
LARGEST_MTU: Final = 65_535


def add_vpn_options(parser: argparse.ArgumentParser) -> None:
    """Add them to the parser."""
    add = parser.add_argument
    add("--vpn", action="append", metavar="CIDR[,CIDR...]",
        help="route these subnets through the server, until the end (repeatable); needs root or "
        "CAP_NET_ADMIN")  # fmt: skip
    add("--full-tunnel", action="store_true", help="route everything through the server")
    add("--exclude", action="append", metavar="CIDR[,CIDR...]",
        help="with --vpn or --full-tunnel: what goes on directly (repeatable)")  # fmt: skip
    add("--address", action="append", metavar="ADDRESS[,ADDRESS]",
        help="with a server that leases none: our address in the tunnel, one of each "
        "family")  # fmt: skip
    add("--mtu", metavar="BYTES", help="of the tunnel's device (1500)")
    add("--remote-setup", action="store_true",
        help="with a stock sshd: set up addresses, forwarding and NAT there too, as root or by "
        "sudo -n, and undo them at the end")  # fmt: skip
    add("--dry-run", action="store_true",
        help="log in, and print what would be changed on this machine")  # fmt: skip


def vpn_options(arguments: argparse.Namespace) -> VpnOptions | None:
    """Return what was asked for; None if it is no VPN. Raises `ConfigError`."""
    subnets = _networks("--vpn", arguments.vpn)
    options = VpnOptions(
        subnets,
        _networks("--exclude", arguments.exclude),
        arguments.full_tunnel,
        _addresses(arguments.address),
        _mtu(arguments.mtu),
        arguments.remote_setup,
        arguments.dry_run,
    )
    if subnets or options.full_tunnel:
        return options
    if options != VpnOptions():
        raise ConfigError(
            "--exclude, --address, --mtu, --remote-setup and --dry-run are about a VPN, and there "
            "is none",
            remedy="add --vpn CIDR or --full-tunnel",
        )
    return None


def _words(given: list[str] | None) -> list[str]:
    return [word for text in given or [] for word in text.split(",")]


def _networks(option: str, given: list[str] | None) -> tuple[Network, ...]:
    return tuple(_network(option, word) for word in _words(given))


def _network(option: str, word: str) -> Network:
    try:
        return ip_network(word)
    except ValueError:
        pass
    try:
        remedy = f"write {ip_network(word, strict=False)}"  # bits beyond the prefix
    except ValueError:
        remedy = "write one such as 10.20.0.0/16 or fd20::/64"
    raise ConfigError(f"{_shown(word)} is not a network", where=option, remedy=remedy)


def _addresses(given: list[str] | None) -> tuple[Interface, ...]:
    found: list[Interface] = []
    for word in _words(given):
        try:
            address = ip_interface(word)
        except ValueError:
            raise ConfigError(
                f"{_shown(word)} is not an address",
                where="--address",
                remedy="write one such as 10.9.0.1 or fd20::1",
            ) from None
        if any(other.version == address.version for other in found):
            raise ConfigError(
                f"there are two IPv{address.version} addresses",
                where="--address",
                remedy="give one of each family",
            )
        found.append(address)
    return tuple(found)


def _mtu(given: str | None) -> int | None:
    if given is None:
        return None
    if not given.isdecimal() or not SMALLEST_MTU <= int(given[:6]) <= LARGEST_MTU:
        raise ConfigError(
            f"{_shown(given)} is no MTU",
            where="--mtu",
            remedy=f"write a number from {SMALLEST_MTU} to {LARGEST_MTU}",
        )
    return int(given)


def _shown(word: str) -> str:
    return printable(word, 60) or "an empty text"
