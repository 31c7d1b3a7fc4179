"""Hostile peers that are many: who breaks off, who is slow, who is killed, who keeps others out."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.ends import ECHO_BYTES, connect
from bench.figures import AT_MOST, Bar, Column, Table, percentile
from bench.programs import Client, Spec, cpu_seconds, fail, wait_for_proxy
from bench.rounds import ROOT, Part, Run
from gateway.ssh.keyfiles import encode_private_key_file
from gateway.ssh.transport import Phase
from netns.lab import Lab, why_unusable
from netns.topologies import TWO_HOSTS
from tests.support.aborts import STEPS, Step, abort
from tests.support.flooded import COUNTED, HOST, PEER, USER, FloodedBox, flooded_box
from tests.support.held import Siege, held_box, log_in_from, source
from tests.support.programs import GATEWAY, free_port, running
from tests.support.raw_client import Ended

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from bench.programs import Bed
    from tests.support.programs import Program

LEFT, PEAK_MB = "left over", "+MB at most"
GROWTH_MB = 64.0  # as much as all windows of all links may hold
SETTLE_S = 60.0
CLIENT_P50, CLIENT_P99, CLIENT_MS = "client ms p50", "client ms p99", "client ms at most"
SERVED_MS = 200.0
KILLED_AT_ONCE = 20
KILLED_S = "s until as before, at most"
FREE_S = 2.0
HOLDERS = 200  # silent ones, and as many slow ones
LOGIN_S = 2.0
LOGIN = "login s at most"
HOLD_S = 25.0
PAUSE_S = 0.1


@dataclass(frozen=True)
class Measured:
    """A part of the command, with its table and its bars."""

    part: Part
    table: Table
    bars: tuple[Bar, ...]

    @classmethod
    def make(
        cls,
        name: str,
        head: str,
        cases: Iterable[str],
        measure: Callable[[Run, Spec], dict[str, float]],
        columns: tuple[str, ...],
        limits: dict[str, float],
        *,
        judged: Iterable[str] = (),
    ) -> Measured:
        """Make one; ``limits`` are the most of a figure, for the cases that are ``judged``."""
        cases = tuple(cases)

        def prefixed(run: Run, spec: Spec) -> dict[str, float]:
            return {f"{name}: {figure}": found for figure, found in measure(run, spec).items()}

        return cls(
            Part(name, lambda _: [Spec(case, "", "serve") for case in cases], prefixed, True),
            Table(head, tuple(Column(column, f"{name}: {column}") for column in columns)),
            tuple(
                Bar(case, f"{name}: {figure}", AT_MOST, limit)
                for case in tuple(judged) or cases
                for figure, limit in limits.items()
            ),
        )


def fresh_folder(bed: Bed) -> Path:
    """Return a name for the folder of another server."""
    return bed.folder / f"box-{time.monotonic_ns()}"


def key_file(box: FloodedBox, user: str) -> Path:
    """Return the file of a user's key."""
    path = box.folder / f"{user}.key"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_bytes(encode_private_key_file(box.keys[user]))
    return path


def hostile(box: FloodedBox, task: str, port: int = 0, **request: float | str) -> Client:
    """Start the peers; the server's port is where they go, if there is no other."""
    asked = {"task": task, "host": box.host, "port": port or box.port, "user": PEER,
             "key": str(key_file(box, PEER)), **request}  # fmt: skip
    command = (sys.executable, "-m", "bench.hostile", json.dumps(asked))
    return Client(task, *command, tree=ROOT)


def left_over(box: FloodedBox, before: dict[str, int]) -> float:
    """Return by how much the gauges are above what they were, after they had their time."""
    return float(sum(box.left_over(before, SETTLE_S).values()))


# ---- who breaks off ------------------------------------------------------------------------------


def measure_aborts(run: Run, spec: Spec) -> dict[str, float]:
    step = next(step for step in STEPS if step.name == spec.name)
    target = (HOST, run.bed.echo_port)
    count = -(-run.options.aborts // len(STEPS))
    with flooded_box(fresh_folder(run.bed), run.bed.echo_port) as box:
        before, before_mb, cpu_s = warm(box, step, target), box.resident_mb, cpu(box)
        began_s = time.monotonic()
        came = sum(abort(box.place(), step, target, resets=bool(n % 2)) for n in range(count))
        took_s = time.monotonic() - began_s
        return {
            "aborts": count,
            "not let in": count - came,
            "s": took_s,
            "server ms each": (cpu(box) - cpu_s) / count * 1000,
            LEFT: left_over(box, before),
            PEAK_MB: box.peak_mb - before_mb,
        }


def warm(box: FloodedBox, step: Step, target: tuple[str, int]) -> dict[str, int]:
    """Do it a few times: what is loaded for the first is no growth. Return the gauges then."""
    for number in range(20):
        abort(box.place(), step, target, resets=bool(number % 2))
    box.left_over({"links": 0, "startups": 0, "channels": 0})
    return box.counted()


def cpu(box: FloodedBox) -> float:
    return cpu_seconds(box.program.pid)


ABORTS = Measured.make(
    "aborts",
    "aborts, by RST and by FIN in turn",
    (step.name for step in STEPS),
    measure_aborts,
    ("aborts", "not let in", "s", "server ms each", LEFT, PEAK_MB),
    {LEFT: 0.0, PEAK_MB: GROWTH_MB},
)


# ---- who is slow ---------------------------------------------------------------------------------


SSH_PORT, SOCKS_PORT = "slow: SSH port of serve", "slow: SOCKS port of connect"


def measure_slow(run: Run, spec: Spec) -> dict[str, float]:
    with ExitStack() as stack:
        box = stack.enter_context(flooded_box(fresh_folder(run.bed), run.bed.echo_port))
        if spec.name == SSH_PORT:
            return slow_ssh(box, run)
        return slow_socks(box, run, stack)


def slow_ssh(box: FloodedBox, run: Run) -> dict[str, float]:
    before, before_mb = box.counted(), box.resident_mb
    took_ms, failed, startups = [], 0, 0
    with hostile(
        box, "hold", target=run.bed.echo_port, count=run.options.holders, seconds=HOLD_S
    ) as holding:
        holding.wait_ready()
        while not holding.ended:
            try:
                took_ms.append(log_in_ms(box))
            except Ended:
                failed += 1
            startups = max(startups, box.gauges()["startups"])
            time.sleep(PAUSE_S)
        found = holding.finish()
    return {
        "came": found["came"],
        "held at most": startups,
        **served(took_ms, failed),
        LEFT: left_over(box, before),
        PEAK_MB: box.peak_mb - before_mb,
    }


def log_in_ms(box: FloodedBox) -> float:
    began_s = time.perf_counter()
    with box.place(USER).client() as client:
        client.reach(Phase.CONNECTION)
        return (time.perf_counter() - began_s) * 1000


def slow_socks(box: FloodedBox, run: Run, stack: ExitStack) -> dict[str, float]:
    program, port = stack.enter_context(connecting(box))
    seen = FloodedBox(program, box.folder, HOST, port, box.keys)
    before, before_mb = open_files(program), seen.resident_mb
    took_ms, failed, most = [], 0, 0
    with hostile(
        box, "hold socks", port, target=0, count=run.options.holders, seconds=HOLD_S
    ) as holding:
        holding.wait_ready()
        while not holding.ended:
            try:
                took_ms.append(socks_ms(port, run.bed.echo_port))
            except OSError:
                failed += 1
            most = max(most, open_files(program) - before)
            time.sleep(PAUSE_S)
        found = holding.finish()
    deadline = time.monotonic() + SETTLE_S
    while open_files(program) > before and time.monotonic() < deadline:
        time.sleep(PAUSE_S)
    return {
        "came": found["came"],
        "held at most": most,
        "s until all were closed": found["seconds"] if not found["left"] else HOLD_S,
        **served(took_ms, failed),
        LEFT: found["left"] + max(open_files(program) - before, 0),
        PEAK_MB: seen.peak_mb - before_mb,
    }


@contextlib.contextmanager
def connecting(box: FloodedBox) -> Iterator[tuple[Program, int]]:
    """Run `gateway connect -D`; give it and its port."""
    port = free_port()
    options = ("-o", "StrictHostKeyChecking=accept-new", "-o", "IdentitiesOnly=yes",
               "-o", f"UserKnownHostsFile={box.folder / 'known_hosts'}",
               "-o", "GlobalKnownHostsFile=none")  # fmt: skip
    with running(
        *GATEWAY, "connect", "-F", "none", "-N", "-D", str(port), "-p", str(box.port),
        "-i", str(key_file(box, USER)), *options, f"{USER}@{HOST}",
    ) as program:  # fmt: skip
        wait_for_proxy(program, port)
        yield program, port


def open_files(program: Program) -> int:
    """Count a program's descriptors. It is root who may look."""
    try:
        return sum(1 for _ in Path(f"/proc/{program.pid}/fd").iterdir())
    except PermissionError:
        fail("the part slow looks at /proc/PID/fd of gateway connect, which needs root")


def socks_ms(entry: int, target: int) -> float:
    began_s = time.perf_counter()
    with connect(entry, target, through_socks=True) as sock:
        sock.sendall(b"echo\n" + bytes(ECHO_BYTES))
        missing = ECHO_BYTES
        while missing:
            missing -= len(sock.recv(missing, socket.MSG_WAITALL)) or missing
        return (time.perf_counter() - began_s) * 1000


def served(took_ms: list[float], failed: int) -> dict[str, float]:
    return {
        "clients": len(took_ms) + failed,
        "refused": failed,
        CLIENT_P50: percentile(took_ms, 50),
        CLIENT_P99: percentile(took_ms, 99),
        CLIENT_MS: max(took_ms),
    }


SLOW = Measured.make(
    "slow",
    "clients that say a byte every 10 s, and one that works",
    (SSH_PORT, SOCKS_PORT),
    measure_slow,
    ("came", "held at most", "s until all were closed", "clients", "refused",
     CLIENT_P50, CLIENT_P99, CLIENT_MS, LEFT, PEAK_MB),
    {CLIENT_P99: SERVED_MS, "refused": 0.0, LEFT: 0.0, PEAK_MB: GROWTH_MB},
)  # fmt: skip


# ---- who is killed -------------------------------------------------------------------------------

KILLED = "killed clients with a listener and a channel each"


def measure_kills(run: Run, _spec: Spec) -> dict[str, float]:
    took_s, left, count = [], 0.0, run.options.kills
    with flooded_box(fresh_folder(run.bed), run.bed.echo_port) as box:
        kill_some(box, run.bed.echo_port, 1)
        box.left_over({"links": 0, "channels": 0, "listeners": 0})
        before, before_mb = box.counted(), box.resident_mb
        for done in range(0, count, KILLED_AT_ONCE):
            at_once = min(KILLED_AT_ONCE, count - done)
            there = kill_some(box, run.bed.echo_port, at_once)
            began_s = time.monotonic()
            left += left_over(box, before) + abs(there["listeners"] - at_once)
            took_s.append(time.monotonic() - began_s)
        return {
            "clients": count,
            "s until as before, p50": percentile(took_s, 50),
            KILLED_S: max(took_s),
            LEFT: left,
            PEAK_MB: box.peak_mb - before_mb,
        }


def kill_some(box: FloodedBox, target: int, count: int) -> dict[str, int]:
    """Have so many clients in a process, and kill it with SIGKILL; return the gauges before."""
    with hostile(box, "listen", target=target, count=count) as clients:
        clients.wait_ready()
        there = box.gauges()
        clients.stop()
    return there


KILLS = Measured.make(
    "kills",
    f"kill -9, {KILLED_AT_ONCE} clients at once",
    (KILLED,),
    measure_kills,
    ("clients", "s until as before, p50", KILLED_S, LEFT, PEAK_MB),
    {KILLED_S: FREE_S, LEFT: 0.0, PEAK_MB: GROWTH_MB},
)


# ---- who keeps others out ------------------------------------------------------------------------

SIEGES_OF = {
    "one source holds on": (1, False),
    "one source comes again": (1, True),
    "400 sources hold on": (2 * HOLDERS, False),
    "400 sources come again": (2 * HOLDERS, True),
}


def measure_logins(run: Run, spec: Spec) -> dict[str, float]:
    sources, come_again = SIEGES_OF[spec.name]
    if reason := why_unusable():
        fail(f"the part logins needs network namespaces: {reason}")
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(TWO_HOSTS))
        box = stack.enter_context(held_box(lab, fresh_folder(run.bed)))
        before, before_mb, cpu_s = box.counted(), box.resident_mb, cpu(box)
        took_s, failed = [], 0
        with Siege(lab, box, HOLDERS, sources=sources, come_again=come_again) as siege:
            siege.stands.wait(SETTLE_S)
            came, began_s = siege.came, time.monotonic()
            for number in range(run.options.logins):
                try:
                    took_s.append(log_in_from(lab, box, source(1000 + number)))
                except Ended:
                    failed += 1
                time.sleep(PAUSE_S)
            siege_s = time.monotonic() - began_s
            startups, came = box.gauges()["startups"], siege.came - came
        left = left_over(box, {name: before[name] for name in COUNTED})
        return {
            "logins": run.options.logins,
            "refused": failed,
            "login s p50": percentile(took_s, 50) if took_s else float("inf"),
            LOGIN: max(took_s, default=float("inf")),
            "startups": startups,
            "come again per s": came / siege_s,
            "CPU s/s": (cpu(box) - cpu_s) / siege_s,
            LEFT: left,
            PEAK_MB: box.peak_mb - before_mb,
        }


LOGINS = Measured.make(
    "logins",
    f"logins beside {HOLDERS} silent and {HOLDERS} slow clients",
    SIEGES_OF,
    measure_logins,
    ("logins", "refused", "login s p50", LOGIN, "startups", "come again per s", "CPU s/s",
     LEFT, PEAK_MB),
    {"refused": 0.0, LOGIN: LOGIN_S, LEFT: 0.0, PEAK_MB: GROWTH_MB},
    judged=("one source holds on", "400 sources hold on"),
)  # fmt: skip

SIEGES = (ABORTS, SLOW, KILLS, LOGINS)
