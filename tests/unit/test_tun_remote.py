"""What an administrator has to type on a stock sshd host, and how it is undone."""

from __future__ import annotations

import re
import shlex
import subprocess
from ipaddress import ip_interface, ip_network
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import NetworkSetupError, RemoteProtocolError
from gateway.policy.leases import DEFAULT_POOL
from gateway.tun.remote import (
    MAXIMUM_OUTPUT,
    PAIRS_IPV4,
    PAIRS_IPV6,
    PROBE,
    READY,
    RemoteHost,
    RemoteTunnel,
    default_pairs,
    free_unit,
    instructions,
    parse_probe_untrusted,
    plan,
    script,
)

if TYPE_CHECKING:
    from pathlib import Path

ADDRESSES = (
    (ip_interface("10.213.128.4/31"), ip_interface("10.213.128.5/31")),
    (ip_interface("fd21::4/127"), ip_interface("fd21::5/127")),
)
BOTH = (ip_network("10.20.0.0/16"), ip_network("fd20::/64"))
ON = {"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1}
OUTPUT = b"""\
Welcome!
uid=0
tool=ip
tool=sysctl
tool=nft
tool=evil
device=eth0
device=lo
device=tun0
device=eth1.5
device=$(reboot)
default via fe80::1 dev eth0 proto ra metric 1024 expires 1800sec hoplimit 64 pref medium
default via fe80::2 dev eth9 proto static metric 1024 pref medium
\tnexthop via fe80::3 dev eth1.5 weight 1
ipv4/ip_forward:0
ipv4/conf/all/accept_redirects:0
ipv4/conf/all/forwarding:0
ipv4/conf/eth1.5/forwarding:1
ipv4/conf/tun2/forwarding:0
ipv4/conf/$(reboot)/forwarding:1
ipv6/conf/all/forwarding:0
ipv6/conf/eth0/forwarding:0
ipv6/conf/eth0/accept_ra:1
ipv6/conf/eth1.5/accept_ra:0
"""


def a_tunnel(*subnets: str, kind: str = "tun", **changes) -> RemoteTunnel:
    networks = tuple(map(ip_network, subnets)) or BOTH
    return RemoteTunnel(kind, 3, ADDRESSES, networks, 1400, **changes)


def lines(tunnel: RemoteTunnel, host: RemoteHost) -> list[tuple[str, str]]:
    return [
        (shlex.join(step.do), shlex.join(step.undo) if step.undo else "")
        for step in plan(tunnel, host)
    ]


# -- what the host says ----------------------------------------------------------------------------


def test_what_a_host_says_about_itself() -> None:
    host = parse_probe_untrusted(OUTPUT)
    assert host.is_root
    assert host.tools == {"ip", "sysctl", "nft"}
    assert host.devices == {"eth0", "lo", "tun0", "tun2", "eth1.5", "$(reboot)", "all"}
    assert host.ra_devices == {"eth0", "eth1.5"}
    assert host.settings["ipv4/conf/eth1.5/forwarding"] == 1
    assert not any("reboot" in path for path in host.settings)
    assert [free_unit(kind, host.devices) for kind in ("tun", "tap")] == [1, 0]
    assert not parse_probe_untrusted(b"uid=1000\n").is_root


@pytest.mark.parametrize(
    "output", [b"", b"uid=\n", b"uid=root\n", b"uid=0\nuid=0\n",
               b"This account is not available.\n", b"uid=0\n" + b"x" * MAXIMUM_OUTPUT],
)  # fmt: skip
def test_a_host_that_does_not_answer(output: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_probe_untrusted(output)


def test_this_machine_answers() -> None:
    done = subprocess.run(PROBE, shell=True, capture_output=True, check=True, timeout=10)
    host = parse_probe_untrusted(done.stdout)
    assert "lo" in host.devices
    assert host.settings["ipv4/ip_forward"] in (0, 1)
    assert "ipv4/conf/lo/forwarding" in host.settings


@given(st.lists(st.sampled_from(OUTPUT.splitlines()) | st.binary(max_size=40), max_size=20))
def test_whatever_it_says_no_command_has_a_word_of_it(said: list[bytes]) -> None:
    try:
        host = parse_probe_untrusted(b"\n".join(said))
        steps = plan(a_tunnel(), host)
    except (RemoteProtocolError, NetworkSetupError):
        return
    for step in steps:
        for word in (*step.do, *(step.undo or ())):
            assert re.fullmatch(r"[A-Za-z0-9_./:=!-]+|\{ type [a-z 0-9;]+ \}", word), word


# -- what has to be typed --------------------------------------------------------------------------

DEVICE = [
    ("ip link set dev tun3 mtu 1400 up", "ip link set dev tun3 down"),
    ("ip addr add 10.213.128.4 peer 10.213.128.5 dev tun3",
     "ip addr del 10.213.128.4 peer 10.213.128.5 dev tun3"),
    ("ip addr add fd21::4 peer fd21::5 dev tun3", "ip addr del fd21::4 peer fd21::5 dev tun3"),
]  # fmt: skip
FORWARDING = [
    ("sysctl -w net.ipv4.ip_forward=1", "sysctl -w net.ipv4.ip_forward=0"),
    ("sysctl -w net.ipv6.conf.all.forwarding=1", "sysctl -w net.ipv6.conf.all.forwarding=0"),
]
NAT = [
    ("nft create table inet gateway-tun3", "nft delete table inet gateway-tun3"),
    (("nft add chain inet gateway-tun3 postrouting "
     "'{ type nat hook postrouting priority 100 ; }'"), ""),
    (("nft add rule inet gateway-tun3 postrouting ip saddr 10.213.128.5 ip daddr 10.20.0.0/16 "
     "oifname '!=' tun3 masquerade fully-random"), ""),
    (("nft add rule inet gateway-tun3 postrouting ip6 saddr fd21::5 ip6 daddr fd20::/64 "
     "oifname '!=' tun3 masquerade fully-random"), ""),
]  # fmt: skip


def test_all_of_it_on_a_host_of_which_nothing_is_known() -> None:
    assert lines(a_tunnel(), RemoteHost()) == DEVICE + FORWARDING + NAT


def test_only_what_is_needed() -> None:
    host = RemoteHost(settings=ON)
    assert lines(a_tunnel(), host) == DEVICE + NAT
    assert lines(a_tunnel(masquerades=False), host) == DEVICE
    only_four = lines(a_tunnel("10.20.0.0/16"), RemoteHost())
    assert only_four == DEVICE + FORWARDING[:1] + NAT[:3]
    one_family = RemoteTunnel("tun", 3, ADDRESSES[:1], BOTH, 1400)
    assert lines(one_family, RemoteHost()) == DEVICE[:2] + FORWARDING[:1] + NAT[:3]
    assert lines(RemoteTunnel("tun", 3, ADDRESSES, (), 1400), RemoteHost()) == DEVICE


def test_a_tap_is_part_of_a_network() -> None:
    found = lines(a_tunnel(kind="tap", masquerades=False), RemoteHost(settings=ON))
    assert found[1][0] == "ip addr add 10.213.128.4/31 dev tap3"
    assert found[2][1] == "ip addr del fd21::4/127 dev tap3"


def test_switches_that_another_one_would_move() -> None:
    host = parse_probe_untrusted(OUTPUT)
    switches = lines(a_tunnel(masquerades=False), host)[len(DEVICE):]  # fmt: skip
    assert switches == [
        ("sysctl -w net.ipv4.conf.all.accept_redirects=0",) * 2,
        ("sysctl -w net/ipv4/conf/eth1.5/forwarding=1",) * 2,
        FORWARDING[0],
        ("sysctl -w net.ipv6.conf.eth0.accept_ra=2", "sysctl -w net.ipv6.conf.eth0.accept_ra=1"),
        FORWARDING[1],
    ]


def test_iptables_where_there_is_no_nft() -> None:
    host = RemoteHost(tools=frozenset({"ip", "sysctl", "iptables", "ip6tables"}), settings=ON)
    rules = [
        "POSTROUTING -s 10.213.128.5 -d 10.20.0.0/16 '!' -o tun3 -j MASQUERADE --random-fully",
        "POSTROUTING -s fd21::5 -d fd20::/64 '!' -o tun3 -j MASQUERADE --random-fully",
    ]
    assert lines(a_tunnel(), host)[len(DEVICE):] == [
        (f"{tool} -t nat -A {rule}", f"{tool} -t nat -D {rule}")
        for tool, rule in zip(("iptables", "ip6tables"), rules, strict=True)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("host", "problem"),
    [
        (RemoteHost(tools=frozenset()), "the host has no ip and no nft and no sysctl: install"),
        (RemoteHost(tools=frozenset({"ip", "sysctl"})), "the host has no nft: install"),
        (RemoteHost(tools=frozenset({"ip", "sysctl", "iptables"})), "has no ip6tables: install"),
        (RemoteHost(is_root=False, tools=frozenset({"ip", "sysctl", "nft"})), "has no sudo: log"),
    ],
)
def test_a_host_that_lacks_something(host: RemoteHost, problem: str) -> None:
    with pytest.raises(NetworkSetupError, match=problem):
        plan(a_tunnel(), host)


def test_the_text_for_the_administrator() -> None:
    tunnel = a_tunnel("10.20.0.0/16")
    steps = plan(tunnel, RemoteHost(settings=ON))
    heading, *commands = instructions("jump\x1b[2J", tunnel, steps).split("\n")
    assert heading == (
        r"On jump\x1b[2J, as root, these commands make tun3 the far end of the tunnel; "
        "--remote-setup runs them, and undoes them at the end:"
    )
    assert commands == [do for do, _ in DEVICE + NAT[:3]]


# -- addresses -------------------------------------------------------------------------------------


def test_pairs_of_addresses_are_the_same_for_the_same_host() -> None:
    pairs = default_pairs("jump.example", 0)
    assert [tuple(map(str, pair)) for pair in pairs] == [
        ("10.213.251.10/31", "10.213.251.11/31"),
        (
            "fdb3:d38b:9530:8000:c1d0:d620:f3ef:fb0a/127",
            "fdb3:d38b:9530:8000:c1d0:d620:f3ef:fb0b/127",
        ),
    ]
    assert default_pairs("jump.example", 0) == pairs
    others = [default_pairs("jump.example", 1), default_pairs("other.example", 0)]
    assert pairs not in others
    for host in map(str, range(50)):
        for (server, client), network in zip(
            default_pairs(host, 7), (PAIRS_IPV4, PAIRS_IPV6), strict=True
        ):
            assert server.network == client.network
            assert server.ip < client.ip
            assert client.network.num_addresses == 2
            assert client.ip in network
            assert not any(client.ip in pool for pool in DEFAULT_POOL)


# -- one command that does and undoes --------------------------------------------------------------


def run_script(folder: Path, host: RemoteHost, failing: str = "-") -> tuple[str, str, list[str]]:
    """Run it in a shell whose tools only write down what they are called with."""
    log = folder / "log"
    tools = folder / "bin"
    tools.mkdir()
    for name in ("ip", "sysctl", "nft", "sudo"):
        body = f'echo {name} "$@" >> {log}\ncase "$*" in {failing}) echo no >&2; exit 1;; esac\n'
        (tools / name).write_text(f"#!/bin/sh\necho noise\n{body}")
        (tools / name).chmod(0o700)
    command = script(plan(a_tunnel("10.20.0.0/16"), host), host)
    with subprocess.Popen(
        ["/bin/sh", "-c", command], env={"PATH": f"{tools}:/usr/bin:/bin"}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as shell:  # fmt: skip
        assert shell.stdout is not None
        first = shell.stdout.readline()
        done = log.read_text().splitlines()
        out, error = shell.communicate(timeout=10)
    assert out == ""
    return first, error, [*done, "--", *log.read_text().splitlines()[len(done):]]  # fmt: skip


HOST = RemoteHost(settings=ON)


def plain(commands: list[str]) -> list[str]:
    return [" ".join(shlex.split(command)) for command in commands if command]


def test_the_script_does_all_and_undoes_it_when_its_input_ends(tmp_path: Path) -> None:
    first, error, calls = run_script(tmp_path, HOST)
    steps = DEVICE + NAT[:3]
    assert (first, error) == (f"{READY}\n", "")
    assert calls == [
        *plain([do for do, _ in steps]), "--", *plain([undo for _, undo in reversed(steps)]),
    ]  # fmt: skip


def test_a_step_that_fails_undoes_those_before_it(tmp_path: Path) -> None:
    first, error, calls = run_script(tmp_path, HOST, "*fd21::4*")
    assert (first, error) == ("", "no\n")
    tried = plain([do for do, _ in DEVICE])
    undone = plain([undo for _, undo in reversed(DEVICE[:2])])
    assert [call for call in calls if call != "--"] == [*tried, *undone]


def test_who_is_not_root_goes_by_sudo(tmp_path: Path) -> None:
    _, _, calls = run_script(tmp_path, RemoteHost(is_root=False, settings=ON))
    assert len(calls) > 5
    assert all(call == "--" or call.startswith("sudo -n ") for call in calls)
