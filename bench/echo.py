"""Small things: an echo, a connection, a start. Nothing else is on the link meanwhile."""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from bench.figures import AT_MOST, PEER, Bar, Column, Table, percentile
from bench.programs import Spec, ask, standard_specs, start_client, wait_for_proxy
from bench.rounds import Command, Option, Part, Run

if TYPE_CHECKING:
    import argparse


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


def bars(_options: argparse.Namespace) -> list[Bar]:
    case, ssh = "connect → sshd", "ssh -D → sshd"
    return [
        Bar(case, "echo p50 µs", AT_MOST, 1.15, ssh),
        Bar(case, "connect p50 µs", AT_MOST, 1.15, ssh),
        Bar(case, "start ms", AT_MOST, 250.0, ssh, difference=True),
    ]


def columns(*measures: str) -> tuple[Column, ...]:
    return tuple(
        column
        for measure in measures
        for column in (Column(measure, measure), Column("x ssh", measure, PEER))
    )


COMMAND = Command(
    name="echo",
    what="echo, connect, the start of the program",
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
    ),
    options=(
        Option("echoes", 2000, "N", "of 64 bytes, one after the other"),
        Option("connects", 200, "N", "one after the other"),
        Option("starts", 3, "N", "of the program with the SOCKS port"),
    ),
    tables=(
        Table("echo of 64 bytes", columns("echo p50 µs", "echo p95 µs")),
        Table("connecting through SOCKS", columns("connect p50 µs", "connect p95 µs")),
        Table("from exec to the SOCKS server's first answer", columns("start ms")),
    ),
    bars=bars,
    notes=("medians of the rounds; x ssh: the median of the ratios of each round",),
    rounds=5,
    budget_s=120.0,
)
