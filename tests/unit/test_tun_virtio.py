"""What is said of a virtio_net_hdr and its packet (T93): well, or dropped for one reason."""

from __future__ import annotations

import random

import pytest

from gateway.tun import virtio
from gateway.tun.packet import Drop
from tests.support.packets import ipv4, ipv6

MTU = 1500
TCP, UDP = virtio.TCP, virtio.UDP


def header(flags=0, gso_type=0, hdr_len=0, gso_size=0, csum_start=0, csum_offset=0) -> bytes:
    return virtio.HEADER.pack(flags, gso_type, hdr_len, gso_size, csum_start, csum_offset)


def tcp(length: int, options: int = 0) -> bytes:
    offset = (20 + options) // 4
    return bytes(12) + bytes([offset << 4]) + bytes(7 + options) + bytes(length)


def udp(length: int, stated: int | None = None) -> bytes:
    total = 8 + length if stated is None else stated
    return bytes(4) + total.to_bytes(2, "big") + bytes(2) + bytes(length)


def four(payload: bytes, protocol: int = TCP) -> bytes:
    return ipv4("10.0.0.1", "10.0.0.2", payload, protocol)


def six(payload: bytes, protocol: int = TCP) -> bytes:
    return ipv6("fd00::1", "fd00::2", payload, protocol)


def judge(head: bytes, packet: bytes, mtu: int = MTU) -> Drop | None:
    return virtio.judge(memoryview(head + packet), mtu)


TCP4 = header(1, 1, 40, 1460, 20, 16)
TCP6 = header(1, 4, 60, 1440, 40, 16)
USO4 = header(1, 5, 28, 1400, 20, 6)
OPTIONS6 = bytes([TCP, 0]) + bytes(6) + tcp(100)  # a hop-by-hop header before TCP


@pytest.mark.parametrize(
    ("head", "packet"),
    [
        (header(), four(tcp(10))),
        (header(2), six(udp(10), UDP)),  # DATA_VALID
        (header(), four(b"x", 47)),
        (header(1, 0, 0, 0, 20, 16), four(tcp(100))),
        (header(1, 0, 0, 0, 20, 6), four(udp(100), UDP)),
        (header(1, 0, 0, 0, 40, 16), six(tcp(100))),
        (header(1, 0, 0, 0, 48, 16), six(OPTIONS6, 0)),
        (header(1, 0, 0, 0, 20 + 20, 16), four(four(tcp(100)), 4)),  # inside of IP
        (header(1, 0, 0, 0, 40 + 40, 6), six(six(udp(0), UDP), 41)),
        (header(1, 0, 0, 0, 20 + 24, 16), four(b"\0\0\x08\0" + four(tcp(0)), 47)),  # of GRE
        (header(1, 0, 0, 0, 20 + 50, 16), four(udp(8 + 14 + 20 + 20), UDP)),  # of VXLAN
        (TCP4, four(tcp(60_000))),
        (TCP6, six(tcp(60_000))),
        (header(1, 0x81, 40, 1460, 20, 16), four(tcp(60_000))),  # with ECN
        (header(1, 1, 52, 1448, 20, 16), four(tcp(60_000, 12))),
        (header(1, 1, 40, 524, 20, 16), four(tcp(65_000))),  # an MTU of 576
        (header(1, 1, 80, 48, 20, 16), four(tcp(65_455, 40))),  # the least
        (USO4, four(udp(14_000), UDP)),
        (header(1, 5, 28, 16, 20, 6), four(udp(2000), UDP)),
    ],
)
def test_well(head: bytes, packet: bytes) -> None:
    assert judge(head, packet) is None


@pytest.mark.parametrize(
    ("head", "packet", "reason"),
    [
        (header(), b"", Drop.MALFORMED),
        (header(), four(b"")[:19], Drop.MALFORMED),
        (header(), four(b""), Drop.HEADER_ONLY),
        (header(), b"\x75" + bytes(40), Drop.MALFORMED),
        (header(), four(tcp(10)) + b"x", Drop.MALFORMED),
        (header(), six(tcp(10))[:-1], Drop.MALFORMED),
        (header(), six(bytes(65_496), 59), Drop.MALFORMED),  # longer than a packet may be
        # flags and kinds
        (header(4), four(tcp(10)), Drop.OFFLOAD),
        (header(0, 1, 40, 1460, 20, 16), four(tcp(9000)), Drop.OFFLOAD),  # cut without a checksum
        (header(1, 2, 40, 1460, 20, 16), four(tcp(9000)), Drop.OFFLOAD),
        (header(1, 3, 28, 1400, 20, 6), four(udp(9000), UDP), Drop.OFFLOAD),  # UFO
        (TCP4, six(tcp(9000)), Drop.OFFLOAD),
        (TCP6, four(tcp(9000)), Drop.OFFLOAD),
        (TCP4, four(udp(9000), UDP), Drop.OFFLOAD),
        (USO4, four(tcp(9000)), Drop.OFFLOAD),
        # gso_size and what becomes of it
        (header(1, 1, 40, 0, 20, 16), four(tcp(9000)), Drop.OFFLOAD),
        (header(1, 1, 40, 1, 20, 16), four(tcp(60_000)), Drop.OFFLOAD),
        (header(1, 1, 40, 47, 20, 16), four(tcp(9000)), Drop.OFFLOAD),
        (header(1, 1, 40, 1461, 20, 16), four(tcp(9000)), Drop.OFFLOAD),
        (header(1, 1, 40, 65_535, 20, 16), four(tcp(9000)), Drop.OFFLOAD),
        (header(1, 5, 28, 1, 20, 6), four(udp(100), UDP), Drop.OFFLOAD),
        (header(1, 5, 28, 15, 20, 6), four(udp(100), UDP), Drop.OFFLOAD),
        (header(1, 5, 28, 16, 20, 6), four(udp(22_000), UDP), Drop.OFFLOAD),
        (TCP4, four(tcp(0)), Drop.OFFLOAD),
        # offsets and lengths
        (header(1, 1, 65_535, 1460, 20, 16), four(tcp(9000)), Drop.OFFLOAD),
        (header(1, 0, 0, 0, 0, 16), four(tcp(100)), Drop.OFFLOAD),
        (header(1, 0, 0, 0, 24, 16), four(tcp(100)), Drop.OFFLOAD),
        (header(1, 0, 0, 0, 20, 6), four(tcp(100)), Drop.OFFLOAD),
        (header(1, 0, 0, 0, 65_535, 65_535), four(tcp(100)), Drop.OFFLOAD),
        (header(1, 0, 0, 0, 20, 16), four(bytes(19)), Drop.OFFLOAD),
        (header(1, 0, 0, 0, 20, 2), four(bytes(100), 1), Drop.OFFLOAD),  # ICMP
        # what is inside
        (header(1, 0, 0, 0, 20 + 19, 16), four(four(tcp(100)), 4), Drop.OFFLOAD),
        (header(1, 0, 0, 0, 20 + 20, 10), four(four(tcp(100)), 4), Drop.OFFLOAD),
        (header(1, 0, 0, 0, 20 + 21, 16), four(four(tcp(0)), 4), Drop.OFFLOAD),  # leads out
        (header(1, 0, 0, 0, 20 + 20, 16), four(four(tcp(100)), 1), Drop.OFFLOAD),
        (header(1, 0, 0, 0, 20 + 40, 16), four(tcp(100)), Drop.OFFLOAD),  # TCP carries none
        (header(1, 0, 0, 0, 20 + 27, 6), four(udp(100), UDP), Drop.OFFLOAD),
        (header(1, 0, 0, 0, 20 + 4, 6), four(udp(100), UDP), Drop.OFFLOAD),  # its own header
        (header(1, 0, 0, 0, 6, 6), four(udp(100), UDP), Drop.OFFLOAD),  # the addresses
        (header(1, 1, 80, 1400, 20 + 20, 16), four(four(tcp(9000)), 4), Drop.OFFLOAD),
        (TCP4, four(bytes(12) + b"\x40" + bytes(9000)), Drop.OFFLOAD),  # a TCP header of 16 bytes
        (USO4, four(udp(9000, 100), UDP), Drop.OFFLOAD),  # UDP's length lies
        (header(1, 0, 0, 0, 20, 16),
         four(tcp(100))[:6] + b"\x20\x00" + four(tcp(100))[8:], Drop.OFFLOAD),  # a fragment
        (header(1, 0, 0, 0, 8, 16), b"\x42" + four(tcp(100))[1:], Drop.OFFLOAD),  # IHL of 2
        (header(1, 0, 0, 0, 48, 16), six(bytes([0, 255]) + bytes(100), 0), Drop.OFFLOAD),
    ],
)  # fmt: skip
def test_dropped(head: bytes, packet: bytes, reason: Drop) -> None:
    assert judge(head, packet) is reason


def test_a_small_mtu_is_the_ceiling() -> None:
    packet = four(tcp(9000))
    assert judge(header(1, 1, 40, 1240, 20, 16), packet, 1280) is None
    assert judge(header(1, 1, 40, 1241, 20, 16), packet, 1280) is Drop.OFFLOAD


def test_whatever_comes_there_is_an_answer() -> None:
    """Random changes of good records: judged, and never cut into more than the bound."""
    dice = random.Random(93)
    good = [TCP4 + four(tcp(9000)), TCP6 + six(tcp(9000)), USO4 + four(udp(9000), UDP)]
    passed = 0
    for _ in range(20_000):
        record = bytearray(dice.choice(good))
        for _ in range(dice.randrange(1, 4)):
            record[dice.randrange(70)] = dice.randrange(256)
        del record[dice.choice((len(record), dice.randrange(80))) :]
        if virtio.judge(memoryview(record), MTU) is None:
            passed += 1
            flags, gso_type, _, gso_size, start, offset = virtio.HEADER.unpack_from(record)
            if gso_type:
                assert len(record) / gso_size <= virtio.MAXIMUM_SEGMENTS + 2
            if flags & 1:
                assert start + offset + 2 <= len(record) - virtio.SIZE
    assert passed > 1000
