"""Two protocols back to back, without I/O: the client and the server of one link."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway import events
from gateway.ssh.keys import PrivateKey, PublicKey
from gateway.ssh.protocol import ClientSetup, Protocol, ServerSetup
from gateway.ssh.transport import Phase, RekeyLimit
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
        view = view[count:]


def take(protocol: Protocol, limit: int | None = None) -> bytes:
    """Take what a protocol wants to send, at most ``limit`` bytes."""
    view = protocol.outbound.data_to_send()
    if view is None:
        return b""
    data = bytes(view if limit is None else view[:limit])
    protocol.outbound.data_sent(len(data))
    return data


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

    def pump(self, rounds: int = 10_000) -> None:
        """Carry bytes both ways until nothing moves, answering what every login asks."""
        for _ in range(rounds):
            moved = self._carry(self.client, self.server) + self._carry(self.server, self.client)
            self._collect()
            if not moved and self.client.outbound.data_to_send() is None:
                return
        raise AssertionError("the pair never came to rest")

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
                auth = self.client.auth
                assert isinstance(auth, ClientAuth)
                auth.provide_signature(
                    self.user_key.sign(event.data, self.user_key.public.algorithm)
                )
            self.client_events.append(event)
        while (event := self.server.next_event()) is not None:
            self.server_events.append(event)

    def open_channel(self) -> tuple[Channel, Channel]:
        """Open a channel from the client; return the client's and the server's end."""
        local = self.client.connection.open_channel("test", b"")
        self.pump()
        request = self.server_events.pop()
        assert isinstance(request, events.ChannelOpenRequested)
        remote = self.server.connection.channels[request.channel_id]
        self.server.connection.confirm_channel(remote)
        self.pump()
        assert self.client_events.pop() == events.ChannelOpened(local.channel_id)
        return local, remote


def make_pair(
    *,
    rekey_limit: RekeyLimit | None = None,
    authorize: Callable[[str, PublicKey], bool] | None = None,
    chunk: int | None = None,
) -> Pair:
    """Return two protocols that have not exchanged a byte."""
    limit = rekey_limit or RekeyLimit()
    return Pair(
        Protocol(ClientSetup("alice", (USER_KEY.public,), rekey_limit=limit), 0.0),
        Protocol(
            ServerSetup(
                (HOST_KEY,),
                authorize or (lambda _user, key: key == USER_KEY.public),
                rekey_limit=limit,
            ),
            0.0,
        ),
        chunk=chunk,
    )


def logged_in_pair(*, rekey_limit: RekeyLimit | None = None, chunk: int | None = None) -> Pair:
    """Return a pair after the login, its events cleared."""
    pair = make_pair(rekey_limit=rekey_limit, chunk=chunk)
    pair.pump()
    assert pair.client.transport.phase is Phase.CONNECTION
    assert pair.server.transport.phase is Phase.CONNECTION
    pair.client_events.clear()
    pair.server_events.clear()
    return pair
