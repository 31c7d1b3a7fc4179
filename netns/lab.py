"""Builds a topology from network namespaces, runs programs in its hosts, and removes it again.

Theory of operation: every lab has a prefix of its own (`gwlab-PID-N-`), so several may exist at
once and whatever carries the prefix is ours to remove. Devices are made inside the namespaces and
nowhere else: nothing appears in the machine's own network, and a namespace takes its devices,
addresses and routes with it when it goes. Removal asks the kernel what is there instead of
remembering what was made; so it is the same after success, after half a set-up, and again. The
first thing that a lab does is to remove those whose maker was killed.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, Unpack

from netns import echo, emulator, netem, ping, state
from netns.emulator import Line
from netns.topologies import BASE_SYSCTLS
from scripts.child import Child

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

    from netns.topologies import Cable, Machine, Topology

PREFIX = "gwlab-"
COMMAND_TIMEOUT_S = 120
CARRIER_TIMEOUT_S = 30
READY_TIMEOUT_S = 60
BRIDGE = "bridge0"
CLONE_NEWNET = 0x40000000
TUN = Path("/dev/net/tun")
NEEDED = {
    "ip": "apt-get install iproute2",
    "tc": "apt-get install iproute2",
    "nft": "apt-get install nftables",
}

_numbers = itertools.count(1)


class LabError(Exception):
    """A command for the lab failed: which one, and what it said."""


def call(*arguments: str, data: str = "") -> str:
    """Run one command and give its output."""
    try:
        done = subprocess.run(
            arguments,
            input=data,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise LabError(f"the command {arguments[0]} is missing: {NEEDED[arguments[0]]}") from error
    if done.returncode != 0:
        raise LabError(f"`{' '.join(arguments)}` failed: {done.stderr.strip() or done.returncode}")
    return done.stdout


def ip(*arguments: str) -> str:
    """Run one `ip` command and give its output."""
    return call("ip", *arguments)


def is_up(link: dict[str, Any]) -> bool:
    """Whether a device, as `ip -j address` shows it, has a carrier and its own IPv6 address."""
    addresses = link["addr_info"]
    return (
        link["operstate"] == "UP"
        and (link.get("master") == BRIDGE or any(a["scope"] == "link" for a in addresses))
        and not any("tentative" in address for address in addresses)
    )


def why_unusable() -> str | None:
    """Why this machine can have no lab now, or None: tried, not guessed."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"{PREFIX}{os.getpid()}-0-probe"
    try:
        ip("netns", "add", name)
        ip("-n", name, "link", "add", "probe0", "type", "veth", "peer", "name", "probe1")
    except LabError as error:
        return str(error)
    finally:
        remove_namespaces(f"{PREFIX}{os.getpid()}-0-")
    return None


def why_no_lines() -> str | None:
    """Why this machine can have no lab with a line in it, or None."""
    return why_unusable() or (None if TUN.exists() else f"there is no {TUN}")


@functools.cache
def has_netem() -> bool:
    """Whether this machine's kernel can be a line itself: tried, not guessed."""
    name = f"{PREFIX}{os.getpid()}-0-netem"
    probe = NetemCarrier(name, (name, name), ("probe0", "probe1"))
    try:
        probe.plug()
        probe.carry(Line(rate_mbit=1, delay_ms=1, loss=0.1, reorder=0.1))
    except LabError:
        return False
    finally:
        remove_namespaces(probe.namespace)
    return True


def namespaces(prefix: str) -> list[str]:
    """The namespaces whose name starts with ``prefix``."""
    try:
        lines = ip("netns", "list").splitlines()
    except LabError:
        return []
    return [name for line in lines if (name := line.split(" ")[0]).startswith(prefix)]


def remove_namespaces(prefix: str) -> None:
    """Kill what still runs in our namespaces and remove them; harmless when there are none."""
    for name in namespaces(prefix):
        with suppress(LabError):  # gone meanwhile is as good
            for pid in ip("netns", "pids", name).split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            ip("netns", "delete", name)


def remove_abandoned() -> list[str]:
    """Remove the labs whose maker is gone (killed before it could), and give their namespaces."""
    abandoned = [
        name
        for name in namespaces(PREFIX)
        if (pid := name.removeprefix(PREFIX).split("-")[0]).isdigit()
        and not Path(f"/proc/{pid}").exists()
    ]
    for name in abandoned:
        remove_namespaces(name)
    return abandoned


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """What this thread starts, and the sockets it makes, are in a namespace; "" is the own.

    So are the settings below /proc/sys/net that it reads and writes.
    """
    if not namespace:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(descriptor: int) -> None:
        if libc.setns(descriptor, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")

    with Path("/proc/thread-self/ns/net").open("rb") as before:
        with Path(f"/run/netns/{namespace}").open("rb") as there:
            enter(there.fileno())
        try:
            yield
        finally:
            enter(before.fileno())


@dataclass(frozen=True)
class Host:
    """One host of a lab; programs run in its network, with this machine's files."""

    name: str
    namespace: str
    addresses: tuple[str, ...]
    _started: ExitStack

    def ipv4(self) -> str:
        return next(address for address in self.addresses if ":" not in address)

    def ipv6(self) -> str:
        return next(address for address in self.addresses if ":" in address)

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs ``arguments`` in this host."""
        return ["ip", "netns", "exec", self.namespace, *arguments]

    def run(
        self, *arguments: str, timeout_s: float = COMMAND_TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; its status is the caller's to look at."""
        return subprocess.run(
            self.command(*arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def start(self, *arguments: str, env: Mapping[str, str] | None = None) -> Child:
        """Start a program that stays; the lab ends it, last started first."""
        name = f"{' '.join((Path(arguments[0]).name, *arguments[1:4]))} in {self.name}"
        return self._started.enter_context(Child(name, self.command(*arguments), env=env))

    def inside(self) -> AbstractContextManager[None]:
        """What this thread makes and starts in the ``with`` block is in this host's network."""
        return inside(self.namespace)

    def sysctl(self, name: str, value: str | None = None) -> str:
        """A setting below net, such as net.ipv4.ip_forward, after it got ``value`` if there is one.

        A device whose name has a dot in it is written with a slash there, as sysctl(8) does.
        """
        path = Path("/proc/sys") / name.translate(str.maketrans("./", "/."))
        with self.inside():
            if value is not None:
                path.write_text(value)
            return path.read_text().strip()

    def snapshot(self) -> state.Snapshot:
        """What this host's network is set to; see `netns.state`."""
        with self.inside():
            return state.take_snapshot()

    def ping(self, address: str, count: int = 1, **options: Unpack[ping.Options]) -> ping.Pings:
        """Send echo requests and wait for the replies; see `netns.ping`."""
        with self.inside():
            return ping.ping(address, count, **options)

    def start_echo(self) -> Child:
        """Start what `echo` and `seen_as` of other hosts ask, at every address of this one."""
        server = self.start(sys.executable, "-IS", echo.__file__)
        server.wait_for_line("ready", READY_TIMEOUT_S)
        return server

    def echo(self, kind: echo.Kind, address: str, size: int, timeout_s: float = 5) -> None:
        """Send bytes there, "tcp" or one "udp" datagram; get just these back or raise `OSError`."""
        with self.inside():
            echo.echo(kind, address, size, timeout_s)

    def echo_each(
        self, kind: echo.Kind, address: str, sizes: Sequence[int], timeout_s: float = 5
    ) -> None:
        """Have bytes of each size sent back, many at once; see `netns.echo`."""
        with self.inside():
            echo.echo_each(kind, address, sizes, timeout_s)

    def seen_as(self, kind: echo.Kind, address: str, timeout_s: float = 5) -> str:
        """The address that the host there sees this one come from."""
        with self.inside():
            return echo.seen_as(kind, address, timeout_s)


class Carrier(Protocol):
    """What is between two devices of hosts and can be a line."""

    def plug(self) -> None:
        """Make the devices."""

    def carry(self, line: Line) -> None:
        """Be this line, after nothing or after a cut."""

    def cut(self) -> None:
        """Carry nothing; harmless when it is so."""


@dataclass
class EmulatorCarrier:
    """A process of ours between two tap devices; see `netns.emulator`."""

    name: str
    started: ExitStack
    namespaces: tuple[str, str]
    devices: tuple[str, str]
    process: Child | None = None

    def plug(self) -> None:
        for namespace, device in zip(self.namespaces, self.devices, strict=True):
            ip("-n", namespace, "tuntap", "add", device, "mode", "tap")

    def carry(self, line: Line) -> None:
        command = [sys.executable, "-IS", emulator.__file__]
        for end in zip(self.namespaces, self.devices, strict=True):
            command += end
        command.append(json.dumps(dataclasses.asdict(line)))
        self.process = self.started.enter_context(Child(f"the line {self.name}", command))
        self.process.wait_for_line("ready", READY_TIMEOUT_S)

    def cut(self) -> None:
        if self.process is not None:
            self.process.stop()
            self.process = None


@dataclass(frozen=True)
class NetemCarrier:
    """A namespace of its own between them; see `netns.netem`."""

    namespace: str
    namespaces: tuple[str, str]
    devices: tuple[str, str]

    def plug(self) -> None:
        ip("netns", "add", self.namespace)
        with inside(self.namespace):
            for which in ("all", "default"):
                Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6").write_text("1")
        self._batch("ip", netem.plugged(self.namespaces, self.devices))

    def carry(self, line: Line) -> None:
        self._batch("tc", netem.shaped(line))
        self._batch("ip", netem.switched("up"))

    def cut(self) -> None:
        self._batch("ip", netem.switched("down"))

    def _batch(self, program: str, lines: list[str]) -> None:
        call(program, "-n", self.namespace, "-batch", "-", data="\n".join(lines))


class Lab:
    """A topology that exists while the ``with`` block runs.

    Its lines are the kernel's netem where there is one, else ours, unless ``by_netem`` says which.
    """

    def __init__(self, topology: Topology, *, by_netem: bool | None = None) -> None:
        self.topology = topology
        self._by_netem = by_netem
        self.prefix = f"{PREFIX}{os.getpid()}-{next(_numbers)}-"
        self._started = ExitStack()
        self._carriers: dict[tuple[str, str], Carrier] = {}
        self.hosts = {name: self._host(name) for name in topology.hosts}

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def remove(self) -> None:
        """End every program in the hosts and remove them; may be called at any time, and again."""
        try:
            self._started.close()
        finally:
            remove_namespaces(self.prefix)

    def carry(self, left: str, right: str, line: Line) -> None:
        """Let the cable between two hosts, which has a line, have another one, or one again."""
        self.cut(left, right)
        self._carriers[left, right].carry(line)
        for host in (left, right):
            self._wait_until_up(self[host])

    def cut(self, left: str, right: str) -> None:
        """End what carries packets between two hosts; their devices have no carrier then."""
        self._carriers[left, right].cut()

    def _host(self, name: str) -> Host:
        addresses = tuple(a.split("/")[0] for e in self.topology.ends(name) for a in e.addresses)
        return Host(name, self.prefix + name, addresses, self._started)

    def _build(self) -> None:
        remove_abandoned()
        for host in self.hosts.values():
            ip("netns", "add", host.namespace)
        for machine in self.topology.machines:
            self._set_up(machine)
        for cable in self.topology.cables:
            self._plug(cable)
        for machine in self.topology.machines:
            self._bring_up(machine)
        for host in self.hosts.values():
            self._wait_until_up(host)
        for machine in self.topology.machines:
            self._batch(machine.name, (f"route add {route}" for route in machine.routes))

    def _set_up(self, machine: Machine) -> None:
        host = self[machine.name]
        for name, value in {**BASE_SYSCTLS, **machine.sysctls}.items():
            host.sysctl(name, value)
        if machine.is_switch:
            ip("-n", host.namespace, "link", "add", BRIDGE, "type", "bridge")
            host.sysctl(f"net.ipv6.conf.{BRIDGE}.disable_ipv6", "1")
        if machine.nft:
            call(*host.command("nft", "-f", "-"), data=machine.nft)

    def _plug(self, cable: Cable) -> None:
        ends = (cable.left, cable.right)
        if cable.line is None:
            here, there = (self[host].namespace for host in cable.hosts)
            peer = ("type", "veth", "peer", "name", cable.right.device, "netns", there)
            ip("-n", here, "link", "add", "name", cable.left.device, *peer)
        else:
            carrier = self._carriers[cable.hosts] = self._carrier(cable)
            carrier.plug()
            carrier.carry(cable.line)
        for end in ends:
            # An IPv6 address is of use at once, not after a second of looking for twins.
            self[end.host].sysctl(f"net.ipv6.conf.{end.device}.accept_dad", "0")

    def _carrier(self, cable: Cable) -> Carrier:
        by_netem = has_netem() if self._by_netem is None else self._by_netem
        left, right = (self[host].namespace for host in cable.hosts)
        name = "-".join(cable.hosts)
        devices = (cable.left.device, cable.right.device)
        if by_netem:
            return NetemCarrier(self.prefix + name, (left, right), devices)
        return EmulatorCarrier(name, self._started, (left, right), devices)

    def _bring_up(self, machine: Machine) -> None:
        ends = self.topology.ends(machine.name)
        lines = ["link set lo up"]
        if machine.is_switch:
            lines += [f"link set {end.device} master {BRIDGE}" for end in ends]
            lines += [f"link set {BRIDGE} up"]
        for end in ends:
            lines += [f"address add {address} dev {end.device}" for address in end.addresses]
            lines += [f"link set {end.device} up"]
        self._batch(machine.name, lines)

    def _batch(self, host: str, lines: Iterable[str]) -> None:
        """Several `ip` commands at once."""
        commands = list(lines)
        if not commands:
            return
        try:
            call("ip", "-n", self[host].namespace, "-batch", "-", data="\n".join(commands))
        except LabError as error:
            raise LabError(f"{error}; it was to do: {'; '.join(commands)}") from error

    def _wait_until_up(self, host: Host) -> None:
        """Wait for the kernel to notice the carrier: until then it drops what is sent.

        IPv6 addresses come a moment later, and with them their routes.
        """
        deadline = time.monotonic() + CARRIER_TIMEOUT_S
        ports = [end.device for end in self.topology.ends(host.name)]
        while not_yet := [
            link["ifname"]
            for link in json.loads(ip("-j", "-n", host.namespace, "address"))
            if link["ifname"] in ports and not is_up(link)
        ]:
            if time.monotonic() > deadline:
                raise LabError(f"did not come up in {host.name}: {', '.join(not_yet)}")
