"""A path between two SSH peers on a virtual clock, for `gateway.ssh.flow`: no sockets, no sleeping.

``Sim`` is the event queue, ``Pipe`` one direction of a line (a FIFO with a rate, a delay and as
much buffer as it takes), ``Line`` a link over two of them: our side uses `gateway.ssh.flow` as the
link does, the peer does what a stock sshd does.
"""

from __future__ import annotations

import heapq
import random
from itertools import count
from typing import TYPE_CHECKING

from gateway.ssh.flow import PathMeter
from gateway.ssh.windows import DEFAULT_WINDOW, Budget, ReceiveWindow, Shares

if TYPE_CHECKING:
    from collections.abc import Callable

PACKET = 32 * 1024  # what OpenSSH sends at most
SMALL = 64  # bytes of a message without data


class Sim:
    """Events in the order of their time."""

    def __init__(self, seed: int = 1) -> None:
        self.now_s = 0.0
        self.random = random.Random(seed)
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = count()

    def at(self, when_s: float, call: Callable[[], object]) -> None:
        heapq.heappush(self._events, (when_s, next(self._numbers), call))

    def after(self, delay_s: float, call: Callable[[], object]) -> None:
        self.at(self.now_s + delay_s, call)

    def every(self, interval_s: float, call: Callable[[], object]) -> None:
        def again() -> None:
            call()
            self.after(interval_s, again)

        self.after(interval_s, again)

    def run(self, until_s: float) -> None:
        events = self._events
        while events and events[0][0] <= until_s:
            self.now_s, _, call = heapq.heappop(events)
            call()
        self.now_s = until_s


class Pipe:
    """One direction: bytes/s, seconds one way; ``jitter`` adds to the delay, order is kept."""

    def __init__(
        self,
        sim: Sim,
        rate: float,
        delay_s: float,
        jitter: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.sim = sim
        self.rate = rate
        self.delay_s = delay_s
        self.jitter = jitter
        self.carried = 0
        self._free_s = 0.0
        self._last_s = 0.0

    @property
    def queue_s(self) -> float:
        return max(self._free_s - self.sim.now_s, 0.0)

    def send(self, size: int, arrived: Callable[[], object]) -> None:
        self.carried += size
        self._free_s = max(self.sim.now_s, self._free_s) + size / self.rate
        arrival_s = max(self._free_s + self.delay_s + self.jitter(), self._last_s)
        self._last_s = arrival_s
        self.sim.at(arrival_s, arrived)


class Download:
    """A channel on which the peer sends: as much as it may, or ``rate`` bytes/s."""

    def __init__(
        self, line: Line, *, window: ReceiveWindow, rate: float = 0.0, reads: bool = True
    ) -> None:
        self.line = line
        self.window = window
        self.bytes_in = 0
        self.largest = window.size
        self.reads = reads
        self.is_on = True
        self._credit = window.granted
        self._rate = rate
        self._ready = 0
        if rate:
            line.sim.every(0.01, self._produce)
        line.sim.after(line.up.delay_s + line.down.delay_s, self.send)  # the open

    def _produce(self) -> None:
        self._ready += int(self._rate * 0.01)
        self.send()

    def send(self) -> None:
        line = self.line
        while self.is_on and self._credit > 0:
            size = min(PACKET, self._credit, self._ready if self._rate else PACKET)
            if not size:
                return
            self._ready -= size
            self._credit -= size
            line.down.send(size, lambda size=size: self._arrived(size))  # type: ignore[misc]

    def _arrived(self, size: int) -> None:
        window, line = self.window, self.line
        assert size <= window.granted
        self.bytes_in += size
        line.bytes_in += size
        window.received(size)
        if self.reads:
            self.give(line.shares.consumed(window, size))
        line.pump()

    def read(self, size: int) -> None:
        """A slow reader takes some of what is held."""
        self.give(self.line.shares.consumed(self.window, min(size, self.window.held)))

    def give(self, credit: int) -> None:
        if credit:
            self.line.up.send(SMALL, lambda: self._credited(credit))

    def _credited(self, credit: int) -> None:
        self._credit += credit
        self.line.sim.after(0.0001, self.send)  # sshd answers all it has read, then sends data


class Upload:
    """A channel on which we send as much as we may, to a window of 2 MiB."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.bytes_out = 0
        self.delivered = 0
        self._credit = DEFAULT_WINDOW
        self._consumed = 0
        line.sim.after(1.1 * (line.up.delay_s + line.down.delay_s), self._opened)

    def _opened(self) -> None:
        """The peer answers an open after a probe: it has to connect first."""
        self.line.uploads.append(self)
        self.line.pump()

    def send_packet(self) -> bool:
        line = self.line
        size = min(PACKET, self._credit, line.meter.send_step)
        if size <= 0 or line.bytes_out >= line.meter.send_until:
            return False
        self._credit -= size
        self.bytes_out += size
        line.bytes_out += size
        line.up.send(size, lambda: self._arrived(size))
        return True

    def _arrived(self, size: int) -> None:
        self.delivered += size
        self._consumed += size
        if self._consumed > 3 * PACKET:
            credit, self._consumed = self._consumed, 0
            self.line.down.send(SMALL, lambda: self._credited(credit))

    def _credited(self, credit: int) -> None:
        self._credit += credit
        self.line.pump()


class Line:
    """A link: our side, and a peer that answers probes unless ``answers`` is false."""

    def __init__(
        self, sim: Sim, down: Pipe, up: Pipe, budget: Budget | None = None, *, answers: bool = True
    ) -> None:
        self.sim = sim
        self.down = down
        self.up = up
        self.meter = PathMeter()
        self.shares = Shares(self.meter, budget or Budget())
        self.answers = answers
        self.bytes_in = self.bytes_out = 0
        self.probes = 0
        self.downloads: list[Download] = []
        self.uploads: list[Upload] = []
        self.echoes_s: list[tuple[float, float]] = []  # when, and how long it took
        self.targets: list[tuple[float, int, int]] = []
        self._by_window: dict[ReceiveWindow, Download] = {}
        sim.every(1.0, self._tick)
        self.bytes_out += 1  # the request that opens a channel asks for the first probe
        self.pump()

    def download(self, *, rate: float = 0.0, reads: bool = True) -> Download:
        download = Download(self, window=self.shares.open(), rate=rate, reads=reads)
        self.downloads.append(download)
        self._by_window[download.window] = download
        return download

    def echo(self, interval_s: float = 0.05) -> None:
        """Send a few bytes on a channel of their own, again and again; the peer returns them."""
        window = self.shares.open()

        def ask() -> None:
            sent_s = self.sim.now_s

            def returned() -> None:
                self.echoes_s.append((sent_s, self.sim.now_s - sent_s))
                self.bytes_in += SMALL
                window.received(SMALL)
                self.shares.consumed(window, SMALL)
                self.pump()

            self.bytes_out += SMALL
            self.up.send(SMALL, lambda: self.down.send(SMALL, returned))
            self.pump()

        self.sim.every(interval_s, ask)

    def echo_p95_s(self, since_s: float = 0.0) -> float:
        times = sorted(took for when, took in self.echoes_s if when >= since_s)
        return times[int(len(times) * 0.95)]

    def pump(self) -> None:
        """What the link does after a batch: probe if due, then send what may be sent."""
        while True:
            self._probe()
            sent = [upload.send_packet() for upload in self.uploads]
            if not any(sent):
                return

    def _probe(self) -> None:
        now_s, meter = self.sim.now_s, self.meter
        if not meter.probe_due(now_s, self.bytes_in, self.bytes_out):
            return
        self.probes += 1
        meter.probe_sent(now_s, self.bytes_in, self.bytes_out)
        self.up.send(SMALL, self._probed)

    def _probed(self) -> None:
        if self.answers:
            self.down.send(SMALL, self._answered)

    def _answered(self) -> None:
        if self.meter.probe_answered(self.sim.now_s, self.bytes_in):
            self.targets.append((self.sim.now_s, self.meter.target_in, self.meter.target_out))
            self._share()
        self.pump()

    def _tick(self) -> None:
        if self.meter.tick(self.sim.now_s):
            self._share()
            self.pump()

    def _share(self) -> None:
        for window, credit in self.shares.end_round():
            if download := self._by_window.get(window):
                download.largest = max(download.largest, window.size)
                download.give(credit)


def line(
    sim: Sim,
    rate: float,
    rtt_s: float,
    budget: Budget | None = None,
    *,
    jitter: Callable[[], float] = lambda: 0.0,
    answers: bool = True,
) -> Line:
    """A line with the same rate in bytes/s and delay each way."""
    down = Pipe(sim, rate, rtt_s / 2, jitter)
    up = Pipe(sim, rate, rtt_s / 2)
    return Line(sim, down, up, budget, answers=answers)
