"""Tun and tap devices of this machine, through python-pytun (Linux: networking/tuntap.rst).

A device that we make is gone with its descriptor, and the kernel takes its addresses and routes
along, whatever ends us. A device that somebody made for this user beforehand (`ip tuntap add ...
user NAME`) is opened the same way, by its name, and stays.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway.errors import NetworkSetupError
from gateway.tun import virtio
from gateway.tun.packet import ANY_UNIT, Mode

if TYPE_CHECKING:
    from pytun import TunTapDevice

LARGEST_PACKET: Final = 65_535  # RFC 791 §3.1, and ETH_MAX_MTU

# ---- linux/if_tun.h ------------------------------------------------------------------------------
_TUNSETOFFLOAD: Final = 0x4004_54D0
_TUNSETVNETHDRSZ: Final = 0x4004_54D8
_TUNSETVNETLE: Final = 0x4004_54DC
TUN_F_CSUM: Final = 1
_TSO: Final = 2 | 4  # TUN_F_TSO4, TUN_F_TSO6
_SEGMENTATION: Final = _TSO | 8  # TUN_F_TSO_ECN
_UDP_SEGMENTATION: Final = 0x20 | 0x40  # TUN_F_USO4, TUN_F_USO6: Linux 6.2

NODE: Final = Path("/dev/net/tun")
_REMEDIES: Final = {
    errno.ENOENT: "load the kernel's driver with `modprobe tun`; a container needs --device "
    "/dev/net/tun",
    errno.ENODEV: "load the kernel's driver with `modprobe tun`",
    errno.EPERM: "run as root or with CAP_NET_ADMIN, or have a device made for you beforehand: "
    "ip tuntap add dev {name} mode {kind} user $USER",
    errno.EACCES: "run as root, or let this user read and write /dev/net/tun",
    errno.EBUSY: "another program has it: take another number, or `any`",
    errno.EINVAL: "a device of this name and of another kind is there: take another number",
}


class Device:
    """An open device. Its ``fd`` never waits, and reads and writes one whole packet or frame.

    What the buffers of a read do not take is cut off without a word: let them be large enough.
    ``offloads`` are TUN_F_* bits of what it can be given unfinished, perhaps none: then each packet
    begins with a virtio_net_hdr. They are None where packets are bare.
    """

    def __init__(self, mode: Mode, pytun_device: TunTapDevice, offloads: int | None) -> None:
        self.mode = mode
        self.offloads = offloads
        self.name: str = pytun_device.name
        self._pytun_device = pytun_device
        self.fd: int = pytun_device.fileno()

    def __repr__(self) -> str:
        return f"<Device {self.name}>"

    @classmethod
    def open(cls, mode: Mode, unit: int = ANY_UNIT, *, offload: bool = False) -> Device:
        """Open or make ``tunN`` or ``tapN``; the kernel chooses for ANY_UNIT.

        With ``offload`` it has what the kernel has of it, perhaps nothing, and none is on yet.

        Raises `NetworkSetupError` with the cause and the remedy.
        """
        try:
            import pytun  # noqa: PLC0415 - needed by few, and may be missing
        except ImportError as error:
            raise NetworkSetupError(
                "tun devices need the package python-pytun, which is not installed: "
                "scripts/setup says why, or pip install 'gateway[vpn]'"
            ) from error
        flags = pytun.IFF_TUN if mode is Mode.POINT_TO_POINT else pytun.IFF_TAP
        name = "" if unit == ANY_UNIT else f"{mode.kind}{unit}"
        try:
            flags |= pytun.IFF_NO_PI | (pytun.IFF_VNET_HDR if offload else 0)
            device = pytun.TunTapDevice(name=name, flags=flags, dev=str(NODE))
            fcntl.fcntl(device.fileno(), fcntl.F_SETFD, fcntl.FD_CLOEXEC)
            offloads = _offloads(device.fileno()) if offload else None
        except OSError as error:
            raise _refused(mode, name, error) from error
        os.set_blocking(device.fileno(), False)
        return cls(mode, device, offloads)

    def leave_unfinished(self, offloads: int) -> None:
        """Have the kernel give us packets as unfinished as these bits say; it does the rest.

        The bits may be a peer's. Raises `NetworkSetupError` when the device is gone.
        """
        try:
            fcntl.ioctl(self.fd, _TUNSETOFFLOAD, _taken(offloads & (self.offloads or 0)))
        except OSError as error:
            raise _refused(self.mode, self.name, error) from error

    @property
    def mtu(self) -> int:
        """The device's MTU, as it is now."""
        try:
            return int(self._pytun_device.mtu)
        except OSError:  # it was deleted
            return 0

    def close(self) -> None:
        """Close, once; one that we made is gone then."""
        if self.fd >= 0:
            self.fd = -1
            self._pytun_device.close()


def _offloads(fd: int) -> int:
    """Return what the kernel has of TUN_F_*, and agree on the header's form."""
    fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", virtio.SIZE))
    fcntl.ioctl(fd, _TUNSETVNETLE, struct.pack("i", 1))
    offloads = TUN_F_CSUM | _SEGMENTATION
    with contextlib.suppress(OSError):
        fcntl.ioctl(fd, _TUNSETOFFLOAD, offloads | _UDP_SEGMENTATION)
        offloads |= _UDP_SEGMENTATION
    fcntl.ioctl(fd, _TUNSETOFFLOAD, offloads)
    fcntl.ioctl(fd, _TUNSETOFFLOAD, 0)
    return offloads


def _taken(offloads: int) -> int:
    """Leave out what the kernel does not take alone (drivers/net/tun.c, set_offload)."""
    if not offloads & TUN_F_CSUM:
        return 0
    if not offloads & _TSO:
        offloads &= ~_SEGMENTATION
    if offloads & _UDP_SEGMENTATION != _UDP_SEGMENTATION:
        offloads &= ~_UDP_SEGMENTATION
    return offloads


def _refused(mode: Mode, name: str, error: OSError) -> NetworkSetupError:
    name = name or f"{mode.kind}0"
    number = error.errno or 0
    if number == errno.ENOENT and NODE.exists():
        number = errno.ENODEV
    remedy = _REMEDIES.get(number, "check `ip link` and the kernel's log")
    return NetworkSetupError(
        f"cannot open the device {name}: {error.strerror or error}: "
        f"{remedy.format(name=name, kind=mode.kind)}"
    )
