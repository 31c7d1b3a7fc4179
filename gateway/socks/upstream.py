"""A proxy in front of us, and what is common to the ways of asking one for a connection.

A `Handshake` has no I/O: it says what to send, and takes of what was received only what belongs to
it, for the next byte is the far end's. A proxy is as untrusted as any other peer: its replies are
bounded, and whatever it says ends in success, `ProxyRefused` or `RemoteProtocolError`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final, Protocol

from gateway.errors import ConfigError, GatewayError, printable

NAME_LIMIT: Final = 255  # RFC 1928 §5: the length is one byte; for the others our own choice
CREDENTIAL_LIMIT: Final = 255  # RFC 1929 §2


class Scheme(enum.Enum):
    """What a proxy speaks, and who looks names up: with SOCKS5 this machine, else the proxy."""

    SOCKS5H = "socks5h"
    SOCKS5 = "socks5"
    SOCKS4A = "socks4a"
    HTTP = "http"


@dataclass(frozen=True, slots=True)
class UpstreamProxy:
    """Where it is and who we are there; without ``user`` nobody in particular."""

    scheme: Scheme
    host: str
    port: int
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """Name it for a message, which has no user and no password."""
        return f"{self.scheme.value} proxy {self.host} port {self.port}"


class ProxyRefused(GatewayError):
    """The proxy says no: its reason and, after a colon, what to do about it."""


class Handshake(Protocol):
    """A request for one connection, from our first byte to the proxy's last."""

    @property
    def is_done(self) -> bool:
        """Whether the connection is there: all that follows is the far end's."""

    def data_to_send(self) -> bytes:
        """Take what must be written to the proxy now."""

    def receive(self, data: bytes) -> int:
        """Take bytes from the proxy; return how many of them belong to the handshake.

        Raises `ProxyRefused` and `RemoteProtocolError`.
        """


def checked_field(what: str, text: str, limit: int) -> bytes:
    """Encode a name or a secret; too long or with a NUL, a proxy would read another one.

    Raises `ConfigError`, in which a password is not shown.
    """
    data = text.encode("utf-8", "surrogateescape")
    if len(data) <= limit and b"\0" not in data:
        return data
    shown = "" if what == "password" else f" {printable(text, 40)}"
    raise ConfigError(
        f"the {what}{shown} has {len(data)} bytes or a NUL character, and a proxy takes {limit}",
        where="--via",
        remedy="write a shorter one",
    )


def checked_host(host: str) -> bytes:
    """Encode the name of a host, other alphabets as in the DNS (RFC 3490). Raises `ConfigError`."""
    name = host
    if not host.isascii():
        try:
            name = host.encode("idna").decode()
        except UnicodeError as error:
            raise ConfigError(
                f"the host name {printable(host, 40)} is none of the DNS ({error})",
                where="--via",
                remedy="check it",
            ) from error
    return checked_field("host name", name, NAME_LIMIT)
