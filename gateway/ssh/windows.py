"""The credit that a link's channels give their peer (RFC 4254 §5.2), and the memory it may cost.

THEORY OF OPERATION

*Receiving.* `Shares` gives the channels of a link their windows: max-min fair, so that those that
use little get GROWTH_GAIN times what they use, and the others the same share each. (Windows that
each channel multiplies by itself do not converge to fairness.) The cost of a round is in the
channels that received something lately. Each has a `ReceiveWindow`; a window that shrinks takes
nothing back, it only gives no credit until the peer has used up the difference.

*Memory.* A peer may fill all the credit it has. What is more than MINIMUM_WINDOW of each channel is
taken from a `Budget`, a tree: process, user, link. No node may hold more than stays free beside it
(dynamic thresholds, Choudhury and Hahne 1998, alpha = 1): a lone link gets half, and n greedy users
1/(n+1) each with as much still free for the next. Who holds more than that by now shrinks, a round
at a time. Credit that a channel was opened with cannot be taken back either, so opening uses a part
of the budget only, and many idle channels leave the rest to the busy ones.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

from gateway.ssh.flow import DRAINED_WINDOW, GROWTH_GAIN, INITIAL_WINDOW, KIB

if TYPE_CHECKING:
    from gateway.ssh.flow import PathMeter

MINIMUM_WINDOW: Final = 16 * KIB  # of a channel: as BULK, so that many of them queue little
DEFAULT_WINDOW: Final = 2048 * KIB  # a peer that cannot be measured: as OpenSSH
DEMAND_KEEPS: Final = 0.75  # what a channel was seen to use fades so in a round
CREDIT_FRACTION: Final = 4  # credit goes back when it is this part of the window …
CREDIT_STEP: Final = 512 * KIB  # … or this much, so that large windows do not come in bursts
OPEN_FRACTION: Final = 4  # of a link's budget for credit before use: idle channels keep it for good


class Budget:
    """Bytes that peers may make us hold; a node of the tree process, user, link."""

    __slots__ = ("__weakref__", "parent", "total", "used")

    def __init__(self, total: int = 64 * 1024 * KIB, parent: Budget | None = None) -> None:
        self.total: int = total if parent is None else parent.total
        self.parent = parent
        self.used = 0

    def limit(self) -> int:
        """Return how many bytes this node may hold: half of what the others leave, at each level.

        So it never holds more than stays free beside it.
        """
        parent = self.parent
        if parent is None:
            return self.total
        others = parent.used - self.used
        return min((self.total - others) // 2, parent.limit() - others)

    def take(self, count: int) -> int:
        """Take up to ``count`` bytes here and in every node above; return how many."""
        count = max(min(count, self.limit() - self.used), 0)
        self._add(count)
        return count

    def give_back(self, count: int) -> None:
        """Return what was taken."""
        self._add(-count)

    def _add(self, count: int) -> None:
        node: Budget | None = self
        while node is not None:
            node.used += count
            node = node.parent


class ReceiveWindow:
    """The window that a channel grants its peer. All values are bytes.

    ``granted`` the peer may send; ``held`` was received and is not consumed. They exceed ``size``
    only after it shrank. ``charged`` was taken from the budget for what exceeds MINIMUM_WINDOW.
    It never shrinks below ``floor``, for a peer whose messages cannot be split, nor below what the
    path carries in ``burst_s``, for one that drops what the window does not take.
    """

    __slots__ = (
        "burst_s", "channel_id", "charged", "demand", "floor", "granted", "held", "is_fresh",
        "size", "used",
    )  # fmt: skip

    def __init__(self, size: int, channel_id: int = 0) -> None:
        self.channel_id = channel_id
        self.size = size
        self.granted = size
        self.held = 0
        self.floor = DRAINED_WINDOW
        self.burst_s = 0.0
        self.is_fresh = True  # nothing was consumed yet
        self.used = 0  # consumed in this round
        self.demand = 0.0  # what it could use
        self.charged = max(size - MINIMUM_WINDOW, 0)

    def received(self, count: int) -> None:
        """Note data from the peer, at most ``granted``. `Channel.receive_data` does it in line."""
        self.granted -= count
        self.held += count

    def credit(self) -> int:
        """Return the credit that is due, and count it as granted.

        Without ``held`` bytes, ``granted`` is more than 3/4 of the size after this, so the peer
        can always send; with them, the reader can always read.
        """
        count = self.size - self.granted - self.held
        if count <= 0 or (count * CREDIT_FRACTION < self.size and count < CREDIT_STEP):
            return 0
        self.granted += count
        return count

    def resize(self, size: int, budget: Budget) -> None:
        """Set the window to ``size``, or to what the budget allows of it."""
        needed = max(size, self.granted + self.held) - MINIMUM_WINDOW
        if needed > self.charged:
            self.charged += budget.take(needed - self.charged)
        else:
            budget.give_back(self.charged - max(needed, 0))
            self.charged = max(needed, 0)
        self.size = min(size, MINIMUM_WINDOW + self.charged)


class Shares:
    """The receive windows of one link. ``end_round`` is for when the meter says so."""

    def __init__(self, meter: PathMeter, budget: Budget) -> None:
        self._meter = meter
        self.budget = budget
        self._active: dict[ReceiveWindow, None] = {}
        self._fresh = 0  # windows whose credit nobody has used yet

    def join(self, budget: Budget) -> None:
        """Take a part of another budget from now on; before any channel is open."""
        self.budget = Budget(parent=budget)

    def open(self, channel_id: int = 0) -> ReceiveWindow:
        """Return the window of a new channel: a share of what is known, INITIAL_WINDOW at most."""
        self._fresh += 1
        size = min(self._meter.target_in // (len(self._active) + self._fresh), INITIAL_WINDOW)
        if self._meter.is_lost:
            size = DEFAULT_WINDOW
        free = self.budget.limit() // OPEN_FRACTION - self.budget.used
        taken = self.budget.take(min(size - MINIMUM_WINDOW, free))
        return ReceiveWindow(MINIMUM_WINDOW + taken, channel_id)

    def consumed(self, window: ReceiveWindow, count: int) -> int:
        """Note that a channel's reader took data; return the credit to give now, often 0."""
        if not window.used:
            self._active[window] = None
            self._no_longer_fresh(window)
        window.used += count
        window.held -= count
        return window.credit()

    def close(self, window: ReceiveWindow) -> None:
        """Forget a channel and what it held."""
        self._active.pop(window, None)
        self._no_longer_fresh(window)
        self.budget.give_back(window.charged)
        window.charged = 0

    def _no_longer_fresh(self, window: ReceiveWindow) -> None:
        if window.is_fresh:
            window.is_fresh = False
            self._fresh -= 1

    def end_round(self) -> list[tuple[ReceiveWindow, int]]:
        """Divide the target anew; return the windows that get credit by that, and how much."""
        windows = list(self._active)
        if self._meter.is_draining:
            self._drain(windows)
            return []
        for window in windows:
            window.demand = max(window.used * GROWTH_GAIN, window.demand * DEMAND_KEEPS)
            window.used = 0
        free = self.budget.limit() + MINIMUM_WINDOW * len(windows)
        target = min(self._meter.target_in, free)
        level = fair_level(target, [window.demand for window in windows])
        grants = []
        for window in windows:
            size = max(int(min(window.demand, level)), MINIMUM_WINDOW, self._least(window))
            window.resize(DEFAULT_WINDOW if self._meter.is_lost else size, self.budget)
            if window.demand <= MINIMUM_WINDOW:
                del self._active[window]
            if credit := window.credit():
                grants.append((window, credit))
        return grants

    def _drain(self, windows: list[ReceiveWindow]) -> None:
        """Let the queue drain; what was charged and what a channel could use stay as they are."""
        share = self._meter.target_in // max(len(windows), 1)
        for window in windows:
            window.size = min(max(share, self._least(window)), window.size)

    def _least(self, window: ReceiveWindow) -> int:
        return max(window.floor, int(self._meter.rate_in * window.burst_s))


def fair_level(target: float, demands: list[float]) -> float:
    """Return the largest share such that min(demand, share) of all is ``target`` together."""
    left = len(demands)
    for demand in sorted(demands):
        if demand * left > target:
            return target / left
        target -= demand
        left -= 1
    return inf
