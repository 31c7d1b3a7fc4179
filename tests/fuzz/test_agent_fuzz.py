"""Any bytes from an agent: only `RemoteProtocolError` comes out, and never more than came in."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import RemoteProtocolError
from gateway.ssh import agent
from gateway.ssh.keys import PrivateKey
from gateway.ssh.wire import string, uint32

KEY = PrivateKey.generate(os.urandom)
GOOD = (
    b"\x0c"
    + uint32(2)
    + (string(KEY.public.blob) + string(b"one"))
    + (string(string(b"ssh-fancy") + b"\1\2") + string(b"two"))
)
SIGNATURE = b"\x0e" + string(KEY.sign(b"data", "ssh-ed25519"))

NUMBERS = st.sampled_from([5, 6, 12, 14, 28, 30, 102, 0, 255])
REPLIES = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda number, rest: bytes((number,)) + rest, NUMBERS, st.binary(max_size=300)),
    st.builds(
        lambda base, at, byte: base[: at % len(base)] + byte + base[at % len(base) + 1 :],
        st.sampled_from([GOOD, SIGNATURE]),
        st.integers(0, 1000),
        st.binary(max_size=3),
    ),
    st.builds(
        lambda count, rest: b"\x0c" + uint32(count) + rest,
        st.integers(0, 2**32 - 1),
        st.lists(st.binary(max_size=80).map(string), max_size=8).map(b"".join),
    ),
)


def read(function, *arguments):
    try:
        return function(*arguments)
    except RemoteProtocolError:
        return None


@given(REPLIES)
def test_any_reply(reply):
    for item in read(agent.identities_untrusted, reply) or ():
        assert item.key.blob in reply
        assert item.comment.isprintable()
    read(agent.success_untrusted, reply)
    signature = read(agent.signature_untrusted, reply, KEY.public, b"data", "ssh-ed25519")
    if signature is not None:
        KEY.public.verify(signature, b"data", "ssh-ed25519")


@given(st.lists(st.binary(max_size=40), max_size=30))
def test_any_stream(pieces):
    reader, given_bytes, returned = agent.ReplyReader(), 0, 0
    for piece in pieces:
        reader.feed(piece)
        given_bytes += len(piece)
        try:
            while (reply := reader.next_reply_untrusted()) is not None:
                assert reply
                returned += 4 + len(reply)
        except RemoteProtocolError:
            return
    assert returned <= given_bytes


@given(st.lists(REPLIES.filter(bool), max_size=5), st.integers(1, 50))
def test_replies_survive_any_cutting(replies, chunk):
    data = b"".join(map(string, replies))
    reader, found = agent.ReplyReader(), []
    for at in range(0, len(data), chunk):
        reader.feed(data[at : at + chunk])
        while (reply := reader.next_reply_untrusted()) is not None:
            found.append(reply)
    assert found == replies
