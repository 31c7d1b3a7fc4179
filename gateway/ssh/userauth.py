"""User authentication (RFC 4252), publickey first; one class for each role.

CLIENT. After SERVICE_ACCEPT it asks with "none" what the server takes, then offers one identity
after the other *without* a signature. When the server says PK_OK the core emits `SignatureWanted`
and waits: the owner fetches the key, from a file with a passphrase or from an agent, and answers
with ``provide_signature`` or ``skip_identity``. So nobody is asked for a passphrase of a key that
the server would refuse.

SERVER. Whether a key may log a user in is asked of ``authorize``, a pure function. Who logged in
is taken from the verified signature only, never from an earlier query (CVE-2024-45337). User and
service may not change during the dialogue, and every request counts towards a limit.

To add a method: one entry in ``_METHODS`` of the role, and its message numbers in the phase table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from gateway import events
from gateway.errors import LocalProtocolError, RemoteProtocolError
from gateway.ssh import messages, wire
from gateway.ssh.keys import parse_public_key_untrusted
from gateway.ssh.numbers import Disconnect, Msg

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.ssh.keys import PublicKey

SERVICE_USERAUTH: Final = "ssh-userauth"
SERVICE_CONNECTION: Final = "ssh-connection"

MAXIMUM_FAILURES: Final = 6  # as OpenSSH, MaxAuthTries
MAXIMUM_REQUESTS: Final = 32  # queries and refusals together; as a fixed cap on one connection
MAXIMUM_BANNERS: Final = 8


def signed_data(
    session_id: bytes, user_name: str, service_name: str, algorithm: str, blob: bytes
) -> bytes:
    """Return what a publickey signature covers (RFC 4252 §7)."""
    request = messages.UserauthRequest(
        user_name,
        service_name,
        "publickey",
        messages.PublickeyQuery(True, algorithm, blob).encode(),
    )
    return wire.string(session_id) + request.encode()


class ClientAuthState(Enum):
    """Where the client's dialogue stands."""

    NOT_STARTED = "not started"
    SERVICE_REQUESTED = "service requested"
    NONE_SENT = "none sent"
    KEY_OFFERED = "key offered"
    SIGNATURE_WANTED = "signature wanted"
    SIGNATURE_SENT = "signature sent"
    DONE = "done"
    EXHAUSTED = "exhausted"


class ClientAuth:
    """The client's side of the dialogue."""

    def __init__(
        self,
        user_name: str,
        identities: Sequence[PublicKey],
        *,
        send: Callable[[bytes], None],
        emit: Callable[[events.Event], None],
    ) -> None:
        self.user_name = user_name
        self.state = ClientAuthState.NOT_STARTED
        self.methods_that_can_continue: tuple[str, ...] = ()
        self._identities = identities
        self._next_identity = 0
        self._session_id = b""
        self._banners = 0
        self._send = send
        self._emit = emit

    def __repr__(self) -> str:
        return f"<ClientAuth {self.user_name!r} {self.state.value}>"

    def start(self, session_id: bytes) -> None:
        """Ask for the service (RFC 4253 §10)."""
        self._session_id = session_id
        self.state = ClientAuthState.SERVICE_REQUESTED
        self._send(messages.ServiceRequest(SERVICE_USERAUTH).encode())

    def receive_service_accept(self, payload: bytes) -> None:
        """Begin with "none", to learn what the server takes."""
        accept = messages.ServiceAccept.decode_untrusted(payload)
        if (
            self.state is not ClientAuthState.SERVICE_REQUESTED
            or accept.service_name != SERVICE_USERAUTH
        ):
            raise RemoteProtocolError("SERVICE_ACCEPT for a service that was not asked for")
        self.state = ClientAuthState.NONE_SENT
        self._request("none", b"")

    def receive(self, payload: bytes) -> bool:
        """Take one message of 51-60; return True when the login is done."""
        match payload[0]:
            case Msg.USERAUTH_BANNER:
                self._receive_banner_untrusted(payload)
            case Msg.USERAUTH_FAILURE:
                self._receive_failure_untrusted(payload)
            case Msg.USERAUTH_PK_OK:
                self._receive_pk_ok_untrusted(payload)
            case _:
                return self._receive_success_untrusted(payload)
        return False

    def provide_signature(self, signature: bytes) -> None:
        """Answer `SignatureWanted`."""
        self._expect_wanted()
        key = self._identities[self._next_identity]
        fields = messages.PublickeyRequest(True, key.algorithm, key.blob, signature)
        self.state = ClientAuthState.SIGNATURE_SENT
        self._request("publickey", fields.encode())

    def skip_identity(self) -> None:
        """Answer `SignatureWanted` with: not this key after all."""
        self._expect_wanted()
        self._next_identity += 1
        self._offer_next()

    def _expect_wanted(self) -> None:
        if self.state is not ClientAuthState.SIGNATURE_WANTED:
            raise LocalProtocolError(f"no signature is wanted: {self!r}")

    def _request(self, method_name: str, method_specific: bytes) -> None:
        self._send(
            messages.UserauthRequest(
                self.user_name, SERVICE_CONNECTION, method_name, method_specific
            ).encode()
        )

    def _receive_banner_untrusted(self, payload: bytes) -> None:
        banner = messages.UserauthBanner.decode_untrusted(payload)
        self._banners += 1
        if self._banners > MAXIMUM_BANNERS:
            raise RemoteProtocolError("the server sends one banner after the other")
        self._emit(events.BannerReceived(banner.message))

    def _receive_failure_untrusted(self, payload: bytes) -> None:
        failure = messages.UserauthFailure.decode_untrusted(payload)
        if self.state in (ClientAuthState.KEY_OFFERED, ClientAuthState.SIGNATURE_SENT):
            self._next_identity += 1
        elif self.state is not ClientAuthState.NONE_SENT:
            raise RemoteProtocolError(f"USERAUTH_FAILURE without a request: {self!r}")
        self.methods_that_can_continue = failure.authentications_that_can_continue
        self._offer_next()

    def _offer_next(self) -> None:
        if "publickey" not in self.methods_that_can_continue or self._next_identity >= len(
            self._identities
        ):
            self.state = ClientAuthState.EXHAUSTED
            reason = (
                "none of the keys was accepted"
                if "publickey" in self.methods_that_can_continue
                else "the server takes no public keys"
            )
            self._emit(
                events.AuthenticationRefused(
                    self.user_name, "publickey", reason, self.methods_that_can_continue
                )
            )
            return
        key = self._identities[self._next_identity]
        self.state = ClientAuthState.KEY_OFFERED
        fields = messages.PublickeyQuery(False, key.algorithm, key.blob)
        self._request("publickey", fields.encode())

    def _receive_pk_ok_untrusted(self, payload: bytes) -> None:
        ok = messages.UserauthPkOk.decode_untrusted(payload)
        if self.state is not ClientAuthState.KEY_OFFERED:
            raise RemoteProtocolError(f"USERAUTH_PK_OK without a query: {self!r}")
        key = self._identities[self._next_identity]
        if ok.public_key_algorithm_name != key.algorithm or ok.public_key_blob != key.blob:
            raise RemoteProtocolError("USERAUTH_PK_OK for a key that was not offered")
        self.state = ClientAuthState.SIGNATURE_WANTED
        data = signed_data(
            self._session_id, self.user_name, SERVICE_CONNECTION, key.algorithm, key.blob
        )
        self._emit(events.SignatureWanted(self._next_identity, data))

    def _receive_success_untrusted(self, payload: bytes) -> bool:
        messages.UserauthSuccess.decode_untrusted(payload)
        if self.state is ClientAuthState.SIGNATURE_SENT:
            key = self._identities[self._next_identity]
            done = events.Authenticated(self.user_name, "publickey", key.fingerprint)
        elif self.state is ClientAuthState.NONE_SENT:
            done = events.Authenticated(self.user_name, "none", "")
        else:
            raise RemoteProtocolError(f"USERAUTH_SUCCESS without a request: {self!r}")
        self.state = ClientAuthState.DONE
        self._emit(done)
        return True


@dataclass(frozen=True, slots=True)
class _KeyOffer:
    """A publickey request, parsed: ``signature`` is None for a query."""

    algorithm: str
    key: PublicKey | None
    blob: bytes
    signature: bytes | None


class ServerAuth:
    """The server's side of the dialogue."""

    def __init__(
        self,
        authorize: Callable[[str, PublicKey], bool],
        *,
        send: Callable[[bytes], None],
        emit: Callable[[events.Event], None],
    ) -> None:
        self.user_name: str | None = None
        self.service_accepted = False
        self._authorize = authorize
        self._failures = 0
        self._requests = 0
        self._send = send
        self._emit = emit

    def receive_service_request(self, payload: bytes) -> None:
        """Accept ssh-userauth, nothing else (RFC 4253 §10)."""
        request = messages.ServiceRequest.decode_untrusted(payload)
        if request.service_name != SERVICE_USERAUTH:
            raise RemoteProtocolError(
                "only the service ssh-userauth can be asked for", Disconnect.SERVICE_NOT_AVAILABLE
            )
        self.service_accepted = True
        self._send(messages.ServiceAccept(SERVICE_USERAUTH).encode())

    def receive(self, payload: bytes, session_id: bytes) -> bool:
        """Take a USERAUTH_REQUEST; return True when the login is done."""
        request = messages.UserauthRequest.decode_untrusted(payload)
        self._check_unchanged(request)
        self._requests += 1
        if request.method_name == "publickey":
            return self._publickey_untrusted(request, session_id)
        self._refuse(request, "this method is not offered", counts=request.method_name != "none")
        return False

    def _check_unchanged(self, request: messages.UserauthRequest) -> None:
        if request.service_name != SERVICE_CONNECTION:
            raise RemoteProtocolError(
                "only the service ssh-connection can be logged in to",
                Disconnect.SERVICE_NOT_AVAILABLE,
            )
        if self.user_name is None:
            self.user_name = request.user_name
        elif request.user_name != self.user_name:
            raise RemoteProtocolError("the user name changed during the login")

    def _refuse(
        self, request: messages.UserauthRequest, reason: str, *, counts: bool = True
    ) -> None:
        self._failures += counts
        self._emit(
            events.AuthenticationRefused(
                request.user_name, request.method_name, reason, ("publickey",)
            )
        )
        if self._failures >= MAXIMUM_FAILURES or self._requests >= MAXIMUM_REQUESTS:
            raise RemoteProtocolError(
                "too many attempts to log in", Disconnect.NO_MORE_AUTH_METHODS_AVAILABLE
            )
        self._send(messages.UserauthFailure(("publickey",), partial_success=False).encode())

    def _publickey_untrusted(self, request: messages.UserauthRequest, session_id: bytes) -> bool:
        offer = _parse_offer_untrusted(request.method_specific)
        key = offer.key
        if key is None or offer.algorithm != key.algorithm:
            self._refuse(request, f"a key of a kind we do not know: {offer.algorithm}")
        elif not self._authorize(request.user_name, key):
            self._refuse(request, f"the key {key.fingerprint} is not authorized")
        elif offer.signature is None:
            if self._requests >= MAXIMUM_REQUESTS:
                self._refuse(request, "too many queries")
            self._send(messages.UserauthPkOk(offer.algorithm, offer.blob).encode())
        else:
            return self._check_signature(request, offer.signature, key, session_id)
        return False

    def _check_signature(
        self,
        request: messages.UserauthRequest,
        signature: bytes,
        key: PublicKey,
        session_id: bytes,
    ) -> bool:
        data = signed_data(
            session_id, request.user_name, request.service_name, key.algorithm, key.blob
        )
        try:
            key.verify(signature, data, key.algorithm)
        except RemoteProtocolError:
            self._refuse(request, f"the signature by {key.fingerprint} is wrong")
            return False
        self._send(messages.UserauthSuccess().encode())
        self._emit(events.Authenticated(request.user_name, "publickey", key.fingerprint))
        return True


def _parse_offer_untrusted(method_specific: bytes) -> _KeyOffer:
    """Parse the fields of "publickey"; a bad key fails the attempt, not the link."""
    has_signature = wire.Reader(method_specific).boolean()
    signature = None
    if has_signature:
        request = messages.PublickeyRequest.decode_untrusted(method_specific)
        algorithm, blob, signature = (
            request.public_key_algorithm_name,
            request.public_key_blob,
            request.signature,
        )
    else:
        query = messages.PublickeyQuery.decode_untrusted(method_specific)
        algorithm, blob = query.public_key_algorithm_name, query.public_key_blob
    try:
        key = parse_public_key_untrusted(blob)
    except RemoteProtocolError:
        key = None
    return _KeyOffer(algorithm, key, blob, signature)
