"""Every message cut, stretched and with every length, count and text wrong (T8, T29, T49, T51).

The list of messages makes itself (`tests.support.wrong_bytes`). What may come out of a parser is a
value or `RemoteProtocolError`; how much it does and takes follows from the bytes there are, never
from a number in them.
"""

from __future__ import annotations

import tracemalloc

import pytest

from gateway.errors import RemoteProtocolError
from gateway.ssh import messages, wire
from gateway.ssh.numbers import Msg
from gateway.ssh.packets import MAXIMUM_PACKET_LENGTH
from tests.support.wrong_bytes import (
    BAD_TEXTS,
    EXTREMES,
    MESSAGES,
    PREFIXED,
    RECORDS,
    cuts,
    fields,
    head,
    kinds,
    sample,
    wrong_forms,
    wrong_numbers,
    wrong_texts,
)

EVERY = pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
SPECIAL = [  # what has a count in front of what is in its `Rest`
    messages.ext_info({"server-sig-algs": b"ssh-ed25519", "ping@openssh.com": b"0"}),
    messages.info_request("name", "words", [("Password: ", False), ("Code: ", True)]),
]


def read(record, data):
    """Parse all of a message, what follows a count too; None if it is refused."""
    try:
        value = record.decode_untrusted(data)
        if isinstance(value, messages.ExtInfo):
            messages.extensions_untrusted(value)
        elif isinstance(value, messages.UserauthInfoRequest):
            messages.prompts_untrusted(value)
    except RemoteProtocolError:
        return None
    return value


def refused(record, data):
    with pytest.raises(RemoteProtocolError):
        record.decode_untrusted(data)


def test_the_list_is_whole():
    assert {record.number for record in MESSAGES} == set(Msg) - {Msg.CHANNEL_DATA}
    for record in RECORDS:
        data = sample(record).encode()
        assert record.decode_untrusted(data) == sample(record)
        assert [field.name for field in fields(record, data)] == list(kinds(record))
        assert fields(record, data)[-1].end == len(data) if kinds(record) else len(data) == 1


@EVERY
def test_cut_at_every_byte(record):
    data = sample(record).encode()
    begins = [field.start for field in fields(record, data) if field.kind is messages.Rest]
    for cut in cuts(record, data):
        if begins and len(cut) >= begins[0]:
            assert record.decode_untrusted(cut).encode() == cut
        else:
            refused(record, cut)


@EVERY
def test_bytes_behind_the_last_field(record):
    for more in (b"\0", b"\xff", sample(record).encode()):
        data = sample(record).encode() + more
        if messages.Rest in kinds(record).values():
            assert record.decode_untrusted(data).encode() == data
        else:
            refused(record, data)


@EVERY
def test_every_length_and_number(record):
    data = sample(record).encode()
    seen = 0
    for field, wrong, changed in wrong_numbers(record, data):
        seen += 1
        if field.kind in PREFIXED and wrong in EXTREMES[1:]:
            refused(record, changed)
        elif field.kind is messages.UInt32:
            assert getattr(record.decode_untrusted(changed), field.name) == wrong
        else:
            read(record, changed)
    assert seen >= 4 * sum(kind in (*PREFIXED, messages.UInt32) for kind in kinds(record).values())


@EVERY
def test_what_is_no_text(record):
    for field, changed in wrong_texts(record, sample(record).encode()):
        if field.kind in (messages.Text, messages.NameList):
            refused(record, changed)
        elif field.kind is messages.LooseText:
            text = getattr(record.decode_untrusted(changed), field.name)
            assert text.encode().decode() == text
            assert "\ufffd" in text or "\0" in text
        elif field.kind is messages.String:
            assert getattr(record.decode_untrusted(changed), field.name) in BAD_TEXTS
        else:
            read(record, changed)


@pytest.mark.parametrize("message", SPECIAL, ids=lambda message: type(message).__name__)
def test_counts_that_lie(message):
    data = message.encode()
    count = next(field for field in fields(type(message), data) if field.kind is messages.UInt32)
    for field, _, changed in wrong_numbers(type(message), data):
        found = read(type(message), changed)
        assert found is None or field != count


class Counted:
    """Counts the fields that are taken."""

    def __init__(self, monkeypatch):
        self.taken = 0
        take = wire.Reader.take

        def counting(reader, length):
            self.taken += 1
            return take(reader, length)

        monkeypatch.setattr(wire.Reader, "take", counting)


@EVERY
def test_the_work_follows_from_the_bytes(record, monkeypatch):
    """No loop and no allocation by a number that was read."""
    counted = Counted(monkeypatch)
    values = [sample(record), *(value for value in SPECIAL if type(value) is record)]
    forms = [form for value in values for form in wrong_forms(record, value.encode())]
    tracemalloc.start()
    try:
        for form in forms:
            counted.taken = 0
            read(record, form)
            assert counted.taken <= len(form) + 2 * len(kinds(record))
            current, peak = tracemalloc.get_traced_memory()
            assert peak < current + 64 * 1024
            tracemalloc.reset_peak()
    finally:
        tracemalloc.stop()


@EVERY
def test_the_largest_of_each(record, monkeypatch):
    """As much as a packet holds, in each field by turns: what is taken stays a few fields."""
    counted = Counted(monkeypatch)
    data = sample(record).encode()
    room = MAXIMUM_PACKET_LENGTH - len(data) - 9
    for field in fields(record, data):
        if field.kind not in (*PREFIXED, messages.Rest):
            continue
        filler = b"a," * (room // 2 - 1) + b"a" if field.kind is messages.NameList else b"a" * room
        large = filler if field.kind is messages.Rest else wire.string(filler)
        counted.taken = 0
        found = read(record, data[: field.start] + large + data[field.end :])
        assert (found is None) == (field.kind is messages.MPInt) or record in map(type, SPECIAL)
        assert counted.taken <= 3 * len(kinds(record)) + head(record)


def test_as_many_extensions_as_fit():
    """The only list whose length a stranger chooses: one turn for each that is there."""
    most = (MAXIMUM_PACKET_LENGTH - 10) // 8
    for announced, fits in ((most, True), (most + 1, False), ((1 << 32) - 1, False)):
        message = messages.ExtInfo(announced, bytes(8 * most))
        if fits:
            assert messages.extensions_untrusted(message) == {"": b""}
        else:
            with pytest.raises(RemoteProtocolError, match="announces"):
                messages.extensions_untrusted(message)
