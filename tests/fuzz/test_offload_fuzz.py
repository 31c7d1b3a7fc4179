"""Any message between gateways: a device is given what may be given, whole and in order (T93)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.tun.superpump import SuperPump
from tests.support.memory import linked, make_links
from tests.support.offload_rules import HEADER, Said, may_reach_a_device, records_of
from tests.support.packets import TCP, UDP, ipv4, ipv6
from tests.support.tun import FakeDevice

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

BOUNDED = settings(max_examples=500, deadline=None, derandomize=True)
MESSAGES = 50  # of each example
MTUS = (576, 1280, 1500, 9000)
WAIT_S = 50

# ---- records that are well -----------------------------------------------------------------------

SIZES = (0, 1, 47, 48, 49, 944, 1460, 2208, 21_855, 21_857, 65_400)
GSO_SIZES = (16, 48, 49, 536, 1200, 1440, 8960)
CHECKSUM_AT = {TCP: 16, UDP: 6}
BEFORE_INSIDE = {4: 20, 41: 40, 47: 24, UDP: 28}


def tcp(size: int, words: int) -> bytes:
    """A header of so many words, and data."""
    return bytes(12) + bytes([words << 4]) + bytes(7 + 4 * words - 20 + size)


def udp(size: int) -> bytes:
    return struct.pack(">HHHH", 1, 2, 8 + size, 0) + bytes(size)


@dataclass
class Draft:
    """A record that is well, to be spoiled. ``start`` of what IP carries, ``end`` of its header."""

    numbers: list[int]
    packet: bytearray
    start: int
    end: int

    def correct(self) -> None:
        """Have the packet say how long it is."""
        if len(self.packet) >= 20:
            at, less = (2, 0) if self.packet[0] >> 4 == 4 else (4, 40)
            self.packet[at : at + 2] = struct.pack(">H", max(len(self.packet) - less, 0) & 0xFFFF)

    @property
    def record(self) -> bytes:
        numbers = (number & most for number, most in zip(self.numbers, MOST, strict=True))
        return struct.pack("<BBHHHH", *numbers) + bytes(self.packet)


MOST = (255, 255, 65_535, 65_535, 65_535, 65_535)


def well(dice: Random) -> Draft:
    how = dice.choice(("finished", "summed", "inside", "cut", "cut"))
    kinds = {"inside": (4, 41, 47, UDP), "finished": (TCP, UDP, 47, 1)}.get(how, (TCP, UDP))
    version, kind, size = dice.choice((4, 6)), dice.choice(kinds), dice.choice(SIZES)
    words = dice.choice((5, 8, 15))
    header = {TCP: 4 * words, UDP: 8}.get(kind, 20)
    if how == "inside":
        data = udp(20 + size) if kind == UDP else bytes(BEFORE_INSIDE[kind]) + udp(size)
    else:
        data = tcp(size, words) if kind == TCP else udp(size)
    start, protocol = 20, kind
    if version == 4:
        packet = ipv4("10.0.0.1", "10.0.0.2", data, kind)
    else:
        start = 40
        for _ in range(dice.choice((0, 0, 1, 4, 5))):
            data, protocol = bytes([protocol, 0]) + bytes(6) + data, dice.choice((0, 43, 60))
            start += 8
        packet = ipv6("fd00::1", "fd00::2", data, protocol)
    numbers = [dice.choice((0, 2)), 0, 0, 0, 0, 0]
    if how == "cut":
        gso_type = 5 if kind == UDP else 1 if version == 4 else 4
        numbers = [1, gso_type, start + header, dice.choice(GSO_SIZES), start, CHECKSUM_AT[kind]]
    elif how != "finished":
        inside = BEFORE_INSIDE[kind] if how == "inside" else 0
        numbers = [1, 0, 0, 0, start + inside, 6 if inside else CHECKSUM_AT[kind]]
    return Draft(numbers, bytearray(packet), start, start + header)


# ---- and what is wrong with them -----------------------------------------------------------------


def spoil_flags(draft: Draft, dice: Random, _mtu: int) -> None:
    draft.numbers[0] ^= dice.choice((1, 2, 3, 4, 8, 128))


def spoil_kind(draft: Draft, dice: Random, _mtu: int) -> None:
    draft.numbers[1] ^= dice.choice((0x80, 0x40, 1, 2, 4, 5))


def spoil_header_length(draft: Draft, dice: Random, _mtu: int) -> None:
    draft.numbers[2] = dice.choice((0, len(draft.packet), len(draft.packet) + 1, 65_535))


def spoil_gso_size(draft: Draft, dice: Random, mtu: int) -> None:
    data, room = max(len(draft.packet) - draft.end, 0), max(mtu - draft.end, 0)
    edges = (0, 1, 15, 16, 47, 48, data // 1366, -(-data // 1366), room, room + 1, 65_535)
    draft.numbers[3] = dice.choice(edges)


def spoil_place(draft: Draft, dice: Random, _mtu: int) -> None:
    if dice.random() < 0.2:
        draft.numbers[5] = dice.choice((0, 2, 6, 10, 16, 65_535))
        return
    header = 20 if draft.numbers[5] == 16 else 8
    last = max(len(draft.packet) - header, 0)
    near = [max(draft.numbers[4] + step, 0) for step in (-4, -1, 1, 4, 8)]
    draft.numbers[4] = dice.choice([0, last, last + 1, 65_535, *near])


def spoil_length(draft: Draft, dice: Random, _mtu: int) -> None:
    """Make it longer than a packet may be, or cut it off near the end of its headers."""
    if dice.random() < 0.2:
        draft.packet += bytes(max(65_575 - len(draft.packet), 0))
    else:
        del draft.packet[max(draft.end + dice.choice((-13, -7, -2, -1, 0, 1)), 0) :]
    if dice.random() < 0.8:
        draft.correct()


def spoil_byte(draft: Draft, dice: Random, _mtu: int) -> None:
    draft.packet[dice.randrange(min(len(draft.packet), 80))] = dice.randrange(256)


def spoil_fragment(draft: Draft, dice: Random, _mtu: int) -> None:
    at, bit = dice.choice(((6, 0x20), (6, 0x40), (7, 1), (6, 1)))
    draft.packet[at] |= bit


def spoil_words(draft: Draft, dice: Random, _mtu: int) -> None:
    """Of TCP's header, or of IPv4's: then the checksum's place moves along."""
    if dice.random() < 0.5 and len(draft.packet) > draft.start + 12:
        draft.packet[draft.start + 12] = dice.choice((0x40, 0x50, 0xF0))
    else:
        words = dice.choice((4, 6))
        draft.packet[0] = draft.packet[0] & 0xF0 | words
        draft.numbers[4] = 4 * words


SPOILS = (
    spoil_flags, spoil_kind, spoil_header_length, spoil_gso_size, spoil_gso_size, spoil_place,
    spoil_place, spoil_length, spoil_byte, spoil_fragment, spoil_words,
)  # fmt: skip


def a_record(dice: Random, mtu: int) -> bytes:
    """Well, or wrong in one place or two."""
    if dice.random() < 0.05:
        return dice.randbytes(dice.randrange(90))
    draft = well(dice)
    for _ in range(dice.choice((0, 1, 1, 1, 2))):
        if draft.packet:
            dice.choice(SPOILS)(draft, dice, mtu)
    return draft.record


def a_message(dice: Random, mtu: int) -> bytes:
    """Records in their frames; now and then one says that it is longer or shorter than it is."""
    message = b""
    for _ in range(dice.choice((1, 1, 2, 4))):
        record = a_record(dice, mtu)
        lie = dice.choice((-60, -1, 1, 2, 60_000, 1 << 31)) if dice.random() < 0.1 else 0
        stated = max(len(record) + lie, 0)
        if dice.random() < 0.05:  # and the packet agrees with that
            stated = len(record) + 4
            record = grown(record, 4)
        message += struct.pack(">I", stated) + record
    return message


def grown(record: bytes, by: int) -> bytes:
    """Have the packet say that it is longer than what is there."""
    draft = Draft([*struct.unpack_from("<BBHHHH", record.ljust(HEADER, b"\0"))],
                  bytearray(record[HEADER:]) + bytes(by), 0, 0)  # fmt: skip
    draft.correct()
    return draft.record[:-by]


# ---- the test ------------------------------------------------------------------------------------


def taken(device: FakeDevice) -> list[bytes]:
    """What was written to a device since the last call."""
    found = []
    while True:
        try:
            found.append(device.kernel.recv(70_000))
        except BlockingIOError:
            return found


@pytest.mark.parametrize("mtu", MTUS)
async def test_a_device_is_given_what_may_be_given(mtu: int) -> None:
    links, device = make_links(capacity=1 << 20), FakeDevice(mtu=mtu, offloads=15)
    with trio.fail_after(WAIT_S):
        async with linked(links):
            local, _ = await links.open_channel()
            pump = SuperPump(device, local, None)
            pump.start(lambda _reason: None)
            sink = local.channel.sink
            assert sink is not None
            passed = check(sink, device, mtu)
            local.link.at_batch_end.clear()  # what nobody sent is not to be given back
            pump.close()
    device.close()
    assert min(passed.values()) > 200, passed


def check(sink: Callable[[memoryview], int], device: FakeDevice, mtu: int) -> dict[int, int]:
    """Have a sink take messages; return how many records passed, by gso_type."""
    passed = dict.fromkeys((0, 1, 4, 5), 0)

    @BOUNDED
    @given(st.randoms(use_true_random=True))
    def look(dice: Random) -> None:
        for _ in range(MESSAGES):
            message = a_message(dice, mtu)
            assert sink(memoryview(message)) == 0
            wanted = [one for one in records_of(message) if may_reach_a_device(one, mtu)]
            assert taken(device) == wanted
            for record in wanted:
                passed[record[1] & 0x7F] += 1
                assert becomes(record) <= len(record) // 16

    look()
    return passed


def becomes(record: bytes) -> int:
    """How many packets a record is at most: a sender pays 16 bytes for each."""
    said = Said.of(record)
    return 1 if said.gso_type == 0 else -(-(len(record) - HEADER - 28) // said.gso_size)
