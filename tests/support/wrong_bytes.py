"""Every message there is, found by itself, and everything that can be wrong with its bytes.

A new class in `gateway.ssh.messages` or `gateway.ssh.tunnel` is in `RECORDS` at once; where its
fields are is read from its own codecs, so nothing here names a message.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final, NamedTuple, get_args

from gateway.ssh import messages, tunnel, wire
from gateway.ssh.messages import Message, Record

if TYPE_CHECKING:
    from collections.abc import Iterator

RECORDS: Final[tuple[type[Record], ...]] = tuple(
    found
    for module in (messages, tunnel)
    for found in vars(module).values()
    if isinstance(found, type)
    and issubclass(found, Record)
    and found.__module__ == module.__name__
    and found not in (Record, Message)
)
MESSAGES: Final = tuple(found for found in RECORDS if issubclass(found, Message))

# What may stand in a field, by its codec: a value that is neither empty nor zero.
_VALUES: Final[dict[Any, Any]] = {
    messages.Boolean: True,
    messages.Byte: 3,
    messages.UInt32: 3,
    messages.MPInt: 0x1234_5678_9ABC,
    messages.String: b"some bytes",
    messages.Text: "n\u00e4me",
    messages.LooseText: "w\u00f6rds",
    messages.NameList: ("one", "two@example"),
    messages.Cookie: bytes(range(16)),
    messages.Rest: b"\0\0\0\4rest",
}
_BY_CODEC: Final = {id(get_args(kind)[1]): (kind, value) for kind, value in _VALUES.items()}
PREFIXED: Final = (
    messages.String, messages.Text, messages.LooseText, messages.NameList, messages.MPInt,
)  # fmt: skip
"""Kinds that begin with their length."""

EXTREMES: Final = (0, 1 << 31, (1 << 32) - 1)

# Not UTF-8 (RFC 3629): no such byte, a half of a surrogate pair (CESU), a longer form of NUL, a
# character that is cut off; and NUL itself, which is UTF-8.
BAD_TEXTS: Final = (b"\xff\xfe", b"a\xed\xa0\x80", b"\xc0\x80", b"a\xe2\x82", b"host\0.example")


class Field(NamedTuple):
    """Where a field is in an encoded record, and of which kind it is."""

    name: str
    kind: Any
    start: int
    end: int


def head(record: type[Record]) -> int:
    """Return how many bytes stand before the first field: the message number, or nothing."""
    return 1 if issubclass(record, Message) else 0


def kinds(record: type[Record]) -> dict[str, Any]:
    """Return the kinds of a record's fields by name."""
    found = messages._codecs(record)
    return {name: _BY_CODEC[id(codec)][0] for name, codec in found}


def sample(record: type[Record], **changes: Any) -> Record:
    """Return a value of a record with something in every field."""
    values = {name: _VALUES[kind] for name, kind in kinds(record).items()}
    return dataclasses.replace(record(*values.values()), **changes)


def fields(record: type[Record], data: bytes) -> list[Field]:
    """Say where the fields of an encoded record are."""
    reader = wire.Reader(data)
    reader.take(head(record))
    found = []
    for name, codec in messages._codecs(record):
        start = len(data) - reader.remaining
        codec.decode(reader)
        found.append(Field(name, _BY_CODEC[id(codec)][0], start, len(data) - reader.remaining))
    return found


def cuts(record: type[Record], data: bytes) -> Iterator[bytes]:
    """Cut it at every byte."""
    for at in range(head(record), len(data)):
        yield data[:at]


def wrong_numbers(record: type[Record], data: bytes) -> Iterator[tuple[Field, int, bytes]]:
    """Set every length, count and number of 32 bits one off, to 0, and to the largest there are.

    In a ``Rest`` whatever could be a length or a count is taken for one.
    """
    for field in fields(record, data):
        if field.kind in PREFIXED or field.kind is messages.UInt32:
            places: Any = (field.start,)
        elif field.kind is messages.Rest:
            places = [
                at for at in range(field.start, field.end - 3) if _number(data, at) < len(data)
            ]
        else:
            places = ()
        for at in places:
            right = _number(data, at)
            for wrong in sorted({right - 1, right + 1, *EXTREMES} - {right, -1, 1 << 32}):
                yield field, wrong, data[:at] + wire.uint32(wrong) + data[at + 4 :]


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")


def wrong_texts(record: type[Record], data: bytes) -> Iterator[tuple[Field, bytes]]:
    """Put what is no text, and a NUL, into every field of text, names or bytes."""
    for field in fields(record, data):
        if field.kind in PREFIXED:
            for bad in BAD_TEXTS:
                yield field, data[: field.start] + wire.string(bad) + data[field.end :]


def wrong_forms(record: type[Record], data: bytes) -> Iterator[bytes]:
    """Return all of it."""
    yield from cuts(record, data)
    yield from (changed for _, _, changed in wrong_numbers(record, data))
    yield from (changed for _, changed in wrong_texts(record, data))
    yield data + b"\0"
    yield data + data
