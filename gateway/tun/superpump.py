"""A device and a channel between gateways: packets as unfinished as the kernel gives them.

THEORY OF OPERATION

A `Pump` costs each packet a message. Here the kernel leaves to the far end's kernel what network
cards would do: one read gives up to 64 KiB of one TCP connection, with a virtio_net_hdr that says
how to cut it, and one write hands it over as it is. Between the two nothing is done for each
segment. Small packets share a message: it has records, each a length and what the device gave or
gets (PROTOCOL.md). A record is never split.

What either end cannot be given, the other's kernel finishes before we read it: each device is set
to what both ends have. So there is no segmentation of our own.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Final

from gateway.ssh.packets import ROOM
from gateway.tun import virtio
from gateway.tun.device import LARGEST_PACKET
from gateway.tun.packet import IPV4_HEADER, Drop
from gateway.tun.pump import PACKETS_AT_ONCE, Pump

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.net.port import ChannelPort
    from gateway.tun.device import Device
    from gateway.tun.queue import Queue

MESSAGE: Final = 64 * 1024  # bytes after which a message is sent
_LENGTH: Final = struct.Struct(">I")
_LARGEST_RECORD: Final = _LENGTH.size + virtio.SIZE + LARGEST_PACKET
LEAST_PACKET_SIZE: Final = MESSAGE + _LARGEST_RECORD  # of the channel's peer
TOO_SMALL: Final = f"a channel of its type takes packets of {LEAST_PACKET_SIZE} bytes or more"


class SuperPump(Pump):
    """As `Pump`, for a device with a virtio_net_hdr and a peer that has one too."""

    def __init__(
        self, device: Device, port: ChannelPort, judge: Callable[[memoryview], Drop | None] | None
    ) -> None:
        super().__init__(device, port, judge)
        self._smallest = virtio.SIZE + IPV4_HEADER
        self._mtu = device.mtu

    def _largest_message(self) -> int:
        return _LARGEST_RECORD

    def _read(self, limit: int, queue: Queue | None = None) -> None:
        """Read from the device into records of a message, and seal; or let all wait."""
        end = 0
        try:
            end = self._gather(limit) if queue is None else self._let_wait(queue)
        except OSError as error:
            self.close(f"the device {self._device.name} is gone: {error.strerror}")
            return
        if end:
            self._seal(end)

    def _gather(self, limit: int) -> int:
        """Fill messages, and seal all that are full; return the length of the last, in ROOM."""
        fd, smallest, header = self._device.fd, self._smallest, _LENGTH.size
        outbound = self._link.protocol.outbound
        credit = self._channel.remote_window if self._port.may_send else 0
        sent = end = 0
        for _ in range(PACKETS_AT_ONCE):
            if sent + end >= limit or not outbound.accepts_data:
                self._is_blocked = True
                break
            try:
                length = os.readv(fd, (ROOM[end + header :],))
            except BlockingIOError:
                self._has_input = False
                break
            if length <= smallest:
                self._drop_of_our_own(length)
                continue
            _LENGTH.pack_into(ROOM, end, length)
            stop = end + header + length
            if stop > credit:
                self._next = bytes(ROOM[end:stop])
                self._is_blocked = True
                break
            self.packets_out += 1
            end = stop
            if end >= MESSAGE:
                self._seal(end)
                credit, sent, end = credit - end, sent + end, 0
        return end

    def _let_wait(self, queue: Queue) -> int:
        now_s, header = self._current_time(), _LENGTH.size
        for _ in range(PACKETS_AT_ONCE):
            try:
                length = os.readv(self._device.fd, (ROOM[header:],))
            except BlockingIOError:
                self._has_input = False
                break
            if length <= self._smallest:
                self._drop_of_our_own(length)
                continue
            _LENGTH.pack_into(ROOM, 0, length)
            queue.push(bytes(ROOM[: header + length]), now_s)
        return 0

    def _seal(self, length: int) -> None:
        channel = self._channel
        self._link.protocol.outbound.seal_channel_data(channel.remote_channel, length)
        channel.sent_datagrams(length, 0)

    def _sink(self, data: memoryview) -> int:
        """Write a message's records to the device, or count why not."""
        self._note_arrival(len(data))
        position, end, header = 0, len(data), _LENGTH.size
        while position < end:
            length = _LENGTH.unpack_from(data, position)[0] if end - position > header else end
            position += header
            record = data[position : position + length]
            position += length
            if position > end or length <= virtio.SIZE:
                self._drops[Drop.MALFORMED] += 1
                break
            drop = self._judge_record(record)
            if drop is None:
                try:
                    os.write(self._device.fd, record)
                except OSError:
                    drop = Drop.DEVICE
                else:
                    self.packets_in += 1
                    continue
            self._drops[drop] += 1
        return 0

    def _judge_record(self, record: memoryview) -> Drop | None:
        drop = virtio.judge(record, self._mtu)
        if drop is Drop.OFFLOAD and (mtu := self._device.mtu) != self._mtu:
            self._mtu = mtu  # it was changed meanwhile
            drop = virtio.judge(record, mtu)
        if drop is None and self._judge is not None:
            return self._judge(record[virtio.SIZE :])
        return drop


def make_pump(
    device: Device, port: ChannelPort, judge: Callable[[memoryview], Drop | None] | None
) -> Pump:
    """Return the pump for a device as it was opened."""
    return (Pump if device.offloads is None else SuperPump)(device, port, judge)
