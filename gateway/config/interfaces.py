"""The addresses of this machine's interfaces that are up, for ``Match localnetwork``.

The standard library has no getifaddrs; the kernel tells IPv4 addresses by an ioctl (netdevice(7))
and IPv6 addresses in /proc/net/if_inet6.
"""

from __future__ import annotations

import array
import fcntl
import socket
import struct
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

# ---- netdevice(7), <linux/sockios.h>, <net/if.h> -------------------------------------------------
SIOCGIFCONF: Final = 0x8912
SIOCGIFFLAGS: Final = 0x8913
IFF_UP: Final = 0x1
_REQUEST: Final = struct.Struct("16s16s8x")  # struct ifreq: the name, and a socket address
_FLAGS: Final = struct.Struct("16sh22x")
_LIST: Final = struct.Struct("iP")  # struct ifconf: length and place of a buffer
_IPV6_FILE: Final = Path("/proc/net/if_inet6")

# ---- our own choice ------------------------------------------------------------------------------
_MAXIMUM: Final = 4096  # addresses


def local_addresses() -> tuple[IPv4Address | IPv6Address, ...]:
    """Return the addresses of all interfaces that are up, the loopback's too, as ssh does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        four = [
            IPv4Address(address[4:8])
            for name, address in _ipv4_requests(sock)
            if _is_up(sock, name.rstrip(b"\0"))
        ]
        try:
            lines = _IPV6_FILE.read_text("ascii").splitlines()
        except OSError:  # a kernel without IPv6
            lines = []
        six = [
            IPv6Address(bytes.fromhex(fields[0]))
            for fields in map(str.split, lines)
            if _is_up(sock, fields[5].encode())
        ]
    return (*four, *six)


def _ipv4_requests(sock: socket.socket) -> list[tuple[bytes, bytes]]:
    buffer = array.array("B", bytes(_REQUEST.size * _MAXIMUM))
    place, _ = buffer.buffer_info()
    answer = fcntl.ioctl(sock, SIOCGIFCONF, _LIST.pack(len(buffer), place))
    length = int(_LIST.unpack(answer)[0])
    return list(_REQUEST.iter_unpack(buffer.tobytes()[:length]))


def _is_up(sock: socket.socket, name: bytes) -> bool:
    try:
        answer = fcntl.ioctl(sock, SIOCGIFFLAGS, _FLAGS.pack(name, 0))
    except OSError:  # gone since it was listed
        return False
    return bool(_FLAGS.unpack(answer)[1] & IFF_UP)
