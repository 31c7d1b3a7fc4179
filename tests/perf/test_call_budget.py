"""How many calls one packet may cost: the hot path has no room for one more.

Counted with `sys.setprofile`: calls of Python functions, and of C functions apart. The budgets are
what the code needs today. Raise one only with a measurement that says it is worth it; lower it
whenever a call is saved.
"""

from __future__ import annotations

import sys
from collections import Counter

import pytest

from tests.support.pair import logged_in_pair

PACKETS = 100

# Calls for one packet, of Python functions and of C functions:
SEAL_PYTHON = 4  # room, send_room, seal_channel_data, the cipher's seal_into
SEAL_C = 3  # pack_into, to_bytes, encrypt_into
OPEN_PYTHON = 4  # next_payload, open_in_place, receive_data twice; credit comes once per batch
OPEN_C = 7  # unpack_from twice, to_bytes, decrypt_into, get, len twice
SINK = 1  # of this test
BATCH = 20  # calls that a batch may cost besides, however large it is


class Calls:
    """Counts calls while it is entered."""

    def __init__(self):
        self.python = Counter()
        self.c = Counter()

    def __enter__(self):
        sys.setprofile(self._count)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)

    def _count(self, frame, event, arg):
        if event == "call":
            self.python[frame.f_code.co_name] += 1
        elif event == "c_call":
            self.c[arg.__name__] += 1


def seal(channel, size):
    for _ in range(PACKETS):
        room = channel.room()
        assert room
        channel.send_room(size)


@pytest.fixture
def ends():
    pair = logged_in_pair()
    local, remote = pair.open_channel()
    remote.sink = [].append  # as a relay's: what it takes it says at the end of the batch
    return pair, local, remote


@pytest.mark.parametrize("size", [100, 1500, 2500])
def test_sealing_a_packet(ends, size):
    _, local, _ = ends
    with Calls() as calls:
        seal(local, size)
    assert calls.python.total() <= SEAL_PYTHON * PACKETS + BATCH, calls.python
    assert calls.c.total() <= SEAL_C * PACKETS + BATCH, calls.c


@pytest.mark.parametrize("size", [100, 1500, 2500])
def test_opening_a_packet(ends, size):
    pair, local, remote = ends
    seal(local, size)
    view = pair.client.outbound.data_to_send()
    space = pair.server.inbound.space()
    assert len(view) <= len(space)
    space[: len(view)] = view
    with Calls() as calls:
        pair.server.received(len(view), 0.0)
    assert remote.bytes_in == PACKETS * size
    assert calls.python.total() <= OPEN_PYTHON * PACKETS + BATCH, calls.python
    assert calls.c.total() <= (OPEN_C + SINK) * PACKETS + BATCH, calls.c


def test_a_batch_costs_the_same_whatever_is_in_it(ends):
    """No call that grows with the number of channels or of earlier packets."""
    pair, local, _ = ends
    counts = []
    for _ in range(2):
        seal(local, 100)
        view = pair.client.outbound.data_to_send()
        pair.server.inbound.space()[: len(view)] = view
        with Calls() as calls:
            pair.server.received(len(view), 0.0)
        pair.client.outbound.data_sent(len(view))
        counts.append(calls.python.total())
        for _ in range(200):
            pair.open_channel()
    assert counts[1] <= counts[0] + 5
