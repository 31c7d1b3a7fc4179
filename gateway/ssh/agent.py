"""The ssh-agent protocol (RFC 9987, OpenSSH's PROTOCOL.agent), the client's side, without I/O.

One request, one reply, each behind its length as uint32. `ReplyReader` cuts replies out of what
arrives; a function of each pair below makes a request and the other one reads the reply to it.

An agent is a program of the user, but what it sends is parsed as if it were not: lengths and
counts are checked against what is there, and a signature is verified before anybody sees it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from gateway.errors import RemoteProtocolError, printable
from gateway.ssh import wire
from gateway.ssh.certificates import parse_key_or_certificate_untrusted
from gateway.ssh.keys import PublicKeyError

if TYPE_CHECKING:
    from gateway.ssh.keys import PublicKey


class AgentMsg(IntEnum):
    """Message numbers (RFC 9987 §6.1), without the SSH_AGENT prefixes."""

    FAILURE = 5
    SUCCESS = 6
    REQUEST_IDENTITIES = 11
    IDENTITIES_ANSWER = 12
    SIGN_REQUEST = 13
    SIGN_RESPONSE = 14
    EXTENSION = 27
    EXTENSION_FAILURE = 28
    SSH2_FAILURE = 30  # of old agents, as OpenSSH's authfd.c
    SSH_COM_FAILURE = 102


_REFUSALS: Final = frozenset(
    (
        AgentMsg.FAILURE,
        AgentMsg.EXTENSION_FAILURE,
        AgentMsg.SSH2_FAILURE,
        AgentMsg.SSH_COM_FAILURE,
    )
)
SIGN_FLAGS: Final = {"rsa-sha2-256": 2, "rsa-sha2-512": 4}  # RFC 9987 §3.6.1
SESSION_BIND: Final = "session-bind@openssh.com"
CERTIFICATE_SUFFIX: Final = "-cert-v01@openssh.com"

MAXIMUM_REPLY_LENGTH: Final = 256 * 1024  # as OpenSSH, AGENT_MAX_LEN
MAXIMUM_IDENTITIES: Final = 2048  # as OpenSSH, MAX_AGENT_IDENTITIES
MAXIMUM_COMMENT_LENGTH: Final = 128  # of what is shown


class AgentRefused(RemoteProtocolError):
    """The agent understood and said no."""


@dataclass(frozen=True, slots=True)
class AgentIdentity:
    """A key that an agent holds; the comment can be shown."""

    key: PublicKey
    comment: str


@dataclass(frozen=True, slots=True)
class SessionBinding:
    """What tells an agent which host a login is for: the host key, and its signature over the
    first exchange hash, which is the session id."""

    host_key_blob: bytes
    session_id: bytes
    signature: bytes


class ReplyReader:
    """Cuts replies out of what an agent sent."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        """Take what has arrived."""
        self._data += data

    @property
    def has_more(self) -> bool:
        """Whether anything is left behind the last reply; nothing should be."""
        return bool(self._data)

    def next_reply_untrusted(self) -> bytes | None:
        """Return the next whole reply without its length; None if it is not there yet."""
        if len(self._data) < 4:
            return None
        length = int.from_bytes(self._data[:4], "big")
        if not 0 < length <= MAXIMUM_REPLY_LENGTH:
            raise RemoteProtocolError(f"a reply of {length} bytes")
        if len(self._data) < 4 + length:
            return None
        reply = bytes(self._data[4 : 4 + length])
        del self._data[: 4 + length]
        return reply


def _request(number: AgentMsg, fields: bytes = b"") -> bytes:
    return wire.string(bytes((number,)) + fields)


def _open_untrusted(reply: bytes, expected: AgentMsg) -> wire.Reader:
    """Return a reader behind the message number, which must be the expected one."""
    reader = wire.Reader(reply)
    number = reader.byte()
    if number in _REFUSALS:
        raise AgentRefused("it refused")
    if number != expected:
        raise RemoteProtocolError(f"message {number} where {expected.value} was due")
    return reader


# ---- which keys are there ------------------------------------------------------------------------


def identities_request() -> bytes:
    """Ask for the list of keys."""
    return _request(AgentMsg.REQUEST_IDENTITIES)


def identities_untrusted(reply: bytes) -> tuple[AgentIdentity, ...]:
    """Return the keys in the agent's order, without those of types that we cannot use."""
    reader = _open_untrusted(reply, AgentMsg.IDENTITIES_ANSWER)
    count = reader.uint32()
    if count > min(reader.remaining // 8, MAXIMUM_IDENTITIES):
        raise RemoteProtocolError(f"{count} keys in {reader.remaining} bytes")
    found: dict[bytes, AgentIdentity] = {}
    for _ in range(count):
        blob, comment = reader.string(), reader.string()
        try:
            key = parse_key_or_certificate_untrusted(blob)
        except PublicKeyError:
            continue
        found.setdefault(blob, AgentIdentity(key, printable(comment, MAXIMUM_COMMENT_LENGTH)))
    reader.end()
    return tuple(found.values())


# ---- a signature ---------------------------------------------------------------------------------


def sign_request(key: PublicKey, data: bytes, algorithm: str) -> bytes:
    """Ask for a signature over ``data`` with this algorithm."""
    flags = SIGN_FLAGS.get(algorithm.removesuffix(CERTIFICATE_SUFFIX), 0)
    return _request(
        AgentMsg.SIGN_REQUEST, wire.string(key.blob) + wire.string(data) + wire.uint32(flags)
    )


def signature_untrusted(reply: bytes, key: PublicKey, data: bytes, algorithm: str) -> bytes:
    """Return the signature; some agents ignore the flags, so it is verified first."""
    reader = _open_untrusted(reply, AgentMsg.SIGN_RESPONSE)
    signature = reader.string()
    reader.end()
    key.verify(signature, data, algorithm)
    return signature


# ---- which host it is for ------------------------------------------------------------------------


def session_bind_request(binding: SessionBinding) -> bytes:
    """Tell the agent whose session it will sign for; never for forwarding."""
    return _request(
        AgentMsg.EXTENSION,
        wire.text(SESSION_BIND)
        + wire.string(binding.host_key_blob)
        + wire.string(binding.session_id)
        + wire.string(binding.signature)
        + wire.boolean(False),
    )


def success_untrusted(reply: bytes) -> None:
    """Return if the reply is a plain yes."""
    _open_untrusted(reply, AgentMsg.SUCCESS).end()
