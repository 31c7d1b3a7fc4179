"""The addresses of this machine's interfaces that are up, and the subnets they are part of.

The standard library has no getifaddrs; the kernel tells IPv4 addresses by an ioctl (netdevice(7))
and IPv6 addresses in /proc/net/if_inet6.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway.policy.leases import Interface, Subnet

if TYPE_CHECKING:
    from collections.abc import Iterator

# ---- netdevice(7), <linux/sockios.h>, <net/if.h> -------------------------------------------------
SIOCGIFCONF: Final = 0x8912
SIOCGIFFLAGS: Final = 0x8913
SIOCGIFNETMASK: Final = 0x891B
IFF_UP: Final = 0x1
IFF_POINTOPOINT: Final = 0x10
_REQUEST: Final = struct.Struct("16s16s8x")  # struct ifreq: the name, and a socket address
_FLAGS: Final = struct.Struct("16sh22x")
_LIST: Final = struct.Struct("iP")  # struct ifconf: length and place of a buffer
_IPV6_FILE: Final = Path("/proc/net/if_inet6")

# ---- our own choice ------------------------------------------------------------------------------
_MAXIMUM: Final = 4096  # addresses


def local_addresses() -> tuple[IPv4Address | IPv6Address, ...]:
    """Return the addresses of all interfaces that are up, the loopback's too, as ssh does."""
    return tuple(subnet.interface.ip for subnet in own_subnets())


def own_subnets() -> tuple[Subnet, ...]:
    """Return the subnets of all interfaces that are up, the loopback's too."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        found: list[tuple[bytes, Interface]] = [*_ipv4_interfaces(sock), *_ipv6_interfaces()]
        flags = {name: _flags(sock, name) for name, _ in found}
    return tuple(
        Subnet(os.fsdecode(name), interface, bool(flags[name] & IFF_POINTOPOINT))
        for name, interface in found
        if flags[name] & IFF_UP
    )


def _ipv4_interfaces(sock: socket.socket) -> Iterator[tuple[bytes, IPv4Interface]]:
    buffer = array.array("B", bytes(_REQUEST.size * _MAXIMUM))
    place, _ = buffer.buffer_info()
    answer = fcntl.ioctl(sock, SIOCGIFCONF, _LIST.pack(len(buffer), place))
    length = int(_LIST.unpack(answer)[0])
    for name, address in _REQUEST.iter_unpack(buffer.tobytes()[:length]):
        try:  # with its address, for an interface may have several
            answer = fcntl.ioctl(sock, SIOCGIFNETMASK, _REQUEST.pack(name, address))
        except OSError:  # gone since it was listed
            continue
        mask = IPv4Address(_REQUEST.unpack(answer)[1][4:8])
        yield name.rstrip(b"\0"), IPv4Interface(f"{IPv4Address(address[4:8])}/{mask}")


def _ipv6_interfaces() -> Iterator[tuple[bytes, IPv6Interface]]:
    try:
        lines = _IPV6_FILE.read_bytes().splitlines()
    except OSError:  # a kernel without IPv6
        return
    for address, _, prefix_length, _, _, name in (line.split(maxsplit=5) for line in lines):
        packed = bytes.fromhex(address.decode())
        yield name, IPv6Interface((packed, int(prefix_length, 16)))


def _flags(sock: socket.socket, name: bytes) -> int:
    try:
        answer = fcntl.ioctl(sock, SIOCGIFFLAGS, _FLAGS.pack(name, 0))
    except OSError:  # gone since it was listed
        return 0
    return int(_FLAGS.unpack(answer)[1])
