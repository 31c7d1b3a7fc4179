"""The commands for a stock sshd host, typed in one: they work, and nothing of them remains."""

from __future__ import annotations

import json
import shutil
import subprocess
from ipaddress import ip_interface, ip_network
from typing import TYPE_CHECKING

import pytest

from gateway.tun.remote import (
    PROBE,
    READY,
    RemoteTunnel,
    default_pairs,
    free_unit,
    parse_probe_untrusted,
    plan,
    script,
)

if TYPE_CHECKING:
    from netns.lab import Host, Lab

pytestmark = pytest.mark.netns

BOTH = (ip_network("10.20.0.0/16"), ip_network("fd20::/64"))
VOLATILE = {"expires", "preferred_life_time", "valid_life_time", "stats", "stats64"}


def state(host: Host) -> dict[str, object]:
    """All that the commands could touch."""
    shown = {
        " ".join(words): json.loads(said(host, *words) or "[]", object_hook=without_volatile)
        for words in (
            ("ip", "-j", "addr"), ("ip", "-j", "route"), ("ip", "-6", "-j", "route"),
            ("ip", "-j", "rule"), ("ip", "-6", "-j", "rule"), ("nft", "-j", "list", "ruleset"),
        )
    }  # fmt: skip
    switches = host.run("sysctl", "-a", "--pattern", r"^net\.ipv[46]\.").stdout
    assert "net.ipv6.conf.eth0.accept_ra" in switches
    return shown | {"sysctl": switches.splitlines()}


def without_volatile(found: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in found.items() if key not in VOLATILE}


def said(host: Host, *words: str) -> str:
    done = host.run(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_device(host: Host) -> RemoteTunnel:
    """Do as sshd does; return the tunnel for it."""
    devices = parse_probe_untrusted(said(host, "sh", "-c", PROBE).encode()).devices
    unit = free_unit("tun", devices)
    said(host, "ip", "tuntap", "add", f"tun{unit}", "mode", "tun")
    return RemoteTunnel("tun", unit, default_pairs(host.name, unit), BOTH, 1400)


def remove_device(host: Host, tunnel: RemoteTunnel) -> None:
    """Do as sshd does at the end of the channel."""
    said(host, "ip", "link", "del", tunnel.device)


def check_same(after: dict[str, object], before: dict[str, object]) -> None:
    for what, found in after.items():
        assert found == before[what], what


def set_up(host: Host, tunnel: RemoteTunnel) -> subprocess.Popen[str]:
    """Run the script until it is ready."""
    facts = parse_probe_untrusted(said(host, "sh", "-c", PROBE).encode())
    shell = subprocess.Popen(
        host.command("sh", "-c", script(plan(tunnel, facts), facts)), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert shell.stdout is not None
    assert shell.stderr is not None
    if shell.stdout.readline() != f"{READY}\n":
        pytest.fail(shell.stderr.read())
    return shell


def value(host: Host, path: str) -> str:
    return said(host, "cat", f"/proc/sys/net/{path}").strip()


@pytest.fixture
def server(two_hosts: Lab) -> Host:
    if shutil.which("nft") is None:
        pytest.skip("nft is not installed")
    return two_hosts["server"]


def test_a_host_that_forwards_nothing(server: Host) -> None:
    before = state(server)
    tunnel = make_device(server)
    assert tunnel.device == "tun0"
    shell = set_up(server, tunnel)
    addresses = json.loads(said(server, "ip", "-j", "addr", "show", "dev", "tun0"))[0]
    assert addresses["mtu"] == 1400
    found = {entry["local"]: entry["address"] for entry in addresses["addr_info"]
             if entry["scope"] == "global"}  # fmt: skip
    assert found == {str(ours.ip): str(theirs.ip) for ours, theirs in tunnel.pairs}
    assert value(server, "ipv4/ip_forward") == value(server, "ipv6/conf/all/forwarding") == "1"
    rules = said(server, "nft", "list", "table", "inet", "gateway-tun0")
    assert rules.count("masquerade fully-random") == 2
    assert str(tunnel.pairs[0][1].ip) in rules
    out, error = shell.communicate(timeout=20)
    assert (out, error) == ("", "")
    remove_device(server, tunnel)
    check_same(state(server), before)
    # Again, and the connection is lost: nobody reads what is said any more.
    tunnel = make_device(server)
    shell = set_up(server, tunnel)
    for pipe in (shell.stdin, shell.stdout, shell.stderr):
        assert pipe is not None
        pipe.close()
    shell.wait(60)
    remove_device(server, tunnel)
    check_same(state(server), before)


def test_switches_that_move_others_are_put_back(server: Host) -> None:
    for setting in ("ipv4/conf/all/accept_redirects=0", "ipv4/conf/eth0/forwarding=1",
                    "ipv6/conf/eth0/accept_ra=1", "ipv6/conf/default/forwarding=1"):  # fmt: skip
        said(server, "sysctl", "-w", f"net/{setting}")
    said(server, "ip", "-6", "route", "add", "default", "via", "fd99::1", "dev", "eth0",
         "proto", "ra", "expires", "1000")  # fmt: skip
    before = state(server)
    tunnel = make_device(server)
    shell = set_up(server, tunnel)
    assert value(server, "ipv6/conf/eth0/accept_ra") == "2"
    assert "default via fd99::1" in said(server, "ip", "-6", "route")
    shell.communicate(timeout=20)
    remove_device(server, tunnel)
    check_same(state(server), before)


def test_after_a_step_that_fails_nothing_remains_but_what_was_there(server: Host) -> None:
    said(server, "nft", "add", "table", "inet", "gateway-tun0")  # somebody else's
    before = state(server)
    tunnel = make_device(server)
    facts = parse_probe_untrusted(said(server, "sh", "-c", PROBE).encode())
    done = server.run("sh", "-c", script(plan(tunnel, facts), facts))
    assert READY not in done.stdout
    assert "File exists" in done.stderr
    remove_device(server, tunnel)
    check_same(state(server), before)


def test_what_is_forwarded_already_stays(server: Host) -> None:
    for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        said(server, "sysctl", "-w", f"net/{path}=1")
    tunnel = RemoteTunnel(
        "tap", 0, ((ip_interface("10.213.128.0/31"), ip_interface("10.213.128.1/31")),), BOTH, 1400
    )
    before = state(server)
    said(server, "ip", "tuntap", "add", "tap0", "mode", "tap")
    shell = set_up(server, tunnel)
    shell.communicate(timeout=20)
    remove_device(server, tunnel)
    check_same(state(server), before)
