"""A tun device without a kernel."""

from __future__ import annotations

import socket

import trio

from gateway.tun.packet import Mode


class FakeDevice:
    """As `gateway.tun.device.Device`; ``kernel`` is the other side, one packet a message."""

    def __init__(
        self, mode: Mode = Mode.POINT_TO_POINT, mtu: int = 1500, offloads: int | None = None
    ) -> None:
        self.mode, self.mtu, self.name = mode, mtu, f"{mode.kind}9"
        self.offloads = offloads
        self._ours, self.kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for sock in (self._ours, self.kernel):
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self.fd = self._ours.fileno()

    def close(self) -> None:
        """Close both sides."""
        self._ours.close()
        self.kernel.close()

    async def receive(self) -> bytes:
        """Return the next packet that was written."""
        await trio.lowlevel.wait_readable(self.kernel)
        return self.kernel.recv(70_000)
