"""The binary packet protocol (RFC 4253 §6). The hot file: read this page before changing a line.

Every byte that crosses the gateway passes through ``Outbound.seal_channel_data`` or
``Inbound.next_payload``. A packet may cost here: one call and the cipher's, no ``bytes`` object for
its payload, no await, no log line. tests/perf/test_call_budget.py counts the calls.

THE BUFFER CONTRACT

Out.  Plaintext is put together in one place in the process, cut into ``slots``: a header's width,
      then room for the payload. A producer reads into the rooms of several slots at once
      (``os.readv(fd, rooms)``) and calls ``seal_channel_data`` for each in the same breath: a room
      is good *only until the next await*, because any other link may use it then. Sealing goes
      from there into the link's wire buffer, so plaintext and wire image are two things, and
      unacknowledged plaintext could be kept one day.

      The wire buffer is filled from the front until DATA_LIMIT, sent until it is empty, and given
      back to the pool: an idle link owns none. Data may start below DATA_LIMIT only; what lies
      above is the reserve of the control lane and, at the very end, of the key exchange, so that
      replies and window adjusts go out while data is blocked. What finds no place, or comes
      between our KEXINIT and our NEWKEYS, when RFC 4253 §7.1 allows nothing else, waits in
      ``_lane`` as plain payloads, bounded by LANE_LIMIT. While anything waits there
      ``accepts_data`` is false, so a CLOSE never overtakes the data before it, nor data a CLOSE.

In.   The carrier writes into ``space()``; ``next_payload`` opens one packet where it stands and
      returns a view of its payload, good *until the end of the batch*: until ``space`` or ``idle``
      is called next. The buffer is the pool's as soon as no part of a packet is left in it.

Fixed sizes throughout: a bytearray with a live memoryview cannot be resized.
"""

from __future__ import annotations

import mmap
import struct
from collections import deque
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from gateway.errors import LocalProtocolError, RemoteProtocolError
from gateway.ssh.ciphers import NoCipher
from gateway.ssh.numbers import Msg

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.ssh.ciphers import PacketCipher

# ---- from the specifications ---------------------------------------------------------------------
MAXIMUM_PACKET_LENGTH: Final = 262_144  # as OpenSSH, PACKET_MAX_SIZE; RFC 4253 §6.1 asks for 35 000
MINIMUM_PACKET_LENGTH: Final = 8  # the smallest with padding and one byte, in blocks of 8
MINIMUM_PADDING: Final = 4  # RFC 4253 §6
MAXIMUM_PADDING: Final = 255  # padding_length is one byte

# ---- our own choices -----------------------------------------------------------------------------
MAXIMUM_DATA: Final = 255 * 1024  # bytes of channel data in one packet
DATA_LIMIT: Final = 256 * 1024  # one batch: what the wire buffer takes before it must be sent
KEX_RESERVE: Final = 64 * 1024  # room that only key exchange and DISCONNECT may use
BUFFER_SIZE: Final = 768 * 1024  # DATA_LIMIT, one largest packet, the lane, the reserve
LANE_LIMIT: Final = 64 * 1024  # waiting control messages after which nothing more is read
LANE_HARD_LIMIT: Final = 1024 * 1024  # … and after which the peer is abusing a key exchange
RECEIVE_SIZE: Final = 256 * 1024  # bytes asked of the carrier at once
MAXIMUM_SLOTS: Final = 64  # packets read for at once
SLOT_PADDING: Final = 32  # more than one block and MINIMUM_PADDING
POOL_KEEPS: Final = 16  # free buffers kept

# packet_length, padding_length, SSH_MSG_CHANNEL_DATA, recipient channel, data length
_DATA_HEADER: Final = struct.Struct(">IBBII")
_HEADER: Final = struct.Struct(">IB")
_LENGTH: Final = struct.Struct(">I")
CHANNEL_DATA: Final = int(Msg.CHANNEL_DATA)  # for the hot path: a look-up costs more than packing
DATA_HEADROOM: Final = _DATA_HEADER.size

_SCRATCH: Final = memoryview(bytearray(2 * (MAXIMUM_PACKET_LENGTH + 4 + MAXIMUM_PADDING)))
ROOM: Final = _SCRATCH[DATA_HEADROOM : DATA_HEADROOM + MAXIMUM_DATA]
"""Where a producer puts channel data; valid until the next await. See the contract above."""


@lru_cache(maxsize=16)
def slots(data_size: int) -> tuple[list[memoryview], list[memoryview]]:
    """Cut the scratch into slots for packets of ``data_size``: whole slots, and their ROOMs."""
    stride = DATA_HEADROOM + data_size + SLOT_PADDING
    count = min(MAXIMUM_SLOTS, -(-DATA_LIMIT // (data_size + SLOT_PADDING)))
    whole = [_SCRATCH[start : start + stride] for start in range(0, count * stride, stride)]
    return whole, [slot[DATA_HEADROOM : DATA_HEADROOM + data_size] for slot in whole]


class BufferPool:
    """Buffers of BUFFER_SIZE, lent to links while they hold something.

    They are mappings of their own (mmap(2)): a page that nobody has written to takes no memory, and
    what is not kept goes back to the kernel. Else half a packet, on as many links as a peer may
    have, would take a whole buffer on each.
    """

    def __init__(self) -> None:
        self._free: list[memoryview] = []

    def take(self) -> memoryview:
        """Lend a buffer; its content is arbitrary."""
        if self._free:
            return self._free.pop()
        return memoryview(mmap.mmap(-1, BUFFER_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))

    def give_back(self, buffer: memoryview) -> None:
        """Take a buffer back."""
        if len(self._free) < POOL_KEEPS:
            self._free.append(buffer)


POOL: Final = BufferPool()


class Outbound:
    """Sealed packets on their way to the carrier, and the control lane behind them."""

    __slots__ = (
        "_end",
        "_is_closed",
        "_kex_running",
        "_lane",
        "_lane_bytes",
        "_padding",
        "_randbytes",
        "_start",
        "_wire",
        "accepts_data",
        "bytes_since_newkeys",
        "bytes_total",
        "cipher",
        "data_total",
        "packets_since_newkeys",
        "sequence_number",
    )

    def __init__(self, randbytes: Callable[[int], bytes]) -> None:
        self.cipher: PacketCipher = NoCipher()
        self.sequence_number = 0
        self.packets_since_newkeys = 0
        self.bytes_since_newkeys = 0
        self.bytes_total = 0
        self.data_total = 0  # bytes of channel data
        self.accepts_data = True
        self._randbytes = randbytes
        self._padding = randbytes(MAXIMUM_PADDING)
        self._wire: memoryview | None = None
        self._start = 0
        self._end = 0
        self._lane: deque[bytes] = deque()
        self._lane_bytes = 0
        self._kex_running = False
        self._is_closed = False

    # -- data plane --------------------------------------------------------------------------------

    @property
    def data_space(self) -> int:
        """Bytes that may be added before DATA_LIMIT."""
        return DATA_LIMIT - self._end

    def seal_channel_data(
        self, recipient_channel: int, data_length: int, slot: memoryview = _SCRATCH
    ) -> None:
        """Seal the first bytes in a slot's ROOM as one CHANNEL_DATA; ``accepts_data`` is true."""
        cipher = self.cipher
        block = cipher.block_size
        padding_length = block - (cipher.aligned_header + 10 + data_length) % block
        if padding_length < MINIMUM_PADDING:
            padding_length += block
        packet_length = 10 + data_length + padding_length
        _DATA_HEADER.pack_into(
            slot,
            0,
            packet_length,
            padding_length,
            CHANNEL_DATA,
            recipient_channel,
            data_length,
        )
        stop = 4 + packet_length
        slot[stop - padding_length : stop] = self._padding[:padding_length]
        wire = self._wire
        if wire is None:
            wire = self._wire = POOL.take()
        start = self._end
        end = start + stop + cipher.tag_size
        cipher.seal_into(self.sequence_number, slot[:stop], wire[start:end])
        self.sequence_number = (self.sequence_number + 1) & 0xFFFF_FFFF
        self.packets_since_newkeys += 1
        self.bytes_since_newkeys += data_length
        self.data_total += data_length
        self._end = end
        if end >= DATA_LIMIT:
            self.accepts_data = False

    # -- control lane ------------------------------------------------------------------------------

    def append(self, payload: bytes) -> None:
        """Send a control message; it waits behind earlier ones and while keys are exchanged.

        Never raises: tasks that have nothing to do with a misdeed of the peer come here too. Once
        the outbound is closed it goes nowhere.
        """
        if self._is_closed:
            return
        if self._lane or self._kex_running or not self._fits(payload, KEX_RESERVE):
            self._lane.append(payload)
            self._lane_bytes += len(payload)
            self.accepts_data = False
        else:
            self._seal(payload)

    def check_lane(self) -> None:
        """Refuse a peer whose requests have filled the lane. Call once per batch received."""
        if self._lane_bytes > LANE_HARD_LIMIT:
            raise RemoteProtocolError(
                "the peer asks for more and more replies but does not let us send them"
            )

    def append_transport(self, payload: bytes) -> None:
        """Send a transport message (1-49) at once, also during a key exchange."""
        if self._is_closed:
            return
        if not self._fits(payload, 0):
            raise RemoteProtocolError("the peer does not read what we send")
        self._seal(payload)

    @property
    def is_congested(self) -> bool:
        """Whether so many replies wait that reading more requests must wait too."""
        return self._lane_bytes > LANE_LIMIT and not self._kex_running

    def start_kex(self) -> None:
        """Close data and lane: our KEXINIT is the last message under the old rules."""
        self._kex_running = True
        self.accepts_data = False

    def start_cipher(self, cipher: PacketCipher, *, reset_sequence_number: bool) -> None:
        """Switch keys, directly after NEWKEYS was appended, and let what waited go."""
        self.cipher = cipher
        self.packets_since_newkeys = 0
        self.bytes_since_newkeys = 0
        self._padding = self._randbytes(MAXIMUM_PADDING)
        if reset_sequence_number:
            self.sequence_number = 0
        self._kex_running = False
        self._drain_lane()

    def _fits(self, payload: bytes, reserve: int) -> bool:
        return self._end + len(payload) + 4 + 1 + MAXIMUM_PADDING + 64 <= BUFFER_SIZE - reserve

    def _seal(self, payload: bytes) -> None:
        cipher = self.cipher
        block = cipher.block_size
        length = 5 + len(payload)
        padding_length = block - (cipher.aligned_header + 1 + len(payload)) % block
        if padding_length < MINIMUM_PADDING:
            padding_length += block
        stop = length + padding_length
        if stop - 4 > MAXIMUM_PACKET_LENGTH:
            raise LocalProtocolError(f"a message of {len(payload)} bytes")
        _HEADER.pack_into(_SCRATCH, 0, stop - 4, padding_length)
        _SCRATCH[5:length] = payload
        _SCRATCH[length:stop] = self._padding[:padding_length]
        if self._wire is None:
            self._wire = POOL.take()
        end = self._end + stop + cipher.tag_size
        cipher.seal_into(self.sequence_number, _SCRATCH[:stop], self._wire[self._end : end])
        self.sequence_number = (self.sequence_number + 1) & 0xFFFF_FFFF
        self.packets_since_newkeys += 1
        self.bytes_since_newkeys += len(payload)
        self._end = end
        if end >= DATA_LIMIT:
            self.accepts_data = False

    def _drain_lane(self) -> None:
        while self._lane and self._fits(self._lane[0], KEX_RESERVE):
            payload = self._lane.popleft()
            self._lane_bytes -= len(payload)
            self._seal(payload)
        self.accepts_data = (
            not (self._kex_running or self._is_closed or self._lane) and self._end < DATA_LIMIT
        )

    # -- towards the carrier -----------------------------------------------------------------------

    def append_raw(self, data: bytes) -> None:
        """Send bytes that are no packet: the identification string (RFC 4253 §4.2)."""
        if self._wire is None:
            self._wire = POOL.take()
        self._wire[self._end : self._end + len(data)] = data
        self._end += len(data)

    def data_to_send(self) -> memoryview | None:
        """Return what the carrier has to write now, or None; valid until anything is appended."""
        return self._wire[self._start : self._end] if self._wire is not None else None

    def data_sent(self, count: int) -> None:
        """Note that the carrier took ``count`` bytes."""
        self._start += count
        self.bytes_total += count
        if self._start == self._end and self._wire is not None:
            POOL.give_back(self._wire)
            self._wire = None
            self._start = self._end = 0
            if self._lane or not self.accepts_data:
                if self._kex_running:
                    return
                self._drain_lane()

    def close(self) -> None:
        """Seal nothing more: nothing follows DISCONNECT (RFC 4253 §11.1). What is sealed leaves."""
        self._is_closed = True
        self.accepts_data = False
        self._lane.clear()
        self._lane_bytes = 0

    def discard(self) -> None:
        """Drop everything: the carrier is gone."""
        self.close()
        if self._wire is not None:
            POOL.give_back(self._wire)
            self._wire = None
            self._start = self._end = 0


class Inbound:
    """Bytes from the carrier, opened packet by packet where they stand."""

    __slots__ = (
        "_buffer",
        "_end",
        "_start",
        "bytes_since_newkeys",
        "bytes_total",
        "cipher",
        "packets_since_newkeys",
        "sequence_number",
    )

    def __init__(self) -> None:
        self.cipher: PacketCipher = NoCipher()
        self.sequence_number = 0
        self.packets_since_newkeys = 0
        self.bytes_since_newkeys = 0
        self.bytes_total = 0
        self._buffer: memoryview | None = None
        self._start = 0
        self._end = 0

    def space(self) -> memoryview:
        """Return where the carrier may write; call ``filled`` with what it wrote, or ``idle``."""
        buffer = self._buffer
        if buffer is None:
            buffer = self._buffer = POOL.take()
        start, end = self._start, self._end
        if start:  # a part of a packet is left: to the front with it, so that a whole one fits
            buffer[: end - start] = buffer[start:end]  # memoryview copies overlaps rightly
            self._start, self._end = 0, end - start
            end -= start
        return buffer[end : end + RECEIVE_SIZE]

    def filled(self, count: int) -> None:
        """Note that ``count`` bytes were written into ``space()``."""
        self._end += count
        self.bytes_total += count

    def idle(self) -> None:
        """Give the buffer back if nothing is left in it."""
        if self._buffer is not None and self._start == self._end:
            POOL.give_back(self._buffer)
            self._buffer = None
            self._start = self._end = 0

    def take_line(self, limit: int) -> bytes | None:
        """Return one line of the unencrypted start, without its LF, or None if it is not here."""
        if self._buffer is None:
            return None
        window = bytes(self._buffer[self._start : min(self._end, self._start + limit)])
        at = window.find(b"\n")
        if at < 0:
            if len(window) == limit:
                raise RemoteProtocolError(
                    f"a line of more than {limit} bytes before the key exchange"
                )
            return None
        self._start += at + 1
        return window[:at]

    def next_payload(self) -> memoryview | None:
        """Open the next packet and return its payload, or None if it is not all here."""
        start, end = self._start, self._end
        if end - start < 4 or self._buffer is None:
            return None
        buffer = self._buffer
        cipher = self.cipher
        if not cipher.length_prefix:
            (packet_length,) = _LENGTH.unpack_from(buffer, start)
        elif end - start < cipher.length_prefix:
            return None
        else:
            packet_length = cipher.packet_length(
                self.sequence_number, buffer[start : start + cipher.length_prefix]
            )
        if (
            not MINIMUM_PACKET_LENGTH <= packet_length <= MAXIMUM_PACKET_LENGTH
            or (cipher.aligned_header + packet_length) % cipher.block_size
        ):
            raise RemoteProtocolError(f"packet_length {packet_length} is out of range")
        stop = start + 4 + packet_length + cipher.tag_size
        if stop > end:
            return None
        packet = buffer[start:stop]
        cipher.open_in_place(self.sequence_number, packet)
        padding_length = packet[4]
        payload_end = 4 + packet_length - padding_length
        if padding_length < MINIMUM_PADDING or payload_end < 6:
            raise RemoteProtocolError(
                f"padding_length {padding_length} in a packet of {packet_length} bytes"
            )
        self._start = stop
        self.sequence_number = (self.sequence_number + 1) & 0xFFFF_FFFF
        self.packets_since_newkeys += 1
        self.bytes_since_newkeys += packet_length
        return packet[5:payload_end]

    def start_cipher(self, cipher: PacketCipher, *, reset_sequence_number: bool) -> None:
        """Switch keys, directly after the peer's NEWKEYS."""
        self.cipher = cipher
        self.packets_since_newkeys = 0
        self.bytes_since_newkeys = 0
        if reset_sequence_number:
            self.sequence_number = 0

    def discard(self) -> None:
        """Drop everything: the carrier is gone."""
        self._start = self._end
        self.idle()
