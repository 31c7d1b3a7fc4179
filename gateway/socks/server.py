"""The server side of SOCKS 4, 4a and 5 for one client (RFC 1928; SOCKS4 and 4a have no RFC).

Bytes go in by `SocksServer.receive` in any pieces; bytes to write come out of
`SocksServer.data_to_send`.

    VERSION ─04─► SOCKS4_REQUEST ───────────────────────────┐
       └────05─► SOCKS5_METHODS ─00─► SOCKS5_REQUEST ───────┴─► REQUESTED ─succeed()─► SUCCEEDED
    illegal input in one of the first four ─► FAILED            REQUESTED ─fail()────► FAILED

A client need not wait for our answers: the greeting, the request and the first payload may come in
one segment, as OpenSSH's -D allows. What follows the request is kept for the target (`early_data`).

Decisions are taken field by field in the order of the bytes, and never look at how they were cut:
the same bytes give the same outcome in one piece or one at a time. Every field has a bound, so an
unfinished handshake holds at most `HANDSHAKE_LIMIT` bytes; how long it may take is the caller's.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Literal

from gateway.errors import LocalProtocolError, RemoteProtocolError, printable
from gateway.socks.replies import ReplyCode

# ---- RFC 1928; "SOCKS: A protocol for TCP proxy across firewalls"; "SOCKS 4A" -------------------

_NO_ACCEPTABLE_METHODS: Final = b"\x05\xff"  # RFC 1928 §3
_SOCKS4_HEADER_LENGTH: Final = 8  # VN CD DSTPORT DSTIP
_UNSPECIFIED: Final = IPv4Address(0)
_SOCKS4_GRANTED: Final = 0x5A
_SOCKS4_REJECTED: Final = 0x5B  # 5C and 5D are about identd, which nobody asks any more


class Command(enum.IntEnum):
    """The CMD field (RFC 1928 §4). Only CONNECT is served."""

    CONNECT = 1
    BIND = 2
    UDP_ASSOCIATE = 3


class AddressType(enum.IntEnum):
    """The ATYP field (RFC 1928 §4)."""

    __hash__ = int.__hash__

    IPV4 = 1
    DOMAINNAME = 3
    IPV6 = 4


_ADDRESS_TYPES: Final = {int(kind): kind for kind in AddressType}
_ADDRESS_LENGTH: Final = {AddressType.IPV4: 4, AddressType.IPV6: 16}

# ---- our own choices ---------------------------------------------------------------------------

_USERID_LIMIT: Final = 1024  # as OpenSSH
_NAME_LIMIT: Final = 255  # as in SOCKS5, where the length is one byte
# What follows from the limits of the fields: a SOCKS4a request that lacks its last byte.
HANDSHAKE_LIMIT: Final = _SOCKS4_HEADER_LENGTH + _USERID_LIMIT + 1 + _NAME_LIMIT
EARLY_DATA_LIMIT: Final = 64 * 1024


class Phase(enum.Enum):
    """What the conversation waits for; the module's drawing has the transitions."""

    VERSION = enum.auto()
    SOCKS4_REQUEST = enum.auto()
    SOCKS5_METHODS = enum.auto()
    SOCKS5_REQUEST = enum.auto()
    REQUESTED = enum.auto()
    SUCCEEDED = enum.auto()
    FAILED = enum.auto()


# The methods that we accept, best first, and the phase that follows: RFC 1929 would be 0x02.
_METHODS: Final = {0x00: Phase.SOCKS5_REQUEST}

# The phases in which the client's own protocol has an error reply.
_REPLY_VERSION: Final[dict[Phase, Literal[4, 5]]] = {
    Phase.SOCKS4_REQUEST: 4,
    Phase.SOCKS5_REQUEST: 5,
}


@dataclass(frozen=True, slots=True)
class Request:
    """Where the client wants to go.

    ``is_name`` says that it left name resolution to us (ATYP 3, SOCKS4a). Such a host may still be
    an address in text, and an IPv6 address may be an IPv4-mapped one: both pass as they came.
    """

    version: Literal[4, 5]
    command: Command
    host: str
    port: int
    is_name: bool


class SocksError(RemoteProtocolError):
    """The client's bytes are not a request that we serve.

    ``reply`` is the code that it was told, as far as its protocol has such a code at that point.
    """

    def __init__(self, message: str, reply: ReplyCode = ReplyCode.GENERAL_FAILURE) -> None:
        super().__init__(message)
        self.reply = reply


class NotSocksError(SocksError):
    """The first byte belongs to another protocol; the message says what to change.

    ``looks_like`` is "HTTP", "TLS", "SSH" or "" (unknown). Nothing is sent to such a client.
    """

    def __init__(self, message: str, looks_like: str) -> None:
        super().__init__(message)
        self.looks_like = looks_like


_HTTP_HINT: Final = ("HTTP", "this is HTTP; set the browser's proxy type to SOCKS5")
_HINTS: Final = {
    # GET, PUT, POST, PATCH, PRI, HEAD, CONNECT, OPTIONS, DELETE, TRACE
    **dict.fromkeys(b"GPHCODT", _HTTP_HINT),
    0x16: ("TLS", "this is TLS; use SOCKS5 without TLS, not an HTTPS proxy"),
    ord("S"): ("SSH", "this is SSH; this port is the SOCKS proxy, not an SSH server"),
}


@dataclass(slots=True, eq=False)
class SocksServer:
    """One accepted client, from its first byte to our reply.

    After `receive` raised, or after `fail`, write `data_to_send` and close, within 10 s (RFC 1928
    §6). A close while the client's bytes are still unread resets the connection and may destroy the
    reply: shut down sending first, then read to the end.
    """

    _phase: Phase = field(default=Phase.VERSION, init=False)
    _request: Request | None = field(default=None, init=False)
    _incoming: bytearray = field(default_factory=bytearray, init=False, repr=False)
    _outgoing: bytearray = field(default_factory=bytearray, init=False, repr=False)

    @property
    def phase(self) -> Phase:
        """What the conversation waits for."""
        return self._phase

    @property
    def request(self) -> Request | None:
        """What the client asked for, once it is complete and legal."""
        return self._request

    @property
    def room(self) -> int:
        """How many bytes `receive` takes now; at 0 stop reading from the client."""
        return EARLY_DATA_LIMIT - len(self._incoming)

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """Take at most `room` bytes from the client, in any pieces.

        On bad input the error reply is queued first, then `SocksError` is raised.
        """
        if self._phase is Phase.FAILED:
            raise LocalProtocolError(
                "SocksServer.receive() was called after the conversation failed"
            )
        if len(data) > self.room:
            raise LocalProtocolError(f"receive() takes at most {self.room} bytes, not {len(data)}")
        self._incoming += data
        try:
            while self._incoming and self._step_untrusted():
                pass
        except SocksError as error:
            self._outgoing += _refusal(self._phase, error.reply)
            self._incoming.clear()
            self._phase = Phase.FAILED
            raise

    def data_to_send(self) -> bytes:
        """Take what must be written to the client now."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def early_data(self) -> bytes:
        """Take what the client sent after its request: it is for the target."""
        if self._request is None:
            return b""
        data = bytes(self._incoming)
        self._incoming.clear()
        return data

    def succeed(
        self,
        bound_address: IPv4Address | IPv6Address = _UNSPECIFIED,
        bound_port: int = 0,
    ) -> None:
        """Queue the success reply. Without a known bound address it says 0.0.0.0:0, as OpenSSH."""
        request = self._answerable_request("succeed")
        self._outgoing += _reply(request.version, ReplyCode.SUCCEEDED, bound_address, bound_port)
        self._phase = Phase.SUCCEEDED

    def fail(self, reply: ReplyCode) -> None:
        """Queue the error reply; SOCKS4 has one code for all of them. Early data is dropped."""
        request = self._answerable_request("fail")
        if reply == ReplyCode.SUCCEEDED:
            raise LocalProtocolError("fail() was called with the reply code for success")
        self._outgoing += _reply(request.version, reply)
        self._incoming.clear()
        self._phase = Phase.FAILED

    def _answerable_request(self, caller: str) -> Request:
        if self._request is None or self._phase is not Phase.REQUESTED:
            raise LocalProtocolError(
                f"{caller}() has no request to answer: phase {self._phase.name}"
            )
        return self._request

    def _step_untrusted(self) -> bool:
        """Read one message; False when it is incomplete or none is expected."""
        match self._phase:
            case Phase.VERSION:
                # The byte stays: it is part of the message that follows.
                self._phase = _version_untrusted(self._incoming[0])
                return True
            case Phase.SOCKS5_METHODS:
                return self._take_methods_untrusted()
            case Phase.SOCKS5_REQUEST:
                return self._take_request(_socks5_request_untrusted(self._incoming))
            case Phase.SOCKS4_REQUEST:
                return self._take_request(_socks4_request_untrusted(self._incoming))
            case Phase.REQUESTED | Phase.SUCCEEDED | Phase.FAILED:
                return False

    def _take_methods_untrusted(self) -> bool:
        offered = _methods_untrusted(self._incoming)
        if offered is None:
            return False
        method = next(filter(offered.__contains__, _METHODS), None)
        if method is None:
            raise SocksError(
                f"none of the SOCKS5 methods [{offered.hex(' ')}] is accepted: "
                "turn proxy authentication off"
            )
        del self._incoming[: 2 + len(offered)]
        self._outgoing += bytes((5, method))
        self._phase = _METHODS[method]
        return True

    def _take_request(self, parsed: tuple[int, Request] | None) -> bool:
        if parsed is None:
            return False
        length, self._request = parsed
        del self._incoming[:length]
        self._phase = Phase.REQUESTED
        return True


# ---- from the client, in the order of the bytes -------------------------------------------------


def _version_untrusted(first: int) -> Phase:
    if first == 5:
        return Phase.SOCKS5_METHODS
    if first == 4:
        return Phase.SOCKS4_REQUEST
    looks_like, hint = _HINTS.get(first, ("", "the client must speak SOCKS 4, 4a or 5"))
    raise NotSocksError(f"the first byte is 0x{first:02x}, not SOCKS: {hint}", looks_like)


def _methods_untrusted(message: bytearray) -> bytes | None:
    """RFC 1928 §3: VER NMETHODS METHODS. None: incomplete."""
    if len(message) < 2 or len(message) < 2 + message[1]:
        return None
    return bytes(message[2 : 2 + message[1]])


def _socks5_request_untrusted(message: bytearray) -> tuple[int, Request] | None:
    """RFC 1928 §4: VER CMD RSV ATYP DST.ADDR DST.PORT. None: incomplete; else length, meaning."""
    if len(message) < 4:
        return None
    version, cmd, rsv, atyp = message[:4]
    if version != 5 or rsv != 0:  # as OpenSSH
        raise SocksError(f"a SOCKS5 request must begin with 05 CMD 00, not {message[:3].hex(' ')}")
    _check_command_untrusted(cmd)
    address_type = _ADDRESS_TYPES.get(atyp)
    if address_type is None:
        raise SocksError(
            f"unknown SOCKS5 address type {atyp}", ReplyCode.ADDRESS_TYPE_NOT_SUPPORTED
        )
    start = 4
    is_name = address_type is AddressType.DOMAINNAME
    if is_name:
        if len(message) < 5:
            return None
        start, length = 5, message[4]
    else:
        length = _ADDRESS_LENGTH[address_type]
    end = start + length
    if len(message) < end + 2:
        return None
    host = _host_untrusted(address_type, bytes(message[start:end]))
    port = _port_untrusted(message[end : end + 2])
    return end + 2, Request(5, Command.CONNECT, host, port, is_name)


def _socks4_request_untrusted(message: bytearray) -> tuple[int, Request] | None:
    """VN CD DSTPORT DSTIP USERID 00, and for 4a a name and 00. None: incomplete."""
    if len(message) < _SOCKS4_HEADER_LENGTH:
        return None
    _check_command_untrusted(message[1])
    port = _port_untrusted(message[2:4])
    address = bytes(message[4:8])
    userid = _terminated_untrusted(message, _SOCKS4_HEADER_LENGTH, _USERID_LIMIT, "user id")
    if userid is None:
        return None
    end = _SOCKS4_HEADER_LENGTH + len(userid) + 1
    if address[:3] != b"\0\0\0" or address[3] == 0:
        host = _host_untrusted(AddressType.IPV4, address)
        return end, Request(4, Command.CONNECT, host, port, is_name=False)
    name = _terminated_untrusted(message, end, _NAME_LIMIT, "host name")
    if name is None:
        return None
    host = _host_untrusted(AddressType.DOMAINNAME, name)
    return end + len(name) + 1, Request(4, Command.CONNECT, host, port, is_name=True)


def _terminated_untrusted(message: bytearray, start: int, limit: int, what: str) -> bytes | None:
    """Return the bytes from start to the next NUL; None: it may still come."""
    end = message.find(0, start, start + limit + 1)
    if end >= 0:
        return bytes(message[start:end])
    if len(message) > start + limit:
        raise SocksError(f"the SOCKS4 {what} is longer than {limit} bytes")
    return None


def _check_command_untrusted(command: int) -> None:
    if command == Command.CONNECT:
        return
    name = Command(command).name if command in frozenset(Command) else str(command)
    raise SocksError(
        f"the SOCKS command {name} is not supported, only CONNECT", ReplyCode.COMMAND_NOT_SUPPORTED
    )


def _port_untrusted(field: bytearray) -> int:
    """Port 0 cannot be connected to; refused here, the client learns it without a round trip."""
    port = int.from_bytes(field, "big")
    if port == 0:
        raise SocksError("the client asks for port 0")
    return port


def _host_untrusted(atyp: AddressType, field: bytes) -> str:
    """Turn DST.ADDR into text.

    A name is UTF-8 without spaces, control or invisible characters, so that it is safe in a log
    line and in a C resolver. UTF-8 beyond ASCII is passed on: some clients send an international
    name as it was typed, and whether it can be resolved is for the far end to say.
    """
    if atyp is AddressType.IPV4:
        return ".".join(map(str, field))
    if atyp is AddressType.IPV6:
        return str(IPv6Address(field))
    if not field:
        raise SocksError("the client sent an empty host name")
    try:
        name = field.decode("utf-8")
    except UnicodeDecodeError:
        raise SocksError(f'the host name "{printable(field)}" is not UTF-8') from None
    if not name.isprintable() or " " in name:
        raise SocksError(f'the host name "{printable(name)}" has a space or a control character')
    return name


# ---- to the client ------------------------------------------------------------------------------


def _refusal(phase: Phase, reply: ReplyCode) -> bytes:
    """Tell what a client in this phase understands: nothing if it does not speak SOCKS."""
    if phase is Phase.SOCKS5_METHODS:
        return _NO_ACCEPTABLE_METHODS
    version = _REPLY_VERSION.get(phase)
    return b"" if version is None else _reply(version, reply)


def _reply(
    version: Literal[4, 5],
    reply: ReplyCode,
    bound_address: IPv4Address | IPv6Address = _UNSPECIFIED,
    bound_port: int = 0,
) -> bytes:
    """RFC 1928 §6: VER REP RSV ATYP BND.ADDR BND.PORT; SOCKS4: VN CD DSTPORT DSTIP."""
    port = bound_port.to_bytes(2, "big")
    if version == 4:
        code = _SOCKS4_GRANTED if reply == ReplyCode.SUCCEEDED else _SOCKS4_REJECTED
        address = bound_address.packed if bound_address.version == 4 else bytes(4)
        return bytes((0, code)) + port + address
    atyp = AddressType.IPV4 if bound_address.version == 4 else AddressType.IPV6
    return bytes((5, reply, 0, atyp)) + bound_address.packed + port
