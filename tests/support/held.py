"""A `gateway serve` that many hold on to: hosts of a lab, addresses to come from, and logins."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Final, Self

from gateway.policy.limits import UNDISTURBED_S
from gateway.ssh.transport import Phase
from netns.lab import ip

from .aborts import SILENT, SLOW, Holders
from .flooded import PEER, USER, FloodedBox, flooded_box

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from netns.lab import Lab

    from .raw_client import Place

SOURCES: Final = "10.98.0.0/16"  # of the client's host, besides its own address
LOOK_S: Final = 0.25


def source(number: int) -> str:
    """Return one of the addresses to come from."""
    return f"10.98.{number // 250}.{number % 250 + 1}"


@contextlib.contextmanager
def held_box(lab: Lab, folder: Path) -> Iterator[FloodedBox]:
    """Run a server in the host of that name; the client's has all addresses of `SOURCES`."""
    client, server = lab["client"], lab["server"]
    ip("-n", client.namespace, "route", "add", "local", SOURCES, "dev", "lo")
    ip("-n", server.namespace, "route", "add", SOURCES, "via", client.ipv4())
    with server.inside(), flooded_box(folder, 1, server.ipv4()) as box:
        yield box


class Siege:
    """So many silent and so many slow clients, in a thread; inside of it they hold on.

    From ``sources`` addresses; ``come_again``: who is put out is there again a moment later.
    """

    def __init__(
        self, lab: Lab, box: FloodedBox, count: int, *, sources: int, come_again: bool = False
    ) -> None:
        self._lab = lab
        self._places = [box.place(PEER, source(number % sources)) for number in range(2 * count)]
        self._come_again = come_again
        self._stops = threading.Event()
        self.stands = threading.Event()
        """Set when all have come, and for long enough to be new no more."""
        self.held = 0
        """How many the server has now."""
        self.came = 0
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        half = len(self._places) // 2
        holders = Holders(("127.0.0.1", 1))
        with self._lab["client"].inside():
            holders.hold(self._places[:half], (SILENT,))
            holders.hold(self._places[half:], SLOW)
            stands_s = time.monotonic()
            while not self._stops.is_set():
                self.held = holders.tick(come_again=self._come_again)
                self.came = holders.came
                if time.monotonic() - stands_s > UNDISTURBED_S:
                    self.stands.set()
                self._stops.wait(LOOK_S)
            holders.close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stops.set()
        self._thread.join()


def log_in_from(lab: Lab, box: FloodedBox, came_from: str) -> float:
    """Log in as the user who behaves; return the seconds that it took. Raises `Ended`."""
    with lab["client"].inside():
        began_s = time.monotonic()
        place: Place = box.place(USER, came_from)
        with place.client() as client:
            client.reach(Phase.CONNECTION)
            return time.monotonic() - began_s
