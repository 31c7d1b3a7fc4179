"""What cannot be is told in one sentence with cause and remedy, and nothing of it stays behind."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.support.programs import GATEWAY
from tests.support.vpn import (
    PORT,
    Site,
    as_nobody,
    running_site,
    unchanged,
    with_tun_node,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netns.lab import Lab

pytestmark = pytest.mark.netns

TUN_RULE = '[[rules]]\nallow = "tun"\nto = ["tun"]\n'
SERVES = {
    "one address": TUN_RULE + '[tunnel]\npool = ["10.213.0.0/30"]\n',
    "no pool": TUN_RULE,
    "no rule": '[[rules]]\nallow = "open"\nto = ["*:*"]\n',
}
REFUSES, FORCES = "fd99:2::2", "10.99.2.2"
SSHD = f"""\
Match LocalAddress {REFUSES}
    PermitTunnel no
Match LocalAddress {FORCES}
    ForceCommand {{folder}}/forced
"""
VPN = ("--vpn", "10.20.0.0/24")


@pytest.fixture(scope="module", params=[*SERVES, "sshd"])
def site(
    request: pytest.FixtureRequest, routed: Lab, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("keys")
    kind = "debian" if request.param == "sshd" else "serve"
    extra = SERVES.get(request.param) or SSHD.format(folder=folder)
    with running_site(kind, routed, folder, extra) as site:
        host_key = site.keys.host.with_suffix(".pub").read_text()
        names = ",".join(f"[{address}]:{PORT}" for address in (REFUSES, FORCES))
        site.known_hosts.write_text(f"{names} {host_key}")
        yield site


def at(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("site", names, indirect=True)


def problem(site: Site, *command: str) -> str:
    """Run what cannot be, and return the one line that it says."""
    with unchanged(site.client, site.server):
        done = site.client.run(*(word for word in command if word != "-v"))
    assert (done.returncode, done.stdout) == (255, "")
    (line,) = done.stderr.splitlines()
    return line.removeprefix("gateway: ")


def by_hand(site: Site, *options: str) -> list[str]:
    return [*GATEWAY, "connect", "-N", *options, *site.options()]


# ---- this machine --------------------------------------------------------------------------------


@at("one address")
def test_no_device_node(site: Site) -> None:
    said = (
        "cannot open the device tun0: No such file or directory: load the kernel's driver with "
        "`modprobe tun`; a container needs --device /dev/net/tun"
    )
    assert problem(site, *with_tun_node("", *site.command(*VPN))) == said
    assert problem(site, *with_tun_node("", *by_hand(site, "-w", "0:any"))) == said


@at("one address")
def test_no_right_to_it(site: Site) -> None:
    assert problem(site, *as_nobody(*site.command(*VPN))) == (
        "this machine's network may be changed by root alone (CAP_NET_ADMIN): run it with sudo"
    )
    device = by_hand(site, "-w", "3:any")
    assert problem(site, *with_tun_node("666", *as_nobody(*device))) == (
        "cannot open the device tun3: Operation not permitted: run as root or with CAP_NET_ADMIN, "
        "or have a device made for you beforehand: ip tuntap add dev tun3 mode tun user $USER"
    )
    assert problem(site, *with_tun_node("600", *as_nobody(*device))) == (
        "cannot open the device tun3: Permission denied: run as root, or let this user read and "
        "write /dev/net/tun"
    )


@at("one address")
def test_a_device_that_is_in_use(site: Site) -> None:
    with site.vpn(*VPN, "-w", "0"):
        said = problem(site, *by_hand(site, "-w", "0:any"))
    assert said == (
        "cannot open the device tun0: Device or resource busy: another program has it: take "
        "another number, or `any`"
    )


SUBNETS = {
    "10.99.1.0/24": (
        "10.99.1.0/24 is the network that this machine is itself in through eth0: through the "
        "tunnel it would lose its neighbours; leave it out, or move to a network with other "
        "addresses"
    ),
    "10.20.0.0/24,10.99.1.128/25": (
        "10.99.1.128/25 is part of 10.99.1.0/24, the network that this machine is itself in "
        "through eth0: through the tunnel it would lose its neighbours; leave it out, or move "
        "to a network with other addresses"
    ),
    "10.77.0.0/16": (
        "this machine has a route to 10.77.0.0/16 already, through eth0: remove it first "
        "(ip route del 10.77.0.0/16), or leave the subnet out"
    ),
    "fd20::/64": (
        "fd20::/64 needs an IPv6 address for the tunnel, and the server gave none: name IPv4 "
        "subnets alone, or with a stock sshd give one with --address"
    ),
}


@at("one address")
@pytest.mark.parametrize(("subnets", "said"), SUBNETS.items(), ids=SUBNETS)
def test_a_subnet_that_cannot_be(site: Site, subnets: str, said: str) -> None:
    with contextlib.ExitStack() as stack:
        route = ("10.77.0.0/16", "via", "10.99.1.1")
        site.client.run("ip", "route", "add", *route)
        stack.callback(site.client.run, "ip", "route", "delete", *route)
        assert problem(site, *site.command("--vpn", subnets)) == said


# ---- gateway serve -------------------------------------------------------------------------------


@at("one address")
def test_no_address_is_left(site: Site) -> None:
    alice = replace(site, user="alice")
    with site.vpn(*VPN):
        said = problem(site, *alice.command(*VPN))
    assert said == (
        "the server lends no address for a VPN: all 1 addresses of the pool 10.213.0.0/30 are in "
        "use: end another link, or give the server a larger pool; its administrator decides that, "
        "by --permit-tunnel or by [tunnel] and a tun rule in gateway.toml"
    )
    with alice.vpn(*VPN):
        assert site.client.ping("10.20.0.2").received == 1


@at("no pool")
def test_a_server_without_a_pool(site: Site) -> None:
    assert problem(site, *site.command(*VPN)) == (
        "the server lends no address for a VPN: this server lends no addresses: it has no [tunnel] "
        "in its configuration; its administrator decides that, by --permit-tunnel or by [tunnel] "
        "and a tun rule in gateway.toml"
    )


@at("no rule")
def test_a_server_without_a_rule(site: Site) -> None:
    assert problem(site, *site.command(*VPN)) == (
        "the server lends no address for a VPN: denied: no rule allows root to use a tun device; "
        "its administrator decides that, by --permit-tunnel or by [tunnel] and a tun rule in "
        "gateway.toml"
    )
    assert problem(site, *by_hand(site, "-w", "any")) == refused(
        "denied: no rule allows root to use a tun device"
    )


def refused(why: str) -> str:
    return (
        f"the server opens no tunnel: {why}: its administrator has to allow it (PermitTunnel yes "
        "in sshd_config and a login that may make devices, --permit-tunnel or a tun rule for "
        "gateway serve), and the device asked for must be free there"
    )


# ---- a stock sshd --------------------------------------------------------------------------------


@at("sshd")
def test_an_sshd_that_opens_no_tunnel(site: Site) -> None:
    why = refused("Server has rejected tunnel device forwarding")
    strong = ("-o", "WarnWeakCrypto=no")
    assert problem(site, *site.command(*VPN, *strong, address=REFUSES)) == why
    assert problem(site, *site.command(*VPN, *strong, "-w", "any:9", address=REFUSES)) == why


WITHOUT_SUDO = (
    "only root may set up a tunnel on the host, and it has no sudo: log in as root, or leave out "
    "--remote-setup to see what its administrator has to type"
)
WITH_SUDO = (
    f"{FORCES} port {PORT} could not be set up: sudo: a password is required: log in as root or as "
    "a user with `sudo -n`, or leave out --remote-setup to see what has to be typed there"
)


@at("sshd")
def test_an_mtu_that_sshd_cannot_carry(site: Site) -> None:
    command = site.command(*VPN, "--mtu", "16381", "-o", "WarnWeakCrypto=no", address=REFUSES)
    assert problem(site, *command) == (
        "an MTU of 16381 is too large for a stock sshd, whose tunnel stops for ever at a packet of "
        "more than 16380 bytes: --mtu 16380 or less"
    )


@at("sshd")
@pytest.mark.parametrize(("has_sudo", "said"), [(False, WITHOUT_SUDO), (True, WITH_SUDO)])
def test_a_login_without_rights(site: Site, has_sudo: bool, said: str) -> None:
    """Its shell has these tools and no others."""
    folder = site.keys.folder
    tools = folder / f"tools-{has_sudo}"
    tools.mkdir()
    for name in ("sh", "id", "ip", "sysctl", "nft", "grep", "cat"):
        found = shutil.which(name, path="/usr/bin:/bin:/usr/sbin:/sbin")
        assert found is not None, name
        (tools / name).symlink_to(found)
    if has_sudo:
        sudo = tools / "sudo"
        sudo.write_text("#!/bin/sh\necho sudo: a password is required >&2\nexit 1\n")
        sudo.chmod(0o755)
    forced = folder / "forced"
    shell = " ".join(as_nobody("env", f"PATH={tools}", "sh", "-c"))
    forced.write_text(f'#!/bin/sh\nexec {shell} "$SSH_ORIGINAL_COMMAND"\n')
    forced.chmod(0o755)
    assert problem(site, *site.command(*VPN, "-o", "WarnWeakCrypto=no")) == said
