"""A long way between client and server: one fast and long, one slow with a deep buffer.

client ─ SOCKS ─► ssh -D or gateway connect ═► delay relay ═► sshd or gateway serve ─► data server

A transfer is cut after a time and its bytes are counted where they arrive, so that its beginning
counts as much as it does in a transfer of that length: a download's clock runs from the request on,
an upload's from the request's arrival. Echoes are sent by the clock, not when the last one is back.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from bench.figures import AT_LEAST, AT_MOST, PEER, Bar, Column, Table, percentile
from bench.load import Mix, echo_beside_bulk, settle
from bench.programs import Bed, Line, Spec, ask, say, standard_specs
from bench.rounds import Command, Option, Part, Run
from netns.lab import why_no_lines

if TYPE_CHECKING:
    import argparse

LONG = Line(round_trip_ms=100, rate_mbit=0, buffer_bytes=256 << 20)
SLOW = Line(round_trip_ms=40, rate_mbit=20, buffer_bytes=256 << 10)
SLOW_MB_PER_S = 20 / 8
ECHO_INTERVAL_S = 0.06  # more than a round trip: sshd leaves Nagle's algorithm on
DIRECTIONS = {"get": "download", "put": "upload"}
SLOW_NAMES = {f"20 Mbit/s, {word}": direction for direction, word in DIRECTIONS.items()}
WIRE = replace(SLOW, of_packets=True)
WIRE_NAMES = {f"20 Mbit/s of packets, {word}": direction for direction, word in DIRECTIONS.items()}


def long_specs(bed: Bed) -> list[Spec]:
    return standard_specs(bed, line=LONG)


def slow_specs(bed: Bed) -> list[Spec]:
    return standard_specs(bed, line=SLOW)


def wire_specs(bed: Bed) -> list[Spec]:
    reason = why_no_lines()
    if reason is not None:
        say(f"no line of packets on this machine: {reason}")
        return []
    return standard_specs(bed, line=WIRE)


def measure_long(run: Run, spec: Spec, direction: str) -> dict[str, float]:
    case, seconds = run.case(spec), float(run.options.seconds)
    found = ask(case, f"bulk {direction}", run.bed.bulk_port, seconds=seconds)
    settle(case, run.bed, LONG.round_trip_ms)
    return {f"100 ms, {DIRECTIONS[direction]} MB/s": found["bytes"][0] / seconds / 1e6}


def measure_slow(run: Run, spec: Spec, name: str, direction: str) -> dict[str, float]:
    mix = Mix(bulk=1, echo=1, seconds=float(run.options.seconds), interval_s=ECHO_INTERVAL_S)
    found = echo_beside_bulk(run.case(spec), run.bed, direction, mix)
    settle(run.case(spec), run.bed, percentile(found.alone_ms, 50))
    return {
        f"{name}: idle p50 ms": percentile(found.alone_ms, 50),
        f"{name}: echo p50 ms": percentile(found.loaded_ms, 50),
        f"{name}: echo p95 ms": percentile(found.loaded_ms, 95),
        f"{name}: bulk MB/s": found.bulk_mb_per_s,
        f"{name}: of the line": found.bulk_mb_per_s / SLOW_MB_PER_S,
    }


def long_part(direction: str) -> Part:
    name = f"long {direction}"
    return Part(name, long_specs, lambda run, spec: measure_long(run, spec, direction))


def slow_parts() -> list[Part]:
    return [
        Part(f"slow {direction}", slow_specs, partial(measure_slow, name=name, direction=direction))
        for name, direction in SLOW_NAMES.items()
    ] + [
        Part(f"wire {direction}", wire_specs, partial(measure_slow, name=name, direction=direction))
        for name, direction in WIRE_NAMES.items()
    ]


def long_table() -> Table:
    columns = []
    for word in DIRECTIONS.values():
        rate = f"100 ms, {word} MB/s"
        columns += [Column(f"{word} MB/s", rate), Column("x ssh", rate, PEER)]
    return Table("a round trip of 100 ms, no other limit", tuple(columns))


def slow_table(name: str) -> Table:
    return Table(
        f"{name}, 40 ms, 256 KiB",
        (
            Column("idle p50 ms", f"{name}: idle p50 ms"),
            Column("loaded p50 ms", f"{name}: echo p50 ms"),
            Column("loaded p95 ms", f"{name}: echo p95 ms"),
            Column("bulk MB/s", f"{name}: bulk MB/s"),
            Column("of the line", f"{name}: of the line"),
            Column("x ssh", f"{name}: bulk MB/s", PEER),
        ),
    )


def bars(_options: argparse.Namespace) -> list[Bar]:
    ssh = "ssh -D → sshd"
    ours = ("connect → sshd", "connect → serve")
    found = []
    for direction, word in DIRECTIONS.items():
        for case in ours:
            limit = 0.95 if (direction, case) == ("put", "connect → sshd") else 5.0
            found.append(Bar(case, f"100 ms, {word} MB/s", AT_LEAST, limit, ssh))
    for name in (*SLOW_NAMES, *WIRE_NAMES):
        for case in ours:
            echo, idle = f"{name}: echo p95 ms", f"{name}: idle p50 ms"
            found.append(Bar(case, echo, AT_MOST, 3.0, against_measure=idle))
            found.append(Bar(case, f"{name}: bulk MB/s", AT_LEAST, 0.9, ssh))
    return found


COMMAND = Command(
    name="path",
    what="bulk over a long path; echo beside bulk over a slow one",
    parts=(long_part("get"), long_part("put"), *slow_parts()),
    options=(Option("seconds", 6, "S", "how long each transfer is measured"),),
    tables=(long_table(), *(slow_table(name) for name in (*SLOW_NAMES, *WIRE_NAMES))),
    bars=bars,
    notes=(
        "medians; x ssh: the median of the ratios of each round; MB = 10^6 bytes",
        "a transfer is cut after its time; bytes are counted where they arrive",
        "of packets: TCP (CUBIC, or Reno) is end to end, and a full buffer drops",
    ),
    rounds=3,
    budget_s=600.0,
)
