"""Sockets that are looked after by a plain function instead of a task.

THEORY OF OPERATION

A trip through trio's scheduler costs more than sealing a packet, and a link makes one for each
batch that it receives. So the sockets on the hot path are registered, once and edge-triggered, in
an epoll instance of our own, and what happens on them is handled by functions that never wait.

One system task runs the rounds. Idle, it waits in trio for the epoll instance itself, which is a
descriptor like any other. After a round it expects the next one soon and waits in epoll directly,
for a millisecond at most: under load, or while somebody types, trio is not asked at all. It gets
its turn before every such wait if a handler has made a task runnable (an `Instrument` sees that),
and every TURN_S in any case, for its timers, threads and signals.

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
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

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
TURN_S: Final = 0.004  # how late a timer or a thread's result may come under load
EVENTS_AT_ONCE: Final = 64


class Poller:
    """The registered sockets of one trio run; `current` returns it."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._fresh: set[int] = set()
        self._again: list[Callable[[], None]] = []
        self._sleep: trio.CancelScope | None = None
        self._runnable = _Runnable()

    def watch(self, sock: socket.socket | int, handler: Handler) -> None:
        """Call ``handler`` with epoll's events of a socket, from now on.

        What is ready already is told too, also if the socket was watched before. The handler must
        not block.
        """
        self._watch(sock if isinstance(sock, int) else sock.fileno(), handler, _BOTH)

    def watch_input(self, sock: socket.socket, handler: Handler) -> None:
        """As ``watch``, but that there is room to write is told only after ``await_room``."""
        self._watch(sock.fileno(), handler, _INPUT_ONLY)

    def await_room(self, sock: socket.socket) -> None:
        """Tell the handler of a watched socket of room to write too, from now on."""
        self._epoll.modify(sock.fileno(), _BOTH)

    def watch_listener(self, sock: socket.socket, handler: Handler) -> None:
        """Call ``handler`` as long as clients wait, once a round."""
        self._watch(sock.fileno(), handler, INPUT)

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
        """Call a function in the next round, after others had their turn: it has more to do."""
        self._again.append(function)
        if self._sleep is not None:
            self._sleep.cancel()

    async def run(self) -> None:
        """Make rounds until cancelled. A handler that raises is a defect of its own, logged."""
        trio.lowlevel.add_instrument(self._runnable)
        try:
            while True:
                if not self._again:
                    with trio.CancelScope() as self._sleep:
                        await trio.lowlevel.wait_readable(self._epoll.fileno())
                    self._sleep = None
                await self._rounds()
        finally:
            trio.lowlevel.remove_instrument(self._runnable)
            self._epoll.close()

    async def _rounds(self) -> None:
        """Handle events until none came for LINGER_S."""
        runnable, handlers, fresh = self._runnable.tasks, self._handlers, self._fresh
        next_turn_s = time.monotonic() + TURN_S
        while True:
            busy = self._again or runnable
            ready = self._epoll.poll(0 if busy else LINGER_S, EVENTS_AT_ONCE)
            if not ready and not busy:
                return
            again, self._again = self._again, []
            fresh.clear()
            for fd, event in ready:
                if (handler := handlers.get(fd)) is not None and fd not in fresh:
                    try:
                        handler(event)
                    except Exception:
                        log.exception("internal error in %r", handler)
            for function in again:
                try:
                    function()
                except Exception:
                    log.exception("internal error in %r", function)
            now_s = time.monotonic()
            if runnable or now_s >= next_turn_s:
                await trio.lowlevel.checkpoint()
                next_turn_s = now_s + TURN_S


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

    To be closed before the socket; who waits then gets `trio.ClosedResourceError`.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._fd = sock.fileno()
        self._has_event = False
        self._is_closed = False
        self._waiting = trio.lowlevel.ParkingLot()
        self._poller = current()
        self._poller.watch(self._fd, self._happened)

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
