"""A line between two hosts that is slow, long, lossy, or puts packets out of order.

    emulator.py NAMESPACE DEVICE NAMESPACE DEVICE LINE_AS_JSON         prints "ready"

A process carries Ethernet frames between two tap devices that exist; while it runs they have a
carrier. A tap device has no offloads: what is carried is never larger than the MTU allows. Each
direction by itself: a frame waits in the buffer until the line, which sends so many bits in a
second, is free; leaves; and arrives the delay later, or never. Only what has not left fills the
buffer, and what finds it full is dropped. What devices say to find each other is never lost or
late. Of the rest, the n-th frame of a direction has the same luck in every run with the same seed.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import json
import os
import random
import select
import struct
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

NEVER = float("inf")
FRAME = 65536  # more than any MTU lets through
AT_ONCE = 32  # frames of one direction before it is the other's turn
ARP, IPV6 = b"\x08\x06", b"\x86\xdd"  # the type in an Ethernet header
ICMPV6, NEIGHBOUR_MESSAGES = 58, range(133, 138)  # RFC 4861 §4
CLONE_NEWNET = 0x40000000
PR_SET_TIMERSLACK = 29
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000


@dataclass(frozen=True)
class Line:
    """What happens to frames in each direction; the delay is half of a round trip."""

    rate_mbit: float = 0.0
    """With the Ethernet header; 0 is a line that is always free."""
    delay_ms: float = 0.0
    buffer_bytes: int = 256 << 10
    """What may wait for the line to be free."""
    loss: float = 0.0
    """The share that takes its time on the line and never arrives."""
    reorder: float = 0.0
    """The share that arrives ``late_ms`` later, overtaken by what was sent after it."""
    late_ms: float = 5.0
    seed: int = 1


def is_of_neighbours(frame: bytes) -> bool:
    """To all, or ARP, or IPv6's neighbour discovery."""
    if frame[0] & 1 or frame[12:14] == ARP:
        return True
    return frame[12:14] == IPV6 and frame[20] == ICMPV6 and frame[54] in NEIGHBOUR_MESSAGES


class Way:
    """One direction. It knows no clock: times are seconds of the caller's."""

    def __init__(self, line: Line, name: str) -> None:
        self._line = line
        self._has_luck = line.loss > 0 or line.reorder > 0
        self._random = random.Random(f"{line.seed} {name}")
        self._second_per_byte = 8 / (line.rate_mbit * 1e6) if line.rate_mbit else 0.0
        self._under_way: list[tuple[float, int, bytes]] = []
        self._leaving: deque[tuple[float, int]] = deque()
        self._waiting_bytes = 0
        self._free_s = 0.0
        self._number = 0

    def take(self, frame: bytes, now_s: float) -> None:
        """A frame is sent."""
        line = self._line
        is_lost = is_late = False
        if self._has_luck and not is_of_neighbours(frame):
            is_lost = self._random.random() < line.loss
            is_late = self._random.random() < line.reorder
        self._forget_left(now_s)
        if self._waiting_bytes + len(frame) > line.buffer_bytes:
            return
        self._free_s = max(self._free_s, now_s) + len(frame) * self._second_per_byte
        if self._free_s > now_s:
            self._leaving.append((self._free_s, len(frame)))
            self._waiting_bytes += len(frame)
        if not is_lost:
            arrives_s = self._free_s + (line.delay_ms + line.late_ms * is_late) / 1000
            self._number += 1
            heapq.heappush(self._under_way, (arrives_s, self._number, frame))

    def next_s(self) -> float:
        """When the next frame arrives."""
        return self._under_way[0][0] if self._under_way else NEVER

    def arrived(self, now_s: float) -> Iterator[bytes]:
        """What has arrived by now."""
        while self._under_way and self._under_way[0][0] <= now_s:
            yield heapq.heappop(self._under_way)[2]

    def _forget_left(self, now_s: float) -> None:
        while self._leaving and self._leaving[0][0] <= now_s:
            self._waiting_bytes -= self._leaving.popleft()[1]


def open_tap(namespace: str, device: str) -> int:
    """Attach to a device; the process stays in its namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    if libc.setns(there, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    os.close(there)
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TAP | IFF_NO_PI))
    libc.prctl(PR_SET_TIMERSLACK, 1)
    return tap


def carry(taps: tuple[int, int], ways: tuple[Way, Way]) -> None:
    """Way n takes what is sent into tap n and gives it to the other."""
    both = ((taps[0], taps[1], ways[0]), (taps[1], taps[0], ways[1]))
    while True:
        wait_s = min(way.next_s() for way in ways) - time.monotonic()
        select.select(taps, [], [], None if wait_s == NEVER else max(wait_s, 0))
        for source, sink, way in both:
            with suppress(BlockingIOError):
                for _ in range(AT_ONCE):
                    way.take(os.read(source, FRAME), time.monotonic())
            for frame in way.arrived(time.monotonic()):
                with suppress(OSError):  # the device is down
                    os.write(sink, frame)


def main(left: str, left_device: str, right: str, right_device: str, line: str) -> None:
    taps = (open_tap(left, left_device), open_tap(right, right_device))
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)  # what the hosts compute does not hold a line up
    print("ready", flush=True)
    told = Line(**json.loads(line))
    carry(taps, (Way(told, "there"), Way(told, "back")))


if __name__ == "__main__":
    main(*sys.argv[1:])
