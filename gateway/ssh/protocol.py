"""One SSH link without I/O, client or server: bytes in, bytes out, events.

THEORY OF OPERATION

The owner (`gateway.net.link`, or a test) does three things, in a loop:

    space = protocol.inbound.space()         # 1. let the carrier write there, then
    protocol.received(n, now_s)              #    n = 0 means that the peer closed
    while event := protocol.next_event():    # 2. act on what happened
        ...
    view = protocol.outbound.data_to_send()  # 3. write it; then outbound.data_sent(n)

``received`` opens every whole packet, looks its number up in the phase table, the only gate, and
routes it by range: 1-49 to the transport, 5, 6 and 50-61 to the authentication, the rest to the
connection. CHANNEL_DATA is tested for first and goes to its channel's sink at once; nothing is
queued for it.

When the peer breaks the rules, `RemoteProtocolError` leaves ``received`` after DISCONNECT was put
into the outbound buffer and the phase is CLOSED: send what there is, then close the carrier.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from gateway.errors import ConnectionLost, LocalProtocolError, RemoteProtocolError
from gateway.ssh.algorithms import SERVER_PREFERENCES, Preferences
from gateway.ssh.connection import Connection
from gateway.ssh.numbers import Disconnect, Msg
from gateway.ssh.packets import CHANNEL_DATA
from gateway.ssh.serverauth import ServerAuth
from gateway.ssh.transport import ALLOWED, CONNECTION, Phase, RekeyLimit, Role, Transport
from gateway.ssh.userauth import MAXIMUM_FAILURES, ClientAuth, LoginPreferences
from gateway.ssh.windows import Budget

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway import events
    from gateway.ssh.keys import PrivateKey, PublicKey

_VERSION: Final = Phase.VERSION


@dataclass(frozen=True, slots=True)
class ClientSetup:
    """What a client brings to a link."""

    user_name: str
    identities: tuple[PublicKey, ...] = ()
    preferences: Preferences = field(default_factory=Preferences)
    rekey_limit: RekeyLimit = field(default_factory=RekeyLimit)
    login: LoginPreferences = field(default_factory=LoginPreferences)
    budget: Budget = field(default_factory=Budget)


@dataclass(frozen=True, slots=True)
class ServerSetup:
    """What a server brings to a link.

    ``authorize``: may this key log this user in? 0 is no, else how many different keys must sign.
    ``maximum_failures`` end the login.
    """

    host_keys: tuple[PrivateKey, ...]
    authorize: Callable[[str, PublicKey], int]
    preferences: Preferences = SERVER_PREFERENCES
    rekey_limit: RekeyLimit = field(default_factory=RekeyLimit)
    budget: Budget = field(default_factory=Budget)
    maximum_failures: int = MAXIMUM_FAILURES


class Protocol:
    """Both roles; which one, the setup says."""

    def __init__(
        self,
        setup: ClientSetup | ServerSetup,
        now_s: float,
        randbytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._events: deque[events.Event] = deque()
        emit = self._events.append
        client = isinstance(setup, ClientSetup)
        self.transport = Transport(
            Role.CLIENT if client else Role.SERVER,
            preferences=setup.preferences,
            host_keys=() if isinstance(setup, ClientSetup) else setup.host_keys,
            rekey_limit=setup.rekey_limit,
            randbytes=randbytes,
            emit=emit,
            now_s=now_s,
        )
        self.inbound = self.transport.inbound
        self.outbound = self.transport.outbound
        self.auth: ClientAuth | ServerAuth
        if isinstance(setup, ClientSetup):
            self.auth = ClientAuth(
                setup.user_name,
                setup.identities,
                setup.login,
                extensions=self.transport.peer_extensions,
                send=self.outbound.append,
                emit=emit,
            )
        else:
            self.auth = ServerAuth(
                setup.authorize,
                maximum_failures=setup.maximum_failures,
                send=self.outbound.append,
                emit=emit,
            )
        self.connection = Connection(
            self.outbound,
            emit,
            extensions=self.transport.peer_extensions,
            budget=setup.budget,
        )

    def __repr__(self) -> str:
        return f"<Protocol {self.transport.role.value} {self.transport.phase.value}>"

    # -- in ----------------------------------------------------------------------------------------

    def received(self, count: int, now_s: float) -> None:
        """Process what the carrier wrote into ``inbound.space()``.

        Raises `ConnectionLost` when the peer has closed (``count`` is 0) and `RemoteProtocolError`
        when it broke the rules.
        """
        if not count:
            raise ConnectionLost(self._how_it_ended())
        self.inbound.filled(count)
        self.connection.now_s = now_s
        try:
            if self.transport.phase is not _VERSION or self.transport.receive_version():
                self._receive_packets(now_s)
            self.transport.rekey_if_due(now_s)
            self.outbound.check_lane()
        except RemoteProtocolError as error:
            self.transport.disconnect(error.reason_code, str(error))
            raise

    def _receive_packets(self, now_s: float) -> None:
        transport, inbound = self.transport, self.inbound
        receive_data = self.connection.receive_data
        while (payload := inbound.next_payload()) is not None:
            number = payload[0]
            if number == CHANNEL_DATA and transport.phase is CONNECTION:
                receive_data(payload)
                continue
            if number not in ALLOWED[transport.phase][transport.role]:
                if transport.phase is Phase.CLOSED:
                    return
                if transport.takes_wrong_guess(number):
                    continue
                raise RemoteProtocolError(
                    f"message {number} is not allowed now (phase: {transport.phase.value})"
                )
            if not transport.takes_wrong_guess(number):
                self._route(number, bytes(payload), now_s)

    def _route(self, number: int, payload: bytes, now_s: float) -> None:
        if number >= Msg.GLOBAL_REQUEST:
            self.connection.receive(payload)
        elif number >= Msg.USERAUTH_REQUEST or number in (
            Msg.SERVICE_REQUEST,
            Msg.SERVICE_ACCEPT,
        ):
            self._receive_auth(number, payload)
        else:
            self._receive_transport(number, payload, now_s)

    def _receive_transport(self, number: int, payload: bytes, now_s: float) -> None:
        transport = self.transport
        match number:
            case Msg.KEXINIT:
                transport.receive_kexinit(payload, now_s)
            case Msg.NEWKEYS:
                transport.receive_newkeys(payload, now_s)
                self.connection.meter.disturbed(now_s)
            case _ if number >= Msg.KEX_ECDH_INIT:
                transport.receive_kex(payload)
            case _:
                transport.receive_generic(payload)

    def _receive_auth(self, number: int, payload: bytes) -> None:
        transport, auth = self.transport, self.auth
        if isinstance(auth, ClientAuth):
            if number == Msg.SERVICE_ACCEPT:
                auth.receive_service_accept(payload)
                transport.phase = Phase.AUTH
            elif auth.receive(payload):
                transport.phase = Phase.CONNECTION
        elif number == Msg.SERVICE_REQUEST:
            auth.receive_service_request(payload)
            transport.phase = Phase.AUTH
        elif auth.receive(payload, transport.session_id, transport.host_key_blob):
            transport.phase = Phase.CONNECTION

    def _how_it_ended(self) -> str:
        phase = self.transport.phase
        if phase is Phase.VERSION:
            return (
                "the peer closed it before it said anything in SSH: is this an SSH server's port?"
            )
        if phase in (Phase.CONNECTION, Phase.REKEY, Phase.REKEY_NEWKEYS):
            return "the peer closed it"
        return f"the peer closed it during the login (phase: {phase.value}): its log may say why"

    # -- out ---------------------------------------------------------------------------------------

    def next_event(self) -> events.Event | None:
        """Return the oldest event that was not looked at yet."""
        return self._events.popleft() if self._events else None

    @property
    def may_read(self) -> bool:
        """Whether more input is welcome: not while replies pile up that the peer does not read."""
        return not self.outbound.is_congested

    def accept_host_key(self, identities: Sequence[PublicKey] | None = None) -> None:
        """Client: answer `HostKeyReceived`; the login goes on, with these keys if they are given.

        An agent may only tell its keys once it knows the host.
        """
        if not isinstance(self.auth, ClientAuth):
            raise LocalProtocolError("only a client looks at host keys")
        self.transport.send_newkeys()
        self.auth.start(self.transport.session_id, self.transport.host_key_blob, identities)

    def tick(self, now_s: float) -> None:
        """Let time pass: call about once a second while anything may time out."""
        try:
            self.transport.tick(now_s)
            if self.transport.phase is Phase.CONNECTION:
                self.connection.tick(now_s)
        except RemoteProtocolError as error:
            self.transport.disconnect(error.reason_code, str(error))
            raise

    def disconnect(
        self, description: str = "", reason_code: int = Disconnect.BY_APPLICATION
    ) -> None:
        """Say goodbye; send what there is, then close the carrier."""
        self.transport.disconnect(reason_code, description)

    def discard(self) -> None:
        """Give all buffers back: the carrier is gone."""
        self.transport.close()
        self.inbound.discard()
        self.outbound.discard()
