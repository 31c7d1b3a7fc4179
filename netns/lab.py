"""Builds a topology from network namespaces, runs programs in its hosts, and removes it again.

Theory of operation: every lab has a prefix of its own (`gwlab-PID-N-`), so several may exist at
once and whatever carries the prefix is ours to remove. Devices are made inside the namespaces and
nowhere else: nothing appears in the machine's own network, and a namespace takes its devices,
addresses and routes with it when it goes. Removal asks the kernel what is there instead of
remembering what was made; so it is the same after success, after half a set-up, and again.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from scripts.child import Child

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from netns.topologies import End, Topology

PREFIX = "gwlab-"
COMMAND_TIMEOUT_S = 30
CARRIER_TIMEOUT_S = 5

_numbers = itertools.count(1)


class LabError(Exception):
    """An `ip` command failed: which one, and what it said."""


def ip(*arguments: str) -> str:
    """Run one `ip` command and give its output."""
    command = ["ip", *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except FileNotFoundError as error:
        raise LabError("the command ip is missing: apt-get install iproute2") from error
    if done.returncode != 0:
        raise LabError(f"`{' '.join(command)}` failed: {done.stderr.strip() or done.returncode}")
    return done.stdout


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


class Lab:
    """A topology that exists while the ``with`` block runs."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.prefix = f"{PREFIX}{os.getpid()}-{next(_numbers)}-"
        self._started = ExitStack()
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

    def _host(self, name: str) -> Host:
        ends = [end for cable in self.topology.cables for end in cable if end.host == name]
        addresses = tuple(a.split("/")[0] for end in ends for a in end.addresses)
        return Host(name, self.prefix + name, addresses, self._started)

    def _build(self) -> None:
        for host in self.hosts.values():
            ip("netns", "add", host.namespace)
            ip("-n", host.namespace, "link", "set", "lo", "up")
        for left, right in self.topology.cables:
            self._plug(left, right)
        for cable in self.topology.cables:
            for end in cable:
                self._wait_until_up(end)

    def _plug(self, left: End, right: End) -> None:
        here, there = self[left.host].namespace, self[right.host].namespace
        pair = ("name", left.device, "type", "veth", "peer", "name", right.device, "netns", there)
        ip("-n", here, "link", "add", *pair)
        for end, namespace in ((left, here), (right, there)):
            for address in end.addresses:
                # nodad: an IPv6 address is of use at once, not after a second of looking for twins
                flags = ("nodad",) if ":" in address else ()
                ip("-n", namespace, "address", "add", address, "dev", end.device, *flags)
            ip("-n", namespace, "link", "set", end.device, "up")

    def _wait_until_up(self, end: End) -> None:
        """Wait for the kernel to notice the carrier: until then it drops what is sent."""
        deadline = time.monotonic() + CARRIER_TIMEOUT_S
        while " state UP " not in ip("-n", self[end.host].namespace, "link", "show", end.device):
            if time.monotonic() > deadline:
                raise LabError(f"{end.device} in {end.host} did not come up")
