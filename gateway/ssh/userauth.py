"""User authentication (RFC 4252), "keyboard-interactive" too (RFC 4256): the client.

The server is in `gateway.ssh.serverauth`.

After SERVICE_ACCEPT it asks with "none" what the server takes. From then on
``_next_attempt`` takes the first of the preferred methods that the server still takes and that has
something left to try, and whatever the server answers leads back there. Keys are offered *without*
a signature; when the server says PK_OK the core emits `SignatureWanted` and waits for its owner,
who fetches the key from a file with a passphrase or from an agent. So nobody is asked for a
passphrase of a key that the server would refuse. A password and the answers to the server's
questions are wanted in the same way. After a partial success keys are tried again from the first,
but for those that have done their part.

Messages 60 and 61 belong to the method that is being tried: ``_LEGAL`` says which message answers
what, and all that is not in it ends the link.

To add a method for the client: an entry in ``_begin``, its states in ``_LEGAL``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from gateway import events
from gateway.errors import LocalProtocolError, RemoteProtocolError
from gateway.ssh import messages, wire
from gateway.ssh.numbers import Msg

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gateway.ssh.keys import PublicKey

SERVICE_USERAUTH: Final = "ssh-userauth"
SERVICE_CONNECTION: Final = "ssh-connection"
PUBLICKEY: Final = "publickey"
HOSTBOUND: Final = "publickey-hostbound-v00@openssh.com"  # OpenSSH PROTOCOL §3.1
HOSTBOUND_EXTENSION: Final = "publickey-hostbound@openssh.com"
CERTIFICATE: Final = "-cert-v01@openssh.com"  # behind an algorithm's name
INTERACTIVE: Final = "keyboard-interactive"
PASSWORD: Final = "password"  # noqa: S105 - the method's name

MAXIMUM_FAILURES: Final = 6  # as OpenSSH, MaxAuthTries
MAXIMUM_REQUESTS: Final = 32  # queries and refusals together; as a fixed cap on one connection
MAXIMUM_BANNERS: Final = 8
MAXIMUM_QUESTIONS: Final = 32  # INFO_REQUESTs in one login; people need one or two
MAXIMUM_PARTIAL_SUCCESSES: Final = 16
PASSWORD_PROMPTS: Final = 3  # as ssh(1), NumberOfPasswordPrompts


@dataclass(frozen=True, slots=True)
class LoginPreferences:
    """How a client wants to log in: its methods in order, and how often it asks for a password.

    ``signature_algorithms`` are the only ones to sign with, None for all that a key knows;
    ``names_host``: whether signatures name the server's key, where it understands that.
    """

    methods: tuple[str, ...] = (PUBLICKEY,)
    password_prompts: int = PASSWORD_PROMPTS
    signature_algorithms: tuple[str, ...] | None = None
    names_host: bool = True


def signed_data(
    session_id: bytes,
    user_name: str,
    service_name: str,
    algorithm: str,
    blob: bytes,
    host_key_blob: bytes | None = None,
) -> bytes:
    """Return what a publickey signature covers (RFC 4252 §7); with a host key, the bound form."""
    if host_key_blob is None:
        method, fields = PUBLICKEY, messages.PublickeyQuery(True, algorithm, blob).encode()
    else:
        method = HOSTBOUND
        fields = messages.HostboundQuery(True, algorithm, blob, host_key_blob).encode()
    request = messages.UserauthRequest(user_name, service_name, method, fields)
    return wire.string(session_id) + request.encode()


class ClientAuthState(Enum):
    """Where the client's dialogue stands."""

    NOT_STARTED = "not started"
    SERVICE_REQUESTED = "service requested"
    NONE_SENT = "none sent"
    KEY_OFFERED = "key offered"
    SIGNATURE_WANTED = "signature wanted"
    SIGNATURE_SENT = "signature sent"
    PASSWORD_WANTED = "password wanted"  # noqa: S105
    PASSWORD_SENT = "password sent"  # noqa: S105
    INTERACTIVE_SENT = "keyboard-interactive sent"
    ANSWERS_WANTED = "answers wanted"
    ANSWERS_SENT = "answers sent"
    DONE = "done"
    EXHAUSTED = "exhausted"


_ENDS: Final = frozenset((Msg.USERAUTH_FAILURE, Msg.USERAUTH_SUCCESS))
_LEGAL: Final[Mapping[ClientAuthState, frozenset[Msg]]] = {
    ClientAuthState.NONE_SENT: _ENDS,
    ClientAuthState.KEY_OFFERED: frozenset((Msg.USERAUTH_FAILURE, Msg.USERAUTH_PK_OK)),
    ClientAuthState.SIGNATURE_SENT: _ENDS,
    ClientAuthState.PASSWORD_SENT: _ENDS | {Msg.USERAUTH_PASSWD_CHANGEREQ},
    ClientAuthState.INTERACTIVE_SENT: _ENDS | {Msg.USERAUTH_INFO_REQUEST},
    ClientAuthState.ANSWERS_SENT: _ENDS | {Msg.USERAUTH_INFO_REQUEST},
}
"""What may answer us in a state; a banner may always come. In every other state nothing may."""

_METHOD_OF: Final[Mapping[ClientAuthState, str]] = {
    ClientAuthState.NONE_SENT: "none",
    ClientAuthState.KEY_OFFERED: PUBLICKEY,
    ClientAuthState.SIGNATURE_WANTED: PUBLICKEY,
    ClientAuthState.SIGNATURE_SENT: PUBLICKEY,
    ClientAuthState.PASSWORD_WANTED: PASSWORD,
    ClientAuthState.PASSWORD_SENT: PASSWORD,
    ClientAuthState.INTERACTIVE_SENT: INTERACTIVE,
    ClientAuthState.ANSWERS_WANTED: INTERACTIVE,
    ClientAuthState.ANSWERS_SENT: INTERACTIVE,
}

_PROVEN: Final = frozenset(
    (
        ClientAuthState.SIGNATURE_SENT,
        ClientAuthState.PASSWORD_SENT,
        ClientAuthState.INTERACTIVE_SENT,
        ClientAuthState.ANSWERS_SENT,
    )
)
"""Where partial success means something; elsewhere a server only forgot to clear the flag."""


class ClientAuth:
    """The client's side of the dialogue."""

    def __init__(
        self,
        user_name: str,
        identities: Sequence[PublicKey],
        preferences: LoginPreferences,
        *,
        extensions: Mapping[str, bytes],
        send: Callable[[bytes], None],
        emit: Callable[[events.Event], None],
    ) -> None:
        self.user_name = user_name
        self.state = ClientAuthState.NOT_STARTED
        self.methods_that_can_continue: tuple[str, ...] = ()
        self._identities = identities
        self._preferences = preferences
        self._extensions = extensions  # grows while EXT_INFO arrives
        self._session_id = b""
        self._host_key_blob = b""
        self._binding: bytes | None = None  # the host key, if signatures are to name it
        self._identity = -1  # the one that was offered last
        self._algorithm = ""  # … and with which signature algorithm
        self._accepted: set[int] = set()  # identities that were a partial success
        self._offered: set[int] = set()
        self._attempts = {PASSWORD: 0, INTERACTIVE: 0}
        self._partial_successes = 0
        self._questions = 0
        self._prompts = 0
        self._finished: set[str] = set()  # methods that have nothing left to try
        self._outcomes: dict[str, str] = {}
        self._banners = 0
        self._send = send
        self._emit = emit
        self._begin: Mapping[str, Callable[[], bool]] = {
            PUBLICKEY: self._offer_next_key,
            INTERACTIVE: self._begin_interactive,
            PASSWORD: self._want_password,
        }

    def __repr__(self) -> str:
        return f"<ClientAuth {self.user_name!r} {self.state.value}>"

    def start(
        self,
        session_id: bytes,
        host_key_blob: bytes,
        identities: Sequence[PublicKey] | None = None,
    ) -> None:
        """Ask for the service (RFC 4253 §10)."""
        self._session_id = session_id
        self._host_key_blob = host_key_blob
        if identities is not None:
            self._identities = identities
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
        if self._preferences.names_host and self._extensions.get(HOSTBOUND_EXTENSION) == b"0":
            self._binding = self._host_key_blob
        self.state = ClientAuthState.NONE_SENT
        self._request("none", b"")

    def receive(self, payload: bytes) -> bool:
        """Take one message of 51-60; return True when the login is done."""
        number = payload[0]
        if number == Msg.USERAUTH_BANNER:
            self._receive_banner_untrusted(payload)
            return False
        if number not in _LEGAL.get(self.state, ()):
            raise RemoteProtocolError(f"message {number} answers nothing: {self!r}")
        if number == Msg.USERAUTH_SUCCESS:
            self._receive_success_untrusted(payload)
            return True
        if number == Msg.USERAUTH_FAILURE:
            self._receive_failure_untrusted(payload)
        elif self.state is ClientAuthState.KEY_OFFERED:
            self._receive_pk_ok_untrusted(payload)
        elif self.state is ClientAuthState.PASSWORD_SENT:
            self._receive_passwd_changereq_untrusted(payload)
        else:
            self._receive_info_request_untrusted(payload)
        return False

    # -- the owner's answers -----------------------------------------------------------------------

    def provide_signature(self, signature: bytes) -> None:
        """Answer `SignatureWanted`."""
        self._expect(ClientAuthState.SIGNATURE_WANTED)
        blob = self._identities[self._identity].blob
        self.state = ClientAuthState.SIGNATURE_SENT
        if self._binding is None:
            fields = messages.PublickeyRequest(True, self._algorithm, blob, signature).encode()
            self._request(PUBLICKEY, fields)
        else:
            self._request(
                HOSTBOUND,
                messages.HostboundRequest(
                    True, self._algorithm, blob, self._binding, signature
                ).encode(),
            )

    def skip_identity(self) -> None:
        """Answer `SignatureWanted` with: not this key after all."""
        self._expect(ClientAuthState.SIGNATURE_WANTED)
        self._next_attempt()

    def provide_password(self, password: str) -> None:
        """Answer `PasswordWanted`."""
        self._expect(ClientAuthState.PASSWORD_WANTED)
        self.state = ClientAuthState.PASSWORD_SENT
        self._request(PASSWORD, messages.PasswordRequest(False, password).encode())

    def provide_answers(self, answers: Sequence[str]) -> None:
        """Answer `AnswersWanted`, each prompt in its turn."""
        self._expect(ClientAuthState.ANSWERS_WANTED)
        if len(answers) != self._prompts:
            raise LocalProtocolError(f"{len(answers)} answers to {self._prompts} prompts")
        self.state = ClientAuthState.ANSWERS_SENT
        self._send(messages.info_response(answers).encode())

    def skip_method(self) -> None:
        """Answer `PasswordWanted` or `AnswersWanted` with: nobody answers that."""
        self._expect(ClientAuthState.PASSWORD_WANTED, ClientAuthState.ANSWERS_WANTED)
        method = _METHOD_OF[self.state]
        self._finished.add(method)
        self._attempts[method] -= 1
        if not self._attempts[method]:
            self._outcomes[method] = "nothing was answered"
        self._next_attempt()

    def _expect(self, *states: ClientAuthState) -> None:
        if self.state not in states:
            raise LocalProtocolError(f"nobody asked for that: {self!r}")

    # -- what the server says ----------------------------------------------------------------------

    def _receive_banner_untrusted(self, payload: bytes) -> None:
        banner = messages.UserauthBanner.decode_untrusted(payload)
        self._banners += 1
        if self._banners > MAXIMUM_BANNERS:
            raise RemoteProtocolError("the server sends one banner after the other")
        self._emit(events.BannerReceived(banner.message))

    def _receive_failure_untrusted(self, payload: bytes) -> None:
        failure = messages.UserauthFailure.decode_untrusted(payload)
        self.methods_that_can_continue = failure.authentications_that_can_continue
        method = _METHOD_OF[self.state]
        if failure.partial_success and self.state in _PROVEN:
            self._note_partial_success(method)
        elif method in self._attempts:
            refused = self._attempts[method]
            self._outcomes[method] = f"refused {refused} times" if refused > 1 else "refused"
            if self.state is ClientAuthState.INTERACTIVE_SENT:
                self._finished.add(method)  # no question was asked: more of the same is no use
        self._next_attempt()

    def _note_partial_success(self, method: str) -> None:
        self._partial_successes += 1
        if self._partial_successes > MAXIMUM_PARTIAL_SUCCESSES:
            raise RemoteProtocolError("the server asks for one proof after the other")
        if method == PUBLICKEY:
            self._accepted.add(self._identity)
        self._outcomes[method] = "accepted, but more is asked for"
        self._identity = -1
        self._finished.discard(PUBLICKEY)
        self._emit(events.PartiallyAuthenticated(method, self.methods_that_can_continue))

    def _receive_pk_ok_untrusted(self, payload: bytes) -> None:
        ok = messages.UserauthPkOk.decode_untrusted(payload)
        key = self._identities[self._identity]
        names = (self._algorithm, key.algorithm)  # some servers name the key, not the signature
        if ok.public_key_algorithm_name not in names or ok.public_key_blob != key.blob:
            raise RemoteProtocolError("USERAUTH_PK_OK for a key that was not offered")
        self.state = ClientAuthState.SIGNATURE_WANTED
        data = signed_data(
            self._session_id,
            self.user_name,
            SERVICE_CONNECTION,
            self._algorithm,
            key.blob,
            self._binding,
        )
        self._emit(events.SignatureWanted(self._identity, data, self._algorithm))

    def _receive_passwd_changereq_untrusted(self, payload: bytes) -> None:
        """RFC 4252 §8: the password was right but has expired; choosing one is not for a tunnel."""
        messages.UserauthPasswdChangereq.decode_untrusted(payload)
        self._finished.add(PASSWORD)
        self._outcomes[PASSWORD] = "it has expired: log in with ssh once and choose a new one"
        self._next_attempt()

    def _receive_info_request_untrusted(self, payload: bytes) -> None:
        request = messages.UserauthInfoRequest.decode_untrusted(payload)
        prompts = messages.prompts_untrusted(request)
        self._questions += 1
        if self._questions > MAXIMUM_QUESTIONS:
            raise RemoteProtocolError("the server asks one question after the other")
        self._prompts = len(prompts)
        self.state = ClientAuthState.ANSWERS_WANTED
        self._emit(
            events.AnswersWanted(
                request.name,
                request.instruction,
                tuple(events.Prompt(text, echo) for text, echo in prompts),
            )
        )

    def _receive_success_untrusted(self, payload: bytes) -> None:
        messages.UserauthSuccess.decode_untrusted(payload)
        method = _METHOD_OF[self.state]
        fingerprint = self._identities[self._identity].fingerprint if method == PUBLICKEY else ""
        self.state = ClientAuthState.DONE
        self._emit(events.Authenticated(self.user_name, method, fingerprint))

    # -- what is tried next ------------------------------------------------------------------------

    def _next_attempt(self) -> None:
        """Begin with the first method that has something left, or say that there is none."""
        for method in self._preferences.methods:
            if method in self.methods_that_can_continue and method not in self._finished:
                begin = self._begin.get(method)
                if begin is not None and begin():
                    return
                self._finished.add(method)
        self.state = ClientAuthState.EXHAUSTED
        self._emit(
            events.AuthenticationRefused(
                self.user_name,
                ", ".join(self._outcomes) or "none",
                "; ".join(f"{method}: {how}" for method, how in self._outcomes.items())
                or "the server takes no method that may be used",
                self.methods_that_can_continue,
            )
        )

    def _offer_next_key(self) -> bool:
        for index in range(self._identity + 1, len(self._identities)):
            key, self._identity = self._identities[index], index
            algorithm = self._signature_algorithm(key)
            if index in self._accepted or algorithm is None:
                continue
            self._algorithm = algorithm
            self._offered.add(index)
            self._note_offers()
            self.state = ClientAuthState.KEY_OFFERED
            fields = messages.PublickeyQuery(False, algorithm, key.blob)
            self._request(PUBLICKEY, fields.encode())
            return True
        self._note_offers()
        return False

    def _note_offers(self) -> None:
        if not self._accepted:
            count = len(self._offered)
            self._outcomes[PUBLICKEY] = f"{count or 'no'} key{'s' if count != 1 else ''} offered"

    def _signature_algorithm(self, key: PublicKey) -> str | None:
        """Choose as RFC 8308 §3.1 says; a key that knows one algorithm only is always tried."""
        allowed = self._preferences.signature_algorithms
        ours = [name for name in key.signature_algorithms if allowed is None or name in allowed]
        theirs = self._extensions.get("server-sig-algs")
        if theirs is not None and len(key.signature_algorithms) > 1:
            taken = theirs.split(b",")  # of signatures: no server lists a certificate's names
            ours = [name for name in ours if name.removesuffix(CERTIFICATE).encode() in taken]
        return ours[0] if ours else None

    def _begin_interactive(self) -> bool:
        if self._attempts[INTERACTIVE] >= self._preferences.password_prompts:
            return False
        self._attempts[INTERACTIVE] += 1
        self.state = ClientAuthState.INTERACTIVE_SENT
        self._request(INTERACTIVE, messages.InteractiveRequest().encode())
        return True

    def _want_password(self) -> bool:
        if self._attempts[PASSWORD] >= self._preferences.password_prompts:
            return False
        self._attempts[PASSWORD] += 1
        self.state = ClientAuthState.PASSWORD_WANTED
        self._emit(events.PasswordWanted(self._attempts[PASSWORD]))
        return True

    def _request(self, method_name: str, method_specific: bytes) -> None:
        self._send(
            messages.UserauthRequest(
                self.user_name, SERVICE_CONNECTION, method_name, method_specific
            ).encode()
        )
