"""More than 4 GiB: on one channel, in one write, and of credit (T48, CVE-2026-39834)."""

from __future__ import annotations

import mmap
import os

import pytest

from gateway.ssh import messages
from gateway.ssh.packets import MAXIMUM_DATA
from tests.support.pair import inject, logged_in_pair

FOUR_GIB = 1 << 32
MARK = b"the last bytes"


def collect(channel):
    got = bytearray()
    channel.sink = lambda data: got.extend(data) or len(data)
    return got


def test_one_write_of_more_than_4_gib():
    """What the window takes of it is sent, what is left begins there, also behind 4 GiB.

    The memory is the kernel's zeros until it is written to, so it costs nothing.
    """
    size = FOUR_GIB + 100_000
    with mmap.mmap(-1, size) as memory:
        memory[-len(MARK) :] = MARK
        view = memoryview(memory)
        try:
            pair = logged_in_pair()
            local, remote = pair.open_channel()
            got = collect(remote)
            sent = local.send(view)
            pair.pump()
            assert 0 < sent == len(got) < FOUR_GIB
            for start in (FOUR_GIB - 50_000, FOUR_GIB - 1, FOUR_GIB):
                got.clear()
                rest = view[start:]
                while rest:
                    rest = rest[local.send(rest) :]
                    pair.pump()
                assert len(got) == size - start
                assert got.endswith(MARK)
                assert not any(got[: -len(MARK)])
            rest.release()
        finally:
            view.release()


@pytest.mark.parametrize("before", [FOUR_GIB - 100_000, 1 << 33, (1 << 63) - 100_000])
def test_counters_of_a_channel_and_of_its_link_go_on(before):
    """As if so much had passed: every counter of bytes goes on, and so does the data, exactly."""
    pair = logged_in_pair()
    local, remote = pair.open_channel()
    for end in (local, remote):
        end.bytes_in = end.bytes_out = before
    for side in (pair.client, pair.server):
        side.inbound.bytes_total = side.outbound.bytes_total = before
        side.outbound.data_total = side.connection._data_in = before
    got = collect(remote)
    data = os.urandom(3 * MAXIMUM_DATA)
    rest = memoryview(data)
    while rest:
        rest = rest[local.send(rest) :]
        pair.pump()
    assert got == data
    assert local.bytes_out == remote.bytes_in == before + len(data)
    assert pair.server.inbound.bytes_total > before + len(data)


def test_a_window_of_all_the_32_bits_is_used_to_its_last_byte():
    """The largest that may be granted; it counts down by what was sent and by nothing else."""
    pair = logged_in_pair()
    local, remote = pair.open_channel()
    got = collect(remote)
    remote.window.granted = FOUR_GIB - 1
    inject(
        pair.client,
        messages.ChannelWindowAdjust(local.channel_id, FOUR_GIB - 1 - local.remote_window),
    )
    data = os.urandom(1_000_000)
    rest = memoryview(data)
    while rest:
        rest = rest[local.send(rest) :]
        pair.pump()
    assert got == data
    local.remote_window = 1
    assert local.send(b"two") == 1
    assert local.send(b"wo") == 0
