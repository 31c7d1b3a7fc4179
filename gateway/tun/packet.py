"""What is looked at in a packet: enough to frame it, to judge it, and to say why it is dropped.

Pure. tun@openssh.com (OpenSSH PROTOCOL §2.3): at layer 3 the data of one message is an address
family, uint32, and one IP packet; at layer 2 it is one ethernet frame and nothing else. The family
is that of OpenBSD. The version nibble of the packet is what counts: a family that disagrees with it
makes the message worthless.
"""

from __future__ import annotations

import struct
from enum import Enum, IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    IpAddress = IPv4Address | IPv6Address

# ---- OpenSSH PROTOCOL §2.3 and channels.c --------------------------------------------------------
FAMILY_SIZE: Final = 4
FAMILY_INET: Final = struct.pack(">I", 2)
FAMILY_INET6: Final = struct.pack(">I", 24)  # OpenBSD's AF_INET6
OPENSSH_MAXIMUM: Final = 16_380  # sys_tun_infilter: its reader stops for ever at more
OPENSSH_WINDOW_OVERHEAD: Final = 4  # its receiver counts each datagram's length word too
MAXIMUM_UNIT: Final = 0x7FFF_FFFD  # misc.h, SSH_TUNID_MAX
ANY_UNIT: Final = 0x7FFF_FFFF  # SSH_TUNID_ANY: whichever is free
# ---- RFC 791 §3.1, RFC 8200 §3, IEEE 802.3 -------------------------------------------------------
IPV4_HEADER: Final = 20
IPV6_HEADER: Final = 40
ETHERNET_HEADER: Final = 14

_LENGTH: Final = struct.Struct(">H")
# By version: family, length of the header, where the length stands, and what that leaves out.
_LAYOUTS: Final = {
    4: (FAMILY_INET, IPV4_HEADER, FAMILY_SIZE + 2, 0),
    6: (FAMILY_INET6, IPV6_HEADER, FAMILY_SIZE + 4, IPV6_HEADER),
}
_IPV4_PAIR: Final = slice(12, 20)  # source and destination
_IPV6_PAIR: Final = slice(8, 40)
_MAXIMUM_PAIRS: Final = 4096  # verdicts kept


class Mode(IntEnum):
    """The tunnel mode of tun@openssh.com: SSH_TUNMODE_POINTOPOINT and SSH_TUNMODE_ETHERNET."""

    POINT_TO_POINT = 1
    ETHERNET = 2

    @property
    def kind(self) -> str:
        """What Linux calls such a device."""
        return "tun" if self is Mode.POINT_TO_POINT else "tap"


class Drop(Enum):
    """Why a packet goes no further."""

    __hash__ = object.__hash__  # a key of counters: `Enum`'s own is a Python function

    HEADER_ONLY = "no more than a header"
    MALFORMED = "malformed"
    FAMILY = "address family and packet disagree"
    TOO_LARGE = "larger than the far end takes"
    SOURCE = "source address of somebody else"
    DESTINATION = "destination not allowed"
    QUEUE = "waited too long"
    OFFLOAD = "unfinished in a way that cannot be"
    DEVICE = "not taken by the device"


def judge_ip(data: memoryview) -> Drop | None:
    """Look at a family and an IP packet from the peer; None if the device may have the packet."""
    length = len(data) - FAMILY_SIZE
    layout = _LAYOUTS.get(data[FAMILY_SIZE] >> 4) if length > 0 else None
    if layout is None:
        return Drop.MALFORMED
    family, header, length_at, length_excludes = layout
    if data[:FAMILY_SIZE] != family:
        return Drop.FAMILY
    if length <= header:
        return Drop.HEADER_ONLY if length == header else Drop.MALFORMED
    (stated,) = _LENGTH.unpack_from(data, length_at)
    return None if stated + length_excludes == length else Drop.MALFORMED


def judge_frame(data: memoryview) -> Drop | None:
    """Look at an ethernet frame from the peer."""
    if len(data) <= ETHERNET_HEADER:
        return Drop.HEADER_ONLY if len(data) == ETHERNET_HEADER else Drop.MALFORMED
    return None


class Addresses:
    """Judges the inner source and destination of IP packets that were found well by themselves.

    ``decide(source, destination)`` is asked once for each pair; its answers are kept until
    ``forget``. A verdict costs one look into a table, so it is asked for every packet.
    """

    def __init__(self, decide: Callable[[IpAddress, IpAddress], Drop | None]) -> None:
        self._decide = decide
        self._known: dict[bytes, Drop | None] = {}

    def judge(self, packet: memoryview) -> Drop | None:
        """Look at a packet from the peer."""
        is_ipv4 = packet[0] >> 4 == 4
        pair = bytes(packet[_IPV4_PAIR if is_ipv4 else _IPV6_PAIR])
        try:
            return self._known[pair]
        except KeyError:
            pass
        make: type[IPv4Address | IPv6Address] = IPv4Address if is_ipv4 else IPv6Address
        half = len(pair) // 2
        verdict = self._decide(make(pair[:half]), make(pair[half:]))
        if len(self._known) >= _MAXIMUM_PAIRS:
            self._known.clear()
        self._known[pair] = verdict
        return verdict

    def forget(self) -> None:
        """Ask again from now on: the rules have changed."""
        self._known.clear()
