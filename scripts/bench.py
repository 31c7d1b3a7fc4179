"""How fast we are, always next to a peer in the same run: absolute figures mean little, ratios do.

client process ─ SOCKS ─► ssh -D or gateway connect ═ SSH ═► sshd or gateway serve ─► data server

Everything is on 127.0.0.1 and shares its cores, so what is measured is the work done per byte. The
cases take turns, round by round, so that what disturbs the machine disturbs all of them.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from bench_figures import Comparison, below, compare, cpu_seconds_per_gb, table
from bench_relay import relay_command

from gateway.ssh.algorithms import DEFAULT_CIPHERS
from tests.support.programs import (
    GATEWAY,
    READY_TIMEOUT_S,
    Endpoint,
    Program,
    client_options,
    make_keys,
    running,
    running_gateway_serve,
    running_sshd,
    sshd_path,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

SAME_CIPHER = "aes128-gcm@openssh.com"
BAR = 0.8  # bulk through a stock sshd, against ssh -D
ENDS = [sys.executable, "-IS", str(Path(__file__).with_name("bench_ends.py"))]
DIRECTIONS = ("get", "put")
DIRECTION_NAMES = {"get": "get (far end → client)", "put": "put (client → far end)"}
WARM_UP_BYTES = 16_000_000
ECHOES = 200
CONNECTS = 20
STEP_TIMEOUT_S = 60.0
DEFAULT_ROUNDS = 5
TIME_BUDGET_S = 65.0  # no further round after it, unless a number of rounds was asked for

# Case name → the case it is compared with.
PEERS = {
    "connect → sshd, same cipher": "ssh -D → sshd, same cipher",
    "connect → sshd, defaults": "ssh -D → sshd, defaults",
    "connect → serve, same cipher": "ssh -D → sshd, same cipher",
    "connect → serve, defaults": "ssh -D → sshd, defaults",
}
LIMIT = "two TCP relays"
BARRED = "connect → sshd, same cipher"


@dataclass(frozen=True)
class Case:
    """A way from the client to the data server. ``pids``: its processes, with what they start."""

    name: str
    entry_port: int
    through_socks: bool
    client_pid: int
    server_pid: int


# ---- processor time ------------------------------------------------------------------------------


def process_tree(root: int) -> list[int]:
    """A process and all below it."""
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                waiting += [int(child) for child in task.read_text().split()]
            except OSError:
                continue
    return found


def cpu_seconds(root: int) -> float:
    """Processor time of a process tree so far, with that of its children that have ended."""
    tick = os.sysconf("SC_CLK_TCK")
    total = 0.0
    for pid in process_tree(root):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            utime, stime, ended_utime, ended_stime = map(int, fields[11:15])
        except OSError:
            continue  # it ended between the two looks
        total += (exact_seconds(pid) or (utime + stime) / tick) + (ended_utime + ended_stime) / tick
    return total


def exact_seconds(pid: int) -> float:
    """The same in nanoseconds where the kernel tells: utime and stime count in 10 ms."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").glob("*/schedstat"))
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9
    except OSError:
        return 0.0


# ---- the programs --------------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def wait_for_port(program: Program, port: int) -> None:
    """Connect until somebody listens: ssh says nothing when it is ready."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    fail("no SOCKS proxy came up:\n" + "\n".join(program.lines))


def start_proxy(stack: ExitStack, command: list[str], server: Endpoint, cipher: str) -> Case:
    """Start `ssh` or `gateway connect`; both take the same options."""
    port = free_port()
    options = ["-o", f"Ciphers={cipher}"] if cipher else []
    where = f"{getpass.getuser()}@127.0.0.1"
    program = stack.enter_context(
        running(*command, "-N", "-D", str(port), *client_options(server), *options, where)
    )
    wait_for_port(program, port)
    return Case("", port, True, program.pid, server.program.pid)


def start_relays(stack: ExitStack, target_port: int, folder: Path) -> tuple[Case, str]:
    language, command = relay_command(folder)
    ports, programs = [target_port], []
    for _ in range(2):
        program = stack.enter_context(running(*command, str(ports[-1])))
        programs.append(program)
        ports.append(int(program.wait_line(r"listening on (\d+)")[1]))
    case = Case(LIMIT, ports[-1], False, programs[1].pid, programs[0].pid)
    return case, language


@contextmanager
def tree_of(path: Path) -> Iterator[None]:
    """Programs started inside run this tree's gateway, not the one installed in .venv."""
    before = dict(os.environ)
    os.environ.update(PYTHONPATH=str(path), PYTHONSAFEPATH="1")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def start_cases(
    stack: ExitStack, folder: Path, target_port: int, trees: dict[str, Path]
) -> tuple[list[Case], str]:
    """Start everything; it runs until the stack is left. ``trees``: a suffix and where it is."""
    keys = make_keys(folder / "keys")
    connect = [*GATEWAY, "connect"]
    cases: list[Case] = []

    def add(name: str, command: list[str], server: Endpoint, cipher: str) -> None:
        found = start_proxy(stack, command, server, cipher)
        cases.append(Case(name, found.entry_port, True, found.client_pid, found.server_pid))

    for kind, cipher in (("same cipher", SAME_CIPHER), ("defaults", "")):
        sshd = [stack.enter_context(running_sshd(keys)) for _ in range(1 + len(trees))]
        add(f"ssh -D → sshd, {kind}", ["ssh"], sshd[0], cipher)
        for server, (suffix, path) in zip(sshd[1:], trees.items(), strict=True):
            with tree_of(path):
                add(f"connect → sshd, {kind}{suffix}", connect, server, cipher)
                serve = stack.enter_context(running_gateway_serve(keys))
                add(f"connect → serve, {kind}{suffix}", connect, serve, cipher)
    limit, language = start_relays(stack, target_port, folder)
    return [*cases, limit], language


# ---- measuring -----------------------------------------------------------------------------------


def ask_client(case: Case, task: str, target_port: int, count: int) -> float:
    request = {
        "task": task,
        "entry": case.entry_port,
        "target": target_port,
        "through_socks": case.through_socks,
        "count": count,
    }
    try:
        done = subprocess.run(
            [*ENDS, "client", json.dumps(request)],
            capture_output=True,
            text=True,
            timeout=STEP_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        fail(f"{task} through {case.name}: not done within {STEP_TIMEOUT_S:.0f} s")
    if done.returncode:
        fail(f"{task} through {case.name}: {done.stderr.strip().splitlines()[-1]}")
    return float(json.loads(done.stdout))


Results = dict[str, dict[str, list[float]]]
"""Measure ("get MB/s") → case name → one figure for each round."""


def measure_round(cases: list[Case], target_port: int, size: int, results: Results) -> None:
    def note(measure: str, case: Case, figure: float) -> None:
        results.setdefault(measure, {}).setdefault(case.name, []).append(figure)

    for direction in DIRECTIONS:
        for case in cases:
            client_s, server_s = cpu_seconds(case.client_pid), cpu_seconds(case.server_pid)
            note(f"{direction} MB/s", case, ask_client(case, direction, target_port, size))
            client_now_s, server_now_s = cpu_seconds(case.client_pid), cpu_seconds(case.server_pid)
            note(f"{direction} client", case, cpu_seconds_per_gb(client_s, client_now_s, size))
            note(f"{direction} server", case, cpu_seconds_per_gb(server_s, server_now_s, size))
    for task, count in (("echo", ECHOES), ("connect", CONNECTS)):
        for case in cases:
            if task == "connect" and not case.through_socks:
                continue  # a relay accepts before it has reached the target
            note(f"{task} µs", case, ask_client(case, task, target_port, count))


# ---- the report ----------------------------------------------------------------------------------


def peer_of(name: str) -> str | None:
    """The peer of a case, also of one in another tree: its name has a suffix."""
    for own, peer in PEERS.items():
        if name.startswith(own):
            return peer
    return None


def machine_facts(relay_language: str) -> dict[str, str]:
    version = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=False).stderr
    asked = subprocess.run(
        ["ssh", "-G", "-F", "none", "localhost"], capture_output=True, text=True, check=False
    ).stdout
    kernel = ".".join(platform.release().split(".")[:2])
    lists = [line.split()[1] for line in asked.splitlines() if line.startswith("ciphers ")]
    return {
        "machine": f"{os.cpu_count()} cores, Linux {kernel}, Python {platform.python_version()}",
        "congestion control": Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
        "peer": version.split(",")[0].strip(),
        "same cipher": SAME_CIPHER,
        "default ciphers": f"ssh {''.join(lists).split(',')[0]}, gateway {DEFAULT_CIPHERS[0]}",
        "relays": f"in {relay_language}, a process for each direction",
    }


def comparisons(results: Results, measure: str) -> dict[str, Comparison]:
    figures = results[measure]
    return {
        name: compare(own, figures[peer])
        for name, own in figures.items()
        if (peer := peer_of(name)) is not None
    }


def report(results: Results, facts: dict[str, str], size: int, rounds: int) -> list[str]:
    lines = [f"{name}: {fact}" for name, fact in facts.items()]
    lines.append(f"{rounds} rounds of {size // 1_000_000} MB; medians; MB = 10^6, GB = 10^9 bytes")
    lines.append("x ssh: the ratio of the medians, and the median of the ratios of each round")
    for direction in DIRECTIONS:
        head = [
            DIRECTION_NAMES[direction],
            "MB/s",
            "x ssh",
            "per round",
            "x relays",
            "client s/GB",
            "x ssh",
            "server s/GB",
            "x ssh",
        ]
        lines += ["", *table(head, [bulk_row(results, direction, name) for name in
                                    results[f"{direction} MB/s"]])]  # fmt: skip
    head = ["latency, p50", "echo µs", "x ssh", "connect µs", "x ssh"]
    rows = []
    for name in results["echo µs"]:
        row = [name]
        for measure in ("echo µs", "connect µs"):
            figures = results[measure].get(name)
            row.append(f"{statistics.median(figures):.0f}" if figures else "")
            row.append(ratio(results, measure, name))
        rows.append(row)
    return [*lines, "", *table(head, rows)]


def bulk_row(results: Results, direction: str, name: str) -> list[str]:
    measure = f"{direction} MB/s"
    found = comparisons(results, measure).get(name)
    limit = compare(results[measure][name], results[measure][LIMIT])
    row = [
        name,
        f"{limit.median:.0f}",
        f"{found.ratio_of_medians:.2f}" if found else "",
        f"{found.median_of_ratios:.2f}" if found else "",
        f"{limit.median_of_ratios:.2f}",
    ]
    for side in ("client", "server"):
        measure = f"{direction} {side}"
        row.append(f"{statistics.median(results[measure][name]):.2f}")
        row.append(ratio(results, measure, name))
    return row


def ratio(results: Results, measure: str, name: str) -> str:
    found = comparisons(results, measure).get(name)
    return f"{found.median_of_ratios:.2f}" if found else ""


def as_json(results: Results, facts: dict[str, str], size: int, rounds: int) -> str:
    compared = {
        measure: {name: asdict(found) for name, found in comparisons(results, measure).items()}
        for measure in results
    }
    document = {"facts": facts, "bytes": size, "rounds": rounds, "figures": results,
                "against_ssh": compared}  # fmt: skip
    return json.dumps(document, indent=1, ensure_ascii=False)


def missed(results: Results) -> list[str]:
    """The directions in which bulk through a stock sshd misses the bar."""
    found = {
        direction: comparisons(results, f"{direction} MB/s")[BARRED] for direction in DIRECTIONS
    }
    return [
        f"{name}: {found[name].median_of_ratios:.2f} x ssh -D, the bar is {BAR}"
        for name in below(found, BAR)
    ]


# ---- the command ---------------------------------------------------------------------------------


def fail(problem: str) -> NoReturn:
    sys.exit(f"bench: {problem}")


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def chosen(cases: list[Case], only: str) -> list[Case]:
    """The cases with a text in their names, their peers, and the limit."""
    named = {case.name for case in cases if only in case.name}
    wanted = named | {peer_of(name) for name in named} | {LIMIT}
    return [case for case in cases if case.name in wanted]


def socks(options: argparse.Namespace) -> int:
    trees = {"": Path(__file__).resolve().parent.parent}
    trees |= {f" [{path.name}]": path.resolve() for path in options.tree}
    size = options.size * 1_000_000
    results: Results = {}
    started_s = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-bench-")))
        data_server = stack.enter_context(running(*ENDS, "server"))
        target_port = int(data_server.wait_line(r"listening on (\d+)")[1])
        say("starting the programs")
        cases, language = start_cases(stack, folder, target_port, trees)
        cases = chosen(cases, options.only)
        measure_round(cases, target_port, WARM_UP_BYTES, {})
        rounds = 0
        while rounds < (options.rounds or DEFAULT_ROUNDS):
            measure_round(cases, target_port, size, results)
            rounds += 1
            say(f"round {rounds} done")
            if not options.rounds and time.monotonic() - started_s > TIME_BUDGET_S:
                break
    facts = machine_facts(language)
    if options.json:
        print(as_json(results, facts, size, rounds))
    else:
        print("\n".join(report(results, facts, size, rounds)))
    problems = missed(results) if options.check else []
    for problem in problems:
        say(problem)
    return 1 if problems else 0


ROUNDS_HELP = f"default: {DEFAULT_ROUNDS}, fewer if they take over a minute"


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="BENCH")
    command = commands.add_parser("socks", help="bulk, echo and connect through the SOCKS proxy")
    command.set_defaults(run=socks)
    command.add_argument("--rounds", type=positive, metavar="N", help=ROUNDS_HELP)
    command.add_argument(
        "--size", type=positive, default=256, metavar="MB", help="a transfer; default: 256"
    )
    command.add_argument("--json", action="store_true", help="print every figure as JSON")
    command.add_argument(
        "--check", action="store_true", help=f"fail below {BAR} x ssh -D through a stock sshd"
    )
    command.add_argument(
        "--only", default="", metavar="TEXT", help="only cases named so, and their peers"
    )
    command.add_argument(
        "--tree",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="measure the gateway of another working tree too, in the same rounds",
    )
    options = parser.parse_args()
    if options.check and options.only and options.only not in BARRED:
        fail(f"--check needs the case {BARRED!r}, which --only leaves out")
    if sshd_path() is None or shutil.which("ssh") is None:
        fail("ssh and sshd are needed as peers: apt-get install openssh-client openssh-server")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # so that every program is ended
    return int(options.run(options))


if __name__ == "__main__":
    sys.exit(main())
