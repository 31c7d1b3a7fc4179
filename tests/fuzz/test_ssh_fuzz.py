"""Any bytes in: a value, or `RemoteProtocolError`, and nothing else out (T29, T49).

Parsers first, then whole protocols: in every phase, in clear and behind good packets.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import ConnectionLost, RemoteProtocolError
from gateway.ssh import messages
from gateway.ssh.keys import parse_public_key_untrusted
from gateway.ssh.numbers import Msg
from gateway.ssh.transport import ALLOWED, Phase, Role
from tests.support.pair import feed, inject, make_pair, pair_in_phase, take

RECORDS = [
    record
    for record in vars(messages).values()
    if isinstance(record, type)
    and issubclass(record, messages.Record)
    and record not in (messages.Record, messages.Message)
]
MESSAGES = [record for record in RECORDS if issubclass(record, messages.Message)]
BOUNDED = settings(max_examples=40, deadline=None, derandomize=True)

NAMES = st.text(st.characters(codec="ascii", min_codepoint=33, exclude_characters=","), min_size=1)
FIELDS = {
    messages.Boolean: st.booleans(),
    messages.Byte: st.integers(0, 255),
    messages.UInt32: st.integers(0, 2**32 - 1),
    messages.MPInt: st.integers(0, 2**200),
    messages.String: st.binary(max_size=40),
    messages.Text: st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
    messages.LooseText: st.text(st.characters(codec="utf-8"), max_size=20),
    messages.NameList: st.lists(NAMES, max_size=4).map(tuple),
    messages.Cookie: st.binary(min_size=16, max_size=16),
    messages.Rest: st.binary(max_size=40),
}


def instances(record):
    """Any value of a message class."""
    hints = get_type_hints(record, include_extras=True)
    by_codec = {get_args(kind)[1]: strategy for kind, strategy in FIELDS.items()}
    return st.builds(
        record,
        **{
            field.name: by_codec[get_args(hints[field.name])[1]]
            for field in dataclasses.fields(record)
        },
    )


def decode(record, data):
    """Parse as the protocol does; the error that may come out is the one."""
    try:
        value = record.decode_untrusted(data)
    except RemoteProtocolError:
        return None
    if isinstance(value, messages.ExtInfo):
        try:
            messages.extensions_untrusted(value)
        except RemoteProtocolError:
            return None
    return value


def test_every_message_number_has_its_class_and_the_list_is_whole():
    numbers = {record.number for record in MESSAGES}
    assert numbers == set(Msg) - {Msg.CHANNEL_DATA}


@pytest.mark.parametrize("record", RECORDS)
@BOUNDED
@given(data=st.data())
def test_what_is_encoded_is_decoded(record, data):
    value = data.draw(instances(record))
    encoded = value.encode()
    assert record.decode_untrusted(encoded) == value
    if issubclass(record, messages.Message):
        assert encoded[0] == record.number


@pytest.mark.parametrize("record", RECORDS)
@BOUNDED
@given(junk=st.binary(max_size=200))
def test_junk(record, junk):
    number = bytes((record.number,)) if issubclass(record, messages.Message) else b""
    decode(record, number + junk)


@pytest.mark.parametrize("record", RECORDS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(data=st.data())
def test_cut_at_every_byte_extended_and_with_every_length_wrong(record, data):
    encoded = data.draw(instances(record)).encode()
    has_rest = any(name == "Rest" for name in record.__annotations__.values())
    head = 1 if issubclass(record, messages.Message) else 0
    for cut in range(head, len(encoded)):
        value = decode(record, encoded[:cut])
        assert value is None or has_rest
    if not has_rest:
        assert decode(record, encoded + b"\0") is None, "trailing bytes are refused"
    for at in range(head, len(encoded) - 3):
        number = int.from_bytes(encoded[at : at + 4], "big")
        for wrong in (number - 1, number + 1, 0, 0x7FFF_FFFF, 0xFFFF_FFFF):
            changed = (wrong & 0xFFFF_FFFF).to_bytes(4, "big")
            decode(record, encoded[:at] + changed + encoded[at + 4 :])


@BOUNDED
@given(blob=st.binary(max_size=100))
def test_public_keys(blob):
    for data in (blob, messages.wire.text("ssh-ed25519") + blob):
        with contextlib.suppress(RemoteProtocolError):
            parse_public_key_untrusted(data)


# ---- whole protocols -----------------------------------------------------------------------------

PHASES = [phase for phase in Phase if phase is not Phase.CLOSED]
CHUNKS = st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=8)


def survive(target, act):
    """Act on a protocol; whatever happens, it can be given up cleanly."""
    try:
        act()
    except RemoteProtocolError:
        assert target.transport.phase is Phase.CLOSED
    except ConnectionLost:
        pass
    while target.next_event() is not None:
        pass
    target.discard()
    assert target.outbound._wire is None
    assert target.inbound._buffer is None


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("phase", PHASES)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(chunks=CHUNKS)
def test_raw_bytes_in_every_phase(role, phase, chunks):
    _, target = pair_in_phase(role, phase)

    def act():
        for chunk in chunks:
            feed(target, chunk)

    survive(target, act)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("phase", [phase for phase in PHASES if phase is not Phase.VERSION])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_junk_behind_good_packets_in_every_phase(role, phase, data):
    """Numbers that the gate lets through, with any body."""
    _, target = pair_in_phase(role, phase)
    allowed = sorted(ALLOWED[phase][role])
    payloads = data.draw(
        st.lists(
            st.tuples(st.sampled_from(allowed), st.binary(max_size=120)), min_size=1, max_size=6
        )
    )

    def act():
        for number, body in payloads:
            inject(target, bytes((number,)) + body)

    survive(target, act)


CONNECTION_MESSAGES = [
    record for record in MESSAGES if record.number in ALLOWED[Phase.CONNECTION][Role.SERVER]
]


@pytest.mark.parametrize("role", Role)
@settings(max_examples=80, deadline=None, derandomize=True)
@given(data=st.data())
def test_well_formed_messages_in_any_order_on_an_open_link(role, data):
    """Numbers are kept small, so that they hit channels that exist."""
    pair, target = pair_in_phase(role, Phase.CONNECTION)
    pair.pump()
    target.connection.open_channel("test", b"")
    sent = data.draw(st.lists(st.sampled_from(CONNECTION_MESSAGES).flatmap(instances), max_size=10))

    def act():
        for message in sent:
            if hasattr(message, "recipient_channel"):
                number = message.recipient_channel % 3
                message = dataclasses.replace(message, recipient_channel=number)  # noqa: PLW2901
            inject(target, message)

    survive(target, act)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(at=st.integers(0, 3000), change=st.integers(1, 255), role=st.sampled_from(Role))
def test_a_changed_byte_anywhere_in_a_handshake(at, change, role):
    pair = make_pair()
    sides = (pair.client, pair.server)
    target = pair.client if role is Role.CLIENT else pair.server
    try:
        for source, end in (sides, sides[::-1]) * 20:
            stream = bytearray(take(source))
            if end is target:
                if 0 <= at < len(stream):
                    stream[at] ^= change
                at -= len(stream)
            feed(end, bytes(stream))
            pair._collect()
    except RemoteProtocolError:
        assert Phase.CLOSED in [side.transport.phase for side in sides]
    for side in sides:
        side.discard()
