"""What others may see of this process, and what it may do itself.

Its memory has keys and passwords. A core file would take them to the disk, and other processes of
the same user could read them through ptrace(2) and proc(5): neither is possible here. Programs that
this one starts are not concerned (execve(2) makes them dumpable again), and no part of ours reads
more of another gateway's entry in proc(5) than what everybody may, unless it is root.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
from pathlib import Path
from typing import Final

CAP_NET_BIND_SERVICE: Final = 10  # <linux/capability.h>
CAP_NET_ADMIN: Final = 12
_CAPABILITY_VERSION_3: Final = 0x20080522
_PR_SET_DUMPABLE: Final = 4  # <linux/prctl.h>
_PR_SET_KEEPCAPS: Final = 8
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38


def hide_memory() -> None:
    """Make no core file, and let only root look into this process; children by fork(2) as well."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))  # a program of the user's may raise it
    _prctl(_PR_SET_DUMPABLE, 0)


def gain_nothing_by_programs() -> None:
    """Let no program that is started give more rights than there are: set-uid and the like."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def become(name: str, uid: int, gid: int, keep: frozenset[int]) -> None:
    """Be another user for good, with these capabilities and no others. To be called by root.

    The C library changes the user of every thread; capabilities are each thread's own (credentials
    (7), capabilities(7)): those beside this one lose all of them with their user. Raises OSError.
    """
    for number in range(_last_capability() + 1):
        if number not in keep:
            _prctl(_PR_CAPBSET_DROP, number)
    _prctl(_PR_SET_KEEPCAPS, 1)
    os.initgroups(name, gid)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    _set_capabilities(keep)
    hide_memory()  # a new user makes a process dumpable again, if the system is set so


def _last_capability() -> int:
    return int(Path("/proc/sys/kernel/cap_last_cap").read_text(encoding="ascii"))


def _set_capabilities(numbers: frozenset[int]) -> None:
    """Have these, effective and permitted, and none that a program would inherit (capset(2))."""
    bits = sum(1 << number for number in numbers)
    low, high = bits & 0xFFFFFFFF, bits >> 32
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    data = struct.pack("=6I", low, low, 0, high, high, 0)
    _check(_libc().capset(header, data))


def _prctl(option: int, argument: int) -> None:
    _check(_libc().prctl(option, *map(ctypes.c_ulong, (argument, 0, 0, 0))))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
