"""ssh-audit hammers at `gateway serve`, and others log in and work meanwhile: how that goes.

Client and server are hosts of the lab, since the limits of a source do not hold on a loopback. The
attacker comes by IPv4, the others by IPv6: to the server these are two sources.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Final

from tests.interop.targets import Target, echo, need, read_exactly
from tests.support.programs import GATEWAY, READY_TIMEOUT_S, make_keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netns.lab import Lab
    from scripts.child import Child

SAFE_RATE: Final = 20.0  # connections per second that get a version; ssh-audit's MAX_SAFE_RATE
PORT, ECHO_PORT = 2222, 8022  # in hosts of which nobody else knows
ATTACKS_WITHIN_S: Final = 60.0  # it starts as many programs as it has sockets
PAUSE_S: Final = 0.005  # between two echoes
PROMISED_S: Final = 2.0  # for a login of somebody else
# As in a terminal, also where we are something in the background, which ignores SIGINT.
INTERRUPTIBLE: Final = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('ssh_audit', run_name='__main__')"
)
_ESCAPE = re.compile(r"\x1b\[[\d;]*[A-Za-z]")
_RATES = re.compile(r"TCP SYNs/sec: ([\d,.]+).*Compl\. conns/sec: ([\d,.]+)")


@dataclass
class Outcome:
    """What somebody else had of the server, and what the attacker."""

    connects_per_s: float = 0
    """The attacker's, as ssh-audit counts them."""
    served_per_s: float = 0
    """Those of them that were not refused at once."""
    verdict: str = ""
    """ssh-audit's own; it has one about --dheat only."""
    logins_s: list[float] = field(default_factory=list)
    """How long `ssh` took for a login, the whole program."""
    echoes_before_s: list[float] = field(default_factory=list)
    echoes_s: list[float] = field(default_factory=list)
    """How long an echo took through a link that was there before."""
    processor: float = 0
    """The server's share of one."""


class Attacked:
    """A `gateway serve` in the lab's server, and somebody who is logged in."""

    def __init__(self, lab: Lab, server: Child, where: tuple[str, ...]) -> None:
        """``where`` is what ssh and `gateway connect` are told to come to it."""
        self._lab = lab
        self._server = server
        self._ssh = (need("ssh"), *where)

    def attack(self, option: str, value: str, seconds: float, before_s: float = 0.2) -> Outcome:
        """Have ssh-audit attack for so long, after a time without. Raises if a login or an echo
        fails.
        """
        outcome = Outcome()
        with self._echoing(outcome.echoes_before_s):
            time.sleep(before_s)
        with self._attacking(option, value, outcome):
            began_s, busy_s = time.monotonic(), self._busy_s()
            with self._echoing(outcome.echoes_s):
                while time.monotonic() - began_s < seconds:
                    outcome.logins_s.append(self._login())
            outcome.processor = (self._busy_s() - busy_s) / (time.monotonic() - began_s)
        return outcome

    def _login(self) -> float:
        with self._lab["client"].inside():  # `ip netns exec` mounts: seconds on a busy machine
            began_s = time.monotonic()
            done = subprocess.run(
                self._ssh, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
            )
            took_s = time.monotonic() - began_s
        assert done.returncode == 0, done.stderr
        return took_s

    def _busy_s(self) -> float:
        stat = Path(f"/proc/{self._server.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    @contextlib.contextmanager
    def _echoing(self, took_s: list[float]) -> Iterator[None]:
        over = threading.Event()
        with self._lab["client"].inside():
            sock = socket.create_connection(("127.0.0.1", ECHO_PORT), READY_TIMEOUT_S)

        def use() -> None:
            while not over.wait(PAUSE_S):
                data = len(took_s).to_bytes(8, "big")
                began_s = time.monotonic()
                sock.sendall(data)
                assert read_exactly(sock, len(data)) == data
                took_s.append(time.monotonic() - began_s)

        with sock, ThreadPoolExecutor(1) as pool:
            using = pool.submit(use)
            try:
                yield
            finally:
                over.set()
            using.result()

    @contextlib.contextmanager
    def _attacking(self, option: str, value: str, outcome: Outcome) -> Iterator[None]:
        """Run ssh-audit, as something that leaves the processors to others."""
        audit = ("nice", "-n", "5", sys.executable, "-u", "-c", INTERRUPTIBLE, "--no-colors")
        where = ("-p", str(PORT), self._lab["server"].ipv4())
        one_line = {**os.environ, "SHELL": "/bin/sh"}  # of figures, as no bash is there
        attacker = self._lab["client"].start(*audit, option, value, *where, env=one_line)
        try:
            attacker.wait_for_line(r"TCP SYNs(/sec)?: \S*[1-9]", ATTACKS_WITHIN_S)
            yield
            attacker.process.send_signal(signal.SIGINT)  # to this one, which then has a verdict
            if option == "--dheat":
                verdict = attacker.wait_for_line(r"it appears that .*", READY_TIMEOUT_S)[0]
                outcome.verdict = _ESCAPE.sub("", verdict)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(attacker.process.pid, signal.SIGKILL)
            attacker.process.wait()
        found = _RATES.findall(_ESCAPE.sub("", "\n".join(attacker.lines())))
        outcome.connects_per_s, outcome.served_per_s = (
            float(number.replace(",", "")) for number in found[-1]
        )


@contextlib.contextmanager
def attacked(lab: Lab, folder: Path, *options: str) -> Iterator[Attacked]:
    """Serve with these options beside what the defaults are, and have somebody logged in."""
    client, server = lab["client"], lab["server"]
    keys = make_keys(folder)
    with server.inside():
        target = Target(echo)
    with target:
        serving = server.start(
            *GATEWAY, "serve", "-v", "--listen", f"*:{PORT}", "--host-key", str(keys.host),
            "--authorized-keys", str(keys.authorized), "--permit-open", "127.0.0.1:*", *options,
        )  # fmt: skip
        serving.wait_for_line("listening on ", READY_TIMEOUT_S)
        where = (
            "-F", "none", "-p", str(PORT), "-i", str(keys.user), "-o", "IdentitiesOnly=yes",
            "-o", "StrictHostKeyChecking=accept-new",
            "-o", f"UserKnownHostsFile={keys.known_hosts}", f"alice@{server.ipv6()}",
        )  # fmt: skip
        forward = ("-N", "-L", f"{ECHO_PORT}:127.0.0.1:{target.port}")
        user = client.start(*GATEWAY, "connect", "-v", *forward, *where)
        user.wait_for_line("everything is up", READY_TIMEOUT_S)
        yield Attacked(lab, serving, where)


def told(outcome: Outcome) -> str:
    """Say it in a line."""
    before, during = (_ms(times) for times in (outcome.echoes_before_s, outcome.echoes_s))
    logins = f"{len(outcome.logins_s)} logins, the slowest in {max(outcome.logins_s):.2f} s"
    return (
        f"{outcome.connects_per_s:.0f} connections/s, {outcome.served_per_s:.1f}/s served; "
        f"{logins}; echo p50/p99 {before} ms before, {during} ms during; "
        f"{outcome.processor:.0%} of a processor. {outcome.verdict}"
    )


def _ms(times_s: list[float]) -> str:
    cuts = quantiles(times_s, n=100)
    return f"{cuts[49] * 1000:.1f}/{cuts[98] * 1000:.1f}"
