"""One channel (RFC 4254 §5): two windows and two half-states, the same for both roles.

Each direction ends by itself. EOF ends one; CLOSE, once sent *and* received, ends the channel.

    send half                                     receive half
    OPENING ─ confirmed ─► OPEN                   OPENING ─ confirmed ─► OPEN
       │ abandoned          │ send_eof               │                    │ eof
       ▼                    ▼                        │                    ▼
    ABANDONED            EOF_SENT                    │               EOF_RECEIVED
       │ confirmed          │ send_close             │ refused            │ close
       ▼                    ▼                        ▼                    ▼
    CLOSE_SENT ◄──── (also from OPEN)             CLOSE_RECEIVED ◄── (also from OPEN)

ABANDONED: the owner left while the open was on its way. CLOSE follows the confirmation.

Events change state, in the tables below; an event that a table does not have raises and changes
nothing.

Data does not queue in here. Out: ``room`` says how much may be sent *before* it is read from
anywhere, and ``send_room`` seals it. In: ``sink`` is called with a view into the receive buffer,
good until the end of the batch; it returns how many bytes it consumed and gives the rest back later
with ``consumed``. Credit goes to the peer only for what was consumed, so a slow reader stops only
itself.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

from gateway.errors import LocalProtocolError, RemoteProtocolError
from gateway.ssh import messages
from gateway.ssh.packets import MAXIMUM_DATA, ROOM, slots

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.ssh.packets import Outbound
    from gateway.ssh.windows import Shares

NO_ROOM: Final = memoryview(b"")


class SendState(Enum):
    """The half that we send on."""

    __hash__ = object.__hash__  # a key of the tables: `Enum`'s own is a Python function

    OPENING = "opening"
    ABANDONED = "abandoned"
    OPEN = "open"
    EOF_SENT = "eof sent"
    CLOSE_SENT = "close sent"


class ReceiveState(Enum):
    """The half that the peer sends on."""

    __hash__ = object.__hash__  # a key of the tables: `Enum`'s own is a Python function

    OPENING = "opening"
    OPEN = "open"
    EOF_RECEIVED = "eof received"
    CLOSE_RECEIVED = "close received"


class ChannelEvent(Enum):
    """What can happen to a channel."""

    __hash__ = object.__hash__  # a key of the tables: `Enum`'s own is a Python function

    CONFIRMED = "confirmed"
    REFUSED = "refused"
    ABANDON = "abandon"
    SEND_EOF = "send eof"
    SEND_CLOSE = "send close"
    EOF = "eof"
    CLOSE = "close"


SEND_TABLE: Final = {
    (SendState.OPENING, ChannelEvent.CONFIRMED): SendState.OPEN,
    (SendState.OPENING, ChannelEvent.REFUSED): SendState.CLOSE_SENT,
    (SendState.OPENING, ChannelEvent.ABANDON): SendState.ABANDONED,
    (SendState.ABANDONED, ChannelEvent.CONFIRMED): SendState.CLOSE_SENT,
    (SendState.ABANDONED, ChannelEvent.REFUSED): SendState.CLOSE_SENT,
    (SendState.OPEN, ChannelEvent.SEND_EOF): SendState.EOF_SENT,
    (SendState.OPEN, ChannelEvent.SEND_CLOSE): SendState.CLOSE_SENT,
    (SendState.EOF_SENT, ChannelEvent.SEND_CLOSE): SendState.CLOSE_SENT,
}

RECEIVE_TABLE: Final = {
    (ReceiveState.OPENING, ChannelEvent.CONFIRMED): ReceiveState.OPEN,
    (ReceiveState.OPENING, ChannelEvent.REFUSED): ReceiveState.CLOSE_RECEIVED,
    (ReceiveState.OPEN, ChannelEvent.EOF): ReceiveState.EOF_RECEIVED,
    (ReceiveState.OPEN, ChannelEvent.CLOSE): ReceiveState.CLOSE_RECEIVED,
    (ReceiveState.EOF_RECEIVED, ChannelEvent.CLOSE): ReceiveState.CLOSE_RECEIVED,
}


_RECEIVE_OPEN: Final = ReceiveState.OPEN  # looking up a member costs more than all the rest
OPEN: Final = SendState.OPEN
_CLOSE_SENT: Final = SendState.CLOSE_SENT


def discard(data: memoryview) -> int:
    """Consume data that nobody wants, so that the window is never pinned."""
    return len(data)


def discard_extended(_data_type_code: int, data: memoryview) -> int:
    """Consume extended data that nobody wants."""
    return len(data)


class Channel:
    """State of one channel. `gateway.ssh.connection` makes it; the owner sends and sets sinks."""

    __slots__ = (
        "_outbound",
        "_pending_requests",
        "_shares",
        "_wants_writable",
        "bytes_in",
        "bytes_out",
        "channel_id",
        "channel_type",
        "confirmation",
        "extended_sink",
        "receive_state",
        "remote_channel",
        "remote_maximum_packet_size",
        "remote_window",
        "send_state",
        "sink",
        "window",
    )

    def __init__(
        self, channel_id: int, channel_type: str, outbound: Outbound, shares: Shares
    ) -> None:
        self.channel_id = channel_id
        self.channel_type = channel_type
        self.confirmation = b""  # what the peer's confirmation said besides (RFC 4254 §5.1)
        self.send_state = SendState.OPENING
        self.receive_state = ReceiveState.OPENING
        self.window = shares.open(channel_id)
        self.remote_channel = 0
        self.remote_window = 0
        self.remote_maximum_packet_size = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.sink: Callable[[memoryview], int] = discard
        self.extended_sink: Callable[[int, memoryview], int] = discard_extended
        self._outbound = outbound
        self._shares = shares
        self._wants_writable = False
        self._pending_requests = 0

    def __repr__(self) -> str:
        return (
            f"<Channel {self.channel_id} {self.channel_type} "
            f"send={self.send_state.value} receive={self.receive_state.value}>"
        )

    # -- states ------------------------------------------------------------------------------------

    def change(self, event: ChannelEvent, *, from_peer: bool) -> None:
        """Apply an event to the half or halves that it concerns."""
        send_key, receive_key = (self.send_state, event), (self.receive_state, event)
        if send_key not in SEND_TABLE and receive_key not in RECEIVE_TABLE:
            error = RemoteProtocolError if from_peer else LocalProtocolError
            raise error(f"{event.value} is not possible now: {self!r}")
        self.send_state = SEND_TABLE.get(send_key, self.send_state)
        self.receive_state = RECEIVE_TABLE.get(receive_key, self.receive_state)

    @property
    def is_over(self) -> bool:
        """Whether CLOSE went both ways, so that the number may be forgotten."""
        return (
            self.send_state is SendState.CLOSE_SENT
            and self.receive_state is ReceiveState.CLOSE_RECEIVED
        )

    # -- sending -----------------------------------------------------------------------------------

    def room(self) -> memoryview:
        """Return where to put data now, never more than may be sent; empty if nothing may be.

        Valid until the next await. Then ``send_room``.
        """
        if self.send_state is not OPEN:
            raise LocalProtocolError(f"cannot send data: {self!r}")
        if not self._outbound.accepts_data:
            return NO_ROOM
        limit = self.remote_window
        if limit > self.remote_maximum_packet_size:
            return ROOM[: self.remote_maximum_packet_size]
        if limit == 0:
            self._wants_writable = True
        return ROOM[:limit]

    def send_room(self, data_length: int) -> None:
        """Send the first ``data_length`` bytes of what ``room`` returned."""
        self._outbound.seal_channel_data(self.remote_channel, data_length)
        self.remote_window -= data_length
        self.bytes_out += data_length

    def rooms(self, limit: int) -> list[memoryview]:
        """As ``room``, for several packets, at most ``limit`` bytes. Then ``send_rooms``."""
        if self.send_state is not OPEN:
            raise LocalProtocolError(f"cannot send data: {self!r}")
        outbound, window = self._outbound, self.remote_window
        if not window:
            self._wants_writable = True
            return []
        if not outbound.accepts_data or not limit:
            return []
        window = min(window, limit)
        size = self.remote_maximum_packet_size
        rooms = slots(size)[1][: -(-outbound.data_space // size)]
        if window >= len(rooms) * size:
            return rooms
        whole, part = divmod(window, size)
        return [*rooms[:whole], rooms[whole][:part]] if part else rooms[:whole]

    def send_rooms(self, data_length: int) -> None:
        """Send the first ``data_length`` bytes of what ``rooms`` returned."""
        self.remote_window -= data_length
        self.bytes_out += data_length
        size = self.remote_maximum_packet_size
        for slot in slots(size)[0]:
            length = min(size, data_length)
            self._outbound.seal_channel_data(self.remote_channel, length, slot)
            data_length -= length
            if not data_length:
                return

    def has_credit(self, length: int) -> bool:
        """Whether the peer's window takes ``length`` bytes.

        A producer that got a no is told when the window grows.
        """
        if self.remote_window < length:
            self._wants_writable = True
            return False
        return True

    def takes_datagram(self, length: int) -> bool:
        """Whether one message with ``length`` bytes in ROOM may be sent now, whole."""
        return self.has_credit(length) and self._outbound.accepts_data and self.send_state is OPEN

    def sent_datagrams(self, length: int, overhead: int) -> None:
        """Note messages that their producer sealed by itself, ``length`` bytes together.

        ``overhead`` is what the peer's window counts besides.
        """
        self.remote_window -= length + overhead
        self.bytes_out += length

    def send(self, data: bytes | memoryview) -> int:
        """Send what fits of ``data``; return how much that was."""
        sent = 0
        view = memoryview(data)
        while sent < len(view):
            room = self.room()
            count = min(len(room), len(view) - sent)
            if not count:
                break
            room[:count] = view[sent : sent + count]
            self.send_room(count)
            sent += count
        return sent

    def send_eof(self) -> None:
        """Say that no more data follows."""
        self.change(ChannelEvent.SEND_EOF, from_peer=False)
        self._outbound.append(messages.ChannelEof(self.remote_channel).encode())

    def send_request(self, request_type: str, type_specific: bytes = b"") -> None:
        """Send a request that wants a reply (RFC 4254 §5.4)."""
        if self.send_state not in (SendState.OPEN, SendState.EOF_SENT):
            raise LocalProtocolError(f"cannot send a request: {self!r}")
        self._pending_requests += 1
        request = messages.ChannelRequest(
            self.remote_channel,
            request_type,
            True,
            type_specific,
        )
        self._outbound.append(request.encode())

    def send_notice(self, request_type: str, type_specific: bytes = b"") -> None:
        """Send a request that wants no reply, such as exit-status (RFC 4254 §6.10)."""
        request = messages.ChannelRequest(self.remote_channel, request_type, False, type_specific)
        self._outbound.append(request.encode())

    def send_extended(self, data_type_code: int, data: bytes) -> int:
        """Send what the window takes of ``data`` beside the data; return how much that was."""
        if self.send_state is not OPEN:
            raise LocalProtocolError(f"cannot send data: {self!r}")
        part = data[: min(self.remote_window, self.remote_maximum_packet_size)]
        if part:
            message = messages.ChannelExtendedData(self.remote_channel, data_type_code, part)
            self._outbound.append(message.encode())
            self.remote_window -= len(part)
            self.bytes_out += len(part)
        return len(part)

    def take_reply(self) -> bool:
        """Note a reply to a request; say whether one was awaited."""
        if not self._pending_requests:
            return False
        self._pending_requests -= 1
        return True

    def add_window(self, bytes_to_add: int) -> bool:
        """Take credit from the peer; say whether a producer was waiting for it."""
        window = self.remote_window + bytes_to_add
        if window > 0xFFFF_FFFF:
            raise RemoteProtocolError(f"the window would pass 2^32-1: {self!r}")
        self.remote_window = window
        waited, self._wants_writable = self._wants_writable, False
        return waited

    # -- receiving ---------------------------------------------------------------------------------

    def receive_data(self, data: memoryview, length: int) -> None:
        """Pass data to the sink. The hot path: one call from `connection`, one to the sink."""
        if self.receive_state is not _RECEIVE_OPEN:
            raise RemoteProtocolError(f"data on a channel that takes none: {self!r}")
        window = self.window
        if length > window.granted:
            raise RemoteProtocolError(f"{length} bytes exceed the window: {self!r}")
        window.granted -= length
        window.held += length
        self.bytes_in += length
        if self.send_state is _CLOSE_SENT:
            return  # crossed our CLOSE on the way; nobody will read it, and no credit is needed
        consumed = self.sink(data)
        if consumed:
            self.consumed(consumed)

    def receive_extended_data(self, data_type_code: int, data: memoryview) -> None:
        """Pass extended data to its sink; the same window counts it."""
        length = len(data)
        if self.receive_state is not ReceiveState.OPEN or length > self.window.granted:
            raise RemoteProtocolError(f"{length} bytes of extended data do not fit: {self!r}")
        self.window.received(length)
        self.bytes_in += length
        if self.send_state is not SendState.CLOSE_SENT:
            self.consumed(self.extended_sink(data_type_code, data))

    def consumed(self, count: int) -> None:
        """Give back credit for ``count`` bytes, in a WINDOW_ADJUST once enough came together."""
        if credit := self._shares.consumed(self.window, count):
            self.give_credit(credit)

    def give_credit(self, credit: int) -> None:
        """Tell the peer of credit that was counted as granted, if it may still send."""
        if self.receive_state is _RECEIVE_OPEN and self.send_state is not _CLOSE_SENT:
            adjust = messages.ChannelWindowAdjust(self.remote_channel, credit)
            self._outbound.append(adjust.encode())


def usable_packet_size(announced: int) -> int:
    """Return how much data one packet to the peer may carry; refuse sizes that lead nowhere.

    9 bytes is the smallest packet that can carry anything (as Go's x/crypto/ssh).
    """
    if announced < 9:
        raise RemoteProtocolError(f"a maximum packet size of {announced} bytes")
    return min(announced, MAXIMUM_DATA)
