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

from gateway.ssh.channel import OPEN
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
_OFFLOAD: Final = Drop.OFFLOAD  # a look-up costs more than comparing
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
        fd, smallest, header = self._device.fd, self._smallest, _LENGTH.size
        channel, outbound = self._channel, self._link.protocol.outbound
        credit = channel.remote_window if channel.send_state is OPEN else 0
        sent = end = count = 0
        try:
            for _ in range(1 if self._poller.was_at_rest else PACKETS_AT_ONCE):
                if queue is None and (sent + end >= limit or not outbound.accepts_data):
                    self._is_blocked = True
                    break
                length = os.readv(fd, (ROOM[end + header :],))
                if length <= smallest:
                    self._drop_of_our_own(length)
                    continue
                _LENGTH.pack_into(ROOM, end, length)
                stop = end + header + length
                if queue is not None:
                    queue.push(bytes(ROOM[:stop]), self._current_time())
                    continue
                if stop > credit:
                    self._next = bytes(ROOM[end:stop])
                    self._is_blocked = True
                    break
                count += 1
                end = stop
                if end >= MESSAGE:
                    outbound.seal_channel_data(channel.remote_channel, end)
                    credit, sent, end = credit - end, sent + end, 0
        except BlockingIOError:
            self._has_input = False
        except OSError as error:
            self.close(f"the device {self._device.name} is gone: {error.strerror}")
            return
        if end:
            outbound.seal_channel_data(channel.remote_channel, end)
        channel.sent_datagrams(sent + end, 0)
        self.packets_out += count

    def _sink(self, data: memoryview) -> int:
        """Write a message's records to the device, or count why not."""
        position, end, header = 0, len(data), _LENGTH.size
        if not self._arrived:
            self._link.at_batch_end.append(self._end_batch)
        self._arrived += end
        while position < end:
            length = _LENGTH.unpack_from(data, position)[0] if end - position > header else end
            position += header
            record = data[position : position + length]
            position += length
            if position > end or length <= virtio.SIZE:
                self._drops[Drop.MALFORMED] += 1
                break
            drop = virtio.judge(record, self._mtu)
            if drop is _OFFLOAD and self._mtu != self._device.mtu:
                self._mtu = self._device.mtu  # it was changed meanwhile
                drop = virtio.judge(record, self._mtu)
            if drop is None and self._judge is not None:
                drop = self._judge(record[virtio.SIZE :])
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


def make_pump(
    device: Device, port: ChannelPort, judge: Callable[[memoryview], Drop | None] | None
) -> Pump:
    """Return the pump for a device as it was opened."""
    return (Pump if device.offloads is None else SuperPump)(device, port, judge)
