"""virtio_net_hdr: what the kernel says of a packet that it has left unfinished (VIRTIO 1.2 §5.1.6).

Pure. With IFF_VNET_HDR each packet of a tun device begins with one: that TCP is still to be cut
into segments of ``gso_size``, and that a checksum is still to be computed, from where to the end of
the packet and where it goes. We carry it as it is, so it comes from the peer, and the kernel
believes what it is told: one write of 60 KB with a gso_size of 1 became 54 273 packets. So nothing
is written to a device that was not looked at here.

The checksum may be that of a packet inside of the packet (VXLAN, GRE): a kernel that forwards for
others leaves that too. It is never where it would change the addresses or the ports that rules and
NAT have seen.
"""

from __future__ import annotations

import struct
from typing import Final

from gateway.tun.packet import IPV4_HEADER, IPV6_HEADER, Drop

# ---- linux/virtio_net.h; little-endian by TUNSETVNETLE -------------------------------------------
HEADER: Final = struct.Struct("<BBHHHH")  # flags, gso_type, hdr_len, gso_size, csum_start, _offset
SIZE: Final = HEADER.size
NEEDS_CSUM: Final = 1
DATA_VALID: Final = 2
GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_TCPV6: Final = 4
GSO_UDP_L4: Final = 5
GSO_ECN: Final = 0x80  # beside TCP
# ---- IANA protocol numbers -----------------------------------------------------------------------
TCP: Final = 6
UDP: Final = 17
_CARRIERS: Final = {4: 20, 41: 40, 47: 24, UDP: 28}  # IP, IPv6, GRE: least before what is inside
_EXTENSIONS: Final = frozenset((0, 43, 60))  # of IPv6 before what they extend: RFC 8200 §4
# ---- our own choices -----------------------------------------------------------------------------
# Hosts that take little get small segments. Yet a packet costs its sender 16 bytes or more, so that
# what is cut is about as much work as whole packets of as many bytes.
LEAST_GSO_SIZE: Final = 48  # of Linux' least MSS, TCP_MIN_MSS, with all options
LEAST_DATAGRAM: Final = 16
MAXIMUM_SEGMENTS: Final = 1366  # of one packet: 64 KiB of the smallest
MAXIMUM_EXTENSIONS: Final = 4

_LARGEST: Final = 65_535  # bytes of a packet; PROTOCOL.md
_LENGTH: Final = struct.Struct(">H")
_CHECKSUM_AT: Final = {TCP: 16, UDP: 6}  # in their headers
_HEADERS: Final = {TCP: 20, UDP: 8}
_HEADERS_BY_CHECKSUM: Final = {16: 20, 6: 8}
_NONE: Final = (-1, -1)
_SEGMENTED: Final = {GSO_TCPV4: (4, TCP), GSO_TCPV6: (6, TCP)}


def judge(record: memoryview, mtu: int) -> Drop | None:
    """Look at a header and an IP packet; None if a device with this MTU may have both."""
    length = len(record) - SIZE
    if length <= IPV4_HEADER:
        return Drop.HEADER_ONLY if length == IPV4_HEADER else Drop.MALFORMED
    version = record[SIZE] >> 4
    if version == 4:
        stated = _LENGTH.unpack_from(record, SIZE + 2)[0]
    elif version == 6:
        stated = _LENGTH.unpack_from(record, SIZE + 4)[0] + IPV6_HEADER
    else:
        return Drop.MALFORMED
    if stated != length or length > _LARGEST:
        return Drop.MALFORMED
    flags, gso_type, hdr_len, gso_size, csum_start, csum_offset = HEADER.unpack_from(record)
    if not flags & ~DATA_VALID and gso_type == GSO_NONE:
        return None
    packet = record[SIZE:]
    protocol, start = _transport(packet, version)
    if not flags & NEEDS_CSUM or flags & ~(NEEDS_CSUM | DATA_VALID) or hdr_len > length:
        return Drop.OFFLOAD
    if csum_start != start:
        is_well = gso_type == GSO_NONE and _is_inside(
            csum_start - start, csum_offset, length - start, protocol
        )
    else:
        is_well = csum_offset == _CHECKSUM_AT.get(protocol) and (
            gso_type == GSO_NONE
            or _can_be_cut(packet, (version, protocol), start, gso_type, gso_size, mtu)
        )
    return None if is_well else Drop.OFFLOAD


def _transport(packet: memoryview, version: int) -> tuple[int, int]:
    """Return the protocol and where its header is; (-1, -1) if it is not all there."""
    if version == 4:
        protocol, start = packet[9], (packet[0] & 15) * 4
        is_fragment = bool(_LENGTH.unpack_from(packet, 6)[0] & 0x3FFF)  # offset, or more to come
        if start < IPV4_HEADER or is_fragment:
            return _NONE
    else:
        protocol, start = packet[6], IPV6_HEADER
        for _ in range(MAXIMUM_EXTENSIONS):
            if protocol not in _EXTENSIONS or start + 8 > len(packet):
                break
            protocol, start = packet[start], start + 8 * (packet[start + 1] + 1)
    if start + _HEADERS.get(protocol, 0) > len(packet):
        return _NONE
    return protocol, start


def _is_inside(start: int, offset: int, length: int, protocol: int) -> bool:
    """Look at a checksum ``start`` bytes after the header of what carries other packets."""
    header = _HEADERS_BY_CHECKSUM.get(offset)
    least = _CARRIERS.get(protocol)
    return header is not None and least is not None and least <= start <= length - header


def _can_be_cut(
    packet: memoryview,
    kind: tuple[int, int],
    start: int,
    gso_type: int,
    gso_size: int,
    mtu: int,
) -> bool:
    """Look at what the kernel is to cut: ``kind`` is IP version and protocol."""
    if kind[1] == TCP:
        end = start + (packet[start + 12] >> 4) * 4
        least = LEAST_GSO_SIZE
        is_kind = _SEGMENTED.get(gso_type & ~GSO_ECN) == kind and end >= start + _HEADERS[TCP]
    else:
        end, least = start + _HEADERS[UDP], LEAST_DATAGRAM
        stated = _LENGTH.unpack_from(packet, start + 4)[0]
        is_kind = gso_type == GSO_UDP_L4 and stated == len(packet) - start
    payload = len(packet) - end
    return is_kind and least <= gso_size <= mtu - end and 0 < payload <= gso_size * MAXIMUM_SEGMENTS
