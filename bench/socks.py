"""Bulk, echo and connect through the SOCKS proxy.

client process ─ SOCKS ─► ssh -D or gateway connect ═ SSH ═► sshd or gateway serve ─► data server

Everything is on 127.0.0.1 and shares its cores, so what is measured is the work done per byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.figures import (
    AT_LEAST,
    AT_MOST,
    PEER,
    Bar,
    Column,
    Table,
    cpu_seconds_per_gb,
    percentile,
)
from bench.programs import LIMIT, SAME_CIPHER, Bed, Spec, ask, cpu_seconds, standard_specs
from bench.rounds import Command, Option, Part, Run

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

DIRECTIONS = {"get": "get (far end → client)", "put": "put (client → far end)"}
ECHOES = 200
CONNECTS = 20


def specs(bed: Bed) -> list[Spec]:
    same = standard_specs(bed, SAME_CIPHER, ", same cipher")
    return [*same, *standard_specs(bed, "", ", defaults"), Spec(LIMIT, "", "")]


def through_socks(bed: Bed) -> list[Spec]:
    """A relay accepts before it has reached the target, so that connecting says nothing."""
    return [spec for spec in specs(bed) if spec.name != LIMIT]


def bulk(run: Run, spec: Spec, direction: str) -> dict[str, float]:
    case, size = run.case(spec), run.options.size * 1_000_000
    sides = {"client": case.client_pid, "server": case.server_pid}
    before = {side: cpu_seconds(pid) for side, pid in sides.items()}
    found = {f"{direction} MB/s": ask(case, direction, run.bed.bulk_port, count=size)["MB/s"]}
    for side, pid in sides.items():
        found[f"{direction} {side} s/GB"] = cpu_seconds_per_gb(before[side], cpu_seconds(pid), size)
    return found


def latency(run: Run, spec: Spec, task: str, count: int) -> dict[str, float]:
    took = ask(run.case(spec), task, run.bed.echo_port, count=count)["µs"]
    return {f"{task} µs": percentile(took, 50)}


def bulk_part(direction: str, specs: Callable[[Bed], list[Spec]] = specs) -> Part:
    return Part(direction, specs, lambda run, spec: bulk(run, spec, direction))


def bulk_table(direction: str, head: str, *, with_limit: bool = True) -> Table:
    columns = [
        Column("MB/s", f"{direction} MB/s"),
        Column("x ssh", f"{direction} MB/s", PEER, of_medians=True),
        Column("per round", f"{direction} MB/s", PEER),
    ]
    if with_limit:
        columns.append(Column("x relays", f"{direction} MB/s", LIMIT))
    for side in ("client", "server"):
        columns += [
            Column(f"{side} s/GB", f"{direction} {side} s/GB"),
            Column("x ssh", f"{direction} {side} s/GB", PEER),
        ]
    return Table(head, tuple(columns))


def bars(_options: argparse.Namespace) -> list[Bar]:
    same, defaults = "ssh -D → sshd, same cipher", "ssh -D → sshd, defaults"
    found = []
    for direction in DIRECTIONS:
        rate, client = f"{direction} MB/s", f"{direction} client s/GB"
        found += [
            Bar("connect → sshd, same cipher", rate, AT_LEAST, 1.0, same),
            Bar("connect → serve, same cipher", rate, AT_LEAST, 1.4, same),
            Bar("connect → serve, same cipher", rate, AT_LEAST, 0.75, LIMIT),
            Bar("connect → serve, defaults", rate, AT_LEAST, 1.9, defaults),
            Bar("connect → sshd, same cipher", client, AT_MOST, 1.0, same),
        ]
    return found


COMMAND = Command(
    name="socks",
    what="bulk, echo and connect through the SOCKS proxy",
    parts=(
        bulk_part("get"),
        bulk_part("put"),
        Part("echo", specs, lambda run, spec: latency(run, spec, "echo", ECHOES)),
        Part("connect", through_socks, lambda run, spec: latency(run, spec, "connect", CONNECTS)),
    ),
    options=(Option("size", 256, "MB", "a transfer"),),
    tables=(
        *(bulk_table(direction, head) for direction, head in DIRECTIONS.items()),
        Table(
            "latency, p50",
            (
                Column("echo µs", "echo µs"),
                Column("x ssh", "echo µs", PEER),
                Column("connect µs", "connect µs"),
                Column("x ssh", "connect µs", PEER),
            ),
        ),
    ),
    bars=bars,
    notes=(
        "medians; size in MB; MB = 10^6, GB = 10^9 bytes",
        "x ssh: the ratio of the medians, and the median of the ratios of each round",
    ),
    rounds=5,
    budget_s=65.0,
)
