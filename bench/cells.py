"""Tunnels over bad lines, side by side: ours, ssh -w and the kernel's WireGuard.

iperf3 and pings ─ tunnel ═► a line of a rate, a round trip and a loss ═► tunnel ─ iperf3

Each cell of the table is one line. A tunnel stays up for all cells and its line changes under it;
the three take turns in each cell. All encrypt with ChaCha20-Poly1305, as WireGuard must. It is what
scripts/test-full-kernel runs where the kernel has netem and WireGuard; the rates are low enough for
an emulated processor.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from bench import wireguard
from bench.figures import number, table
from bench.programs import Bed, Case, Line, Spec, say
from bench.rounds import ROOT, Run
from bench.tun import FAR, NEAR, OURS, SSH, measure_ping_beside_tcp, start_hosts, start_tunnel
from netns.lab import has_netem
from tests.support.programs import make_keys, running

if TYPE_CHECKING:
    from collections.abc import Sequence

CIPHER = "chacha20-poly1305@openssh.com"
WIREGUARD = "kernel WireGuard"
HEADS = ("gateway", "ssh -w", "WireGuard")
RATES_MBIT = (5.0, 20.0)
ROUND_TRIPS_MS = (0.0, 20.0, 100.0)
LOSSES_PERCENT = (0.0, 0.1, 1.0)
BUFFER_BYTES = 256 << 10
FOUND_S = 60
WORD = "upload"
BUSY = ("chrt", "--idle", "0", "sh", "-c", "while :; do :; done")
"""Where time is virtual it leaps while the processor is idle, waiting for a program's files too."""
COLUMNS = (
    ("Mbit/s", (f"beside {WORD}: Mbit/s",)),
    ("idle ms", (f"before {WORD}: ping p50 ms", f"before {WORD}: ping p99 ms")),
    ("loaded ms", (f"beside {WORD}: ping p50 ms", f"beside {WORD}: ping p99 ms")),
)

Figures = dict[str, float]


def specs(line: Line) -> list[Spec]:
    """The three, on a line to begin with."""
    return [
        Spec(OURS, "connect", "serve", CIPHER, SSH, line, starter=start_tunnel),
        Spec(SSH, "ssh", "sshd", CIPHER, line=line, starter=start_tunnel),
        Spec(WIREGUARD, "", "", line=line, starter=start_wireguard),
    ]


def start_wireguard(stack: ExitStack, bed: Bed, spec: Spec) -> Case:
    lab = start_hosts(stack, spec)
    ends = wireguard.End(lab["client"], "wg7", NEAR), wireguard.End(lab["server"], "wg8", FAR)
    wireguard.connect_in_kernel(bed.folder, ends)
    return Case(spec, 0, os.getpid(), os.getpid(), lab=lab)


def measure(run: Run, spec: Spec, line: Line) -> Figures | None:
    """The figures of one tunnel on one line, or None: it does not get through."""
    try:
        with running(*BUSY):
            lab = run.case(spec).lab
        assert lab is not None
        lab.carry("client", "server", line.in_lab)
        for _ in range(FOUND_S):
            if lab["client"].ping(FAR, timeout_s=1).received:
                break
        return measure_ping_beside_tcp(run, spec, "put")
    # What a program said while it failed is in these, as it is in tests.
    except (SystemExit, AssertionError, ValueError, subprocess.SubprocessError) as error:
        say(f"{spec.name}: {error}")
        return None


def cells_of(options: argparse.Namespace) -> list[Line]:
    chosen = itertools.product(options.rate, options.delay, options.loss)
    return [
        Line(round_trip, rate, BUFFER_BYTES, of_packets=True, loss=percent / 100)
        for rate, round_trip, percent in chosen
    ]


def cell_name(line: Line) -> str:
    return f"{line.rate_mbit:g} Mbit/s, {line.round_trip_ms:g} ms, {100 * line.loss:g} %"


def shown(found: Figures | None, measures: Sequence[str]) -> str:
    return " / ".join(number(found[measure]) for measure in measures) if found else "-"


def row(line: Line, names: Sequence[str], results: dict[str, Figures | None]) -> list[str]:
    return [cell_name(line), *(shown(results[name], measures)
                               for _, measures in COLUMNS for name in names)]  # fmt: skip


def numbers(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


def parse(arguments: list[str]) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="test-full-kernel", description=__doc__.partition("\n")[0]
    )
    for name, default, unit in (
        ("rate", RATES_MBIT, "Mbit/s"),
        ("delay", ROUND_TRIPS_MS, "ms of a round trip"),
        ("loss", LOSSES_PERCENT, "percent of each direction"),
    ):
        text = ",".join(f"{value:g}" for value in default)
        parser.add_argument(f"--{name}", type=numbers, default=list(default), metavar="N,N…",
                            help=f"{unit}; default: {text}")  # fmt: skip
    what = "of idle pings, then of pings beside an upload; default: 8"
    parser.add_argument("--seconds", type=int, default=8, metavar="S", help=what)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    if reason := wireguard.why_not("wg"):
        sys.exit(f"bench: {reason}")
    cells = cells_of(options)
    rows, complete = [], True
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-bench-")))
        bed = Bed(folder, make_keys(folder / "keys"), 0, 0, {"": ROOT}, {})
        run = Run(bed, options, stack)
        systems = specs(cells[0])
        names = [spec.name for spec in systems]
        for line in cells:
            taken = {spec.name: measure(run, spec, line) for spec in systems}
            complete = complete and all(taken.values())
            rows.append(row(line, names, taken))
            say(" | ".join(rows[-1]))
    head = ["line", *(f"{name}, {what}" for what, _ in COLUMNS for name in HEADS)]
    print(
        f"Linux {os.uname().release}, lines by {'netem' if has_netem() else 'our emulator'}, "
        f"buffer {BUFFER_BYTES >> 10} KiB, ChaCha20-Poly1305, {options.seconds} s; ms: p50 / p99"
    )
    print("\n".join(table(head, rows)))
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
