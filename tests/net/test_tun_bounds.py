"""How much one call of a pump does at most, whatever either side has waiting (T93).

What is counted are packets and bytes; the bound in time is processor time and generous.
"""

from __future__ import annotations

import os
import struct
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from gateway.net import poller
from gateway.ssh.packets import MAXIMUM_DATA
from gateway.tun import pump as pumps
from gateway.tun.pump import PACKETS_AT_ONCE
from gateway.tun.superpump import MESSAGE, make_pump
from gateway.tun.virtio import HEADER, SIZE
from tests.support.memory import linked, make_links
from tests.support.offload_rules import Said, may_reach_a_device, records_of
from tests.support.packets import TCP, UDP, ipv4
from tests.support.tun import FakeDevice

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.tun.pump import Pump

WAIT_S = 60
LONGEST_CALL_S = 0.5  # of processor time; a tenth of it is usual
LARGEST_RECORD = 4 + SIZE + 65_535
PLAIN = bytes(SIZE)
TINY = PLAIN + ipv4("10.1.0.1", "10.1.0.2", b"x")
CUT_TCP = HEADER.pack(1, 1, 40, 48, 20, 16) + ipv4(
    "10.1.0.1", "10.1.0.2", bytes(12) + b"\x50" + bytes(65_502), TCP
)
CUT_UDP = HEADER.pack(1, 5, 28, 16, 20, 6) + ipv4(
    "10.1.0.1", "10.1.0.2", struct.pack(">HHHH", 1, 2, 8 + 1366 * 16, 0) + bytes(1366 * 16), UDP
)


@asynccontextmanager
async def pumping(offloads: int | None = 15) -> AsyncIterator[tuple[Pump, FakeDevice]]:
    links, device = make_links(capacity=1 << 24), FakeDevice(offloads=offloads)
    with trio.fail_after(WAIT_S):
        async with linked(links):
            local, _ = await links.open_channel()
            pump = make_pump(device, local, None)
            pump.start(lambda _reason: None)
            yield pump, device
            local.link.at_batch_end.clear()
            pump.close()
    device.close()


class Counted:
    """Stands for a function of `os`: how often it is called, with how many bytes."""

    def __init__(self, patch: pytest.MonkeyPatch, name: str, result: bytes | None) -> None:
        self.calls = self.bytes = 0
        self._result = result
        patch.setattr(pumps.os, name, self)

    def __call__(self, _fd: int, data: memoryview | tuple[memoryview, ...]) -> int:
        self.calls += 1
        if self._result is not None:
            next(iter(data))[: len(self._result)] = self._result  # type: ignore[index]
            return len(self._result)
        self.bytes += len(data)
        return len(data)


def becomes(record: bytes) -> int:
    said = Said.of(record)
    return 1 if not said.gso_type else -(-(len(record) - SIZE - 28) // said.gso_size)


@pytest.mark.parametrize("record", [TINY, CUT_TCP, CUT_UDP], ids=["tiny", "tcp", "udp"])
async def test_a_message_is_no_more_packets_than_its_bytes_pay_for(
    record: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    framed = struct.pack(">I", len(record)) + record
    message = framed * (MAXIMUM_DATA // len(framed))
    assert may_reach_a_device(record, 1500)
    async with pumping() as (pump, _):
        with monkeypatch.context() as patch:
            write = Counted(patch, "write", None)
            began_s = time.thread_time()
            pump._sink(memoryview(message))
            took_s = time.thread_time() - began_s
        assert write.calls == len(list(records_of(message))) <= MAXIMUM_DATA // 35
        assert write.calls * becomes(record) <= MAXIMUM_DATA // 16
        assert took_s < LONGEST_CALL_S


@pytest.mark.parametrize("credit", [0, 1000, 1 << 30])
@pytest.mark.parametrize("offloads", [None, 15])
async def test_a_device_that_never_ends_is_read_for_one_turn(
    offloads: int | None, credit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn, and as much into the queue."""
    given = (TINY if offloads is None else CUT_TCP)[SIZE if offloads is None else 0 :]
    async with pumping(offloads) as (pump, device):
        device.kernel.send(given)  # so that it is readable
        pump._channel.remote_window = credit
        outbound = pump._link.protocol.outbound
        with monkeypatch.context() as patch:
            read = Counted(patch, "readv", given)
            for _ in range(5):
                before, calls, limit = outbound.data_total, read.calls, pump._link.bulk_limit()
                began_s = time.thread_time()
                pump._device_ready(poller.READABLE)
                took_s = time.thread_time() - began_s
                assert 0 < read.calls - calls <= 2 * PACKETS_AT_ONCE
                assert outbound.data_total - before <= limit + MESSAGE + LARGEST_RECORD
                assert took_s < LONGEST_CALL_S
                pump._blocked_s -= 1.0  # of waiting, so that the queue is used
            assert os.readv is read


async def test_what_waited_goes_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue that is full, and then credit for all of it."""
    async with pumping() as (pump, _):
        outbound = pump._link.protocol.outbound
        now_s = trio.current_time()
        while not pump._queue.dropped:
            pump._queue.push(struct.pack(">I", len(TINY)) + TINY, now_s)
        pump._channel.remote_window = 1 << 30
        before, limit = outbound.data_total, pump._link.bulk_limit()
        began_s = time.thread_time()
        pump._go_on()
        took_s = time.thread_time() - began_s
        assert 0 < outbound.data_total - before <= limit + LARGEST_RECORD
        assert took_s < LONGEST_CALL_S
