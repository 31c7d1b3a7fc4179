"""A proxy in front of us may say anything, in any pieces: the outcome is one of three (T57)."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import RemoteProtocolError
from gateway.socks.client import Socks4aClient, Socks5Client
from gateway.socks.http_connect import HttpConnect
from gateway.socks.upstream import ProxyRefused

MAKERS = (
    lambda: Socks5Client("host.example", 22),
    lambda: Socks5Client("host.example", 22, "alice", "secret"),
    lambda: Socks4aClient("host.example", 22, "alice"),
    lambda: HttpConnect("host.example", 22, "alice", "secret"),
)
telling = st.sampled_from(
    [b"\0", b"\1", b"\2", b"\3", b"\4", b"\5", b"\x5a", b"\xff", b"HTTP/1.1 ", b"200", b"407 ",
     b"100", b"\r\n", b"\r\n\r\n", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n"]
)  # fmt: skip
soup = st.lists(telling | st.binary(max_size=4), max_size=30).map(b"".join)
socks5 = st.tuples(
    st.sampled_from([b"\5\0", b"\5\2\1\0"]), st.just(b"\5\0\0"), st.binary(min_size=8, max_size=300)
).map(b"".join)
http = st.tuples(
    st.sampled_from([b"HTTP/1.1 200 OK", b"HTTP/1.1 100 ", b"HTTP/1.0 407 no"]),
    st.just(b"\r\n"), soup, st.just(b"\r\n\r\n"),
).map(b"".join)  # fmt: skip
answers = st.tuples(soup | socks5 | http, st.binary(max_size=40)).map(b"".join).filter(bool)


def outcome(make, pieces):
    """How it ended, how much was taken, and what was sent, as values that can be compared."""
    client, taken = make(), 0
    sent = client.data_to_send()
    waiting = b""
    for piece in pieces:
        waiting += piece
        try:
            used = client.receive(waiting)
        except (ProxyRefused, RemoteProtocolError) as error:
            return type(error), str(error), sent
        assert 0 <= used <= len(waiting)
        taken += used
        waiting = waiting[used:]
        sent += client.data_to_send()
        if client.is_done:
            break
        assert not waiting, "what is not taken is the far end's"
    return client.is_done, taken, sent


@given(
    st.sampled_from(MAKERS), answers, st.lists(st.integers(min_value=0, max_value=400), max_size=8)
)
def test_cuts_never_change_the_outcome(make, data, cuts):
    edges = [0, *sorted({at % (len(data) + 1) for at in cuts}), len(data)]
    pieces = [data[start:end] for start, end in itertools.pairwise(edges) if start < end]
    whole, cut = outcome(make, [data]), outcome(make, pieces)
    assert whole[0] == cut[0]
    if whole[0] is True:
        assert whole == cut
    elif whole[0]:
        assert whole[1].isprintable()
        assert "secret" not in whole[1]
