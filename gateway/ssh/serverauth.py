"""User authentication (RFC 4252) with keys: the server.

Whether a key may log a user in is asked of ``authorize``, a pure function; it returns how
many different keys must sign, or 0. A certificate is no other key than the one in it. Who logged in
is taken from the verified signature only, never from an earlier query (CVE-2024-45337). User and
service may not change during the dialogue, and every request counts towards a limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway import events
from gateway.errors import RemoteProtocolError
from gateway.ssh import messages, wire
from gateway.ssh.certificates import parse_key_or_certificate_untrusted
from gateway.ssh.numbers import Disconnect
from gateway.ssh.userauth import (
    HOSTBOUND,
    MAXIMUM_FAILURES,
    MAXIMUM_REQUESTS,
    PUBLICKEY,
    SERVICE_CONNECTION,
    SERVICE_USERAUTH,
    signed_data,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.ssh.keys import PublicKey


@dataclass(frozen=True, slots=True)
class _KeyOffer:
    """A publickey request, parsed: ``signature`` is None for a query.

    ``host_key_blob`` is None unless the request names the server's host key.
    """

    algorithm: str
    key: PublicKey | None
    blob: bytes
    host_key_blob: bytes | None
    signature: bytes | None


class ServerAuth:
    """The server's side of the dialogue."""

    def __init__(
        self,
        authorize: Callable[[str, PublicKey], int],
        *,
        maximum_failures: int = MAXIMUM_FAILURES,
        send: Callable[[bytes], None],
        emit: Callable[[events.Event], None],
    ) -> None:
        self.user_name: str | None = None
        self._authorize = authorize
        self._maximum_failures = maximum_failures
        self._signed: list[str] = []  # fingerprints of the keys that have signed
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
        self._send(messages.ServiceAccept(SERVICE_USERAUTH).encode())

    def receive(self, payload: bytes, session_id: bytes, host_key_blob: bytes) -> bool:
        """Take a USERAUTH_REQUEST; return True when the login is done.

        ``host_key_blob`` is what this side proved to be, in the first key exchange.
        """
        request = messages.UserauthRequest.decode_untrusted(payload)
        self._check_unchanged(request)
        self._requests += 1
        if request.method_name in (PUBLICKEY, HOSTBOUND):
            return self._publickey_untrusted(request, session_id, host_key_blob)
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
        self,
        request: messages.UserauthRequest,
        reason: str,
        *,
        counts: bool = True,
        key: PublicKey | None = None,
    ) -> None:
        self._failures += counts
        self._emit(
            events.AuthenticationRefused(
                request.user_name,
                request.method_name,
                reason,
                (PUBLICKEY,),
                key.fingerprint if key else "",
            )
        )
        if self._failures >= self._maximum_failures or self._requests >= MAXIMUM_REQUESTS:
            raise RemoteProtocolError(
                "too many attempts to log in", Disconnect.NO_MORE_AUTH_METHODS_AVAILABLE
            )
        self._send(messages.UserauthFailure((PUBLICKEY,), partial_success=False).encode())

    def _publickey_untrusted(
        self, request: messages.UserauthRequest, session_id: bytes, host_key_blob: bytes
    ) -> bool:
        offer = _parse_offer_untrusted(request)
        key = offer.key
        if key is None or offer.algorithm not in key.signature_algorithms:
            self._refuse(request, f"a key of a kind we do not know: {offer.algorithm}")
        elif offer.host_key_blob not in (None, host_key_blob):
            self._refuse(request, "the request is meant for a server with another host key")
        elif key.fingerprint in self._signed:
            self._refuse(request, f"the key {key.fingerprint} has signed already", key=key)
        elif not (needed := self._authorize(request.user_name, key)):
            self._refuse(request, f"the key {key.fingerprint} is not authorized", key=key)
        elif offer.signature is None:
            if self._requests >= MAXIMUM_REQUESTS:
                self._refuse(request, "too many queries")
            self._send(messages.UserauthPkOk(offer.algorithm, offer.blob).encode())
        else:
            return self._check_signature(request, offer, key, session_id) and self._signed_by(
                request, key, needed
            )
        return False

    def _check_signature(
        self,
        request: messages.UserauthRequest,
        offer: _KeyOffer,
        key: PublicKey,
        session_id: bytes,
    ) -> bool:
        data = signed_data(
            session_id,
            request.user_name,
            request.service_name,
            offer.algorithm,
            offer.blob,
            offer.host_key_blob,
        )
        try:
            key.verify(offer.signature or b"", data, offer.algorithm)
        except RemoteProtocolError:
            self._refuse(request, f"the signature by {key.fingerprint} is wrong", key=key)
            return False
        return True

    def _signed_by(self, request: messages.UserauthRequest, key: PublicKey, needed: int) -> bool:
        """Note a key that has signed; say whether the login is done, with ``needed`` keys."""
        before, self._signed = tuple(self._signed), [*self._signed, key.fingerprint]
        if len(self._signed) < needed:
            self._emit(events.PartiallyAuthenticated(PUBLICKEY, (PUBLICKEY,), key.fingerprint))
            self._send(messages.UserauthFailure((PUBLICKEY,), partial_success=True).encode())
            return False
        self._send(messages.UserauthSuccess().encode())
        self._emit(events.Authenticated(request.user_name, PUBLICKEY, key.fingerprint, before))
        return True


def _parse_offer_untrusted(request: messages.UserauthRequest) -> _KeyOffer:
    """Parse the fields of "publickey"; a bad key fails the attempt, not the link."""
    fields = request.method_specific
    is_signed = wire.Reader(fields).boolean()
    parsed: (
        messages.PublickeyQuery
        | messages.PublickeyRequest
        | messages.HostboundQuery
        | messages.HostboundRequest
    )
    host_key_blob = signature = None
    if request.method_name == PUBLICKEY:
        form = messages.PublickeyRequest if is_signed else messages.PublickeyQuery
        parsed = form.decode_untrusted(fields)
    else:
        bound = messages.HostboundRequest if is_signed else messages.HostboundQuery
        parsed = bound.decode_untrusted(fields)
        host_key_blob = parsed.server_host_key
    if isinstance(parsed, messages.PublickeyRequest | messages.HostboundRequest):
        signature = parsed.signature
    blob = parsed.public_key_blob
    try:
        key = parse_key_or_certificate_untrusted(blob)
    except RemoteProtocolError:
        key = None
    return _KeyOffer(parsed.public_key_algorithm_name, key, blob, host_key_blob, signature)
