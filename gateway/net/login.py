"""A client's login over a link: versions, host key, keys, authentication, each with a deadline."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Final, Protocol

import trio

from gateway import events
from gateway.errors import AuthenticationError, ConnectionLost, RemoteProtocolError, printable
from gateway.net.link import Link
from gateway.ssh import hostkeys
from gateway.ssh.agent import SessionBinding
from gateway.ssh.algorithms import POST_QUANTUM_KEX
from gateway.ssh.certificates import parse_key_or_certificate_untrusted
from gateway.ssh.numbers import OpenFailure
from gateway.ssh.protocol import Protocol as SSHProtocol
from gateway.ssh.transport import Phase
from gateway.ssh.userauth import ClientAuth

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.net.carrier import Carrier
    from gateway.ssh.keys import PublicKey
    from gateway.ssh.protocol import ClientSetup

log = logging.getLogger(__name__)

MINIMUM_TIMEOUT_S: Final = 1.0
MAXIMUM_EVENTS: Final = 64  # that may wait during the login; a server sends a handful

_WAITING_FOR: Final = {
    Phase.VERSION: "it accepts connections but does not speak SSH",
    Phase.KEXINIT: "it does not begin the key exchange",
    Phase.KEX: "it does not finish the key exchange",
    Phase.KEX_STRICT: "it does not finish the key exchange",
    Phase.NEWKEYS: "it does not finish the key exchange",
    Phase.NEWKEYS_STRICT: "it does not finish the key exchange",
    Phase.SERVICE: "it does not answer the request to log in",
    Phase.AUTH: "it does not answer the login",
}


class Dialogue(Protocol):
    """What the login asks of the user, of files, or of an agent. Its time is not the server's."""

    async def trust(self, key: PublicKey) -> None:
        """Return if the server's key is trusted; raise `HostKeyError` otherwise."""

    async def identities(self, binding: SessionBinding) -> Sequence[PublicKey]:
        """Return the keys to offer to the server whose key was trusted."""

    async def sign(self, identity: int, data: bytes, algorithm: str) -> bytes | None:
        """Sign with one of the identities, or say None to go on with the next one."""

    async def password(self, attempt: int) -> str | None:
        """Return the password, or None to give up this method."""

    async def answers(self, wanted: events.AnswersWanted) -> Sequence[str] | None:
        """Return an answer for each prompt, or None to give up this method."""

    def banner(self, text: str) -> None:
        """Show the server's banner, whose text is the peer's."""


class ClientLink:
    """A link from a client: run it in a nursery, log in, then ask ``link`` for channels."""

    def __init__(
        self,
        setup: ClientSetup,
        carrier: Carrier,
        *,
        alive_interval_s: float,
        alive_count_max: int,
        warns_of_weak_crypto: bool = True,
    ) -> None:
        self._warns_of_weak_crypto = warns_of_weak_crypto
        self.link = Link(
            SSHProtocol(setup, trio.current_time()),
            carrier,
            handler=self._handle,
            alive_interval_s=alive_interval_s,
            alive_count_max=alive_count_max,
        )
        self.offered_host_keys = b""
        self.last_words = ""
        """What the server said last, with which it explains a refusal that follows."""
        self.host_keys_offered = trio.Event()
        self.on_channel_open: Callable[[events.ChannelOpenRequested], None] = self.refuse_channel
        self._to_login, self._from_link = trio.open_memory_channel[events.Event](MAXIMUM_EVENTS)

    async def run(self) -> None:
        """Carry bytes until the link ends."""
        try:
            await self.link.run()
        finally:
            self._to_login.close()

    def _handle(self, event: events.Event) -> None:
        match event:
            case events.GlobalRequested(hostkeys.OFFER, _, offer):
                self.offered_host_keys = offer
                self.host_keys_offered.set()
            case events.ChannelOpenRequested():
                self.on_channel_open(event)
            case events.GlobalRequested(_, want_reply):
                if want_reply:
                    self.link.protocol.connection.reply_global(success=False)
            case events.DebugReceived(message):
                self.last_words = printable(message)
                log.debug("%s says: %s", self.link.carrier.name, self.last_words)
            case events.PongReceived():
                pass
            case events.VersionReceived(version):
                log.info("%s is %s", self.link.carrier.name, version)
            case events.KeysExchanged():
                self._log_keys(event)
            case _:
                self._tell_login(event)

    def _tell_login(self, event: events.Event) -> None:
        try:
            self._to_login.send_nowait(event)
        except trio.WouldBlock:
            self.link.close("the server says too much during the login")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    def refuse_channel(self, event: events.ChannelOpenRequested) -> None:
        """Refuse what the server opens, as ``on_channel_open`` does where nothing else is set."""
        self.link.refuse_channel(
            event.channel_id,
            OpenFailure.ADMINISTRATIVELY_PROHIBITED,
            "this side opens channels only itself",
        )

    def _log_keys(self, event: events.KeysExchanged) -> None:
        level = logging.INFO if event.count == 1 else logging.DEBUG
        log.log(level, "keys %d: %s", event.count, event.algorithms)
        weak = event.kex not in POST_QUANTUM_KEX
        if weak and event.count == 1 and self._warns_of_weak_crypto:
            log.warning(
                "%s has no post-quantum key exchange: what is recorded today may be read one day",
                self.link.carrier.name,
            )

    async def log_in(self, dialogue: Dialogue, timeout_s: float) -> events.Authenticated:
        """Drive the login to its end; ``timeout_s`` counts while we wait for the server only.

        Raises `ConnectionLost`, `HostKeyError`, `AuthenticationError` or `RemoteProtocolError`.
        """
        remaining_s = timeout_s = max(timeout_s, MINIMUM_TIMEOUT_S)
        while True:
            asked_s = trio.current_time()
            event = await self._next_event(remaining_s, timeout_s)
            remaining_s -= trio.current_time() - asked_s
            match event:
                case events.HostKeyReceived():
                    await self._trust(event, dialogue)
                case events.BannerReceived(message):
                    dialogue.banner(message)
                case events.PartiallyAuthenticated(method, methods):
                    log.info("%s accepted; the server asks for more: %s", method, _names(methods))
                case events.AuthenticationRefused(_, _, reason, methods):
                    raise AuthenticationError(reason, methods)
                case events.Authenticated():
                    self._from_link.close()
                    self.link.start_keepalive()
                    return event
                case _:
                    await self._answer(event, dialogue)
            self.link.dispatch()  # to skip the last identity ends the login here
            self.link.flush()

    async def _trust(self, event: events.HostKeyReceived, dialogue: Dialogue) -> None:
        """Look at the host key first: before that nothing is asked or told that concerns a user."""
        await dialogue.trust(parse_key_or_certificate_untrusted(event.blob))
        session_id = self.link.protocol.transport.session_id
        binding = SessionBinding(event.blob, session_id, event.signature)
        identities = await dialogue.identities(binding)
        self._check_alive()
        self.link.protocol.accept_host_key(identities)

    async def _answer(self, event: events.Event, dialogue: Dialogue) -> None:
        """Pass on what the server wants to know. The link may end while we wait for a person."""
        auth = self.link.protocol.auth
        if not isinstance(auth, ClientAuth):
            raise TypeError("a client's link with a server's login")
        match event:
            case events.SignatureWanted(identity, data, algorithm):
                signature = await dialogue.sign(identity, data, algorithm)
                self._check_alive()
                if signature is None:
                    auth.skip_identity()
                else:
                    auth.provide_signature(signature)
            case events.PasswordWanted(attempt):
                password = await dialogue.password(attempt)
                self._check_alive()
                if password is None:
                    auth.skip_method()
                else:
                    auth.provide_password(password)
            case events.AnswersWanted():
                answers = await dialogue.answers(event)
                self._check_alive()
                if answers is None:
                    auth.skip_method()
                else:
                    auth.provide_answers(answers)

    def _check_alive(self) -> None:
        if self.link.failure is not None:
            raise self.link.failure

    async def _next_event(self, remaining_s: float, timeout_s: float) -> events.Event:
        with trio.move_on_after(max(remaining_s, 0) if math.isfinite(remaining_s) else math.inf):
            try:
                return await self._from_link.receive()
            except trio.EndOfChannel:
                failure = self.link.failure or ConnectionLost("the link was closed")
                if isinstance(failure, RemoteProtocolError):
                    raise RemoteProtocolError(
                        f"{self.link.carrier.name} breaks the SSH protocol: {failure}"
                    ) from failure
                raise failure from None
        phase = self.link.protocol.transport.phase
        raise ConnectionLost(
            f"{self.link.carrier.name} did not answer within {timeout_s:.0f} s: "
            f"{_WAITING_FOR.get(phase, 'it hangs')}"
        )


def _names(methods: tuple[str, ...]) -> str:
    return ", ".join(printable(name, 64) for name in methods) or "nothing"
