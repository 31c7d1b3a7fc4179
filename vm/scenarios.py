"""What is tried on the three machines, each as a person would: commands typed on client and jump.

A scenario is a function of the machines that raises AssertionError, or ChildError, with a sentence
where something is not as it should be, and returns what is worth a note in the report. The comment
of `Vagrantfile` draws the machines; the client's ~/.ssh/config calls `gateway serve` jump, and the
sshd of the same machine jump-sshd.
"""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Final

from vm.machines import COMMAND_S, forget_connection

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vm.machines import Machine

    Machines = Mapping[str, Machine]
    Scenario = Callable[[Machines], str]

PAGE: Final = "This page is on target"
TARGET: Final = "192.168.58.20"
FAR: Final = "203.0.113.20"  # target as well; only jump has a route there
FORBIDDEN: Final = "203.0.113.21"  # the same, but a rule of the server denies it
SUBNET: Final = "192.168.58.0/24"
KEEPALIVE_S: Final = 45  # README: a dead server is noticed within this
NOTICE_S: Final = KEEPALIVE_S + 30  # and under emulation beside others
UNIT: Final = "/etc/systemd/system/gateway.service"
AUDIT: Final = "/var/lib/gateway/audit"
VPN: Final = "tunnel through"  # what `gateway connect --vpn` says when it is up
PROXY: Final = "SOCKS proxy on localhost:6000"


def has_page(client: Machine, url: str, options: str = "") -> None:
    """The client gets target's page."""
    page = client.check(f"curl --silent --show-error --max-time 30 {options} {url}")
    assert PAGE in page, f"{url} gave another page: {page[:200]}"


def has_no_page(client: Machine, url: str, options: str = "") -> str:
    """The client does not get it, and why. Beyond the lab somebody else may answer."""
    done = client.run(f"curl --silent --show-error --max-time 5 {options} {url}")
    assert PAGE not in done.stdout, f"{url} was reached"
    return done.stderr.strip()


def pings(client: Machine, address: str) -> None:
    """Three of three come back."""
    said = client.check(f"ping -c 3 -i 0.3 -W 10 {address}")
    assert " 3 received" in said, said


# ---- the way there -------------------------------------------------------------------------------


def only_through_jump(machines: Machines) -> str:
    """Neither the inner network nor Vagrant's own leads to target."""
    client, target = machines["client"], machines["target"]
    for address in (TARGET, FAR, target.address):
        has_no_page(client, f"http://{address}/")
    has_no_page(machines["jump"], f"http://{target.address}/")
    has_page(machines["jump"], f"http://{TARGET}/")
    return ""


def browser_proxy(machines: Machines) -> str:
    """A page through the SOCKS proxy, and what a rule forbids with SOCKS' own reason."""
    client = machines["client"]
    with client.running("gateway connect -N -D 6000 jump", PROXY):
        proxy = "--socks5-hostname localhost:6000"
        has_page(client, "http://target.demo/", proxy)
        said = has_no_page(client, f"http://{TARGET}:5201/", proxy)
        assert "(2)" in said, f"not SOCKS' 2, not allowed: {said}"
    return ""


def jump_hosts(machines: Machines) -> str:
    """-J through each of the two servers of jump, to a shell on target."""
    client = machines["client"]
    for way, name in (("jump", "target.demo"), ("jump-sshd", TARGET)):
        said = client.check(f"gateway connect -J {way} vagrant@{name} hostname")
        assert said.split() == ["target"], said
    return ""


# ---- tunnels -------------------------------------------------------------------------------------


def _vpn(machines: Machines, options: str, server: str) -> str:
    """A VPN to target's network, and both sides as before when it has ended."""
    client, jump = machines["client"], machines["jump"]
    before = client.says_of_network(), jump.says_of_network()
    with client.running(f"sudo gateway connect --vpn {SUBNET} {options} {server}", VPN):
        pings(client, TARGET)
        has_page(client, f"http://{TARGET}/")
        told = json.loads(client.check(f"iperf3 --json --time 3 --client {TARGET}"))
        rate = told["end"]["sum_received"]["bits_per_second"] / 1e6
    _is_as_before(client, before[0])
    _is_as_before(jump, before[1])
    return f"{rate:.0f} Mbit/s"


def _is_as_before(machine: Machine, before: str) -> None:
    deadline = time.monotonic() + COMMAND_S
    while (now := machine.says_of_network()) != before and time.monotonic() < deadline:
        time.sleep(1)
    changed = set(now.splitlines()) ^ set(before.splitlines())
    assert not changed, f"{machine.name}'s network is not as before: {sorted(changed)[:6]}"


def vpn_through_serve(machines: Machines) -> str:
    """`gateway serve` lends the address and does its side by itself."""
    return _vpn(machines, "", "jump")


def vpn_through_sshd(machines: Machines) -> str:
    """A stock sshd, whose host is set up by --remote-setup."""
    return _vpn(machines, "--remote-setup", "jump-sshd")


def full_tunnel(machines: Machines) -> str:
    """Everything goes through jump, also what the client alone cannot reach, but what is denied."""
    client, jump = machines["client"], machines["jump"]
    before = client.says_of_network(), jump.says_of_network()
    with client.running("sudo gateway connect --full-tunnel jump", VPN):
        has_page(client, f"http://{FAR}/")
        has_page(client, f"http://{TARGET}/")
        has_no_page(client, f"http://{FORBIDDEN}/")
    _is_as_before(client, before[0])
    _is_as_before(jump, before[1])
    return ""


def tunnel_by_hand(machines: Machines) -> str:
    """The recipe of ssh(1), with `gateway connect -w` in ssh's place."""
    client, jump, target = machines["client"], machines["jump"], machines["target"]
    before = [machine.says_of_network() for machine in (client, jump, target)]
    with client.running("sudo gateway connect -v -N -w 0:0 jump-sshd", "tun0"):
        jump.until("ip link show tun0")
        jump.check(
            "sudo sh -c 'ip address add 10.99.0.2/30 dev tun0 && ip link set tun0 up && "
            "sysctl --quiet --write net.ipv4.ip_forward=1'"
        )
        client.check(
            "sudo sh -c 'ip address add 10.99.0.1/30 dev tun0 && ip link set tun0 up && "
            f"ip route add {SUBNET} via 10.99.0.2'"
        )
        target.check("sudo ip route add 10.99.0.0/30 via 192.168.58.10")
        pings(client, "10.99.0.2")
        pings(client, TARGET)
        has_page(client, f"http://{TARGET}/")
    # The addresses and routes went with the devices. Forwarding was on already, for the service.
    target.check("sudo ip route del 10.99.0.0/30 via 192.168.58.10")
    for machine, state in zip((client, jump, target), before, strict=True):
        _is_as_before(machine, state)
    return ""


# ---- the service ---------------------------------------------------------------------------------


def unit_file(machines: Machines) -> str:
    """What systemd thinks of the unit, and what the running process really has."""
    jump = machines["jump"]
    said = jump.run(f"sudo systemd-analyze verify {UNIT}")
    about_us = [line for line in said.stderr.splitlines() if "gateway" in line]
    assert said.returncode == 0, said.stderr
    assert not about_us, about_us
    rating = jump.check("sudo systemd-analyze security --no-pager --threshold=25 gateway.service")
    level = re.search(r"exposure level for gateway.service: (\S+ \w+)", rating)
    assert level is not None, rating[-300:]
    status = jump.check("sudo cat /proc/$(systemctl show -P MainPID gateway)/status")
    user = jump.check("id -u gateway").strip()
    assert re.search(rf"^Uid:(\t{user}){{4}}$", status, re.MULTILINE), status
    for name in ("CapPrm", "CapEff", "CapBnd"):
        (value,) = re.findall(rf"^{name}:\t(\w+)$", status, re.MULTILINE)
        assert int(value, 16) == 1 << 10 | 1 << 12, f"{name} {value}"
    assert jump.check("systemctl show -P StatusText gateway").startswith("serving; users: 1")
    return f"exposure {level[1]}"


def reload_and_refusal(machines: Machines) -> str:
    """`systemctl reload` with a good file and with a bad one: it goes on either way."""
    jump = machines["jump"]
    pid = jump.check("systemctl show -P MainPID gateway")
    toml = "/etc/gateway/gateway.toml"
    jump.check(f"sudo cp -p {toml} /tmp/before.toml")
    try:
        for change, said in (("# fine", "read again"), ("nonsense", "not read again")):
            jump.check(f"echo '{change}' | sudo tee -a {toml} && sudo systemctl reload gateway")
            jump.until(f"sudo journalctl -u gateway --since=-60s | grep ': {said}'")
            jump.until("systemctl is-active gateway")
    finally:
        jump.check(f"sudo cp -p /tmp/before.toml {toml} && sudo systemctl reload gateway")
    assert jump.check("systemctl show -P MainPID gateway") == pid
    return ""


def watchdog(machines: Machines) -> str:
    """A server that stands still is ended and started again, and its network is as before."""
    client, jump = machines["client"], machines["jump"]
    before = jump.says_of_network()
    pid = jump.check("systemctl show -P MainPID gateway").strip()
    began = time.monotonic()
    jump.check(f"sudo kill -STOP {pid}")
    jump.until(f"test $(systemctl show -P MainPID gateway) -gt {pid}")
    noticed = time.monotonic() - began
    jump.until("systemctl is-active gateway")
    jump.check("sudo journalctl -u gateway | grep -q 'Watchdog timeout'")
    _is_as_before(jump, before)
    with client.running("gateway connect -N -D 6000 jump", PROXY):
        has_page(client, "http://target.demo/", "--socks5-hostname localhost:6000")
    return f"another process after {noticed:.0f} s"


def reboot(machines: Machines) -> str:
    """Jump is reset without a word: the client says so in time, the service is back by itself."""
    client, jump = machines["client"], machines["jump"]
    boot = jump.check("cat /proc/sys/kernel/random/boot_id").strip()
    with client.running("gateway connect -N -D 6000 jump", PROXY) as proxy:
        has_page(client, "http://target.demo/", "--socks5-hostname localhost:6000")
        began = time.monotonic()
        reset = (
            "echo 1 >/proc/sys/kernel/sysrq; (sleep 1; echo b >/proc/sysrq-trigger) >/dev/null &"
        )
        jump.run(f"sudo sh -c '{reset}'")
        status = proxy.process.wait(NOTICE_S)
        noticed = time.monotonic() - began
        assert status == 255, f"status {status}; {proxy.last_words()}"
        said = proxy.last_words().strip().splitlines()[-1].strip()
    forget_connection(jump)
    jump.until(f"test $(cat /proc/sys/kernel/random/boot_id) != {boot}", 300)
    jump.until("systemctl is-active gateway", 300)
    back = time.monotonic() - began
    with client.running("gateway connect -N -D 6000 jump", PROXY):
        has_page(client, "http://target.demo/", "--socks5-hostname localhost:6000")
    return f"told after {noticed:.0f} s ({said}), served again after {back:.0f} s"


def audit_log(machines: Machines) -> str:
    """Who went where is there, also what was denied, and nothing is missing or changed."""
    jump = machines["jump"]
    verified = jump.check(f"sudo gateway audit verify {AUDIT}")
    shown = jump.check(f"sudo gateway audit show {AUDIT}")
    for word in ("alice", "192.168.57.5", "target.demo", f"{TARGET} port 5201"):
        assert word in shown, f"no {word} in the log: {shown[-400:]}"
    return verified.strip().splitlines()[-1][:60]


SCENARIOS: Final[dict[str, Scenario]] = {
    "target, only through jump": only_through_jump,
    "unit file": unit_file,
    "browser proxy": browser_proxy,
    "VPN through gateway serve": vpn_through_serve,
    "VPN through sshd": vpn_through_sshd,
    "full tunnel": full_tunnel,
    "-w, by hand": tunnel_by_hand,
    "-J through both": jump_hosts,
    "reload": reload_and_refusal,
    "watchdog": watchdog,
    "reset of jump": reboot,
    "audit log": audit_log,
}
