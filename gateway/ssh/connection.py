"""The connection protocol (RFC 4254): the channel table and global requests, for both roles.

THEORY OF OPERATION

`gateway.ssh.protocol` routes messages 80-100 here once the login is done. Channel data goes the
short way: ``receive_data`` finds the channel and calls its sink, no event, no copy. Everything
else becomes an event with the channel's local number, pulled by the owner of the link.

A channel is in ``channels`` from its OPEN until CLOSE went both ways. A peer that names a number
which is not in the table breaks the protocol, with one exception: replies nobody waits for are
dropped, so that a late answer harms nothing. Nothing waits in here: replies to the peer go into
the outbound's control lane, which is bounded, and the peer's own opens are bounded by
MAXIMUM_CHANNELS.
"""

from __future__ import annotations

import struct
from collections import deque
from itertools import count
from typing import TYPE_CHECKING, Final

from gateway import events
from gateway.errors import LocalProtocolError, RemoteProtocolError
from gateway.ssh import messages
from gateway.ssh.channel import (
    Channel,
    ChannelEvent,
    ReceiveState,
    SendState,
    usable_packet_size,
)
from gateway.ssh.flow import PathMeter
from gateway.ssh.numbers import Msg, OpenFailure
from gateway.ssh.packets import MAXIMUM_DATA
from gateway.ssh.windows import Budget, Shares

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway.ssh.packets import Outbound

PING_EXTENSION: Final = "ping@openssh.com"  # OpenSSH PROTOCOL §1.9
KEEPALIVE: Final = "keepalive@openssh.com"
PROBE: Final = b"probe"  # what our pings carry
_WINDOW_ADJUST: Final = struct.Struct(">BII")  # number, recipient channel, bytes to add
_DATA: Final = struct.Struct(">BII")  # SSH_MSG_CHANNEL_DATA, recipient channel, data length
MAXIMUM_CHANNELS: Final = 16_384  # as OpenSSH, CHANNELS_MAX_CHANNELS
MAXIMUM_TEXT: Final = 200  # characters of a description that we send


class Connection:
    """All channels of one link."""

    def __init__(
        self,
        outbound: Outbound,
        emit: Callable[[events.Event], None],
        *,
        extensions: Mapping[str, bytes],
        budget: Budget,
    ) -> None:
        self.channels: dict[int, Channel] = {}
        self.meter = PathMeter()
        self.shares = Shares(self.meter, Budget(parent=budget))
        self.now_s = 0.0  # of the batch that is being received
        self._data_in = 0
        self._extensions = extensions
        self._outbound = outbound
        self._emit = emit
        self._numbers = count()
        self._awaited: deque[bool] = deque()  # for each global request: whether it is a probe
        self._pings = 0
        self._handlers: dict[int, Callable[[bytes], None]] = {
            Msg.GLOBAL_REQUEST: self._global_request_untrusted,
            Msg.REQUEST_SUCCESS: self._global_success_untrusted,
            Msg.REQUEST_FAILURE: self._global_failure_untrusted,
            Msg.CHANNEL_OPEN: self._open_untrusted,
            Msg.CHANNEL_OPEN_CONFIRMATION: self._confirmation_untrusted,
            Msg.CHANNEL_OPEN_FAILURE: self._failure_untrusted,
            Msg.CHANNEL_WINDOW_ADJUST: self._window_adjust_untrusted,
            Msg.CHANNEL_EXTENDED_DATA: self._extended_data_untrusted,
            Msg.CHANNEL_EOF: self._eof_untrusted,
            Msg.CHANNEL_CLOSE: self._close_untrusted,
            Msg.CHANNEL_REQUEST: self._request_untrusted,
            Msg.CHANNEL_SUCCESS: self._success_untrusted,
            Msg.CHANNEL_FAILURE: self._request_failure_untrusted,
            Msg.PING: self._ping_untrusted,
            Msg.PONG: self._pong_untrusted,
        }

    # -- what the owner asks for -------------------------------------------------------------------

    def open_channel(
        self,
        channel_type: str,
        type_specific: bytes,
    ) -> Channel:
        """Ask the peer for a channel; `ChannelOpened` or `ChannelOpenFailed` follows."""
        channel = self._new_channel(channel_type)
        self._outbound.append(
            messages.ChannelOpen(
                channel_type,
                channel.channel_id,
                channel.window.granted,
                MAXIMUM_DATA,
                type_specific,
            ).encode()
        )
        return channel

    def confirm_channel(self, channel: Channel, type_specific: bytes = b"") -> None:
        """Grant the peer's open; ``type_specific`` is what its type says besides."""
        channel.change(ChannelEvent.CONFIRMED, from_peer=False)
        self._outbound.append(
            messages.ChannelOpenConfirmation(
                channel.remote_channel,
                channel.channel_id,
                channel.window.granted,
                MAXIMUM_DATA,
                type_specific,
            ).encode()
        )

    def refuse_channel(self, channel: Channel, reason_code: int, description: str) -> None:
        """Refuse the peer's open and forget the channel."""
        channel.change(ChannelEvent.REFUSED, from_peer=False)
        self._send_failure(channel.remote_channel, reason_code, description)
        self._forget(channel)

    def abandon(self, channel: Channel) -> None:
        """Our owner does not want the channel any more, in whatever state it is."""
        if channel.send_state is SendState.OPENING:
            channel.change(ChannelEvent.ABANDON, from_peer=False)
        else:
            self.close(channel)

    def close(self, channel: Channel) -> None:
        """Send CLOSE, once."""
        if channel.send_state in (SendState.CLOSE_SENT, SendState.ABANDONED):
            return
        channel.change(ChannelEvent.SEND_CLOSE, from_peer=False)
        self._outbound.append(messages.ChannelClose(channel.remote_channel).encode())
        self._forget_if_over(channel)

    def send_global_request(self, request_name: str, request_specific: bytes = b"") -> None:
        """Send a global request that wants a reply; replies come in order (RFC 4254 §4)."""
        self._awaited.append(False)
        request = messages.GlobalRequest(request_name, True, request_specific)
        self._outbound.append(request.encode())

    def notify_global(self, request_name: str, request_specific: bytes = b"") -> None:
        """Send a global request that wants no reply."""
        request = messages.GlobalRequest(request_name, False, request_specific)
        self._outbound.append(request.encode())

    def explain(self, text: str) -> None:
        """Say why a refusal follows, which itself has no room for it; ssh -v shows it."""
        message = messages.Debug(True, text[:MAXIMUM_TEXT])
        self._outbound.append(message.encode())

    def reply_global(self, *, success: bool, response_specific: bytes = b"") -> None:
        """Answer the oldest `GlobalRequested` that wanted a reply."""
        reply: messages.Message = (
            messages.RequestSuccess(response_specific) if success else messages.RequestFailure()
        )
        self._outbound.append(reply.encode())

    def reply_request(self, channel: Channel, *, success: bool) -> None:
        """Answer a `ChannelRequested` that wanted a reply."""
        if channel.send_state is SendState.CLOSE_SENT:
            return
        reply = messages.ChannelSuccess if success else messages.ChannelFailure
        self._outbound.append(reply(channel.remote_channel).encode())

    # -- measuring the path ------------------------------------------------------------------------

    @property
    def may_send_bulk(self) -> bool:
        """Whether the path takes more now; who sends little need not ask."""
        return self._outbound.data_total < self.meter.send_until

    def probe_if_due(self, now_s: float, *, is_opening: bool = False) -> None:
        """Measure the path if data flows, or is about to. Call once per batch."""
        bytes_in, bytes_out = self._data_in, self._outbound.data_total
        if not self.meter.probe_due(now_s, bytes_in, bytes_out, is_opening=is_opening):
            return
        self.meter.probe_sent(now_s, bytes_in, bytes_out)
        if PING_EXTENSION in self._extensions:
            self._pings += 1
            self._outbound.append(messages.Ping(PROBE).encode())
        else:
            self._awaited.append(True)
            self._outbound.append(messages.GlobalRequest(KEEPALIVE, True, b"").encode())

    def _probe_answered(self) -> None:
        if self.meter.probe_answered(self.now_s, self._data_in):
            self._share()

    def _share(self) -> None:
        for window, credit in self.shares.end_round():
            self.channels[window.channel_id].give_credit(credit)

    def tick(self, now_s: float) -> None:
        """Look whether the peer answers probes. Call every few seconds."""
        if self.meter.tick(now_s):
            self._share()

    # -- the table ---------------------------------------------------------------------------------

    def _new_channel(self, channel_type: str) -> Channel:
        channel_id = next(self._numbers)
        if channel_id > 0xFFFF_FFFF:
            raise LocalProtocolError("this link has used all its channel numbers")
        channel = Channel(channel_id, channel_type, self._outbound, self.shares)
        self.channels[channel_id] = channel
        return channel

    def _forget_if_over(self, channel: Channel) -> None:
        if channel.is_over and channel.channel_id in self.channels:
            self._forget(channel)

    def _forget(self, channel: Channel) -> None:
        del self.channels[channel.channel_id]
        self.shares.close(channel.window)

    def _channel(self, channel_id: int) -> Channel:
        channel = self.channels.get(channel_id)
        if channel is None:
            raise RemoteProtocolError(f"a message for channel {channel_id}, which does not exist")
        return channel

    def _send_failure(self, remote_channel: int, reason_code: int, description: str) -> None:
        failure = messages.ChannelOpenFailure(
            remote_channel, reason_code, description[:MAXIMUM_TEXT]
        )
        self._outbound.append(failure.encode())

    # -- what the peer sends -----------------------------------------------------------------------

    def receive_data(self, payload: memoryview) -> None:
        """CHANNEL_DATA, the short way: number, recipient channel, length, data."""
        data = payload[9:]
        _, channel_id, length = _DATA.unpack_from(payload) if len(payload) >= 9 else (0, 0, -1)
        if len(data) != length:
            raise RemoteProtocolError("CHANNEL_DATA whose length field is wrong")
        channel = self.channels.get(channel_id)
        if channel is None:
            raise RemoteProtocolError("CHANNEL_DATA for a channel that does not exist")
        self._data_in += length
        channel.receive_data(data, length)

    def receive(self, payload: bytes) -> None:
        """Take any other message of 80-100, 192 or 193."""
        self._handlers[payload[0]](payload)

    def _open_untrusted(self, payload: bytes) -> None:
        request = messages.ChannelOpen.decode_untrusted(payload)
        packet_size = usable_packet_size(request.maximum_packet_size)
        if len(self.channels) >= MAXIMUM_CHANNELS:
            self._send_failure(
                request.sender_channel, OpenFailure.RESOURCE_SHORTAGE, "too many channels"
            )
            return
        channel = self._new_channel(request.channel_type)
        channel.remote_channel = request.sender_channel
        channel.remote_window = request.initial_window_size
        channel.remote_maximum_packet_size = packet_size
        self._emit(
            events.ChannelOpenRequested(
                channel.channel_id, request.channel_type, request.type_specific, packet_size
            )
        )

    def _confirmation_untrusted(self, payload: bytes) -> None:
        message = messages.ChannelOpenConfirmation.decode_untrusted(payload)
        channel = self._channel(message.recipient_channel)
        packet_size = usable_packet_size(message.maximum_packet_size)
        if channel.remote_maximum_packet_size:
            raise RemoteProtocolError(f"confirmation of a channel that is the peer's: {channel!r}")
        channel.change(ChannelEvent.CONFIRMED, from_peer=True)
        channel.remote_channel = message.sender_channel
        channel.remote_window = message.initial_window_size
        channel.remote_maximum_packet_size = packet_size
        channel.confirmation = message.type_specific
        if channel.send_state is SendState.CLOSE_SENT:  # it had been abandoned
            self._outbound.append(messages.ChannelClose(channel.remote_channel).encode())
        else:
            self._emit(events.ChannelOpened(channel.channel_id))

    def _failure_untrusted(self, payload: bytes) -> None:
        message = messages.ChannelOpenFailure.decode_untrusted(payload)
        channel = self._channel(message.recipient_channel)
        if channel.remote_maximum_packet_size:
            raise RemoteProtocolError(f"refusal of a channel that is not opening: {channel!r}")
        abandoned = channel.send_state is SendState.ABANDONED
        channel.change(ChannelEvent.REFUSED, from_peer=True)
        self._forget(channel)
        if not abandoned:
            self._emit(
                events.ChannelOpenFailed(
                    channel.channel_id, message.reason_code, message.description
                )
            )

    def _window_adjust_untrusted(self, payload: bytes) -> None:
        if len(payload) != _WINDOW_ADJUST.size:  # it comes every few packets, so not as a record
            raise RemoteProtocolError("a WINDOW_ADJUST of another length")
        _, recipient_channel, bytes_to_add = _WINDOW_ADJUST.unpack(payload)
        channel = self._channel(recipient_channel)
        self._expect_open(channel)
        if channel.add_window(bytes_to_add):
            self._emit(events.ChannelWritable(channel.channel_id))

    def _extended_data_untrusted(self, payload: bytes) -> None:
        message = messages.ChannelExtendedData.decode_untrusted(payload)
        channel = self._channel(message.recipient_channel)
        channel.receive_extended_data(message.data_type_code, memoryview(message.data))

    def _eof_untrusted(self, payload: bytes) -> None:
        channel = self._channel(messages.ChannelEof.decode_untrusted(payload).recipient_channel)
        channel.change(ChannelEvent.EOF, from_peer=True)
        self._emit(events.ChannelEofReceived(channel.channel_id))

    def _close_untrusted(self, payload: bytes) -> None:
        channel = self._channel(messages.ChannelClose.decode_untrusted(payload).recipient_channel)
        channel.change(ChannelEvent.CLOSE, from_peer=True)
        self._emit(events.ChannelCloseReceived(channel.channel_id))
        self._forget_if_over(channel)

    def _request_untrusted(self, payload: bytes) -> None:
        message = messages.ChannelRequest.decode_untrusted(payload)
        channel = self._channel(message.recipient_channel)
        self._expect_open(channel)
        if channel.send_state is SendState.CLOSE_SENT:
            return
        self._emit(
            events.ChannelRequested(
                channel.channel_id, message.request_type, message.want_reply, message.type_specific
            )
        )

    def _success_untrusted(self, payload: bytes) -> None:
        message = messages.ChannelSuccess.decode_untrusted(payload)
        self._replied(self._channel(message.recipient_channel), success=True)

    def _request_failure_untrusted(self, payload: bytes) -> None:
        message = messages.ChannelFailure.decode_untrusted(payload)
        self._replied(self._channel(message.recipient_channel), success=False)

    def _replied(self, channel: Channel, *, success: bool) -> None:
        self._expect_open(channel)
        if channel.take_reply():
            self._emit(events.ChannelReplied(channel.channel_id, success))

    def _expect_open(self, channel: Channel) -> None:
        """Refuse messages on a channel that is not confirmed, or after the peer's CLOSE."""
        if channel.receive_state in (ReceiveState.OPENING, ReceiveState.CLOSE_RECEIVED):
            raise RemoteProtocolError(f"a message on a channel that is not open: {channel!r}")

    def _global_request_untrusted(self, payload: bytes) -> None:
        message = messages.GlobalRequest.decode_untrusted(payload)
        self._emit(
            events.GlobalRequested(
                message.request_name, message.want_reply, message.request_specific
            )
        )

    def _global_success_untrusted(self, payload: bytes) -> None:
        message = messages.RequestSuccess.decode_untrusted(payload)
        self._global_replied(events.GlobalReplied(True, message.response_specific))

    def _global_failure_untrusted(self, payload: bytes) -> None:
        messages.RequestFailure.decode_untrusted(payload)
        self._global_replied(events.GlobalReplied(False, b""))

    def _global_replied(self, event: events.GlobalReplied) -> None:
        if not self._awaited:
            return
        if self._awaited.popleft():
            self._probe_answered()
        else:
            self._emit(event)

    def _ping_untrusted(self, payload: bytes) -> None:
        ping = messages.Ping.decode_untrusted(payload)
        if len(ping.data) > MAXIMUM_DATA:  # with other padding on the way back it would not fit
            raise RemoteProtocolError(f"a ping with {len(ping.data)} bytes")
        self._outbound.append(messages.Pong(ping.data).encode())

    def _pong_untrusted(self, payload: bytes) -> None:
        data = messages.Pong.decode_untrusted(payload).data
        if self._pings and data == PROBE:
            self._pings -= 1
            self._probe_answered()
        else:
            self._emit(events.PongReceived(data))
