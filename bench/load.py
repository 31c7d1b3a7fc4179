"""Small and large streams on one link at the same time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.figures import percentile
from bench.programs import ask, client, fail

if TYPE_CHECKING:
    from bench.programs import Bed, Case, Client

BEFORE = 0.3  # of the echoes' time: how much earlier the bulk begins, so as to fill the way
BEGIN_S = 0.5  # for the bulk's process to begin
SETTLE_ECHOES = 5
SETTLE_TIMEOUT_S = 120.0  # many windows drain slowly through a slow line


@dataclass(frozen=True)
class Mix:
    """How many streams of each kind, and for how long the echoes are sent."""

    bulk: int
    echo: int
    seconds: float
    interval_s: float


@dataclass(frozen=True)
class Loaded:
    """Milliseconds of the echoes alone and beside bulk, and the bytes of each bulk stream."""

    alone_ms: list[float]
    loaded_ms: list[float]
    stream_bytes: list[float]
    bulk_s: float

    @property
    def bulk_mb_per_s(self) -> float:
        """All bulk streams together."""
        return sum(self.stream_bytes) / self.bulk_s / 1e6


def echo_beside_bulk(case: Case, bed: Bed, direction: str, mix: Mix) -> Loaded:
    """Echo alone, then beside bulk, which is then cut; `settle` waits until the link is quiet.

    The echoes' streams are opened before the bulk's, which last as long as echoes are sent.
    """
    wait_s = BEGIN_S + mix.seconds * BEFORE
    bulk_s = wait_s + mix.seconds
    with paced(case, bed, mix, mix.seconds / 2) as alone:
        alone_ms = milliseconds(alone)
    with paced(case, bed, mix, mix.seconds, wait_s) as echoes:
        echoes.wait_ready()
        task = f"bulk {direction}"
        with client(case, task, bed.bulk_port, streams=mix.bulk, seconds=bulk_s) as bulk:
            loaded_ms = milliseconds(echoes)
            stream_bytes = bulk.finish()["bytes"]
    return Loaded(alone_ms, loaded_ms, stream_bytes, bulk_s)


def paced(case: Case, bed: Bed, mix: Mix, seconds: float, wait_s: float = 0.0) -> Client:
    return client(
        case,
        "paced echo",
        bed.echo_port,
        streams=mix.echo,
        seconds=seconds,
        interval_s=mix.interval_s,
        wait_s=wait_s,
    )


def milliseconds(echoes: Client) -> list[float]:
    return [took_us / 1000 for took_us in echoes.finish()["µs"]]


def settle(case: Case, bed: Bed, idle_ms: float) -> None:
    """Wait until what a cut transfer left under way is gone."""
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while time.monotonic() < deadline:
        took_us = ask(case, "echo", bed.echo_port, count=SETTLE_ECHOES)["µs"]
        if percentile(took_us, 50) / 1000 < 2 * idle_ms + 1:
            return
        time.sleep(0.2)
    fail(f"{case.name} does not come to rest")
