"""A device and a channel, joined: one packet is one message, never split and never merged.

THEORY OF OPERATION

Out. The poller says that the device has packets; ``_read`` reads up to PACKETS_AT_ONCE, each
straight into ROOM, the place where it is sealed from, and one flush sends them all. After a rest it
is one: that there is no second is a costly answer, for which a lone one need not wait. It reads no
more than may go: what the peer's window takes, and the link's path. When that is nothing for longer
than PATIENCE_S the packets are read all the same, into our own short `Queue`, which drops from its
head what is too late, where the device's own would keep the oldest and drop the newest. What waits
goes first, at this channel's turn in the link or when the peer gives credit.

In. The channel's sink looks at the packet and writes it to the device inside the call. A packet
that is not well is dropped and counted by its reason, and the tunnel goes on: OpenSSH's stops for
ever at one that is no more than a header. All is consumed by the end of the batch, so the window
is never pinned. A kernel answers many packets inside of the write: what it has to say is read at
the end of the batch, and leaves with the flush that the link does then anyway.

The end. When the channel or the device ends, so does the pump, once, with a reason for a person.
The device stays its owner's, who may close it or give it to another channel.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from math import inf
from typing import TYPE_CHECKING, Final

import trio

from gateway.net import poller
from gateway.ssh.channel import OPEN
from gateway.ssh.packets import ROOM
from gateway.tun.device import LARGEST_PACKET
from gateway.tun.packet import (
    ETHERNET_HEADER,
    FAMILY_INET,
    FAMILY_INET6,
    FAMILY_SIZE,
    IPV4_HEADER,
    OPENSSH_WINDOW_OVERHEAD,
    Drop,
    Mode,
    judge_frame,
    judge_ip,
)
from gateway.tun.queue import Queue

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.net.port import ChannelPort
    from gateway.tun.device import Device

PACKETS_AT_ONCE: Final = 64  # read before others have their turn
PATIENCE_S: Final = 0.005  # for which packets stay in the device: less than a queue that is felt
BURST_S: Final = 0.050  # of packets that an OpenSSH may have on their way: as a router's buffer
MARGIN: Final = 64  # family, ethernet header and more

# By the first byte of what the device gives; None for what is no IP.
_FAMILIES: Final = [{4: FAMILY_INET, 6: FAMILY_INET6}.get(byte >> 4) for byte in range(256)]
_NO_FAMILIES: Final[list[bytes | None]] = [b""] * 256
_OPENSSH: Final = b"SSH-2.0-OpenSSH"
_SPILL: Final = memoryview(bytearray(LARGEST_PACKET))  # for what is larger than the peer takes


class Pump:
    """Carries packets until either end is gone. ``drops`` counts what was lost, by reason."""

    def __init__(
        self, device: Device, port: ChannelPort, judge: Callable[[memoryview], Drop | None] | None
    ) -> None:
        """``judge`` looks at what arrives, besides what every packet must be."""
        self._device = device
        self._port = port
        self._link = port.link
        self._channel = port.channel
        self._poller = poller.current()
        self._current_time = trio.lowlevel.current_clock().current_time
        self._queue = Queue()
        self._is_ip = device.mode is Mode.POINT_TO_POINT
        self._well = judge_ip if self._is_ip else judge_frame
        self._judge = judge
        self._headroom = FAMILY_SIZE if self._is_ip else 0
        self._families = _FAMILIES if self._is_ip else _NO_FAMILIES
        self._smallest = IPV4_HEADER if self._is_ip else ETHERNET_HEADER  # and too small
        self._overhead = 0
        if self._link.protocol.transport.peer_version.startswith(_OPENSSH):
            self._overhead = OPENSSH_WINDOW_OVERHEAD
            # It drops what our window does not take.
            port.channel.window.burst_s = BURST_S
            # Its Nagle would hold a packet until something of ours carries the acknowledgement.
            self._link.peer_sends_singly = True
        self._largest = port.channel.remote_maximum_packet_size - self._headroom
        self._buffers = (ROOM[self._headroom : self._headroom + self._largest], _SPILL)
        self._next: bytes | None = None  # goes first; it was larger than what might go
        self._has_input = False
        self._is_blocked = False  # the last batch ended for want of room
        self._blocked_s = inf  # since when
        self._waits_for_turn = False
        self._arrived = 0  # bytes of this batch
        self._is_over = False
        self._on_end: Callable[[str], object] = _ignore
        self.packets_in = 0
        self.packets_out = 0
        self._drops: Counter[Drop] = Counter()

    @property
    def drops(self) -> Counter[Drop]:
        """How many packets were lost, by reason."""
        return self._drops + Counter({Drop.QUEUE: self._queue.dropped})

    def start(self, on_end: Callable[[str], object]) -> None:
        """Carry from now on; ``on_end`` is called once, with a reason for a person."""
        port = self._port
        self._on_end = on_end
        early, port.pending = bytes(port.pending), bytearray()
        port.channel.consumed(len(early))  # packets before anybody listened, their edges lost
        port.channel.sink = self._sink
        # A window that takes no whole packet would never be used up, and so never grow again.
        port.channel.window.floor = 4 * self._largest_message() // 3
        port.on_change = self._look_at_channel
        port.on_writable = self._go_on
        self._poller.watch_input(self._device.fd, self._device_ready)
        self._look_at_channel()

    def _largest_message(self) -> int:
        return self._device.mtu + MARGIN

    def close(self, reason: str = "closed by us") -> None:
        """End the channel and leave the device alone; harmless if that was done."""
        if self._is_over:
            return
        self._is_over = True
        self._has_input = False
        port = self._port
        port.on_change = port.on_writable = _nothing
        self._poller.forget(self._device.fd)
        port.close()
        self._on_end(reason)

    def _look_at_channel(self) -> None:
        port = self._port
        if port.failure is not None:
            self.close(str(port.failure))
        elif port.close_received or port.eof_received:
            self.close("the far end closed the tunnel")

    # -- device to channel -------------------------------------------------------------------------

    def _device_ready(self, event: int) -> None:
        """Take an event of the poller. A defect of our own ends this tunnel and no other."""
        try:
            if event & poller.READABLE:
                self._has_input = True
                self._go_on()
        except Exception:
            self.close("internal error")
            raise

    def _go_on(self) -> None:
        """Something that was missing may be there: packets, the peer's credit, room, or time."""
        if self._is_over:
            return
        self._send_unless_others_wait()
        self._link.flush()

    def _send_unless_others_wait(self) -> None:
        if self._waits_for_turn:
            self._wait()
        else:
            link = self._link
            self._send_batch(0 if link.turns.bulk else link.bulk_limit())

    def _take_turn(self) -> None:
        """Send a turn's worth. Whoever gives the turns flushes once for all."""
        self._waits_for_turn = False
        if not self._is_over:
            self._send_batch(self._link.bulk_limit())

    def _send_batch(self, limit: int) -> None:
        """Send what waits, then what the device has: a batch, and about ``limit`` bytes."""
        self._is_blocked = False
        if self._next is not None or self._queue.length_bytes:
            limit = self._send_waiting(limit)
        if self._has_input and not self._is_blocked:
            self._read(limit)
        if self._is_blocked:
            self._wait()
            return
        self._blocked_s = inf
        if self._has_input and self._poller.was_at_rest:
            self._has_input = False
            self._poller.tell_again(self._device.fd)
        elif self._has_input:
            self._poller.again(self._go_on)

    def _read(self, limit: int, queue: Queue | None = None) -> None:
        """Read from the device into the place that is sealed from, and seal; or let all wait."""
        fd, buffers, headroom = self._device.fd, self._buffers, self._headroom
        smallest, largest, families = self._smallest, self._largest, self._families
        overhead = self._overhead
        channel, outbound = self._channel, self._link.protocol.outbound
        credit = channel.remote_window if channel.send_state is OPEN else 0
        sent = count = 0
        try:
            for _ in range(1 if self._poller.was_at_rest else PACKETS_AT_ONCE):
                if queue is None and (sent >= limit or not outbound.accepts_data):
                    self._is_blocked = True
                    break
                length = os.readv(fd, buffers)
                family = families[ROOM[headroom]]
                if family is None or not smallest < length <= largest:
                    self._drop_of_our_own(length)
                    continue
                ROOM[:headroom] = family
                length += headroom
                if queue is not None:
                    queue.push(bytes(ROOM[:length]), self._current_time())
                    continue
                if length + overhead > credit:
                    self._next = bytes(ROOM[:length])
                    self._is_blocked = True
                    break
                outbound.seal_channel_data(channel.remote_channel, length)
                credit -= length + overhead
                sent += length
                count += 1
        except BlockingIOError:
            self._has_input = False
        except OSError as error:
            self.close(f"the device {self._device.name} is gone: {error.strerror}")
            return
        channel.sent_datagrams(sent, count * overhead)
        self.packets_out += count

    def _drop_of_our_own(self, length: int) -> None:
        if not length:
            raise OSError(errno.EBADFD, os.strerror(errno.EBADFD))
        if length <= self._smallest:
            self._drops[Drop.HEADER_ONLY] += 1
        elif length > self._largest:
            self._drops[Drop.TOO_LARGE] += 1
        else:
            self._drops[Drop.MALFORMED] += 1

    # -- what has to wait --------------------------------------------------------------------------

    def _wait(self) -> None:
        """Arrange to go on at our turn, or with the peer's credit."""
        if self._is_over:
            return
        if not self._waits_for_turn and self._has_credit():
            self._waits_for_turn = True
            self._link.turns.wait(self._take_turn, is_bulk=True)
        now_s = self._current_time()
        self._blocked_s = min(self._blocked_s, now_s)
        if self._has_input and now_s - self._blocked_s > PATIENCE_S:
            self._read(0, self._queue)
            self._poller.again(self._go_on)

    def _has_credit(self) -> bool:
        """Whether the peer takes the next packet; if not, the channel tells us when it does."""
        packet = self._next
        return packet is None or self._channel.has_credit(len(packet) + self._overhead)

    def _send_waiting(self, limit: int) -> int:
        """Send from the queue; return what is left of ``limit``."""
        channel, overhead, outbound = self._channel, self._overhead, self._link.protocol.outbound
        now_s = self._current_time()
        while True:
            packet = self._next or self._queue.pop(now_s)
            if packet is None:
                return limit
            length = len(packet)
            if limit <= 0 or not channel.takes_datagram(length + overhead):
                self._next = packet
                self._is_blocked = True
                return limit
            self._next = None
            ROOM[:length] = packet
            outbound.seal_channel_data(channel.remote_channel, length)
            channel.sent_datagrams(length, overhead)
            self.packets_out += 1
            limit -= length + overhead

    # -- channel to device -------------------------------------------------------------------------

    def _sink(self, data: memoryview) -> int:
        """Write one packet to the device, or count why not. Called while the link reads."""
        if not self._arrived:
            self._link.at_batch_end.append(self._end_batch)
        self._arrived += len(data)
        drop, packet = self._well(data), data[self._headroom :]
        if drop is None and self._judge is not None:
            drop = self._judge(packet)
        if drop is None:
            try:
                os.write(self._device.fd, packet)
            except OSError:
                drop = Drop.DEVICE
            else:
                self.packets_in += 1
                return 0
        self._drops[drop] += 1
        return 0

    def _end_batch(self) -> None:
        """All that arrived is consumed; what answers it at once is there already."""
        arrived, self._arrived = self._arrived, 0
        self._channel.consumed(arrived)
        if not self._is_over:
            self._has_input = True
            self._send_unless_others_wait()


def _nothing() -> None:
    pass


def _ignore(_reason: str) -> None:
    pass
