"""IP packets made and read by hand (RFC 791, RFC 8200)."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17
GRE: Final = 47
ICMPV6: Final = 58
CHECKSUM_AT: Final = {TCP: 16, UDP: 6, ICMP: 2, ICMPV6: 2}  # in the payload


def ipv4(source: str, destination: str, payload: bytes, protocol: int = UDP) -> bytes:
    """Return an IPv4 packet (RFC 791 §3.1) with a right checksum."""
    header = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0,
        IPv4Address(source).packed, IPv4Address(destination).packed,
    )  # fmt: skip
    return header[:10] + struct.pack(">H", checksum(header)) + header[12:] + payload


def ipv6(source: str, destination: str, payload: bytes, next_header: int = UDP) -> bytes:
    """Return an IPv6 packet (RFC 8200 §3)."""
    header = struct.pack(
        ">IHBB16s16s", 6 << 28, len(payload), next_header, 64,
        IPv6Address(source).packed, IPv6Address(destination).packed,
    )  # fmt: skip
    return header + payload


def checksum(data: bytes) -> int:
    """Return the internet checksum (RFC 1071)."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def packet(source: str, destination: str, protocol: int, payload: bytes) -> bytes:
    """Return an IPv4 or IPv6 packet; the checksum of a TCP, UDP or ICMP payload is filled in."""
    if (place := CHECKSUM_AT.get(protocol)) is not None:
        ends = ip_address(source).packed + ip_address(destination).packed
        pseudo = b"" if protocol == ICMP else ends + struct.pack(">II", len(payload), protocol)
        sum_ = struct.pack(">H", checksum(pseudo + payload))
        payload = payload[:place] + sum_ + payload[place + 2 :]
    make = ipv6 if ":" in source else ipv4
    return make(source, destination, payload, protocol)


def udp(source: str, source_port: int, destination: str, port: int, data: bytes) -> bytes:
    head = struct.pack("!HHHH", source_port, port, 8 + len(data), 0)
    return packet(source, destination, UDP, head + data)


def syn(source: str, source_port: int, destination: str, port: int, mss: int) -> bytes:
    """Return a TCP connection's first packet (RFC 9293 §3.1, MSS option §3.2)."""
    head = struct.pack("!HHIIBBHHH", source_port, port, 1, 0, 6 << 4, 0x02, 65535, 0, 0)
    return packet(source, destination, TCP, head + struct.pack("!BBH", 2, 4, mss))


def echo_request(source: str, destination: str) -> bytes:
    kind, protocol = (128, ICMPV6) if ":" in source else (8, ICMP)
    return packet(source, destination, protocol, struct.pack("!BBHHH", kind, 0, 0, 7, 1))


def payload_of(data: bytes) -> tuple[int, bytes]:
    """Return the protocol and the payload of a packet without options."""
    return (data[6], data[40:]) if data[0] >> 4 == 6 else (data[9], data[20:])
