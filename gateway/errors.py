"""Every exception that this package raises on purpose.

trio's and the operating system's own errors stop at ``gateway/net/``; above it only these are
seen. Messages are sentences that name the offending value; ``str(error)`` may be shown to a
person, so text that came from a peer has passed through `printable` first.
"""

from __future__ import annotations


class GatewayError(Exception):
    """Base of everything below."""


class ConfigError(GatewayError):
    """What the user wrote cannot be used: which file, which key, and what to write instead."""

    def __init__(self, problem: str, *, where: str = "", remedy: str = "") -> None:
        self.problem = problem
        self.where = where
        self.remedy = remedy
        text = f"{where}: {problem}" if where else problem
        super().__init__(f"{text}: {remedy}" if remedy else text)


class HostKeyError(GatewayError):
    """The server's host key is unknown and was not accepted, has changed, or is revoked."""


class AuthenticationError(GatewayError):
    """The server let none of our methods in.

    ``methods_that_can_continue`` is the server's last list (RFC 4252 §5.1).
    """

    def __init__(self, message: str, methods_that_can_continue: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.methods_that_can_continue = methods_that_can_continue


class ProtocolError(GatewayError):
    """Somebody broke SSH or SOCKS; the two subclasses say who."""


class LocalProtocolError(ProtocolError):
    """Our own code asked for something the protocol does not allow now: a bug here."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something illegal.

    ``reason_code`` is the SSH_MSG_DISCONNECT code to answer with (RFC 4253 §11.1).
    """

    def __init__(self, message: str, reason_code: int = 2) -> None:
        super().__init__(message)
        self.reason_code = reason_code


class ChannelOpenError(GatewayError):
    """The far end refused a channel: its reason code (RFC 4254 §5.1) and its own words."""

    def __init__(self, reason_code: int, description: str) -> None:
        super().__init__(description or f"channel open failed with reason code {reason_code}")
        self.reason_code = reason_code
        self.description = description


class ChannelClosed(GatewayError):
    """The channel was closed, by either end, before the operation was complete."""


class ConnectionLost(GatewayError):
    """The link is gone: closed, reset, silent for too long, or disconnected by the peer."""


class NetworkSetupError(GatewayError):
    """The kernel or the resolver refused: what was asked and what it said."""


def printable(text: str | bytes, limit: int = 300) -> str:
    """Make text from a peer safe for a terminal or a log: control characters escaped, length cut.

    ``limit`` counts characters before escaping.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    cut = text[:limit]
    shown = cut
    if not cut.isprintable():
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
    return shown + ("…" if len(text) > limit else "")
