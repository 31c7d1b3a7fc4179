"""The options that make `gateway connect` a VPN: what they become, and what is wrong with them."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network

import pytest

from gateway.cli.options import parse_arguments
from gateway.errors import ConfigError
from gateway.tun.options import VpnOptions


def parse(text: str) -> VpnOptions | None:
    options = parse_arguments([*text.split(), "host"]).vpn_options
    assert options is None or isinstance(options, VpnOptions)
    return options


def test_no_vpn() -> None:
    assert parse("-N -D 6000 -w 0:1") is None


def test_everything() -> None:
    assert parse(
        "--vpn 10.20.0.0/16,fd20::/64 --vpn 10.30.0.0/16 --exclude 10.20.9.0/24 --full-tunnel "
        "--address 10.9.0.1,fd09::1/127 --mtu 1400 --remote-setup --dry-run"
    ) == VpnOptions(
        tuple(map(ip_network, ("10.20.0.0/16", "fd20::/64", "10.30.0.0/16"))),
        (ip_network("10.20.9.0/24"),),
        True,
        (ip_interface("10.9.0.1"), ip_interface("fd09::1/127")),
        1400,
        True,
        True,
    )


def test_the_full_tunnel_alone() -> None:
    assert parse("--full-tunnel") == VpnOptions(full_tunnel=True)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("--vpn 10.20.1.5/16",
         "--vpn: 10.20.1.5/16 is not a network: write 10.20.0.0/16"),
        ("--vpn nonsense",
         "--vpn: nonsense is not a network: write one such as 10.20.0.0/16 or fd20::/64"),
        ("--vpn 10.20.0.0/16,",
         "--vpn: an empty text is not a network: write one such as 10.20.0.0/16 or fd20::/64"),
        ("--full-tunnel --exclude 300.0.0.0/8",
         "--exclude: 300.0.0.0/8 is not a network: write one such as 10.20.0.0/16 or fd20::/64"),
        ("--vpn 10.20.0.0/16 --address x",
         "--address: x is not an address: write one such as 10.9.0.1 or fd20::1"),
        ("--vpn 10.20.0.0/16 --address 10.9.0.1 --address 10.9.0.2",
         "--address: there are two IPv4 addresses: give one of each family"),
        ("--vpn 10.20.0.0/16 --mtu 575",
         "--mtu: 575 is no MTU: write a number from 576 to 65535"),
        ("--vpn 10.20.0.0/16 --mtu 1e3",
         "--mtu: 1e3 is no MTU: write a number from 576 to 65535"),
        ("--exclude 10.0.0.0/8",
         ("--exclude, --address, --mtu, --remote-setup and --dry-run are about a VPN, and there is "
         "none: add --vpn CIDR or --full-tunnel")),
        ("--dry-run",
         ("--exclude, --address, --mtu, --remote-setup and --dry-run are about a VPN, and there is "
         "none: add --vpn CIDR or --full-tunnel")),
    ],
)  # fmt: skip
def test_one_sentence_with_the_remedy(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("arguments", "session_type"),
    [
        (["--vpn", "10.20.0.0/16", "host"], "none"),
        (["host", "--vpn", "10.20.0.0/16"], "none"),
        (["--vpn", "10.20.0.0/16", "host", "uptime"], None),
        (["host"], None),
    ],
)
def test_without_a_command_it_is_as_with_n(arguments: list[str], session_type: str | None) -> None:
    settings = dict(parse_arguments(arguments).settings)
    assert settings.get("SessionType") == session_type
