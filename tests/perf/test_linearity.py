"""Work grows with the bytes and not faster; memory does not grow at all."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from gateway.ssh import messages
from tests.support.pair import feed, logged_in_pair, take

pytestmark = pytest.mark.alone

ATTEMPTS = 6
SLOWER = 2.0


def ratio_of_costs(small, large, rounds=7):
    """CPU seconds per unit of ``large`` by those of ``small``; each returns its units.

    Turn by turn and the best of each, so that whatever else the machine does counts for little.
    """
    best = {}
    for _ in range(rounds):
        for name, work in (("small", small), ("large", large)):
            began = time.process_time()
            units = work()
            cost = (time.process_time() - began) / units
            best[name] = min(cost, best.get(name, cost))
    return best["large"] / best["small"]


def assert_linear(small, large):
    """The machine may be busy: one good attempt of several shows that it can be done."""
    ratios = []
    for _ in range(ATTEMPTS):
        ratios.append(ratio_of_costs(small, large))
        if ratios[-1] <= SLOWER:
            return
    raise AssertionError(f"grows faster than its input: {ratios}")


def test_channel_data_costs_the_same_per_byte_in_a_small_and_a_large_backlog():
    pair = logged_in_pair()
    local, remote = pair.open_channel()
    remote.sink = len
    data = bytes(1024 * 1024)

    def carry(total):
        def work():
            sent = 0
            while sent < total:
                sent += local.send(memoryview(data)[: total - sent])
                pair.pump()
            return total

        return work

    assert_linear(carry(200_000), carry(6_000_000))


def test_small_packets_do_not_cost_more_in_a_full_batch():
    pair = logged_in_pair()
    local, remote = pair.open_channel()
    remote.sink = len

    def carry(packets):
        def work():
            for _ in range(packets):
                room = local.room()
                if not room:
                    pair.pump()
                    room = local.room()
                local.send_room(50)
            pair.pump()
            return packets

        return work

    assert_linear(carry(300), carry(2500))


def test_a_backlog_of_control_messages_is_worked_off_in_linear_time():
    """Behind a key exchange: the lane is filled, then drained."""

    def carry(count):
        def work():
            pair.client.transport.start_rekey(pair.now_s)
            for _ in range(count):
                pair.client.connection.send_global_request("x")
            pair.pump()
            pair.server_events.clear()
            pair.client_events.clear()
            pair.now_s += 10
            return count

        return work

    pair = logged_in_pair()
    pair.server.connection._handlers[messages.GlobalRequest.number] = len
    assert_linear(carry(300), carry(9000))


def test_a_packet_that_arrives_byte_by_byte_is_not_looked_at_again_and_again():
    def carry(size):
        pair = logged_in_pair()
        local, remote = pair.open_channel()
        remote.sink = len

        def work():
            local.send(bytes(size))
            stream = take(pair.client)
            for at in range(0, len(stream), 16):
                feed(pair.server, stream[at : at + 16])
            take(pair.server)
            local.remote_window = remote.window.granted
            return size

        return work

    assert_linear(carry(4000), carry(40_000))


def test_memory_is_flat_while_much_passes():
    pair = logged_in_pair()
    local, remote = pair.open_channel()
    remote.sink = len
    data = bytes(256 * 1024)

    def carry(times):
        for _ in range(times):
            local.send(data)
            pair.pump()
        pair.client_events.clear()

    carry(20)
    tracemalloc.start()
    try:
        carry(10)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        carry(200)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 20_000
    assert peak - before < 3_000_000, "one batch, copied by this test, and two buffers"
