"""Who goes next when a link's outbound buffer has room again."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.ssh.connection import Connection
    from gateway.ssh.packets import Outbound


class Turns:
    """Who waits for room in a link's outbound buffer, and in which order they get it.

    Channels that send little go first, so that a keystroke does not wait for a backup. The others
    take turns, a batch each.
    """

    __slots__ = ("_small", "_tasks", "are_awaited", "bulk")

    def __init__(self) -> None:
        self._small: deque[Callable[[], None]] = deque()
        self.bulk: deque[Callable[[], None]] = deque()  # who wait for a turn as bulk
        self._tasks = trio.lowlevel.ParkingLot()
        self.are_awaited = False

    def wait(self, function: Callable[[], None], *, is_bulk: bool) -> None:
        """Have a function called once, when there is room; it asks again if it needs more."""
        (self.bulk if is_bulk else self._small).append(function)
        self.are_awaited = True

    async def park(self) -> None:
        """Have the calling task sleep until there is room."""
        self.are_awaited = True
        await self._tasks.park()

    def give(self, outbound: Outbound, connection: Connection) -> None:
        """Give each who waits one turn, as far as there is room. They do not flush.

        One of them may lose the link, and then nobody waits any more.
        """
        for _ in range(len(self._small)):
            if self._small and outbound.accepts_data:
                self._small.popleft()()
        for _ in range(len(self.bulk)):
            if self.bulk and outbound.accepts_data and connection.may_send_bulk:
                self.bulk.popleft()()
        if self._tasks and outbound.accepts_data and connection.may_send_bulk:
            self._tasks.unpark_all()
        self.are_awaited = bool(self._small or self.bulk or self._tasks)

    def may_go_on(self, outbound: Outbound, connection: Connection) -> bool:
        """Whether somebody waits for what there is."""
        return outbound.accepts_data and bool(
            self._small or (self.bulk and connection.may_send_bulk)
        )

    def discard(self) -> None:
        """Forget who waits: the link is lost, and they know."""
        self._small.clear()
        self.bulk.clear()
        self._tasks.unpark_all()
        self.are_awaited = False
