"""The queue before a full channel: order, bounds, and what CoDel drops (RFC 8289)."""

from __future__ import annotations

from gateway.tun.queue import CAPACITY, INTERVAL_S, TARGET_S, Queue


def test_first_in_first_out() -> None:
    queue = Queue()
    for number in range(5):
        queue.push(bytes([number]), 0.0)
    assert [queue.pop(0.001) for _ in range(6)] == [b"\0", b"\1", b"\2", b"\3", b"\4", None]
    assert (len(queue), queue.length_bytes, queue.dropped) == (0, 0, 0)


def test_the_oldest_make_room_for_the_newest() -> None:
    queue = Queue()
    count = CAPACITY // 1000 + 50
    for number in range(count):
        queue.push(number.to_bytes(1000, "big"), 0.0)
        assert queue.length_bytes <= CAPACITY
    first = queue.pop(0.0)
    assert first is not None
    assert int.from_bytes(first, "big") == queue.dropped >= 50


def test_a_burst_that_is_sent_within_an_interval_loses_nothing() -> None:
    queue = Queue()
    for number in range(100):
        queue.push(bytes([number]), 0.0)
    taken = [queue.pop(INTERVAL_S * number / 100) for number in range(100)]
    assert taken == [bytes([number]) for number in range(100)]
    assert queue.dropped == 0


def run(arrivals_per_s: float, departures_per_s: float, duration_s: float) -> tuple[int, float]:
    """Fill and empty a queue evenly; return the drops and the longest sojourn of the last second.

    The sender does not slow down, as a flood would not.
    """
    queue, now_s, arrived, worst_s = Queue(), 0.0, 0.0, 0.0
    while now_s < duration_s:
        while arrived <= now_s:
            queue.push(int(arrived * 1e6).to_bytes(8, "big") + bytes(1492), now_s)
            arrived += 1 / arrivals_per_s
        packet = queue.pop(now_s)
        if packet is not None and now_s > duration_s - 1:
            worst_s = max(worst_s, now_s - int.from_bytes(packet[:8], "big") / 1e6)
        now_s += 1 / departures_per_s
    return queue.dropped, worst_s


def test_no_drops_below_the_rate() -> None:
    assert run(900, 1000, 5)[0] == 0


def test_drops_keep_a_standing_queue_short() -> None:
    """A tenth too much would wait for 0.5 s after 5 s, and goes on to grow."""
    dropped, worst_s = run(1100, 1000, 20)
    assert dropped > 100
    assert worst_s < 0.7


def test_it_stops_dropping_when_the_queue_is_short_again() -> None:
    queue = Queue()
    now_s = 0.0
    for number in range(400):
        queue.push(bytes([number % 256]), now_s)
        queue.push(bytes([number % 256]), now_s)
        queue.pop(now_s)
        now_s += 0.002
    assert queue.dropped > 0
    while queue.pop(now_s) is not None:
        pass
    dropped = queue.dropped
    for _ in range(100):
        now_s += 0.01
        queue.push(b"x", now_s)
        assert queue.pop(now_s + TARGET_S / 2) == b"x"
    assert queue.dropped == dropped
