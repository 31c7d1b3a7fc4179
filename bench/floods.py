"""`gateway serve` and peers that ask for as much as they can: memory, descriptors, tasks, others.

Each flood has a server of its own, with the limits that everybody gets and its audit log on. Beside
it another user's echoes go through another link, before the flood and during it. What the server
has now it says itself, when it gets SIGUSR1.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import trio

from bench.ends import ECHO_BYTES
from bench.figures import AT_MOST, Bar, Column, Table, percentile
from bench.links import OneKey, log_in
from bench.programs import SAME_CIPHER, Client, Spec, cpu_seconds
from bench.rounds import Command, Option, Part, Run
from bench.sieges import GROWTH_MB, LEFT, PEAK_MB, SIEGES, fresh_folder, hostile
from gateway.net.stream import ChannelStream
from gateway.ssh.algorithms import Preferences
from gateway.ssh.messages import DirectTcpip
from gateway.ssh.protocol import ClientSetup
from gateway.ssh.windows import Budget
from tests.support.flooded import HOST, USER, flooded_box
from tests.support.floods import floods

if TYPE_CHECKING:
    import argparse
    from typing import Any

    from bench.programs import Bed
    from tests.support.flooded import FloodedBox

IDLE_S = 3.0
ECHO_EVERY_S = 0.005
SAMPLE_S = 0.5
SETTLE_S = 60.0
P99_MS = 500.0
P99 = "echo p99 ms, flood"
IDLE_P99 = "echo p99 ms, idle"


# ---- the user who behaves ------------------------------------------------------------------------


class Echoes:
    """Echoes of one user, on a link and a channel of its own, every 5 ms at most."""

    def __init__(self, stream: ChannelStream) -> None:
        self._stream = stream
        self._took_ms: list[float] = []

    async def run(self) -> None:
        """Go on until cancelled."""
        data = bytes(ECHO_BYTES)
        await self._stream.send_all(b"echo\n")
        while True:
            began_s = time.perf_counter()
            await self._stream.send_all(data)
            missing = ECHO_BYTES
            while missing:
                missing -= len(await self._stream.receive_some(missing))
            self._took_ms.append((time.perf_counter() - began_s) * 1000)
            await trio.sleep(ECHO_EVERY_S)

    def take(self) -> list[float]:
        """Return the milliseconds of each since the last call."""
        taken, self._took_ms = self._took_ms, []
        return taken


async def begin_echoes(nursery: trio.Nursery, box: FloodedBox, echo_port: int) -> Echoes:
    """Log in, open the channel, and begin."""
    key = box.keys[USER]
    setup = ClientSetup(
        USER, (key.public,), preferences=Preferences(ciphers=(SAME_CIPHER,)), budget=Budget()
    )
    link = await log_in(nursery, box.port, setup, OneKey(key))
    port = await link.open_channel("direct-tcpip", DirectTcpip(HOST, echo_port, HOST, 0).encode())
    echoes = Echoes(ChannelStream(port))
    nursery.start_soon(echoes.run)
    return echoes


# ---- a flood -------------------------------------------------------------------------------------


async def watch(box: FloodedBox, flooding: Client) -> dict[str, int]:
    """Return the most of each gauge until the flood is over."""
    most: dict[str, int] = {}
    while not flooding.ended:
        gauges = await trio.to_thread.run_sync(box.gauges)
        most = {name: max(count, most.get(name, 0)) for name, count in gauges.items()}
        await trio.sleep(SAMPLE_S)
    return most


async def beside(box: FloodedBox, echo_port: int, request: dict[str, Any]) -> dict[str, float]:
    pid = box.program.pid
    async with trio.open_nursery() as nursery:
        echoes = await begin_echoes(nursery, box, echo_port)
        await trio.sleep(min(IDLE_S, request["seconds"]))
        idle_ms = echoes.take()
        before, before_mb = await trio.to_thread.run_sync(box.counted), box.resident_mb
        with hostile(box, "flood", target=echo_port, **request) as flooding:
            cpu_s, began_s = cpu_seconds(pid), time.monotonic()
            most = await watch(box, flooding)
            flood_ms = echoes.take()
            found = flooding.finish()
        cpu_s = (cpu_seconds(pid) - cpu_s) / (time.monotonic() - began_s)
        ended_s = time.monotonic()
        more = await trio.to_thread.run_sync(box.left_over, before, SETTLE_S)
        settled_s = time.monotonic() - ended_s
        nursery.cancel_scope.cancel()
    figures = {
        "thousands said": found["said"] / 1000,
        "per second": found["said"] / found["seconds"],
        "links": found["links"],
        "MB before": before_mb,
        PEAK_MB: box.peak_mb - before_mb,
        "+MB after": box.resident_mb - before_mb,
        "CPU s/s": cpu_s,
        "echo p50 ms, idle": percentile(idle_ms, 50),
        "echo p50 ms, flood": percentile(flood_ms, 50),
        IDLE_P99: percentile(idle_ms, 99),
        P99: percentile(flood_ms, 99),
        LEFT: sum(more.values()) + found["unended"],
        "s until as before": settled_s,
    }
    for name in ("descriptors", "tasks", "channels", "startups"):
        figures |= {f"{name} before": before[name], f"{name} at most": most[name],
                    f"{name} after": before[name] + more.get(name, 0)}  # fmt: skip
    return figures


def measure(run: Run, spec: Spec) -> dict[str, float]:
    echo_port = run.bed.echo_port
    flood = floods((HOST, echo_port))[spec.name]
    request: dict[str, Any] = {
        "name": flood.name,
        "count": flood.count,
        "seconds": float(run.options.seconds),
    }
    with flooded_box(fresh_folder(run.bed), echo_port) as box:
        return trio.run(beside, box, echo_port, request)


# ---- the command ---------------------------------------------------------------------------------


def flood_specs(_bed: Bed) -> list[Spec]:
    return [Spec(name, "", "serve") for name in floods((HOST, 0))]


def bars(_options: argparse.Namespace) -> list[Bar]:
    found = []
    for name in floods((HOST, 0)):
        found.append(Bar(name, LEFT, AT_MOST, 0))
        found.append(Bar(name, PEAK_MB, AT_MOST, GROWTH_MB))
        found.append(Bar(name, P99, AT_MOST, P99_MS))
    return found + [bar for siege in SIEGES for bar in siege.bars]


def gauge_columns(name: str) -> tuple[Column, ...]:
    return tuple(
        Column(f"{name} {when}", f"{name} {when}") for when in ("before", "at most", "after")
    )


COMMAND = Command(
    name="floods",
    what="the server and hostile peers: floods, aborts, slow clients, kills, logins beside them",
    parts=(
        Part("floods", flood_specs, measure, is_fresh=True),
        *(siege.part for siege in SIEGES),
    ),
    options=(
        Option("seconds", 20, "S", "of one flood at most"),
        Option("aborts", 5000, "N", "of logins, over all their steps"),
        Option("holders", 2000, "N", "clients that say a byte every 10 s"),
        Option("kills", 1000, "N", "clients that are killed"),
        Option("logins", 30, "N", "beside 200 silent and 200 slow clients"),
    ),
    tables=(
        Table(
            "floods: what is said, and the server's memory",
            (
                Column("thousands", "thousands said"),
                Column("per second", "per second"),
                Column("links", "links"),
                Column("CPU s/s", "CPU s/s"),
                Column("MB before", "MB before"),
                Column("+MB at most", PEAK_MB),
                Column("+MB after", "+MB after"),
                Column("s until as before", "s until as before"),
            ),
        ),
        Table(
            "floods: what the server has",
            (*gauge_columns("descriptors"), *gauge_columns("tasks"),
             Column("channels at most", "channels at most"),
             Column("startups at most", "startups at most")),
        ),
        Table(
            "floods: another user's echo, ms",
            (
                Column("p50 idle", "echo p50 ms, idle"),
                Column("p50 flood", "echo p50 ms, flood"),
                Column("p99 idle", IDLE_P99),
                Column("p99 flood", P99),
            ),
        ),
        *(siege.table for siege in SIEGES),
    ),
    bars=bars,
    notes=("medians; MB = 10^6 bytes, resident; no cap is set but those that everybody gets",),
    rounds=1,
    budget_s=900.0,
)  # fmt: skip
