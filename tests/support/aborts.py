"""Connections that end in the middle of a login, at every step of it; and such that hold on there.

A step is a place in what a client says: in which turn, and how much of that turn has been said.
"""

from __future__ import annotations

import itertools
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gateway.ssh import messages
from gateway.ssh.numbers import Msg

from .pair import take
from .raw_client import Ended, Place, RawClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

NEWKEYS: Final = 16  # bytes of this packet in clear: length, padding_length, number, padding
LOGGED_IN: Final = 6  # turns
BYTE_EVERY_S: Final = 10.0


def _nothing(_data: bytes) -> int:
    return 0


def _half(data: bytes) -> int:
    return len(data) // 2


def _half_version(data: bytes) -> int:
    return data.index(b"\n") // 2


def _version(data: bytes) -> int:
    return data.index(b"\n") + 1


def _half_kexinit(data: bytes) -> int:
    return (_version(data) + len(data)) // 2


def _newkeys(data: bytes) -> int:
    assert data[5] == Msg.NEWKEYS
    return NEWKEYS


@dataclass(frozen=True)
class Step:
    """How far a client goes: all turns before ``turn``, and of that one ``cut`` bytes."""

    name: str
    turn: int
    cut: Callable[[bytes], int] = len


STEPS: Final = (
    Step("after connect", 0, _nothing),
    Step("half a version", 0, _half_version),
    Step("version", 0, _version),
    Step("half KEXINIT", 0, _half_kexinit),
    Step("KEXINIT", 0),
    Step("half ECDH_INIT", 1, _half),
    Step("ECDH_INIT", 1),
    Step("NEWKEYS", 2, _newkeys),
    Step("service request", 2),
    Step("none", 3),
    Step("publickey query", 4),
    Step("half a signature", 5, _half),
    Step("signature", 5),
    Step("logged in", LOGGED_IN, _nothing),
    Step("half an open", LOGGED_IN, _half),
    Step("open", LOGGED_IN),
    Step("in the open channel", LOGGED_IN + 1, _nothing),
)


class StepClient(RawClient):
    """A client that may stop at a step; ``rest`` is what it would say next then."""

    rest = b""

    def go_to(self, step: Step, target: tuple[str, int]) -> None:
        """Say all up to a step; ``target`` is what it has opened after the login."""
        for number, data in enumerate(self._all_turns(target)):
            if number == step.turn:
                cut = step.cut(data)
                self.send(data[:cut])
                self.rest = data[cut:]
                return
            self.send(data)

    def _all_turns(self, target: tuple[str, int]) -> Iterator[bytes]:
        yield from self.turns()
        specific = messages.DirectTcpip(*target, "127.0.0.1", 1).encode()
        self.protocol.connection.open_channel("direct-tcpip", specific)
        yield take(self.protocol)
        while not self.opened:
            self.receive()
        yield b""


def abort(place: Place, step: Step, target: tuple[str, int], *, resets: bool) -> bool:
    """Go to a step and break off, with RST or with FIN; say whether the server let it come so far.

    With FIN it waits until the server has closed as well.
    """
    try:
        client = StepClient(place)
    except OSError:
        return False
    with client:
        try:
            client.go_to(step, target)
        except Ended:
            return False
        (client.reset if resets else client.finish)()
    return True


# ---- those who hold on ---------------------------------------------------------------------------

SILENT: Final = STEPS[0]
SLOW: Final = tuple(step for step in STEPS if step.turn < LOGGED_IN)


class Holders:
    """Clients that do not log in: some say nothing, some a byte every 10 s, from some step on."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._held: list[tuple[StepClient, Place]] = []
        self._next_byte_s = time.monotonic() + BYTE_EVERY_S
        self.came = 0

    def hold(self, places: Iterable[Place], steps: Sequence[Step]) -> None:
        """Connect one from each place, and go to the steps in turn; some may be refused."""
        for place, step in zip(places, itertools.cycle(steps), strict=False):
            self.came += 1
            with suppress(Ended, OSError):
                client = StepClient(place)
                self._held.append((client, place))
                client.go_to(step, self._target)

    def tick(self, *, come_again: bool = False) -> int:
        """Say another byte when it is time, and count those that the server still has.

        ``come_again``: who was put out connects anew, at once, and says nothing.
        """
        is_time = time.monotonic() >= self._next_byte_s
        self._next_byte_s += BYTE_EVERY_S * is_time
        there: list[tuple[StepClient, Place]] = []
        gone: list[tuple[StepClient, Place]] = []
        for client, place in self._held:
            (there if _lives(client, is_time=is_time) else gone).append((client, place))
        self._held = there
        for client, _ in gone:
            client.sock.close()
        if come_again:
            self.hold((place for _, place in gone), (SILENT,))
        return len(there)

    def close(self) -> None:
        """Let all go."""
        for client, _ in self._held:
            client.sock.close()
        self._held.clear()


def _lives(client: StepClient, *, is_time: bool) -> bool:
    client.sock.setblocking(False)
    try:
        while client.sock.recv(1 << 16):
            pass
    except BlockingIOError:
        pass
    except OSError:
        return False
    else:
        return False
    if is_time and client.rest:
        with suppress(OSError):
            client.sock.send(client.rest[:1])
            client.rest = client.rest[1:]
    return True
