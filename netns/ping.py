"""ICMP echo, IPv4 and IPv6, without a program: many, of any size, and what became of each.

It needs root, for a raw socket. Replies are matched by identifier, sequence number and content;
an ICMP error that quotes one of ours counts for the request that it quotes.
"""

from __future__ import annotations

import random
import select
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Self, TypedDict, Unpack

HEADER = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence number
IPV6_HEADER_BYTES = 40
LARGEST_PACKET = 65535
# linux/in.h, linux/in6.h: set DF (in IPv6: never split) and do not mind what is known of the path
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, IPV6_DONTFRAG = 10, 23, 62
PMTUDISC_PROBE = 3


@dataclass(frozen=True)
class Family:
    """What differs between ICMP and ICMPv6."""

    family: socket.AddressFamily
    protocol: int
    request: int
    reply: int
    errors: dict[int, str]


ICMP = Family(
    socket.AF_INET, socket.IPPROTO_ICMP, 8, 0,
    {3: "unreachable", 11: "time exceeded", 12: "parameter problem"},
)  # fmt: skip
ICMPV6 = Family(
    socket.AF_INET6, socket.IPPROTO_ICMPV6, 128, 129,
    {1: "unreachable", 2: "too big", 3: "time exceeded", 4: "parameter problem"},
)  # fmt: skip


class Options(TypedDict, total=False):
    """``size``: of the data in each; ``timeout_s``: how long the last one is waited for."""

    size: int
    interval_s: float
    timeout_s: float
    dont_fragment: bool


@dataclass
class Pings:
    """What became of them. ``times_ms``: of every request that was answered, in their order."""

    sent: int = 0
    arrived: list[int] = field(default_factory=list)
    """Sequence numbers in the order of arrival, twice for a reply that came twice."""
    times: dict[int, float] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    """By sequence number: an ICMP error as "unreachable 1", or why it could not be sent."""

    @property
    def received(self) -> int:
        """How many were answered."""
        return len(self.times)

    @property
    def lost(self) -> int:
        """How many were not."""
        return self.sent - self.received

    @property
    def times_ms(self) -> list[float]:
        """Round trips."""
        return [self.times[number] * 1000 for number in sorted(self.times)]

    @property
    def overtaken(self) -> int:
        """How many arrived after one that was sent later."""
        latest, found = -1, 0
        for number in self.arrived:
            found += number < latest
            latest = max(latest, number)
        return found

    @property
    def all_known(self) -> bool:
        """Whether there is nothing to wait for."""
        return len(self.times.keys() | self.errors.keys()) == self.sent


def ping(address: str, count: int = 1, **options: Unpack[Options]) -> Pings:
    """Send ``count`` requests from the network of the calling thread and wait for the replies."""
    interval_s, timeout_s = options.get("interval_s", 0.01), options.get("timeout_s", 1.0)
    found = Pings()
    with _Pinger(address, options.get("size", 56)) as pinger:
        if options.get("dont_fragment"):
            pinger.never_split()
        next_s = time.monotonic()
        while found.sent < count:
            pinger.send(found)
            next_s += interval_s
            pinger.receive_until(next_s, found)
        pinger.receive_until(time.monotonic() + timeout_s, found, till_known=True)
    return found


class _Pinger:
    def __init__(self, address: str, size: int) -> None:
        self._kind = ICMPV6 if ":" in address else ICMP
        self._address = address
        self._identifier = random.randrange(1 << 16)
        self._data = random.randbytes(size)
        self._sent_s: dict[int, float] = {}
        self._socket = socket.socket(self._kind.family, socket.SOCK_RAW, self._kind.protocol)
        self._socket.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def never_split(self) -> None:
        if self._kind is ICMP:
            self._socket.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE)
        else:
            self._socket.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_PROBE)
            self._socket.setsockopt(socket.IPPROTO_IPV6, IPV6_DONTFRAG, 1)

    def send(self, found: Pings) -> None:
        number = found.sent
        found.sent += 1
        head = HEADER.pack(self._kind.request, 0, 0, self._identifier, number)
        if self._kind is ICMP:  # the kernel does it for ICMPv6
            checksum = _checksum(head + self._data)
            head = HEADER.pack(self._kind.request, 0, checksum, self._identifier, number)
        self._sent_s[number] = time.monotonic()
        try:
            self._socket.sendto(head + self._data, (self._address, 0))
        except OSError as error:
            found.errors[number] = error.strerror or str(error)

    def receive_until(self, end_s: float, found: Pings, *, till_known: bool = False) -> None:
        while not (till_known and found.all_known):
            left_s = end_s - time.monotonic()
            if left_s <= 0 or not select.select([self._socket], [], [], left_s)[0]:
                return
            try:
                packet = self._socket.recv(LARGEST_PACKET)
            except OSError:  # an error of an earlier one, which is in its own packet too
                continue
            self._take(packet, time.monotonic(), found)

    def _take(self, packet: bytes, now_s: float, found: Pings) -> None:
        if self._kind is ICMP:
            packet = packet[_header_length(packet) :]
        head, data = packet[: HEADER.size], packet[HEADER.size :]
        if len(head) < HEADER.size:
            return
        type_, code, _, identifier, number = HEADER.unpack(head)
        if type_ == self._kind.reply:
            if identifier == self._identifier and number in self._sent_s and data == self._data:
                found.arrived.append(number)
                found.times.setdefault(number, now_s - self._sent_s[number])
        elif type_ in self._kind.errors:
            quoted = data[IPV6_HEADER_BYTES if self._kind is ICMPV6 else _header_length(data) :]
            if len(quoted) < HEADER.size:
                return
            type_quoted, _, _, identifier, number = HEADER.unpack(quoted[: HEADER.size])
            if (type_quoted, identifier) == (self._kind.request, self._identifier):
                found.errors[number] = f"{self._kind.errors[type_]} {code}"


def _header_length(packet: bytes) -> int:
    return (packet[0] & 15) * 4 if packet else 0


def _checksum(data: bytes) -> int:
    """RFC 1071: the ones' complement of the ones' complement sum."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF
