"""Which TCP connections another process has: where a ProxyCommand leads, as the kernel tells it.

Its packets have no mark of ours, so what keeps them out of the tunnel is the rule that names
addresses and ports of the connection (`gateway.tun.plan`). Read from proc(5).
"""

from __future__ import annotations

import os
import sys
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway.tun.plan import Carrier

if TYPE_CHECKING:
    from collections.abc import Iterator

_ESTABLISHED: Final = "01"  # include/net/tcp_states.h
_PROC: Final = Path("/proc")


def connections_of(pid: int) -> list[Carrier]:
    """Return the connections of a process and its children to other machines."""
    inodes = {inode for process in _family(pid) for inode in _sockets(process)}
    return [carrier for inode, carrier in _established() if inode in inodes]


def _family(pid: int) -> Iterator[int]:
    yield pid
    try:
        for task in (_PROC / str(pid) / "task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _family(int(child))
    except OSError:  # it has just ended
        return


def _sockets(pid: int) -> Iterator[str]:
    """Yield the inodes of a process's sockets."""
    try:
        for entry in os.scandir(_PROC / str(pid) / "fd"):
            target = str(Path(entry.path).readlink())
            if target.startswith("socket:["):
                yield target[8:-1]
    except OSError:
        return


def _established() -> Iterator[tuple[str, Carrier]]:
    """Yield inode and addresses of each established connection that leaves this machine."""
    for name in ("tcp", "tcp6"):
        try:
            lines = (_PROC / "self" / "net" / name).read_text().splitlines()[1:]
        except OSError:  # a kernel without the family
            continue
        for line in lines:
            _, local, remote, state, *fields = line.split()
            address, port = _endpoint(remote)
            if state == _ESTABLISHED and not address.is_loopback:
                yield fields[5], Carrier(address, port, _endpoint(local)[1])


def _endpoint(text: str) -> tuple[IPv4Address | IPv6Address, int]:
    """Read an address, words of 32 bits in the machine's order, and a port."""
    words, _, port = text.partition(":")
    packed = b"".join(
        int(words[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(words), 8)
    )
    address = ip_address(packed)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address, int(port, 16)
