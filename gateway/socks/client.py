"""SOCKS as its client: RFC 1928 with RFC 1929, and SOCKS 4A. Bytes in, bytes out.

    METHODS ─ "password" ─► PASSWORD ─ accepted ─┐
       │ "no authentication"                     ▼
       └──────────────────────────────────► CONNECT ─ succeeded ─► CONNECTED
                            SOCKS 4A begins here ┘

What the proxy may say in a phase has a length that its first bytes tell, 262 bytes at most, so
nothing of what follows the handshake is ever taken, and nothing is kept but one reply.

A name goes to the proxy as it is and is never looked up here. One that is too long for the
protocol is an error before anything is sent (CVE-2023-38545).
"""

from __future__ import annotations

import enum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Final

from gateway.errors import RemoteProtocolError
from gateway.socks.replies import ReplyCode
from gateway.socks.upstream import (
    CREDENTIAL_LIMIT,
    ProxyRefused,
    checked_field,
    checked_host,
)

if TYPE_CHECKING:
    from collections.abc import Callable

# ---- RFC 1928, RFC 1929, "SOCKS 4A" --------------------------------------------------------------
_NO_AUTHENTICATION: Final = 0x00
_USERNAME_PASSWORD: Final = 0x02
_NO_ACCEPTABLE_METHODS: Final = 0xFF
_PASSWORD_VERSION: Final = 1  # RFC 1929 §2, the version of the subnegotiation
_IPV4, _NAME, _IPV6 = 1, 3, 4  # ATYP
_SOCKS4_GRANTED: Final = 0x5A
_SOCKS4A_ADDRESS: Final = bytes((0, 0, 0, 1))  # 0.0.0.x: a name follows

# What a reply means (RFC 1928 §6), and what can be done.
_REFUSALS: Final = {
    ReplyCode.GENERAL_FAILURE: "it failed for a reason that it does not tell: its log may say why, "
    "and a Tor that just started needs a minute",
    ReplyCode.NOT_ALLOWED: "its rules forbid it: ask who runs it, or take another proxy",
    ReplyCode.NETWORK_UNREACHABLE: "it has no route to that network: check the address, or take "
    "another proxy",
    ReplyCode.HOST_UNREACHABLE: "it does not reach the host: check the name, which the proxy looks "
    "up, and whether the host is up",
    ReplyCode.CONNECTION_REFUSED: "the host refused the connection: is the port right and the SSH "
    "server running?",
    ReplyCode.TTL_EXPIRED: "there was no answer in time: is the host up, and does a firewall let "
    "the proxy through?",
    ReplyCode.COMMAND_NOT_SUPPORTED: "it makes no connections: take another proxy",
    ReplyCode.ADDRESS_TYPE_NOT_SUPPORTED: "it does not take this kind of address: with a name use "
    "socks5:// instead of socks5h://, with an IPv6 address another proxy",
}
_SOCKS4_REFUSALS: Final = {
    0x5B: "it refused or the host did: check host and port, and ask who runs the proxy",
    0x5C: "it wants an identd on this machine: take another proxy, or socks5h://",
    0x5D: "identd names another user: write that one into the proxy's URL",
}


class Phase(enum.Enum):
    """What the proxy's next words are about."""

    METHODS = enum.auto()
    PASSWORD = enum.auto()
    CONNECT = enum.auto()
    CONNECTED = enum.auto()


class _Client:
    """What both versions share: gather one reply, as long as its phase says, then act on it."""

    def __init__(self, phase: Phase, greeting: bytes) -> None:
        self._phase = phase
        self._incoming = bytearray()
        self._outgoing = greeting
        self._readers: dict[Phase, Callable[[bytearray], int]] = {}

    @property
    def phase(self) -> Phase:
        """What the handshake waits for."""
        return self._phase

    @property
    def is_done(self) -> bool:
        """See `Handshake`."""
        return self._phase is Phase.CONNECTED

    def data_to_send(self) -> bytes:
        """See `Handshake`."""
        data, self._outgoing = self._outgoing, b""
        return data

    def receive(self, data: bytes) -> int:
        """See `Handshake`."""
        used = 0
        while not self.is_done:
            missing = self._readers[self._phase](self._incoming)
            if not missing:
                self._incoming.clear()
                continue
            part = data[used : used + missing]
            if not part:
                break
            self._incoming += part
            used += len(part)
        return used


class Socks5Client(_Client):
    """One connection through a SOCKS5 proxy; `Handshake`."""

    def __init__(
        self, host: str, port: int, user: str | None = None, password: str | None = None
    ) -> None:
        self._request = b"\5\1\0" + _address(host) + port.to_bytes(2, "big")
        self._credentials = b""
        methods = bytes((_NO_AUTHENTICATION,))
        if user is not None:
            self._credentials = _credentials(user, password or "")
            methods += bytes((_USERNAME_PASSWORD,))
        super().__init__(Phase.METHODS, bytes((5, len(methods))) + methods)
        self._readers = {
            Phase.METHODS: self._method_untrusted,
            Phase.PASSWORD: self._verdict_untrusted,
            Phase.CONNECT: self._reply_untrusted,
        }

    # Each takes what came so far and returns how many more bytes it needs, or 0 once it has acted.

    def _method_untrusted(self, message: bytearray) -> int:
        """RFC 1928 §3: VER METHOD."""
        if len(message) < 2:
            return 2 - len(message)
        version, method = message
        _check_version(version, 5)
        if method == _NO_AUTHENTICATION:
            self._ask()
        elif method == _USERNAME_PASSWORD and self._credentials:
            self._outgoing += self._credentials
            self._phase = Phase.PASSWORD
        elif method == _NO_ACCEPTABLE_METHODS and not self._credentials:
            raise ProxyRefused(
                "it lets nobody in without authentication: write user and password into its URL"
            )
        elif method == _NO_ACCEPTABLE_METHODS:
            raise ProxyRefused(
                "it takes no user and password: leave them out of its URL, or take another proxy"
            )
        else:
            raise RemoteProtocolError(f"the proxy chose method {method}, which was not offered")
        return 0

    def _verdict_untrusted(self, message: bytearray) -> int:
        """RFC 1929 §2: VER STATUS. Some proxies write SOCKS's version instead of this one's."""
        if len(message) < 2:
            return 2 - len(message)
        version, status = message
        if version not in (_PASSWORD_VERSION, 5):
            _check_version(version, _PASSWORD_VERSION)
        if status:
            raise ProxyRefused("it does not take this user and password: check them in its URL")
        self._ask()
        return 0

    def _ask(self) -> None:
        self._outgoing += self._request
        self._phase = Phase.CONNECT

    def _reply_untrusted(self, message: bytearray) -> int:
        """RFC 1928 §6: VER REP RSV ATYP BND.ADDR BND.PORT, of which only REP is of interest."""
        if len(message) < 2:
            return 2 - len(message)
        version, code = message[:2]
        _check_version(version, 5)
        if code != ReplyCode.SUCCEEDED:  # some proxies close after these two bytes
            if code in frozenset(ReplyCode):
                raise ProxyRefused(_REFUSALS[ReplyCode(code)])
            raise ProxyRefused(
                f"it refused with the code {code}, which is not in RFC 1928: its log may say why"
            )
        if len(message) < 5:
            return 5 - len(message)
        lengths = {_IPV4: 4, _IPV6: 16, _NAME: 1 + message[4]}
        if message[3] not in lengths:
            raise RemoteProtocolError(f"the proxy's reply has an address of type {message[3]}")
        if missing := 4 + lengths[message[3]] + 2 - len(message):
            return missing
        self._phase = Phase.CONNECTED
        return 0


class Socks4aClient(_Client):
    """One connection through a SOCKS4A proxy; `Handshake`. ``user`` is only a name there."""

    def __init__(self, host: str, port: int, user: str | None = None) -> None:
        address, name = _SOCKS4A_ADDRESS, checked_host(host) + b"\0"
        literal = _literal(host)
        if isinstance(literal, IPv4Address):
            address, name = literal.packed, b""
        request = b"\4\1" + port.to_bytes(2, "big") + address
        user_id = checked_field("user", user or "", CREDENTIAL_LIMIT) + b"\0"
        super().__init__(Phase.CONNECT, request + user_id + name)
        self._readers = {Phase.CONNECT: self._reply_untrusted}

    def _reply_untrusted(self, message: bytearray) -> int:
        """VN CD DSTPORT DSTIP; VN is 0, and 4 from proxies that know no better."""
        if len(message) < 8:
            return 8 - len(message)
        version, code = message[:2]
        if version not in (0, 4):
            _check_version(version, 0)
        if code != _SOCKS4_GRANTED:
            raise ProxyRefused(
                _SOCKS4_REFUSALS.get(code, f"it refused with the unknown code {code}")
            )
        self._phase = Phase.CONNECTED
        return 0


def _check_version(version: int, wanted: int) -> None:
    if version != wanted:
        guess = "this looks like HTTP: write http://" if version == ord("H") else "check its URL"
        raise RemoteProtocolError(
            f"the proxy's reply begins with 0x{version:02x}, which is not SOCKS: {guess}"
        )


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _address(host: str) -> bytes:
    """ATYP and DST.ADDR (RFC 1928 §5)."""
    literal = _literal(host)
    if literal is not None and "%" not in host:
        return bytes((_IPV4 if literal.version == 4 else _IPV6,)) + literal.packed
    name = checked_host(host)
    return bytes((_NAME, len(name))) + name


def _credentials(user: str, password: str) -> bytes:
    """RFC 1929 §2: VER ULEN UNAME PLEN PASSWD."""
    name = checked_field("user", user, CREDENTIAL_LIMIT)
    secret = checked_field("password", password, CREDENTIAL_LIMIT)
    parts = bytes((len(name),)) + name + bytes((len(secret),)) + secret
    return bytes((_PASSWORD_VERSION,)) + parts
