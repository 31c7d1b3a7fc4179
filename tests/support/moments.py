"""A VPN is killed at random moments, and both hosts are as they were: CI some, scripts/soak many.

The moments are spread over the time that a VPN takes to come up, and a little more, since that is
when things are half done. What is killed gets SIGKILL; what may outlive it is waited for.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from netns.state import difference
from tests.support.programs import GATEWAY, eventually
from tests.support.vpn import READY_S, is_gone, serve_command, start_serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from netns.lab import Host
    from scripts.child import Child
    from tests.support.vpn import Site

SUBNETS: Final = ("--vpn", "10.20.0.0/24,fd20::/64")
UNDONE_S: Final = 30.0


class Moments:
    """Kills at moments that a seed decides. ``site`` has a server that nobody else uses."""

    def __init__(self, site: Site, seed: int, *, check_every: int = 1) -> None:
        """The hosts are looked at after so many moments; until then each cleans up what was."""
        self.site = site
        self.seed = seed
        self._random = random.Random(seed)
        self._check_every = check_every
        self._client_before = site.client.snapshot()
        self._server_before = site.server.snapshot()
        began_s = time.monotonic()
        with site.vpn(*SUBNETS):
            self._up_s = time.monotonic() - began_s

    def run(self, ends: Iterable[str], say: Callable[[str], object] = str) -> None:
        """Have a moment for each of these ``ENDS``, in any order; what fails names the seed."""
        shuffled = list(ends)
        self._random.shuffle(shuffled)
        count = len(shuffled)
        for number, end in enumerate(shuffled, start=1):
            delay_s = self._random.uniform(0, 1.2 * self._up_s)
            what = f"{number} of {count}, seed {self.seed}: {end} after {delay_s:.3f} s"
            say(what)
            self.ENDS[end](self, delay_s)
            if number % self._check_every == 0 or number == count:
                self._check(what)

    def _check(self, what: str) -> None:
        self._clean_up(self.site.client)
        hosts = ((self.site.client, self._client_before), (self.site.server, self._server_before))
        for host, before in hosts:
            with contextlib.suppress(AssertionError):
                eventually(lambda: not difference(before, host.snapshot()), what, UNDONE_S)  # noqa: B023 - used at once
            left = difference(before, host.snapshot())
            assert left == "", f"{host.name}: {what}:\n{left}"

    # -- the ends ----------------------------------------------------------------------------------

    def _kill_client(self, delay_s: float) -> None:
        self._begin(delay_s).kill()
        self._wait_for_guardians(self.site.client)

    def _kill_client_and_guardian(self, delay_s: float) -> None:
        connect = self._begin(delay_s)
        victims = [connect.process.pid, *guardians(self.site.client)]
        self._random.shuffle(victims)
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        connect.process.wait()
        self._wait_for_guardians(self.site.client)

    def _kill_server(self, delay_s: float) -> None:
        connect = self._begin(delay_s)
        self.site.process.kill()
        connect.process.wait(READY_S)  # by itself: its link is lost
        self._wait_for_guardians(self.site.server)
        self._start_server()

    def _kill_server_and_guardian(self, delay_s: float) -> None:
        connect = self._begin(delay_s)
        for pid in (*guardians(self.site.server), self.site.process.process.pid):
            os.kill(pid, signal.SIGKILL)
        self.site.process.process.wait()
        connect.process.wait(READY_S)
        self._wait_for_guardians(self.site.server)
        if self._random.random() < 0.5:  # else the next start does it
            self._clean_up(self.site.server)
        self._start_server()

    def _kill_server_at_its_start(self, delay_s: float) -> None:
        self.site.process.stop()
        serve = self.site.server.start(*serve_command(self.site.keys))
        _wait(serve, delay_s)
        for pid in (serve.process.pid, *guardians(self.site.server)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        serve.process.wait()
        self._wait_for_guardians(self.site.server)
        self._start_server()

    ENDS: Final = {
        "client": _kill_client,
        "client and guardian": _kill_client_and_guardian,
        "server": _kill_server,
        "server and guardian": _kill_server_and_guardian,
        "server at its start": _kill_server_at_its_start,
    }

    # -- parts of them -----------------------------------------------------------------------------

    def _begin(self, delay_s: float) -> Child:
        connect = self.site.client.start(*self.site.command(*SUBNETS))
        _wait(connect, delay_s)
        return connect

    def _start_server(self) -> None:
        self.site.process = start_serve(self.site.server, self.site.keys)

    @staticmethod
    def _clean_up(host: Host) -> None:
        done = host.run(*GATEWAY, "cleanup")
        assert done.returncode == 0, done.stderr

    @staticmethod
    def _wait_for_guardians(host: Host) -> None:
        eventually(lambda: not guardians(host), "guardians have done their work", UNDONE_S)


def _wait(child: Child, delay_s: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):  # it runs still, as wanted
        child.process.wait(delay_s)


def guardians(host: Host) -> list[int]:
    """Return the process ids of the guardians that run on a host."""
    pids = host.run("ip", "netns", "pids", host.namespace).stdout.split()
    return [pid for pid in map(int, pids) if _is_guardian(pid) and not is_gone(pid)]


def _is_guardian(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"gateway.tun.guardian_process" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False
