"""What is said of a packet: well, or the one reason why it goes no further."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from gateway.tun.packet import (
    FAMILY_INET,
    FAMILY_INET6,
    Addresses,
    Drop,
    judge_frame,
    judge_ip,
)
from tests.support.packets import ipv4, ipv6

FOUR = ipv4("10.0.0.1", "10.0.0.2", b"x" * 8)
SIX = ipv6("fd00::1", "fd00::2", b"x" * 8)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (FAMILY_INET + FOUR, None),
        (FAMILY_INET6 + SIX, None),
        (FAMILY_INET + ipv4("10.0.0.1", "10.0.0.2", bytes(65_515)), None),
        (FAMILY_INET + FOUR[:20], Drop.HEADER_ONLY),
        (FAMILY_INET6 + SIX[:40], Drop.HEADER_ONLY),
        (FAMILY_INET + SIX, Drop.FAMILY),
        (FAMILY_INET6 + FOUR, Drop.FAMILY),
        (struct.pack(">I", 10) + SIX, Drop.FAMILY),  # Linux's own number of IPv6
        (FOUR, Drop.MALFORMED),  # without a family
        (b"", Drop.MALFORMED),
        (b"\0\0\0", Drop.MALFORMED),
        (FAMILY_INET, Drop.MALFORMED),
        (FAMILY_INET + FOUR[:19], Drop.MALFORMED),
        (FAMILY_INET6 + SIX[:39], Drop.MALFORMED),
        (FAMILY_INET + FOUR[:-1], Drop.MALFORMED),
        (FAMILY_INET + FOUR + b"\0", Drop.MALFORMED),
        (FAMILY_INET6 + SIX[:-1], Drop.MALFORMED),
        (FAMILY_INET6 + SIX + SIX, Drop.MALFORMED),  # two in one message
        (FAMILY_INET + b"\x50" + FOUR[1:], Drop.MALFORMED),
    ],
)
def test_ip(data: bytes, expected: Drop | None) -> None:
    assert judge_ip(memoryview(data)) is expected


def test_frames() -> None:
    assert judge_frame(memoryview(bytes(15))) is None
    assert judge_frame(memoryview(bytes(14))) is Drop.HEADER_ONLY
    assert judge_frame(memoryview(bytes(13))) is Drop.MALFORMED


def test_each_pair_of_addresses_is_asked_about_once() -> None:
    asked = []

    def decide(source, destination):
        asked.append((str(source), str(destination)))
        return Drop.SOURCE if source == ip_address("10.0.0.9") else None

    addresses = Addresses(decide)
    foreign = ipv4("10.0.0.9", "10.0.0.2", b"y")
    for _ in range(2):
        assert addresses.judge(memoryview(FOUR)) is None
        assert addresses.judge(memoryview(SIX)) is None
        assert addresses.judge(memoryview(foreign)) is Drop.SOURCE
    assert asked == [
        ("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2"), ("10.0.0.9", "10.0.0.2"),
    ]  # fmt: skip
    addresses.forget()
    assert addresses.judge(memoryview(FOUR)) is None
    assert len(asked) == 4


def test_the_table_of_verdicts_is_bounded() -> None:
    addresses = Addresses(lambda _source, _destination: None)
    for number in range(10_000):
        packet = ipv4("10.0.0.1", str(ip_address(number + 1)), b"x")
        assert addresses.judge(memoryview(packet)) is None
        assert len(addresses._known) <= 4096
