"""Sockets that are looked after by a plain function instead of a task.

THEORY OF OPERATION

A trip through trio's scheduler costs more than sealing a packet, and a link makes one for each
batch that it receives. So the sockets on the hot path are registered, once and edge-triggered, in
an epoll instance of our own, and what happens on them is handled by functions that never wait.

One system task runs the rounds and waits in epoll directly: a wake through trio costs more than all
that a small packet needs. Trio's own instance is watched by ours, and we wait no longer than for
trio's next timer (`_Trio`). Trio gets its turn when either says so, before every wait if a handler
has made a task runnable (an `Instrument` sees that), and every TURN_S if there is always something
to do. Where trio has other insides than we know, the clock is not the real one, or a test waits
until all tasks are blocked, the task waits in trio for our instance instead, from then on.

Edge-triggered means (epoll(7)): after an event, read until `BlockingIOError` or a short read. A
short read is the end only if the event had not said that the peer hung up, for then the end of the
data is still to be read and no further event comes. Listening sockets are level-triggered: one
client is accepted for each event, and who still waits is told of again.

Within a round a socket may be closed and its number given to a new one before its event's turn:
`_fresh` has the numbers that an event of this round cannot be about.
"""

from __future__ import annotations

import logging
import select
import time
from typing import TYPE_CHECKING, Any, Final

import trio

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    Handler = Callable[[int], None]

log = logging.getLogger(__name__)

INPUT: Final = select.EPOLLIN
BROKEN: Final = select.EPOLLHUP | select.EPOLLERR
ENDED: Final = select.EPOLLRDHUP | BROKEN
READABLE: Final = INPUT | ENDED
OUTPUT: Final = select.EPOLLOUT
WRITABLE: Final = OUTPUT | BROKEN
CLOSED: Final = 0
_INPUT_ONLY: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_BOTH: Final = _INPUT_ONLY | select.EPOLLOUT

LINGER_S: Final = 0.001  # the shortest wait that epoll can be asked for
REST_S: Final = 1.0  # the longest, should trio want something that nobody told us of
TURN_S: Final = 0.004  # how late a timer or a thread's result may come under load
EVENTS_AT_ONCE: Final = 64


class Poller:
    """The registered sockets of one trio run; `current` returns it."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._fresh: set[int] = set()
        self._again: dict[Callable[[], None], None] = {}  # in their order, each once
        self._at_rest: list[Callable[[], None]] = []
        self.was_at_rest = False
        """Whether nothing had happened for LINGER_S before this round. Who has one thing to do then
        does it before looking for the next: somebody may wait for that one."""
        self._sleep: trio.CancelScope | None = None
        self._runnable = _Runnable()
        self._trio = _Trio(self)

    def watch(self, sock: socket.socket | int, handler: Handler) -> None:
        """Call ``handler`` with epoll's events of a socket, from now on.

        What is ready already is told too, also if the socket was watched before. The handler must
        not block.
        """
        self._watch(sock if isinstance(sock, int) else sock.fileno(), handler, _BOTH)

    def watch_input(self, sock: socket.socket | int, handler: Handler) -> None:
        """As ``watch``, but that there is room to write is told only after ``await_room``."""
        self._watch(sock if isinstance(sock, int) else sock.fileno(), handler, _INPUT_ONLY)

    def await_room(self, sock: socket.socket) -> None:
        """Tell the handler of a watched socket of room to write too, from now on."""
        self._epoll.modify(sock.fileno(), _BOTH)

    def tell_again(self, fd: int) -> None:
        """Tell the handler of a descriptor of ``watch_input`` once more, if there is input now.

        For who has read something and does not try until `BlockingIOError`.
        """
        self._epoll.modify(fd, _INPUT_ONLY)

    def watch_level(self, sock: socket.socket | int, handler: Handler) -> None:
        """Call ``handler`` as long as there is input: of a listener, clients that wait."""
        self._watch(sock if isinstance(sock, int) else sock.fileno(), handler, INPUT)

    def _watch(self, fd: int, handler: Handler, interest: int) -> None:
        try:
            if fd in self._handlers:
                self._epoll.modify(fd, interest)
            else:
                self._epoll.register(fd, interest)
                self._fresh.add(fd)
        except FileNotFoundError:  # its number belonged to one that was closed without a word
            self._epoll.register(fd, interest)
            self._fresh.add(fd)
        self._handlers[fd] = handler

    def hand_over(self, sock: socket.socket, handler: Handler) -> None:
        """Have another handler called for a watched socket; what was told is not told again."""
        self._handlers[sock.fileno()] = handler

    def forget(self, sock: socket.socket | int) -> None:
        """Stop watching, and tell the handler CLOSED. To be called before the socket is closed."""
        fd = sock if isinstance(sock, int) else sock.fileno()
        if (handler := self._handlers.pop(fd, None)) is not None:
            self._epoll.unregister(fd)
            handler(CLOSED)

    def close(self, sock: socket.socket) -> None:
        """Stop watching a socket and close it; harmless if it is closed."""
        handler = self._handlers.pop(sock.fileno(), None)
        sock.close()  # which takes it out of the epoll instance
        if handler is not None:
            handler(CLOSED)

    def again(self, function: Callable[[], None]) -> None:
        """Call a function in the next round, after others had their turn: it has more to do.

        Once, however often it was asked: else who is told of input in every round, and has more to
        do after each, would have one turn more in every round.
        """
        self._again[function] = None
        if self._sleep is not None:
            self._sleep.cancel()

    def at_rest(self, function: Callable[[], None]) -> None:
        """Call a function once, when nothing has happened for LINGER_S."""
        self._at_rest.append(function)

    async def run(self) -> None:
        """Make rounds until cancelled. A handler that raises is a defect of its own, logged."""
        trio.lowlevel.add_instrument(self._runnable)
        try:
            for _ in range(2):  # who was to run before the instrument looked has run after these
                await trio.lowlevel.checkpoint()
            while True:
                await self._rounds()
                if not self._again:
                    with trio.CancelScope() as self._sleep:
                        await trio.lowlevel.wait_readable(self._epoll.fileno())
                    self._sleep = None
        finally:
            trio.lowlevel.remove_instrument(self._runnable)
            self._epoll.close()

    async def _rounds(self) -> None:
        """Handle events until trio is to wait for the next."""
        runnable, of_trio = self._runnable.tasks, self._trio
        next_turn_s = time.monotonic() + TURN_S
        while True:
            if self._again or runnable:
                ready, now_s = self._epoll.poll(0, EVENTS_AT_ONCE), time.monotonic()
                self.was_at_rest = False
            else:
                rest_s, before_s = of_trio.rest_s(), time.monotonic()
                wait_s = LINGER_S if self._at_rest else rest_s
                ready, now_s = self._epoll.poll(wait_s, EVENTS_AT_ONCE), time.monotonic()
                self.was_at_rest = now_s - before_s > LINGER_S
                next_turn_s = min(before_s + rest_s, now_s + TURN_S)
                if not ready:
                    self._come_to_rest()
                    if not of_trio.is_known:
                        return
            self._handle(ready)
            if of_trio.is_due or runnable or now_s >= next_turn_s:
                of_trio.is_due = False
                await trio.lowlevel.checkpoint()
                next_turn_s = now_s + TURN_S

    def _come_to_rest(self) -> None:
        at_rest, self._at_rest = self._at_rest, []
        _call_each(at_rest)

    def _handle(self, ready: list[tuple[int, int]]) -> None:
        """Call who is concerned."""
        handlers, fresh = self._handlers, self._fresh
        again, self._again = self._again, {}
        fresh.clear()
        for fd, event in ready:
            if (handler := handlers.get(fd)) is not None and fd not in fresh:
                try:
                    handler(event)
                except Exception:
                    log.exception("internal error in %r", handler)
        _call_each(again)


def _call_each(functions: Iterable[Callable[[], None]]) -> None:
    """A defect of one is logged and hinders no other."""
    for function in functions:
        try:
            function()
        except Exception:
            log.exception("internal error in %r", function)


class _Trio:
    """What of trio's insides tells when it is its turn, while nothing happens here."""

    def __init__(self, poller: Poller) -> None:
        self.is_due = False
        self.is_known = False
        self._poller = poller
        try:
            runner: Any = trio._core._run.GLOBAL_RUN_CONTEXT.runner  # noqa: SLF001 - see above
            self._fd, _ = runner.io_manager._epoll.fileno(), runner.waiting_for_idle  # noqa: SLF001
            self._next_deadline = runner.deadlines.next_deadline
        except AttributeError:
            return
        clock = trio.lowlevel.current_clock()
        if type(clock).__name__ == "SystemClock":
            self.is_known = True
            self._runner, self._current_time = runner, clock.current_time
            poller.watch_level(self._fd, self._ready)

    def _ready(self, _event: int) -> None:
        self.is_due = True

    def rest_s(self) -> float:
        """For how long trio needs no turn, unless something happens there.

        Not at all, and ``is_known`` is false, where trio has to wait, since we do not know what it
        waits for; then for good.
        """
        if self.is_known and self._runner.waiting_for_idle:
            self.is_known = False
            self._poller.forget(self._fd)  # neither instance may be in the other
        if not self.is_known:
            return 0.0
        next_s: float = self._next_deadline() - self._current_time()
        return min(max(next_s, 0.0), REST_S)


class _Runnable(trio.abc.Instrument):
    """Knows which tasks wait for their turn to run."""

    def __init__(self) -> None:
        self.tasks: set[trio.lowlevel.Task] = set()

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        self.tasks.add(task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.tasks.discard(task)


_current = trio.lowlevel.RunVar[Poller]("gateway poller")


def current() -> Poller:
    """Return the poller of this trio run; the first call starts it."""
    try:
        return _current.get()
    except LookupError:
        poller = Poller()
        _current.set(poller)
        trio.lowlevel.spawn_system_task(poller.run)
        return poller


class Readiness:
    """A watched socket as a task sees it: try, and ``await wait()`` after a `BlockingIOError`.

    With ``is_input`` only what is to be read is waited for. To be closed before the socket; who
    waits then gets `trio.ClosedResourceError`.
    """

    def __init__(self, sock: socket.socket | int, *, is_input: bool = False) -> None:
        self._fd = sock if isinstance(sock, int) else sock.fileno()
        self._has_event = False
        self._is_closed = False
        self._waiting = trio.lowlevel.ParkingLot()
        self._poller = current()
        watch = self._poller.watch_input if is_input else self._poller.watch
        watch(self._fd, self._happened)

    def _happened(self, event: int) -> None:
        self._has_event = True
        self._is_closed = self._is_closed or event == CLOSED
        self._waiting.unpark_all()

    async def wait(self) -> None:
        """Return after the next event."""
        if self._has_event:
            await trio.lowlevel.checkpoint()
        while not self._has_event:
            await self._waiting.park()
        self._has_event = False
        if self._is_closed:
            raise trio.ClosedResourceError

    def close(self) -> None:
        """Stop watching."""
        if not self._is_closed:
            self._poller.forget(self._fd)


def close(sock: socket.socket) -> None:
    """Stop watching a socket and close it; harmless if it is closed."""
    current().close(sock)
