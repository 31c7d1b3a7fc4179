"""SOCKS requests, good and bad, each whole, byte by byte and with bytes that follow (T56, T58)."""

import ipaddress
from dataclasses import dataclass

import pytest

from gateway.errors import LocalProtocolError, RemoteProtocolError
from gateway.socks.replies import ReplyCode
from gateway.socks.server import (
    EARLY_DATA_LIMIT,
    HANDSHAKE_LIMIT,
    Command,
    NotSocksError,
    Phase,
    Request,
    SocksError,
    SocksServer,
)

GREETING = b"\x05\x01\x00"
METHOD_CHOSEN = b"\x05\x00"
NO_METHOD = b"\x05\xff"
SUCCESS5 = bytes.fromhex("05 00 00 01 00000000 0000")
SUCCESS4 = bytes.fromhex("00 5a 0000 00000000")
REFUSED4 = bytes.fromhex("00 5b 0000 00000000")


def reply5(code: int) -> bytes:
    return bytes((5, code, 0, 1)) + bytes(6)


def name5(name: bytes, port: int = 443, *, greeting: bytes = GREETING) -> bytes:
    return greeting + b"\x05\x01\x00\x03" + bytes((len(name),)) + name + port.to_bytes(2, "big")


def socks4(address: bytes, rest: bytes, port: int = 80, command: int = 1) -> bytes:
    return bytes((4, command)) + port.to_bytes(2, "big") + address + rest


def socks4a(userid: bytes, name: bytes, port: int = 80) -> bytes:
    return socks4(b"\0\0\0\1", userid + b"\0" + name + b"\0", port)


@dataclass(frozen=True)
class Outcome:
    sent: bytes
    phase: Phase
    request: Request | None
    early_data: bytes
    error: type[Exception] | None
    message: str


def converse(data: bytes, size: int = 1 << 20) -> Outcome:
    """Feed `data` in pieces of `size` (cut to what is taken) until its end or the first error."""
    server = SocksServer()
    error: RemoteProtocolError | None = None
    at = 0
    while at < len(data) and error is None:
        piece = data[at : at + min(size, server.room)]
        at += len(piece)
        try:
            server.receive(piece)
        except RemoteProtocolError as exc:
            error = exc
    return Outcome(
        sent=server.data_to_send(),
        phase=server.phase,
        request=server.request,
        early_data=server.early_data(),
        error=None if error is None else type(error),
        message=str(error or ""),
    )


def request(host: str, port: int, *, version=5, is_name=False) -> Request:
    return Request(version, Command.CONNECT, host, port, is_name)


GOOD = {
    "5-ipv4": (GREETING + bytes.fromhex("05010001 c0000201 1f90"), request("192.0.2.1", 8080)),
    "5-ipv4-zero": (GREETING + bytes.fromhex("05010001 00000000 0050"), request("0.0.0.0", 80)),
    "5-ipv6": (
        GREETING + bytes.fromhex("05010004 20010db8000000000000000000000001 0050"),
        request("2001:db8::1", 80),
    ),
    "5-name": (name5(b"example.com"), request("example.com", 443, is_name=True)),
    "5-name-1": (name5(b"x"), request("x", 443, is_name=True)),
    "5-name-255": (name5(b"a" * 255, 65535), request("a" * 255, 65535, is_name=True)),
    "5-name-that-is-an-address": (name5(b"::1"), request("::1", 443, is_name=True)),
    "5-name-underscore": (name5(b"_x-1.a"), request("_x-1.a", 443, is_name=True)),
    "5-name-utf8": (name5("bücher.例え".encode()), request("bücher.例え", 443, is_name=True)),
    "5-many-methods": (
        name5(b"h", greeting=b"\x05\xff" + bytes(range(255))),
        request("h", 443, is_name=True),
    ),
    "5-none-last": (
        name5(b"h", greeting=b"\x05\x03\x02\x01\x00"),
        request("h", 443, is_name=True),
    ),
    "4": (socks4(b"\x0a\0\0\1", b"\0"), request("10.0.0.1", 80, version=4)),
    "4-userid": (socks4(b"\x0a\0\0\1", b"alice\0"), request("10.0.0.1", 80, version=4)),
    "4-userid-1024": (
        socks4(b"\x0a\0\0\1", b"u" * 1024 + b"\0", 65535),
        request("10.0.0.1", 65535, version=4),
    ),
    "4-userid-any-bytes": (
        socks4(b"\x0a\0\0\1", bytes(range(1, 256)) + b"\0"),
        request("10.0.0.1", 80, version=4),
    ),
    "4-zero-is-not-4a": (socks4(bytes(4), b"\0"), request("0.0.0.0", 80, version=4)),
    "4-0.0.1.1-is-not-4a": (socks4(b"\0\0\1\1", b"\0"), request("0.0.1.1", 80, version=4)),
    "4a": (socks4a(b"", b"example.com"), request("example.com", 80, version=4, is_name=True)),
    "4a-0.0.0.255": (
        socks4(b"\0\0\0\xff", b"u\0host\0"),
        request("host", 80, version=4, is_name=True),
    ),
    "4a-longest": (
        socks4a(b"u" * 1024, b"n" * 255),
        request("n" * 255, 80, version=4, is_name=True),
    ),
}

BAD_NAMES = {
    "empty": b"",
    "nul": b"a\0b",
    "space": b"a b",
    "newline": b"a\nb",
    "tab": b"a\tb",
    "delete": b"a\x7fb",
    "escape": b"\x1b[31m",
    "latin-1": b"b\xfccher",
    "half-utf8": b"a\xc3",
    "surrogate": b"\xed\xa0\x80",
    "overlong-slash": b"a\xc0\xafb",
    "nbsp": "a\u00a0b".encode(),
    "ideographic-space": "a\u3000b".encode(),
    "line-separator": "a\u2028b".encode(),
    "right-to-left-override": "a\u202eb".encode(),
    "zero-width": "a\u200bb".encode(),
    "c1-control": "a\u0085b".encode(),
    "unassigned": "a\U000e0080b".encode(),
}

# name: what the client sends, what it is told
BAD = {
    "5-no-methods": (b"\x05\x00", NO_METHOD),
    "5-password-only": (b"\x05\x01\x02", NO_METHOD),
    "5-gssapi-and-password": (b"\x05\x02\x01\x02", NO_METHOD),
    "5-255-other-methods": (b"\x05\xff" + bytes(range(1, 256)), NO_METHOD),
    "5-request-version-4": (GREETING + b"\x04\x01\x00\x01", METHOD_CHOSEN + reply5(1)),
    "5-reserved": (GREETING + b"\x05\x01\x01\x01", METHOD_CHOSEN + reply5(1)),
    "5-bind": (GREETING + b"\x05\x02\x00\x01", METHOD_CHOSEN + reply5(7)),
    "5-udp": (GREETING + b"\x05\x03\x00\x01" + bytes(6), METHOD_CHOSEN + reply5(7)),
    "5-tor-resolve": (GREETING + b"\x05\xf0\x00\x03", METHOD_CHOSEN + reply5(7)),
    "5-atyp-0": (GREETING + b"\x05\x01\x00\x00", METHOD_CHOSEN + reply5(8)),
    "5-atyp-2": (GREETING + b"\x05\x01\x00\x02", METHOD_CHOSEN + reply5(8)),
    "5-atyp-255": (GREETING + b"\x05\x01\x00\xff", METHOD_CHOSEN + reply5(8)),
    "5-port-0": (name5(b"h", 0), METHOD_CHOSEN + reply5(1)),
    "4-bind": (socks4(b"\x0a\0\0\1", b"\0", command=2), REFUSED4),
    "4-port-0": (socks4(b"\x0a\0\0\1", b"\0", port=0), REFUSED4),
    "4-userid-1025": (socks4(b"\x0a\0\0\1", b"u" * 1025), REFUSED4),
    "4-userid-1-MB": (socks4(b"\x0a\0\0\1", b"u" * 1_000_000), REFUSED4),
    "4a-name-256": (socks4(b"\0\0\0\1", b"u\0" + b"n" * 256), REFUSED4),
    "4a-name-1-MB": (socks4(b"\0\0\0\1", b"\0" + b"n" * 1_000_000), REFUSED4),
    **{
        f"5-name-{why}": (name5(name), METHOD_CHOSEN + reply5(1)) for why, name in BAD_NAMES.items()
    },
    **{
        f"4a-name-{why}": (socks4a(b"", name), REFUSED4)
        for why, name in BAD_NAMES.items()
        if b"\0" not in name
    },
}

OTHER_PROTOCOLS = {
    b"GET http://example.com/ HTTP/1.1\r\n": "HTTP",
    b"CONNECT example.com:443 HTTP/1.1\r\n": "HTTP",
    b"POST / HTTP/1.1\r\n": "HTTP",
    b"PUT / HTTP/1.1\r\n": "HTTP",
    b"PRI * HTTP/2.0\r\n": "HTTP",
    b"HEAD / HTTP/1.1\r\n": "HTTP",
    b"OPTIONS * HTTP/1.1\r\n": "HTTP",
    b"DELETE /x HTTP/1.1\r\n": "HTTP",
    b"TRACE / HTTP/1.1\r\n": "HTTP",
    b"\x16\x03\x01\x02\x00\x01": "TLS",
    b"SSH-2.0-OpenSSH_9.9\r\n": "SSH",
    b"\x00": "",
    b"\x01\x00": "",
    b"\x06": "",
    b"hello": "",
    b"\xff" * 10: "",
}


@pytest.mark.parametrize(
    "early_data", [b"", b"\0", b"GET / HTTP/1.0\r\n\r\n", b"\x05\x01\x00" * 999]
)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize(("data", "wanted"), GOOD.values(), ids=GOOD)
def test_good_request(data, wanted, size, early_data):
    outcome = converse(data + early_data, size)
    assert outcome == Outcome(
        sent=METHOD_CHOSEN if wanted.version == 5 else b"",
        phase=Phase.REQUESTED,
        request=wanted,
        early_data=early_data,
        error=None,
        message="",
    )


@pytest.mark.parametrize(("data", "wanted"), GOOD.values(), ids=GOOD)
def test_truncated_request_waits(data, wanted):
    for length in range(len(data)):
        for size in (1, 1 << 20):
            outcome = converse(data[:length], size)
            assert outcome.error is None
            assert outcome.request is None
            assert outcome.early_data == b""
            assert outcome.phase in {
                Phase.VERSION,
                Phase.SOCKS4_REQUEST,
                Phase.SOCKS5_METHODS,
                Phase.SOCKS5_REQUEST,
            }


@pytest.mark.parametrize("size", [1, 2, 3, 7, 4096, 1 << 20])
@pytest.mark.parametrize("trailing", [b"", b"\0", b"more"])
@pytest.mark.parametrize(("data", "told"), BAD.values(), ids=BAD)
def test_bad_request_is_told_the_protocols_own_error(data, told, trailing, size):
    if size < 7 and len(data) > 10_000:
        data = data[:10_000]
    outcome = converse(data + trailing, size)
    assert outcome.sent == told
    assert outcome.error is SocksError
    assert (outcome.phase, outcome.request, outcome.early_data) == (Phase.FAILED, None, b"")
    assert outcome == converse(data)
    assert outcome.message.isprintable()


@pytest.mark.parametrize(("data", "looks_like"), OTHER_PROTOCOLS.items())
def test_another_protocol_is_named_by_its_first_byte(data, looks_like):
    server = SocksServer()
    with pytest.raises(NotSocksError) as caught:
        server.receive(data[:1])
    assert caught.value.looks_like == looks_like
    assert server.data_to_send() == b""
    assert server.phase is Phase.FAILED
    assert converse(data) == converse(data, 1)
    assert str(caught.value) == converse(data).message
    assert (looks_like or "SOCKS") in str(caught.value)
    if looks_like == "HTTP":
        assert "set the browser's proxy type to SOCKS5" in str(caught.value)


@pytest.mark.parametrize("version", range(256))
def test_every_version(version):
    outcome = converse(bytes((version,)))
    assert (outcome.error is None) == (version in {4, 5})
    assert outcome.sent == b""


@pytest.mark.parametrize("command", range(256))
def test_every_command(command):
    five = converse(GREETING + bytes((5, command, 0, 1, 10, 0, 0, 1, 0, 80)))
    four = converse(socks4(b"\x0a\0\0\1", b"\0", command=command))
    if command == 1:
        assert five.request == request("10.0.0.1", 80)
        assert four.request == request("10.0.0.1", 80, version=4)
    else:
        assert five.sent == METHOD_CHOSEN + reply5(ReplyCode.COMMAND_NOT_SUPPORTED)
        assert four.sent == REFUSED4
        assert five.error is four.error is SocksError


@pytest.mark.parametrize("atyp", range(256))
def test_every_address_type(atyp):
    outcome = converse(GREETING + bytes((5, 1, 0, atyp)) + b"\x0fabcdefghijklmno\0\x50")
    if atyp in {1, 3, 4}:
        assert outcome.request is not None
    else:
        assert outcome.sent == METHOD_CHOSEN + reply5(ReplyCode.ADDRESS_TYPE_NOT_SUPPORTED)


@pytest.mark.parametrize("count", range(256))
def test_every_number_of_methods(count):
    without = b"\x05" + bytes((count,)) + b"\x02" * count
    assert converse(without).sent == NO_METHOD
    if count:
        assert converse(without[:-1] + b"\x00").sent == METHOD_CHOSEN
        assert converse(without[:-1]).sent == b""


@pytest.mark.parametrize("length", range(256))
def test_every_name_length(length):
    outcome = converse(name5(b"n" * length))
    assert (outcome.request is not None) == (length > 0)


@pytest.mark.parametrize("byte", range(256))
def test_every_byte_in_a_name(byte):
    allowed = 0x21 <= byte <= 0x7E
    name = b"a" + bytes((byte,)) + b"b"
    assert (converse(name5(name)).request is not None) == allowed
    if byte:
        assert (converse(socks4a(b"", name)).request is not None) == allowed


def test_ipv4_mapped_address_stays_ipv6():
    mapped = ipaddress.IPv6Address("::ffff:10.0.0.1")
    outcome = converse(GREETING + b"\x05\x01\x00\x04" + mapped.packed + b"\0\x50")
    assert outcome.request is not None
    assert ipaddress.ip_address(outcome.request.host) == mapped


def test_user_id_is_refused_as_soon_as_the_bound_is_passed():
    server = SocksServer()
    server.receive(socks4(b"\x0a\0\0\1", b"u" * 1024))
    assert server.phase is Phase.SOCKS4_REQUEST
    with pytest.raises(SocksError, match="user id is longer than 1024 bytes"):
        server.receive(b"u")
    assert server.data_to_send() == REFUSED4


def test_longest_unfinished_handshake():
    server = SocksServer()
    server.receive(socks4a(b"u" * 1024, b"n" * 255)[:-1])
    assert server.request is None
    assert EARLY_DATA_LIMIT - server.room == HANDSHAKE_LIMIT


def test_method_is_answered_before_the_request_comes():
    server = SocksServer()
    server.receive(GREETING)
    assert server.data_to_send() == METHOD_CHOSEN
    assert server.data_to_send() == b""
    assert server.phase is Phase.SOCKS5_REQUEST


@pytest.mark.parametrize(
    ("bound", "port", "five", "four"),
    [
        (None, 0, SUCCESS5, SUCCESS4),
        ("192.0.2.7", 1080, "05000001c00002070438", "005a0438c0000207"),
        ("2001:db8::7", 65535, "0500000420010db8000000000000000000000007ffff", "005affff00000000"),
    ],
)
def test_success_reply(bound, port, five, four):
    for data, wanted in ((GOOD["5-name"][0], five), (GOOD["4a"][0], four)):
        server = SocksServer()
        server.receive(data)
        server.data_to_send()
        if bound is None:
            server.succeed()
        else:
            server.succeed(ipaddress.ip_address(bound), port)
        assert server.data_to_send() == (wanted if bound is None else bytes.fromhex(wanted))
        assert server.phase is Phase.SUCCEEDED


@pytest.mark.parametrize("code", [code for code in ReplyCode if code])
def test_error_reply(code):
    for data, wanted in ((GOOD["5-name"][0], reply5(code)), (GOOD["4a"][0], REFUSED4)):
        server = SocksServer()
        server.receive(data + b"early")
        server.data_to_send()
        server.fail(code)
        assert server.data_to_send() == wanted
        assert server.phase is Phase.FAILED
        assert server.early_data() == b""


def test_early_data_before_and_after_the_reply():
    server = SocksServer()
    server.receive(GOOD["5-name"][0] + b"one")
    server.receive(b"two")
    assert server.early_data() == b"onetwo"
    assert server.early_data() == b""
    server.receive(b"three")
    server.succeed()
    server.receive(b"four")
    assert server.early_data() == b"threefour"


def test_early_data_is_not_taken_from_an_unfinished_handshake():
    server = SocksServer()
    server.receive(GREETING + b"\x05\x01")
    assert server.early_data() == b""
    server.receive(GOOD["5-name"][0][len(GREETING) + 2 :])
    assert server.request == GOOD["5-name"][1]


def test_room_bounds_the_early_data():
    server = SocksServer()
    server.receive(GOOD["5-name"][0])
    assert server.room == EARLY_DATA_LIMIT
    server.receive(bytes(EARLY_DATA_LIMIT - 1))
    assert server.room == 1
    with pytest.raises(LocalProtocolError, match="at most 1 bytes"):
        server.receive(b"ab")
    server.receive(memoryview(b"c"))
    assert server.room == 0
    assert server.early_data() == bytes(EARLY_DATA_LIMIT - 1) + b"c"
    assert server.room == EARLY_DATA_LIMIT


@pytest.mark.parametrize("sent", [b"", GREETING, GOOD["5-name"][0][:-1]])
def test_no_reply_before_the_request(sent):
    server = SocksServer()
    server.receive(sent)
    before = repr(server)
    with pytest.raises(LocalProtocolError):
        server.succeed()
    with pytest.raises(LocalProtocolError):
        server.fail(ReplyCode.GENERAL_FAILURE)
    assert repr(server) == before


def test_only_one_reply():
    server = SocksServer()
    server.receive(GOOD["4"][0])
    with pytest.raises(LocalProtocolError):
        server.fail(ReplyCode.SUCCEEDED)
    assert server.phase is Phase.REQUESTED
    server.succeed()
    with pytest.raises(LocalProtocolError):
        server.fail(ReplyCode.GENERAL_FAILURE)
    with pytest.raises(LocalProtocolError):
        server.succeed()
    assert server.data_to_send() == SUCCESS4


def test_nothing_is_received_after_a_failure():
    server = SocksServer()
    with pytest.raises(SocksError):
        server.receive(b"\x05\x00")
    with pytest.raises(LocalProtocolError):
        server.receive(b"x")
    assert server.data_to_send() == NO_METHOD
    assert "FAILED" in repr(server)


def test_message_is_safe_to_show():
    outcome = converse(name5(b"\x1b[31m\r\nforged log line"))
    assert "\\x1b[31m\\r\\nforged" in outcome.message
