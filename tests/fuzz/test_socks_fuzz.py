"""Any bytes, cut anywhere: one outcome, and no error but `RemoteProtocolError` (T56)."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import RemoteProtocolError
from gateway.socks.replies import ReplyCode, reply_for_open_failure
from gateway.socks.server import EARLY_DATA_LIMIT, HANDSHAKE_LIMIT, Phase, SocksServer


def outcome(pieces):
    """What a client sees and what the caller sees, as values that can be compared."""
    server = SocksServer()
    error = None
    for piece in pieces:
        try:
            server.receive(piece)
        except RemoteProtocolError as exc:
            error = exc
            break
        if server.request is None:
            assert EARLY_DATA_LIMIT - server.room <= HANDSHAKE_LIMIT
    assert (error is not None) == (server.phase is Phase.FAILED)
    request, early_data, phase = server.request, server.early_data(), server.phase
    if request is not None:
        assert 0 < request.port < 65536
        assert request.host.isprintable()
        assert " " not in request.host
        server.succeed()
    return type(error), str(error), server.data_to_send(), request, early_data, phase


def cut(data, cuts):
    edges = [0, *sorted({at % (len(data) + 1) for at in cuts}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


# Bytes that mean something to the parser come up often enough to reach its corners.
telling = st.sampled_from([b"\0", b"\x01", b"\x03", b"\x04", b"\x05", b"\xff", b"a", b"\0\0\0\1"])
soup = st.lists(telling | st.binary(max_size=4), max_size=40).map(b"".join)
name = st.binary(max_size=255) | st.text(max_size=60).map(str.encode)
port = st.binary(min_size=2, max_size=2)
address = st.binary(min_size=4, max_size=4) | st.just(b"\0\0\0\1")

greeting = st.just(b"\x05\x01\x00") | st.binary(max_size=255).map(
    lambda methods: bytes((5, len(methods))) + methods
)
destination = (
    st.tuples(st.just(b"\x01"), address)
    | st.tuples(st.just(b"\x04"), st.binary(min_size=16, max_size=16))
    | st.tuples(st.just(b"\x03"), name.map(lambda text: bytes((len(text),)) + text))
).map(b"".join)
socks5 = st.tuples(greeting, st.just(b"\x05\x01\x00"), destination, port).map(b"".join)
socks4 = st.tuples(st.just(b"\x04\x01"), port, address, soup, st.just(b"\0"), name).map(b"".join)
stream = st.tuples(st.binary() | soup | socks5 | socks4, st.binary(max_size=50)).map(b"".join)


@given(stream, st.lists(st.integers(min_value=0, max_value=2000), max_size=10))
def test_cuts_never_change_the_outcome(data, cuts):
    whole = outcome([data])
    assert outcome(cut(data, cuts)) == whole
    assert outcome([data[at : at + 1] for at in range(len(data))]) == whole


@given(socks5 | socks4, st.integers(min_value=0, max_value=600), st.integers(1, 255))
def test_one_changed_byte(data, at, flip):
    changed = bytearray(data)
    changed[at % len(data)] ^= flip
    assert outcome([bytes(changed)]) == outcome([changed[i : i + 1] for i in range(len(changed))])


@given(st.integers(min_value=0, max_value=2**32 - 1) | st.integers(0, 5), st.text())
def test_any_failure_has_an_error_reply(reason_code, description):
    assert reply_for_open_failure(reason_code, description) in set(ReplyCode) - {
        ReplyCode.SUCCEEDED
    }
