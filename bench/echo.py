"""Small things: an echo, a connection, a start, a login. Nothing else is on the link meanwhile."""

from __future__ import annotations

import getpass
import statistics
import subprocess
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from bench.figures import AT_MOST, PEER, Bar, Column, Table, percentile
from bench.programs import (
    STEP_TIMEOUT_S,
    Bed,
    Spec,
    ask,
    cpu_seconds,
    fail,
    process_tree,
    standard_specs,
    start_client,
    wait_for_proxy,
)
from bench.rounds import Command, Option, Part, Run
from tests.support.programs import client_options

if TYPE_CHECKING:
    import argparse

SSHD = "ssh logs in to sshd"
SERVE = "ssh logs in to serve"


def login_specs(bed: Bed) -> list[Spec]:
    ours = [Spec(SERVE + tree, "", "serve", peer=SSHD, tree=path)
            for tree, path in bed.trees.items()]  # fmt: skip
    return [Spec(SSHD, "", "sshd"), *ours]


def latency(run: Run, spec: Spec, task: str, count: int) -> dict[str, float]:
    took = ask(run.case(spec), task, run.bed.echo_port, count=count)["µs"]
    return {f"{task} p50 µs": percentile(took, 50), f"{task} p95 µs": percentile(took, 95)}


def begin(run: Run, spec: Spec) -> dict[str, float]:
    """From starting the program to the first answer of its SOCKS port."""
    server = run.case(spec).server
    assert server is not None
    took_ms = []
    for _ in range(run.options.starts):
        with ExitStack() as stack:
            program, port, started_s = start_client(stack, spec, server)
            wait_for_proxy(program, port)
            took_ms.append((time.perf_counter() - started_s) * 1000)
    return {"start ms": statistics.median(took_ms)}


def log_in(run: Run, spec: Spec) -> dict[str, float]:
    """Whole logins of a stock ssh, each for one forwarded connection that ends at once."""
    server = run.case(spec).server
    assert server is not None
    command = [
        "ssh",
        *client_options(server),
        "-W",
        f"127.0.0.1:{run.bed.echo_port}",
        f"{getpass.getuser()}@127.0.0.1",
    ]
    root, count = server.program.pid, run.options.logins
    before_s, took_ms = cpu_seconds(root), []
    for _ in range(count):
        started_s = time.perf_counter()
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=STEP_TIMEOUT_S,
            check=False,
        )
        took_ms.append((time.perf_counter() - started_s) * 1000)
        if done.returncode:
            fail(f"{spec.name}: {done.stderr.strip()}")
    deadline = time.monotonic() + STEP_TIMEOUT_S
    while len(process_tree(root)) > 1 and time.monotonic() < deadline:
        time.sleep(0.02)  # until each connection's process has ended and is counted
    return {
        "server ms/login": (cpu_seconds(root) - before_s) / count * 1000,
        "login p50 ms": percentile(took_ms, 50),
    }


def bars(_options: argparse.Namespace) -> list[Bar]:
    case, ssh = "connect → sshd", "ssh -D → sshd"
    return [
        Bar(case, "echo p50 µs", AT_MOST, 1.15, ssh),
        Bar(case, "connect p50 µs", AT_MOST, 1.15, ssh),
        Bar(case, "start ms", AT_MOST, 250.0, ssh, difference=True),
        Bar(SERVE, "server ms/login", AT_MOST, 1 / 3, SSHD),
    ]


def columns(*measures: str) -> tuple[Column, ...]:
    return tuple(
        column
        for measure in measures
        for column in (Column(measure, measure), Column("x ssh", measure, PEER))
    )


COMMAND = Command(
    name="echo",
    what="echo, connect, the start of the program, logins",
    parts=(
        Part(
            "echo", standard_specs, lambda run, spec: latency(run, spec, "echo", run.options.echoes)
        ),
        Part(
            "connect",
            standard_specs,
            lambda run, spec: latency(run, spec, "connect", run.options.connects),
        ),
        Part("start", standard_specs, begin),
        Part("login", login_specs, log_in),
    ),
    options=(
        Option("echoes", 2000, "N", "of 64 bytes, one after the other"),
        Option("connects", 200, "N", "one after the other"),
        Option("starts", 3, "N", "of the program with the SOCKS port"),
        Option("logins", 20, "N", "of a stock ssh"),
    ),
    tables=(
        Table("echo of 64 bytes", columns("echo p50 µs", "echo p95 µs")),
        Table("connecting through SOCKS", columns("connect p50 µs", "connect p95 µs")),
        Table("from exec to the SOCKS server's first answer", columns("start ms")),
        Table("a login", columns("server ms/login", "login p50 ms")),
    ),
    bars=bars,
    notes=("medians of the rounds; x ssh: the median of the ratios of each round",),
    rounds=5,
    budget_s=120.0,
)
