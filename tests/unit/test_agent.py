"""The agent protocol: what we ask, and what any reply may do. Hazards T29, T50, T91."""

from __future__ import annotations

import os

import pytest

from gateway.errors import RemoteProtocolError
from gateway.ssh import agent
from gateway.ssh.agent import AgentMsg, AgentRefused
from gateway.ssh.keys import PrivateKey
from gateway.ssh.wire import string, uint32

KEY = PrivateKey.generate(os.urandom)
OTHER = PrivateKey.generate(os.urandom)
UNKNOWN = string(b"ssh-fancy") + string(b"\1\2")


def reply(number, fields=b""):
    return bytes((number,)) + fields


def answer(*entries, count=None):
    fields = b"".join(string(blob) + string(comment) for blob, comment in entries)
    count = len(entries) if count is None else count
    return reply(AgentMsg.IDENTITIES_ANSWER, uint32(count) + fields)


def signed(data, key=KEY, algorithm="ssh-ed25519"):
    return reply(AgentMsg.SIGN_RESPONSE, string(key.sign(data, algorithm)))


# ---- requests, byte for byte ---------------------------------------------------------------------


def test_the_request_for_identities():
    assert agent.identities_request() == b"\0\0\0\1\x0b"


@pytest.mark.parametrize(
    ("algorithm", "flags"),
    [
        ("ssh-ed25519", 0),
        ("ecdsa-sha2-nistp256", 0),
        ("rsa-sha2-256", 2),
        ("rsa-sha2-512", 4),
        ("rsa-sha2-256-cert-v01@openssh.com", 2),
        ("rsa-sha2-512-cert-v01@openssh.com", 4),
        ("ssh-ed25519-cert-v01@openssh.com", 0),
    ],
)
def test_the_request_for_a_signature(algorithm, flags):
    blob = KEY.public.blob
    body = b"\x0d" + string(blob) + string(b"data") + uint32(flags)
    assert agent.sign_request(KEY.public, b"data", algorithm) == string(body)


def test_the_request_to_bind_a_session():
    binding = agent.SessionBinding(b"host", b"session", b"signature")
    fields = string(b"session-bind@openssh.com") + string(b"host")
    fields += string(b"session") + string(b"signature") + b"\0"
    assert agent.session_bind_request(binding) == string(b"\x1b" + fields)


# ---- replies -------------------------------------------------------------------------------------


def test_identities_in_the_agents_order():
    found = agent.identities_untrusted(
        answer((OTHER.public.blob, b"work"), (KEY.public.blob, b"home"))
    )
    assert [(item.key, item.comment) for item in found] == [
        (OTHER.public, "work"),
        (KEY.public, "home"),
    ]


def test_keys_of_unknown_types_and_broken_ones_are_left_out():
    found = agent.identities_untrusted(
        answer(
            (UNKNOWN, b"?"),
            (b"", b"empty"),
            (KEY.public.blob + b"\0", b"long"),
            (KEY.public.blob, b"good"),
            (KEY.public.blob, b"again"),
        )
    )
    assert [item.comment for item in found] == ["good"]


def test_a_locked_agent_has_no_keys():
    assert agent.identities_untrusted(answer()) == ()


def test_a_comment_can_be_shown():
    (found,) = agent.identities_untrusted(answer((KEY.public.blob, b"\x1b[2J\n\xff" + b"x" * 999)))
    assert found.comment.isprintable()
    assert len(found.comment) < 200


@pytest.mark.parametrize("count", [1, 2, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_a_count_that_is_not_true(count):
    with pytest.raises(RemoteProtocolError):
        agent.identities_untrusted(answer(count=count))


def test_more_keys_than_anybody_has():
    entries = [(UNKNOWN, b"")] * (agent.MAXIMUM_IDENTITIES + 1)
    assert agent.identities_untrusted(answer(*entries[1:])) == ()
    with pytest.raises(RemoteProtocolError, match="2049 keys"):
        agent.identities_untrusted(answer(*entries))


@pytest.mark.parametrize("number", [5, 28, 30, 102])
def test_every_way_to_say_no(number):
    for read in (
        agent.identities_untrusted,
        agent.success_untrusted,
        lambda said: agent.signature_untrusted(said, KEY.public, b"", "ssh-ed25519"),
    ):
        with pytest.raises(AgentRefused):
            read(reply(number))


@pytest.mark.parametrize("number", [0, 6, 11, 13, 14, 255])
def test_a_reply_to_another_question(number):
    with pytest.raises(RemoteProtocolError, match=f"message {number} where 12 was due"):
        agent.identities_untrusted(reply(number))


def test_a_signature():
    said = signed(b"data")
    found = agent.signature_untrusted(said, KEY.public, b"data", "ssh-ed25519")
    assert found == KEY.sign(b"data", "ssh-ed25519")


@pytest.mark.parametrize(
    "said",
    [
        signed(b"other data"),
        signed(b"data", OTHER),
        reply(AgentMsg.SIGN_RESPONSE, string(b"")),
        reply(AgentMsg.SIGN_RESPONSE, string(string(b"ssh-rsa") + string(b"\1" * 64))),
        signed(b"data") + b"\0",
        signed(b"data")[:-1],
    ],
)
def test_a_signature_that_is_not_what_was_asked_for(said):
    """Some agents ignore the flags for rsa-sha2 and return SHA-1."""
    with pytest.raises(RemoteProtocolError):
        agent.signature_untrusted(said, KEY.public, b"data", "ssh-ed25519")


def test_success_carries_nothing():
    agent.success_untrusted(reply(AgentMsg.SUCCESS))
    with pytest.raises(RemoteProtocolError):
        agent.success_untrusted(reply(AgentMsg.SUCCESS, b"\0"))


# ---- the reader ----------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 1000])
def test_replies_in_any_pieces(chunk):
    data = string(b"\6") + string(answer((KEY.public.blob, b"c"))) + string(b"\5")
    reader, found = agent.ReplyReader(), []
    for at in range(0, len(data), chunk):
        reader.feed(data[at : at + chunk])
        while (said := reader.next_reply_untrusted()) is not None:
            found.append(said)
    assert found == [b"\6", answer((KEY.public.blob, b"c")), b"\5"]
    assert not reader.has_more


@pytest.mark.parametrize("length", [0, agent.MAXIMUM_REPLY_LENGTH + 1, 0xFFFF_FFFF])
def test_lengths_out_of_bounds(length):
    reader = agent.ReplyReader()
    reader.feed(uint32(length))
    with pytest.raises(RemoteProtocolError, match=f"a reply of {length} bytes"):
        reader.next_reply_untrusted()
