"""Many streams, and readers who do not read: what is shared fairly, and memory.

Memory is measured with programs of their own in each round, since what a process once had it keeps.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from bench.figures import AT_LEAST, AT_MOST, PEER, Bar, Column, Table, divide, percentile
from bench.load import Mix, echo_beside_bulk, settle
from bench.path import SLOW
from bench.programs import Case, Client, Line, Spec, client, memory_mb, standard_specs, start
from bench.rounds import Command, Option, Part, Run

if TYPE_CHECKING:
    import argparse
    from typing import Any

# Where and which way: on this machine, where the processor is what is shared, and over a slow line.
FAIR: dict[str, tuple[str, str, Line | None]] = {
    "fair get": ("downloads", "get", None),
    "fair put": ("uploads", "put", None),
    "slow fair get": ("downloads at 20 Mbit/s", "get", SLOW),
    "slow fair put": ("uploads at 20 Mbit/s", "put", SLOW),
}
BULK, ECHO = 20, 5
ECHO_INTERVAL_S = 0.01
SAMPLE_S = 0.1


# ---- fairness ------------------------------------------------------------------------------------


def fair(run: Run, spec: Spec, part: str) -> dict[str, float]:
    name, direction, _ = FAIR[part]
    mix = Mix(BULK, ECHO, float(run.options.seconds), ECHO_INTERVAL_S)
    with ExitStack() as stack:
        if spec.line is None:
            found = echo_beside_bulk(run.case(spec), run.bed, direction, mix)
            settle(run.case(spec), run.bed, percentile(found.alone_ms, 50))
        else:  # what so many streams leave under way would take longer than a new start
            found = echo_beside_bulk(start(stack, run.bed, spec), run.bed, direction, mix)
    mean = sum(found.stream_bytes) / len(found.stream_bytes)
    return {
        f"{name}: slowest of mean": divide(min(found.stream_bytes), mean),
        f"{name}: MB/s": found.bulk_mb_per_s,
        f"{name}: echo alone p95 ms": percentile(found.alone_ms, 95),
        f"{name}: echo p95 ms": percentile(found.loaded_ms, 95),
    }


# ---- memory --------------------------------------------------------------------------------------


def memory(case: Case) -> dict[str, float]:
    """Of both programs; the processes of sshd share pages."""
    kind = "Pss" if case.spec.server == "sshd" else "Rss"
    found = {"server": memory_mb(case.server_pid, kind)}
    if case.spec.client:
        found["client"] = memory_mb(case.client_pid, "Rss")
    return found


def growth_while(case: Case, measuring: Client) -> tuple[dict[str, float], dict[str, Any]]:
    """By how much each program grew at most until the measuring client was done, and its result."""
    before = most = memory(case)
    while not measuring.ended:
        time.sleep(SAMPLE_S)
        most = {side: max(most[side], now) for side, now in memory(case).items()}
    return {side: most[side] - before[side] for side in most}, measuring.finish()


def streams(run: Run, spec: Spec) -> dict[str, float]:
    with ExitStack() as stack:
        case = start(stack, run.bed, spec)
        holding = client(case, "hold", run.bed.echo_port, streams=run.options.streams)
        with holding:
            holding.wait_ready()
            found = memory(case)
            holding.finish()
    return {f"streams: {side} MB": figure for side, figure in found.items()}


def stop(run: Run, spec: Spec) -> dict[str, float]:
    """A reader that stops after a tenth, and compares every byte."""
    options = run.options
    size = options.size * 1_000_000
    with ExitStack() as stack:
        case = start(stack, run.bed, spec)
        reading = client(
            case,
            "stalled",
            run.bed.bulk_port,
            count=size,
            read_first=size // 10,
            pause_s=options.pause,
        )
        with reading:
            found, _ = growth_while(case, reading)
    return {f"stopped reader: {side} +MB": figure for side, figure in found.items()}


def slow(run: Run, spec: Spec) -> dict[str, float]:
    options = run.options
    with ExitStack() as stack:
        case = start(stack, run.bed, spec)
        reading = client(
            case,
            "slow",
            run.bed.bulk_port,
            streams=options.readers,
            seconds=options.slow,
        )
        with reading:
            found, _ = growth_while(case, reading)
    return {f"slow readers: {side} +MB": figure for side, figure in found.items()}


# ---- the command ---------------------------------------------------------------------------------


def fair_part(part: str) -> Part:
    line = FAIR[part][2]
    return Part(
        part,
        lambda bed: standard_specs(bed, line=line),
        lambda run, spec: fair(run, spec, part),
        is_fresh=line is not None,
    )


def fair_table(name: str) -> Table:
    return Table(
        f"{BULK} {name} and {ECHO} echo streams",
        (
            Column("slowest of mean", f"{name}: slowest of mean"),
            Column("MB/s", f"{name}: MB/s"),
            Column("x ssh", f"{name}: MB/s", PEER),
            Column("echo alone p95 ms", f"{name}: echo alone p95 ms"),
            Column("echo p95 ms", f"{name}: echo p95 ms"),
        ),
    )


def memory_table(head: str, name: str, unit: str) -> Table:
    sides = ("client", "server")
    return Table(head, tuple(Column(f"{side} {unit}", f"{name}: {side} {unit}") for side in sides))


def bars(options: argparse.Namespace) -> list[Bar]:
    ours = ("connect → sshd", "connect → serve")
    found = []
    for name, _, _ in FAIR.values():
        for case in ours:
            alone, loaded = f"{name}: echo alone p95 ms", f"{name}: echo p95 ms"
            found.append(Bar(case, f"{name}: slowest of mean", AT_LEAST, 0.7))
            found.append(Bar(case, loaded, AT_MOST, 5.0, against_measure=alone))
    found += [Bar(case, "streams: client MB", AT_MOST, 70.0) for case in ours]
    for what in ("stopped reader", "slow readers"):
        found += [Bar(case, f"{what}: client +MB", AT_MOST, options.budget) for case in ours]
        found.append(Bar("connect → serve", f"{what}: server +MB", AT_MOST, options.budget))
    return found


COMMAND = Command(
    name="many",
    what="many streams: fairness, memory, readers that do not read",
    parts=(
        *(fair_part(part) for part in FAIR),
        Part("streams", standard_specs, streams, is_fresh=True),
        Part("stop", standard_specs, stop, is_fresh=True),
        Part("slow", standard_specs, slow, is_fresh=True),
    ),
    options=(
        Option("seconds", 3, "S", "of echoes beside bulk"),
        Option("streams", 1000, "N", "idle, on one link"),
        Option("size", 1000, "MB", "for the reader that stops"),
        Option("pause", 20, "S", "how long it stops"),
        Option("readers", 500, "N", "slow ones: 1 KB/s each"),
        Option("slow", 8, "S", "how long they read"),
        Option("budget", 64, "MB", "by how much a program may grow for readers that do not read"),
    ),
    tables=(
        *(fair_table(name) for name, _, _ in FAIR.values()),
        memory_table("idle streams on one link", "streams", "MB"),
        memory_table("a reader that stops", "stopped reader", "+MB"),
        memory_table("slow readers", "slow readers", "+MB"),
    ),
    bars=bars,
    notes=("medians; MB = 10^6 bytes; resident memory, of sshd's processes the proportional set",),
    rounds=3,
    budget_s=900.0,
)
