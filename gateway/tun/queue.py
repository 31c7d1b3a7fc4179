"""The queue between a device that is always read and a channel that is full: CoDel (RFC 8289).

A tun device that is not read keeps its oldest 500 packets and drops the newest: half a second of
waiting for whoever comes. So it is read always, and what cannot be sent at once waits here. It is
short in time: packets that waited longer than TARGET_S for at least INTERVAL_S are dropped from the
head, more often the longer that lasts, so that the senders inside the tunnel notice soon. It is
bounded in bytes too.

Pure: time is an argument, in seconds. Packets are taken out oldest first, with ``pop``.
"""

from __future__ import annotations

from collections import deque
from math import inf, sqrt
from typing import Final

# ---- RFC 8289 §4.2, §4.3 -------------------------------------------------------------------------
TARGET_S: Final = 0.005
INTERVAL_S: Final = 0.100
# ---- our own choices -----------------------------------------------------------------------------
CAPACITY: Final = 4 * 1024 * 1024  # bytes: what 6 Gbit/s carry in TARGET_S


class Queue:
    """Packets that wait, with the time when each came. ``dropped`` counts those that were lost."""

    __slots__ = (
        "_above_s",
        "_dropped_in_row",
        "_dropping",
        "_next_drop_s",
        "_packets",
        "dropped",
        "length_bytes",
    )

    def __init__(self) -> None:
        self._packets: deque[tuple[float, bytes]] = deque()
        self.length_bytes = 0
        self.dropped = 0
        self._above_s = inf  # when the sojourn time will have been above TARGET_S for INTERVAL_S
        self._dropping = False
        self._dropped_in_row = 0
        self._next_drop_s = 0.0

    def __len__(self) -> int:
        return len(self._packets)

    def push(self, packet: bytes, now_s: float) -> None:
        """Add the newest packet; the oldest make room for it."""
        self._packets.append((now_s, packet))
        self.length_bytes += len(packet)
        while self.length_bytes > CAPACITY:
            self._take()
            self.dropped += 1

    def pop(self, now_s: float) -> bytes | None:
        """Take the oldest packet that is worth sending; None when the queue is empty."""
        packet, is_late = self._next(now_s)
        if self._dropping:
            if not is_late:
                self._dropping = False
            while self._dropping and now_s >= self._next_drop_s:
                self.dropped += 1
                self._dropped_in_row += 1
                packet, is_late = self._next(now_s)
                if is_late:
                    self._next_drop_s += INTERVAL_S / sqrt(self._dropped_in_row)
                else:
                    self._dropping = False
        elif is_late:
            packet = self._begin_to_drop(now_s)
        return packet

    def _begin_to_drop(self, now_s: float) -> bytes | None:
        """Drop the first one; after a short pause as often as when it stopped."""
        self.dropped += 1
        packet, _ = self._next(now_s)
        self._dropping = True
        was_recent = now_s - self._next_drop_s < 16 * INTERVAL_S
        recent = self._dropped_in_row - 2 if was_recent else 0
        self._dropped_in_row = max(recent, 1)
        self._next_drop_s = now_s + INTERVAL_S / sqrt(self._dropped_in_row)
        return packet

    def _next(self, now_s: float) -> tuple[bytes | None, bool]:
        """Take the oldest, and say whether the queue has been too slow for too long."""
        if not self._packets:
            self._above_s = inf
            return None, False
        came_s, packet = self._take()
        if now_s - came_s < TARGET_S or not self._packets:
            self._above_s = inf
            return packet, False
        if self._above_s == inf:
            self._above_s = now_s + INTERVAL_S
            return packet, False
        return packet, now_s >= self._above_s

    def _take(self) -> tuple[float, bytes]:
        entry = self._packets.popleft()
        self.length_bytes -= len(entry[1])
        return entry
