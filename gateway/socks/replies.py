"""SOCKS reply codes, and which of them an SSH channel open failure deserves.

A client that gets the right code shows "connection refused" or "no such host" where OpenSSH's -D
just closes the connection. The reason code of RFC 4254 §5.1 says only "connect failed"; what
happened is in the description, which is free text. What servers write there was read from their
sources, and seen live from OpenSSH and AsyncSSH on Linux:

- OpenSSH: ``strerror`` of the last address tried, or ``gai_strerror`` of the name. When ``connect``
  fails at once instead of later, the errno is lost and the text is "open failed": on Linux that is
  a missing route, because even a closed port on loopback is reported later.
- Dropbear: ``strerror``, or "Error resolving 'host' port 'port'. " and ``gai_strerror``.
- AsyncSSH: ``str`` of the OSError, "[Errno 111] Connect call failed (...)" with the number but not
  the words, or several of these in one line. Its servers also say "Connection refused" with code 2
  when they forbid the connection; that cannot be told from a closed port.
- Servers in Go: "dial tcp ...: connect: connection refused", "lookup host: no such host".
"""

from __future__ import annotations

import enum
from typing import Final


class ReplyCode(enum.IntEnum):
    """The REP field of a SOCKS5 reply (RFC 1928 §6)."""

    SUCCEEDED = 0x00
    GENERAL_FAILURE = 0x01
    NOT_ALLOWED = 0x02
    NETWORK_UNREACHABLE = 0x03
    HOST_UNREACHABLE = 0x04
    CONNECTION_REFUSED = 0x05
    TTL_EXPIRED = 0x06
    COMMAND_NOT_SUPPORTED = 0x07
    ADDRESS_TYPE_NOT_SUPPORTED = 0x08


# RFC 4254 §5.1: SSH_OPEN_CONNECT_FAILED; its description decides.
_CONNECT_FAILED: Final = 2
_REPLY_FOR_REASON: Final = {
    1: ReplyCode.NOT_ALLOWED,  # SSH_OPEN_ADMINISTRATIVELY_PROHIBITED
    3: ReplyCode.COMMAND_NOT_SUPPORTED,  # SSH_OPEN_UNKNOWN_CHANNEL_TYPE
    4: ReplyCode.GENERAL_FAILURE,  # SSH_OPEN_RESOURCE_SHORTAGE
}

# Longer than any server's text; the rest is not searched. Our own choice.
_DESCRIPTION_LIMIT: Final = 1000

# The whole description, for texts too short to be looked for inside another one.
_EXACT_TEXTS: Final = {
    "open failed": ReplyCode.NETWORK_UNREACHABLE,  # OpenSSH, see above
}

# Parts of a description in lower case; the first row with a match wins. Names come first, because
# a resolver's own network error says nothing about the target ("lookup x: read udp: i/o timeout").
# When several addresses failed, the row that says most about the target wins: who refused was
# there. Every text has a space in it, which the host name that some servers quote has not.
_TEXTS: Final[tuple[tuple[ReplyCode, tuple[str, ...]], ...]] = (
    (
        ReplyCode.HOST_UNREACHABLE,
        (
            "error resolving ",  # Dropbear
            "lookup ",  # Go
            "no such host",  # Go, Windows
            "unknown host",
            "host not found",
            "name or service not known",  # glibc
            "name or service is not known",  # OpenBSD
            "name or service name not known",  # Solaris
            "name resolution",  # glibc, BSD: temporary, non-recoverable failure in ...
            "no address associated with",  # glibc, BSD: ... hostname, OpenBSD: ... name
            "nor servname provided",  # macOS: nodename ..., BSD: hostname ...
            "for hostname not supported",  # glibc, BSD: address family ...
            "for name not supported",  # OpenBSD: address family ...
            "name does not resolve",  # musl, FreeBSD
            "name could not be resolved",  # FreeBSD
            "name has no usable address",  # musl
            "non-recoverable error",  # musl
            "try again",  # musl
            "hostname resolution",  # Windows: temporary error during ...
            "no data of the requested type",  # Windows
        ),
    ),
    (
        ReplyCode.CONNECTION_REFUSED,
        ("connection refused", "actively refused", "[errno 111]", "[errno 61]"),
    ),
    (
        ReplyCode.NOT_ALLOWED,
        ("permission denied", "operation not permitted", "[errno 13]", "[errno 1]"),
    ),
    (
        ReplyCode.TTL_EXPIRED,
        ("timed out", "i/o timeout", "[errno 110]", "[errno 60]"),
    ),
    (
        ReplyCode.HOST_UNREACHABLE,
        (
            "no route to host",
            "host is unreachable",  # musl
            "host unreachable",  # Windows
            "host is down",
            "[errno 113]",
            "[errno 112]",
            "[errno 65]",
            "[errno 64]",
        ),
    ),
    (
        ReplyCode.NETWORK_UNREACHABLE,
        (
            "network is unreachable",
            "network unreachable",  # musl, Windows
            "network is down",
            "[errno 101]",
            "[errno 100]",
            "[errno 51]",
            "[errno 50]",
        ),
    ),
)


def reply_for_open_failure(reason_code: int, description: str) -> ReplyCode:
    """Say in SOCKS what SSH_MSG_CHANNEL_OPEN_FAILURE said (RFC 4254 §5.1); never SUCCEEDED.

    The description is the peer's text and may be anything: what is not known is a general failure.
    """
    if reason_code != _CONNECT_FAILED:
        return _REPLY_FOR_REASON.get(reason_code, ReplyCode.GENERAL_FAILURE)
    text = description[:_DESCRIPTION_LIMIT].strip().lower()
    if text in _EXACT_TEXTS:
        return _EXACT_TEXTS[text]
    for reply, parts in _TEXTS:
        if any(part in text for part in parts):
            return reply
    return ReplyCode.GENERAL_FAILURE
