"""A connection to the user's ssh-agent: a unix socket, with a deadline for every answer.

Whatever goes wrong becomes `AgentError`, one sentence, and ends the connection; a login goes on
without the agent. Listing keys takes an agent no time, so one that hangs costs seconds; a
signature may wait for a person who is asked for permission, or for a touch.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Self

import trio

from gateway.errors import GatewayError, RemoteProtocolError, printable
from gateway.ssh import agent as protocol

if TYPE_CHECKING:
    from gateway.ssh.agent import AgentIdentity, SessionBinding
    from gateway.ssh.keys import PublicKey

log = logging.getLogger(__name__)

ANSWER_TIMEOUT_S: Final = 4.0
SIGN_TIMEOUT_S: Final = 60.0  # somebody may have to confirm it
CHUNK_SIZE: Final = 64 * 1024


class AgentError(GatewayError):
    """The agent cannot be used, or would not do this."""


class Agent:
    """An open connection. One request at a time."""

    def __init__(self, stream: trio.abc.Stream, name: str) -> None:
        self.name = name
        self._stream = stream
        self._reader = protocol.ReplyReader()
        self._is_broken = False

    def __repr__(self) -> str:
        return f"<Agent {self.name}>"

    @classmethod
    async def connect(cls, path: str) -> Self:
        """Connect to the agent's socket. Raises `AgentError`."""
        name = f"the ssh-agent at {printable(path)}"
        try:
            with trio.fail_after(ANSWER_TIMEOUT_S):
                return cls(await trio.open_unix_socket(path), name)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise AgentError(f"{name} cannot be reached: {reason}") from error
        except trio.TooSlowError as error:
            raise AgentError(f"{name} does not answer: going on without it") from error

    async def bind_session(self, binding: SessionBinding) -> bool:
        """Tell the agent which host this login is for; False if it does not know how to use it."""
        reply = await self._ask(protocol.session_bind_request(binding), ANSWER_TIMEOUT_S)
        try:
            protocol.success_untrusted(reply)
        except RemoteProtocolError as error:
            log.debug("%s takes no session binding: %s", self.name, error)
            return False
        return True

    async def identities(self) -> tuple[AgentIdentity, ...]:
        """Return the keys that can be used; a locked agent has none. Raises `AgentError`."""
        reply = await self._ask(protocol.identities_request(), ANSWER_TIMEOUT_S)
        try:
            return protocol.identities_untrusted(reply)
        except protocol.AgentRefused as error:
            raise AgentError(f"{self.name} does not tell its keys") from error
        except RemoteProtocolError as error:
            raise self._broken(error) from error

    async def sign(self, key: PublicKey, data: bytes, algorithm: str) -> bytes:
        """Return a signature that was verified. Raises `AgentError`."""
        request = protocol.sign_request(key, data, algorithm)
        reply = await self._ask(request, SIGN_TIMEOUT_S)
        try:
            return protocol.signature_untrusted(reply, key, data, algorithm)
        except protocol.AgentRefused as error:
            raise AgentError(f"{self.name} refused to sign with {key.fingerprint}") from error
        except RemoteProtocolError as error:
            raise AgentError(f"{self.name} signed wrongly: {error}") from error

    async def aclose(self) -> None:
        """Close the connection."""
        self._is_broken = True
        await trio.aclose_forcefully(self._stream)

    def _broken(self, error: Exception) -> AgentError:
        self._is_broken = True
        return AgentError(f"{self.name} does not speak the agent protocol: {error}")

    async def _ask(self, request: bytes, timeout_s: float) -> bytes:
        """Return the reply to a request. After an error nothing more is asked."""
        if self._is_broken:
            raise AgentError(f"{self.name} is not used any more")
        self._is_broken = True  # unless a whole reply comes
        try:
            with trio.fail_after(timeout_s):
                await self._stream.send_all(request)
                while (reply := self._reader.next_reply_untrusted()) is None:
                    data = await self._stream.receive_some(CHUNK_SIZE)
                    if not data:
                        raise AgentError(f"{self.name} closed the connection")
                    self._reader.feed(bytes(data))
        except trio.TooSlowError as error:
            raise AgentError(
                f"{self.name} did not answer within {timeout_s:.0f} s: going on without it"
            ) from error
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise AgentError(f"{self.name} closed the connection") from error
        except RemoteProtocolError as error:
            raise self._broken(error) from error
        if self._reader.has_more:
            raise self._broken(RemoteProtocolError("it says more than it was asked"))
        self._is_broken = False
        return reply
