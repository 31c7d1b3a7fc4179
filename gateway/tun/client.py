"""The client's end of a tunnel: a device of this machine and a channel that carries its packets."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from gateway.errors import ChannelOpenError, printable
from gateway.ssh.numbers import OpenFailure
from gateway.ssh.tunnel import (
    CHANNEL_TYPE,
    OFFLOAD_CHANNEL_TYPE,
    OffloadConfirmation,
    OffloadOpen,
    TunOpen,
)
from gateway.tun.device import Device
from gateway.tun.packet import ANY_UNIT, Mode
from gateway.tun.superpump import LEAST_PACKET_SIZE, TOO_SMALL, make_pump

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from gateway.net.link import Link
    from gateway.net.port import ChannelPort
    from gateway.tun.packet import Drop
    from gateway.tun.pump import Pump

log = logging.getLogger(__name__)

__all__ = ["DeviceTunnel", "Mode", "is_gateway"]

_OUR_VERSION: Final = b"SSH-2.0-gateway"
_REMEDY: Final = (
    "its administrator has to allow it (PermitTunnel yes in sshd_config and a login that may make "
    "devices, --permit-tunnel or a tun rule for gateway serve), and the device asked for must be "
    "free there"
)


def is_gateway(link: Link) -> bool:
    """Whether the server is one of ours."""
    return link.protocol.transport.peer_version.startswith(_OUR_VERSION)


def _agree_untrusted(device: Device, port: ChannelPort) -> None:
    """Have the device leave unfinished what the peer takes so. Raises `GatewayError`."""
    if port.channel.remote_maximum_packet_size < LEAST_PACKET_SIZE:
        raise ChannelOpenError(OpenFailure.CONNECT_FAILED, TOO_SMALL)
    answer = OffloadConfirmation.decode_untrusted(port.channel.confirmation)
    device.leave_unfinished(answer.offloads)


class DeviceTunnel:
    """A device and its tunnel; by itself what -w asks for, without addresses."""

    mark: Final = 0  # it changes no routes

    def __init__(self, mode: Mode, local_unit: int, remote_unit: int = ANY_UNIT) -> None:
        """Open the device, to know that it can be. Raises `NetworkSetupError`."""
        self._mode = mode
        self._unit = local_unit
        self._remote_unit = remote_unit
        self._device = Device.open(mode, local_unit)
        self._pump: Pump | None = None

    @property
    def name(self) -> str:
        """The device's name."""
        return self._device.name

    def carried_by(self, _carrier: socket.socket | int) -> None:
        """Nothing depends on the carrier."""

    async def plan(self, _link: Link) -> list[str]:
        """Nothing but the device is changed."""
        return []

    async def end(self) -> None:
        """Nothing is to be undone on the far side."""

    async def open(
        self,
        link: Link,
        on_end: Callable[[str], object],
        judge: Callable[[memoryview], Drop | None] | None = None,
        remote_unit: int | None = None,
    ) -> None:
        """Have the peer open its device, and begin to carry; see `Pump`.

        Raises `ChannelOpenError`, whose text has the remedy, or `ConnectionLost`.
        """
        transport = link.protocol.transport
        transport.explained = ""
        try:
            unit = self._remote_unit if remote_unit is None else remote_unit
            port = await self._open_channel(link, unit)
        except ChannelOpenError as error:
            reason = printable(transport.explained) or error
            raise ChannelOpenError(
                error.reason_code, f"the server opens no tunnel: {reason}: {_REMEDY}"
            ) from error
        self._pump = make_pump(self._device, port, judge)
        self._pump.start(on_end)

    async def _open_channel(self, link: Link, remote_unit: int) -> ChannelPort:
        """Open a channel for packets as they are between gateways, else as OpenSSH's are."""
        if is_gateway(link) and self._mode is Mode.POINT_TO_POINT:
            self._reopen(offload=True)
            device = self._device
            request = OffloadOpen(self._mode, remote_unit, device.offloads or 0)
            try:
                port = await link.open_channel(OFFLOAD_CHANNEL_TYPE, request.encode())
            except ChannelOpenError as error:
                if error.reason_code != OpenFailure.UNKNOWN_CHANNEL_TYPE:
                    raise
            else:
                try:
                    _agree_untrusted(device, port)
                except BaseException:
                    port.close()
                    raise
                return port
            self._reopen(offload=False)
        return await link.open_channel(CHANNEL_TYPE, TunOpen(self._mode, remote_unit).encode())

    def _reopen(self, *, offload: bool) -> None:
        self._device.close()
        self._device = Device.open(self._mode, self._unit, offload=offload)

    def close(self) -> None:
        """End it, and the device too if it was ours; say in the log what was lost."""
        if self._pump is not None:
            drops = self._pump.drops
            lost = ", ".join(f"{count} {drop.value}" for drop, count in drops.items())
            if lost:
                log.info("packets lost in the tunnel: %s", lost)
            self._pump.close()
        self._device.close()
