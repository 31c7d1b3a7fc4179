"""Which records may reach a device, said once more: an oracle for `gateway.tun.virtio`.

Written from VIRTIO 1.2 §5.1.6, RFC 791, RFC 8200, RFC 9293 and RFC 768, what Linux checks in
virtio_net_hdr_to_skb (include/linux/virtio_net.h), and PROTOCOL.md for the bounds that are ours;
not from the code that it judges. It is slow and says everything in full.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER = 10
NEEDS_CSUM, DATA_VALID = 1, 2
NONE, TCPV4, TCPV6, UDP_L4, ECN = 0, 1, 4, 5, 0x80
TCP, UDP = 6, 17


@dataclass
class Said:
    """A virtio_net_hdr."""

    flags: int
    gso_type: int
    hdr_len: int
    gso_size: int
    csum_start: int
    csum_offset: int

    @classmethod
    def of(cls, record: bytes) -> Said:
        words = (int.from_bytes(record[at : at + 2], "little") for at in range(2, HEADER, 2))
        return cls(record[0], record[1], *words)


def records_of(message: bytes) -> Iterator[bytes]:
    """The records of a message, up to one that is none."""
    while len(message) > 4:
        length = int.from_bytes(message[:4], "big")
        record, message = message[4 : 4 + length], message[4 + length :]
        if len(record) < length or length <= HEADER:
            return
        yield record


def may_reach_a_device(record: bytes, mtu: int) -> bool:
    """Whether a device with this MTU may have a record."""
    said, packet = Said.of(record), record[HEADER:]
    if not is_one_packet(packet):
        return False
    if said.flags in (0, DATA_VALID) and said.gso_type == NONE:
        return True  # it is finished; the rest of the header says nothing
    if said.flags not in (NEEDS_CSUM, NEEDS_CSUM | DATA_VALID) or said.hdr_len > len(packet):
        return False
    protocol, start = transport(packet)
    if protocol is None:
        return False
    if said.gso_type == NONE and said.csum_start > start:
        return is_of_a_packet_inside(said, len(packet), protocol, start)
    if (protocol, said.csum_offset) not in ((TCP, 16), (UDP, 6)) or said.csum_start != start:
        return False
    if len(packet) - start < (20 if protocol == TCP else 8):
        return False
    return said.gso_type == NONE or can_be_cut(said, packet, protocol, start, mtu)


def is_one_packet(packet: bytes) -> bool:
    """Whether it is what its own header says, more than 20 bytes and at most 65535."""
    if not 20 < len(packet) <= 65_535:
        return False
    if packet[0] >> 4 == 4:
        return int.from_bytes(packet[2:4], "big") == len(packet)
    return packet[0] >> 4 == 6 and int.from_bytes(packet[4:6], "big") + 40 == len(packet)


def transport(packet: bytes) -> tuple[int | None, int]:
    """Protocol and place of what IP carries; None for fragments and headers that are cut off."""
    if packet[0] >> 4 == 4:
        start = 4 * (packet[0] & 15)
        is_fragment = int.from_bytes(packet[6:8], "big") & 0x3FFF
        is_whole = start >= 20 and not is_fragment
        return (packet[9] if is_whole else None), start
    kind, start, extensions = packet[6], 40, 0
    while kind in (0, 43, 60) and extensions < 4 and start + 8 <= len(packet):
        kind, start = packet[start], start + 8 + 8 * packet[start + 1]
        extensions += 1
    return kind, start


def is_of_a_packet_inside(said: Said, length: int, protocol: int, start: int) -> bool:
    """IP (4), IPv6 (41) and GRE (47) carry packets, and so does UDP (VXLAN)."""
    least = {4: 20, 41: 40, 47: 4 + 20, UDP: 8 + 20}.get(protocol)
    needs = {16: 20, 6: 8}.get(said.csum_offset)
    if least is None or needs is None:
        return False
    return said.csum_start >= start + least and said.csum_start + needs <= length


def can_be_cut(said: Said, packet: bytes, protocol: int, start: int, mtu: int) -> bool:
    version = packet[0] >> 4
    kinds = {
        (4, TCP): (TCPV4, TCPV4 | ECN),
        (6, TCP): (TCPV6, TCPV6 | ECN),
        (4, UDP): (UDP_L4,),
        (6, UDP): (UDP_L4,),
    }
    if said.gso_type not in kinds[version, protocol]:
        return False
    if protocol == TCP:
        header, least = 4 * (packet[start + 12] >> 4), 48
        if header < 20:
            return False
    else:
        header, least = 8, 16
        if int.from_bytes(packet[start + 4 : start + 6], "big") != len(packet) - start:
            return False
    data = len(packet) - start - header
    return (
        data > 0
        and said.gso_size >= least
        and start + header + said.gso_size <= mtu
        and packets_of(said, data) <= 1366
    )


def packets_of(said: Said, data: int) -> int:
    """How many packets become of ``data`` bytes."""
    return -(-data // said.gso_size)
