"""Two protocols back to back, without I/O: the client and the server of one link.

`forge` is the attacker's pen: it seals any payload with the keys that a protocol receives under
just now, so that a test can put any message at any point of a link.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gateway import events
from gateway.ssh import messages
from gateway.ssh.algorithms import STRICT_C, STRICT_S, Preferences
from gateway.ssh.keys import PrivateKey, PublicKey
from gateway.ssh.numbers import Msg
from gateway.ssh.packets import Inbound
from gateway.ssh.protocol import ClientSetup, Protocol, ServerSetup
from gateway.ssh.transport import VERSION, Phase, RekeyLimit, Role
from gateway.ssh.userauth import ClientAuth

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.ssh.channel import Channel

HOST_KEY = PrivateKey.generate(os.urandom)
USER_KEY = PrivateKey.generate(os.urandom)


def feed(protocol: Protocol, data: bytes | memoryview, now_s: float = 0.0) -> None:
    """Give bytes to a protocol as a carrier would, in pieces that fit."""
    view = memoryview(data)
    while view:
        space = protocol.inbound.space()
        count = min(len(space), len(view))
        space[:count] = view[:count]
        protocol.received(count, now_s)
        protocol.inbound.idle()
        view = view[count:]


def take(protocol: Protocol, limit: int | None = None) -> bytes:
    """Take what a protocol wants to send, at most ``limit`` bytes."""
    view = protocol.outbound.data_to_send()
    if view is None:
        return b""
    data = bytes(view if limit is None else view[:limit])
    protocol.outbound.data_sent(len(data))
    return data


def frame(payload: bytes, *, block: int = 8, aligned_header: int = 4, padding: int = 0) -> bytes:
    """Return the packet in clear; a padding of 0 stands for the least that is legal."""
    if not padding:
        padding = block - (aligned_header + 1 + len(payload)) % block
        padding += block if padding < 4 else 0
    length = 1 + len(payload) + padding
    return length.to_bytes(4, "big") + bytes((padding,)) + payload + bytes(padding)


def seal_for(target: Protocol, plain: bytes) -> bytes:
    """Seal a framed packet so that ``target`` takes it for its peer's next one."""
    cipher = copy.copy(target.inbound.cipher)
    sealed = memoryview(bytearray(len(plain) + cipher.tag_size))
    cipher.seal_into(target.inbound.sequence_number, memoryview(plain), sealed)
    return bytes(sealed)


def forge(target: Protocol, payload: bytes) -> bytes:
    """Return ``payload`` as the next packet that ``target`` receives. Feed it before the next."""
    cipher = target.inbound.cipher
    plain = frame(payload, block=cipher.block_size, aligned_header=cipher.aligned_header)
    return seal_for(target, plain)


def inject(target: Protocol, *sent: bytes | messages.Message, now_s: float = 0.0) -> None:
    """Let ``target`` receive these payloads, one after the other."""
    for item in sent:
        payload = item if isinstance(item, bytes) else item.encode()
        feed(target, forge(target, payload), now_s)


def edit_kexinit(protocol: Protocol, **changes: Any) -> None:
    """Change the KEXINIT that a fresh protocol is about to send."""
    transport, outbound = protocol.transport, protocol.outbound
    assert transport._local_kexinit is not None
    message = messages.KexInit.decode_untrusted(transport._local_kexinit)
    transport._local_kexinit = dataclasses.replace(message, **changes).encode()
    take(protocol)
    outbound.sequence_number = 0
    outbound.append_raw(VERSION + b"\r\n")
    outbound._seal(transport._local_kexinit)


def local_kexinit(protocol: Protocol) -> messages.KexInit:
    """Return the KEXINIT that a protocol sent, or is about to send, in the exchange that runs."""
    assert protocol.transport._local_kexinit is not None
    return messages.KexInit.decode_untrusted(protocol.transport._local_kexinit)


def make_unstrict(protocol: Protocol) -> None:
    """Turn a fresh protocol into a peer that has never heard of strict key exchange."""
    kex = local_kexinit(protocol).kex_algorithms
    edit_kexinit(
        protocol, kex_algorithms=tuple(name for name in kex if name not in (STRICT_C, STRICT_S))
    )
    protocol.transport._enter_strict = _ignore_markers  # type: ignore[assignment,method-assign]


def _ignore_markers(_kexinit: messages.KexInit) -> None:
    pass


class SpyInbound(Inbound):
    """Notes the number of every message that arrives."""

    __slots__ = ("numbers",)

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[int] = []

    def next_payload(self) -> memoryview | None:
        """See `Inbound`."""
        payload = super().next_payload()
        if payload is not None:
            self.numbers.append(payload[0])
        return payload


def spy_on(protocol: Protocol) -> list[int]:
    """Return a list that grows by the message numbers that a fresh protocol receives."""
    spy = SpyInbound()
    protocol.inbound = protocol.transport.inbound = spy
    return spy.numbers


@dataclass
class Pair:
    """A client and a server, and the events of both that were not dealt with yet."""

    client: Protocol
    server: Protocol
    client_events: list[events.Event] = field(default_factory=list)
    server_events: list[events.Event] = field(default_factory=list)
    chunk: int | None = None
    """At most so many bytes at a time, or whatever there is."""
    now_s: float = 0.0
    user_key: PrivateKey = USER_KEY
    user_keys: tuple[PrivateKey, ...] = ()
    """The private halves of the client's identities, where there is more than one."""

    def pump(self, rounds: int = 10_000) -> None:
        """Carry bytes both ways until nothing moves, answering what every login asks."""
        for _ in range(rounds):
            moved = self._carry(self.client, self.server) + self._carry(self.server, self.client)
            self._collect()
            if not moved and self.client.outbound.data_to_send() is None:
                return
        raise AssertionError("the pair never came to rest")

    def drive(self, role: Role, phase: Phase) -> Protocol:
        """Carry bytes one at a time until ``role`` has reached ``phase``; return that side.

        Nothing of a further packet is left in its buffer, so `forge` may write the next one.
        """
        target, peer = (
            (self.client, self.server) if role is Role.CLIENT else (self.server, self.client)
        )
        for _ in range(100):
            for byte in take(peer):
                if target.transport.phase is phase:
                    return target
                feed(target, bytes((byte,)), self.now_s)
            self._collect()
            if target.transport.phase is phase:
                return target
            self._carry(target, peer)
            self._collect()
        raise AssertionError(f"{target!r} never reached {phase}")

    def _carry(self, source: Protocol, target: Protocol) -> int:
        data = take(source)
        step = self.chunk or len(data) or 1
        for at in range(0, len(data), step):
            feed(target, data[at : at + step], self.now_s)
        return len(data)

    def _collect(self) -> None:
        while (event := self.client.next_event()) is not None:
            if isinstance(event, events.HostKeyReceived):
                self.client.accept_host_key()
            elif isinstance(event, events.SignatureWanted):
                self._sign(event)
            self.client_events.append(event)
        while (event := self.server.next_event()) is not None:
            self.server_events.append(event)

    def _sign(self, event: events.SignatureWanted) -> None:
        auth = self.client.auth
        assert isinstance(auth, ClientAuth)
        key = (self.user_keys or (self.user_key,) * (event.identity + 1))[event.identity]
        auth.provide_signature(key.sign(event.data, event.algorithm))

    def open_channel(self) -> tuple[Channel, Channel]:
        """Open a channel from the client; return the client's and the server's end."""
        local = self.client.connection.open_channel("test", b"")
        self.pump()
        (request,) = (e for e in self.server_events if isinstance(e, events.ChannelOpenRequested))
        self.server_events.remove(request)
        remote = self.server.connection.channels[request.channel_id]
        self.server.connection.confirm_channel(remote)
        self.pump()
        self.client_events.remove(events.ChannelOpened(local.channel_id))
        return local, remote


def make_pair(
    *,
    rekey_limit: RekeyLimit | None = None,
    authorize: Callable[[str, PublicKey], bool] | None = None,
    chunk: int | None = None,
    user_keys: tuple[PrivateKey, ...] = (USER_KEY,),
    client_offers: Preferences | None = None,
    server_offers: Preferences | None = None,
    server_rekey_limit: RekeyLimit | None = None,
) -> Pair:
    """Return two protocols that have not exchanged a byte."""
    limit = rekey_limit or RekeyLimit()
    return Pair(
        Protocol(
            ClientSetup(
                "alice",
                tuple(key.public for key in user_keys),
                client_offers or Preferences(),
                limit,
            ),
            0.0,
        ),
        Protocol(
            ServerSetup(
                (HOST_KEY,),
                authorize or (lambda _user, key: key == USER_KEY.public),
                server_offers or Preferences(),
                server_rekey_limit or limit,
            ),
            0.0,
        ),
        chunk=chunk,
        user_keys=user_keys,
    )


def log_in(pair: Pair) -> Pair:
    """Carry a pair through its login and forget the events of it."""
    pair.pump()
    assert pair.client.transport.phase is Phase.CONNECTION
    assert pair.server.transport.phase is Phase.CONNECTION
    pair.client_events.clear()
    pair.server_events.clear()
    return pair


def logged_in_pair(
    *,
    rekey_limit: RekeyLimit | None = None,
    chunk: int | None = None,
    server_rekey_limit: RekeyLimit | None = None,
) -> Pair:
    """Return a pair after the login, its events cleared."""
    return log_in(
        make_pair(rekey_limit=rekey_limit, chunk=chunk, server_rekey_limit=server_rekey_limit)
    )


REKEYING = frozenset((Phase.REKEY, Phase.REKEY_NEWKEYS))


def pair_in_phase(role: Role, phase: Phase, *, strict: bool = True) -> tuple[Pair, Protocol]:
    """Return a pair whose ``role`` is in ``phase``, and that side."""
    pair = make_pair()
    if not strict or phase in (Phase.KEX, Phase.NEWKEYS):
        make_unstrict(pair.client)
        make_unstrict(pair.server)
    if phase is Phase.VERSION:
        return pair, pair.client if role is Role.CLIENT else pair.server
    if phase in REKEYING:
        log_in(pair)
        (pair.server if role is Role.CLIENT else pair.client).transport.start_rekey(0.0)
    return pair, pair.drive(role, phase)


def assert_only_kex_between_kexinit_and_newkeys(numbers: list[int]) -> None:
    """T13c, as OpenSSH >= 10.4 enforces it."""
    running = False
    for number in numbers:
        if running:
            assert number in (Msg.NEWKEYS, Msg.KEX_ECDH_INIT, Msg.KEX_ECDH_REPLY), number
        if number == Msg.KEXINIT:
            running = True
        elif number == Msg.NEWKEYS:
            running = False
    assert not running
