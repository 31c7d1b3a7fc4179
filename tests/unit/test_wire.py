"""The data types of RFC 4251 §5: vectors from the RFC, bounds, and what is refused."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import RemoteProtocolError
from gateway.ssh import wire
from gateway.ssh.wire import Reader


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00000000"),
        (0x9A378F9B2E332A7, "0000000809a378f9b2e332a7"),
        (0x80, "000000020080"),
        (1, "0000000101"),
        (0x7F, "000000017f"),
        (0xFF, "0000000200ff"),
        (0x100, "000000020100"),
    ],
)
def test_mpints_of_the_rfc(value, encoded):
    data = bytes.fromhex(encoded)
    assert wire.mpint(value) == data
    assert Reader(data).mpint() == value


@pytest.mark.parametrize(
    ("encoded", "problem"),
    [
        ("0000000180", "negative"),
        ("00000002edcc", "negative"),
        ("0000000100", "leading zeros"),
        ("00000002007f", "leading zeros"),
        ("0000000300" + "0080", "leading zeros"),
        ("00000802" + "01" * 0x802, "an mpint of 2050 bytes"),
        ("ffffffff01", "with only 1 bytes left"),
    ],
)
def test_bad_mpints(encoded, problem):
    with pytest.raises(RemoteProtocolError, match=problem):
        Reader(bytes.fromhex(encoded)).mpint()


@pytest.mark.parametrize(
    ("data", "names"),
    [(b"", ()), (b"zlib", ("zlib",)), (b"zlib,none", ("zlib", "none")), (b"a,a", ("a", "a"))],
)
def test_name_lists_of_the_rfc(data, names):
    assert wire.name_list(names) == wire.string(data)
    assert Reader(wire.string(data)).name_list() == names


@pytest.mark.parametrize("data", [b",", b"a,", b",a", b"a,,b", b"\xff", b"a\0b", "é".encode()])
def test_bad_name_lists(data):
    with pytest.raises(RemoteProtocolError):
        Reader(wire.string(data)).name_list()


@pytest.mark.parametrize("data", [b"\xff", b"a\0b", b"\xed\xa0\x80", b"\xc0\x80"])
def test_text_that_we_act_upon_is_clean_and_text_for_people_is_repaired(data):
    """T51: bad UTF-8, NUL, CESU surrogates, overlong forms."""
    with pytest.raises(RemoteProtocolError):
        Reader(wire.string(data)).text()
    assert isinstance(Reader(wire.string(data)).loose_text(), str)


@pytest.mark.parametrize(
    ("value", "expected"), [(b"\0", False), (b"\1", True), (b"\2", True), (b"\xff", True)]
)
def test_booleans(value, expected):
    assert Reader(value).boolean() is expected


METHODS = [
    "byte",
    "boolean",
    "uint32",
    "uint64",
    "string",
    "text",
    "loose_text",
    "name_list",
    "mpint",
]


@pytest.mark.parametrize("method", METHODS)
def test_nothing_left_is_an_error(method):
    with pytest.raises(RemoteProtocolError):
        getattr(Reader(b""), method)()


@pytest.mark.parametrize("method", ["string", "text", "loose_text", "name_list", "mpint"])
@pytest.mark.parametrize("length", [4, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF])
def test_a_length_beyond_the_end_allocates_nothing(method, length):
    reader = Reader(length.to_bytes(4, "big") + b"abc")
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError, match=f"a field of {length} bytes"):
            getattr(reader, method)()
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()


def test_end_counts_what_is_left():
    reader = Reader(b"\1\2\3")
    reader.byte()
    assert reader.remaining == 2
    with pytest.raises(RemoteProtocolError, match="2 bytes after the last field"):
        reader.end()
    assert reader.rest() == b"\2\3"
    reader.end()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.binary(max_size=64), calls=st.lists(st.sampled_from([*METHODS, "rest"]), max_size=8))
def test_any_bytes_read_in_any_way(data, calls):
    reader = Reader(data)
    for call in calls:
        before = reader.remaining
        try:
            getattr(reader, call)()
        except RemoteProtocolError:
            return
        assert 0 <= reader.remaining <= before


@settings(max_examples=100, deadline=None, derandomize=True)
@given(value=st.integers(0, 2**2000))
def test_mpints_survive_the_way(value):
    reader = Reader(wire.mpint(value))
    assert reader.mpint() == value
    reader.end()
