"""The records: one line each, whatever a peer wrote into them (T50)."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import fields
from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.audit import records
from gateway.audit.records import (
    MAXIMUM_TEXT,
    MAXIMUM_TEXTS,
    Auth,
    AuthResult,
    ConnClose,
    Noise,
    PolicyDecision,
    Record,
    Side,
    Tally,
    decode,
    encode,
    hassh,
    rfc3339,
    source_prefix,
)

NOW_NS = 1_795_000_000_123_456_789
KINDS = {record_type.kind: record_type for record_type in Record.__subclasses__()}
HOSTILE = st.text(
    st.characters() | st.sampled_from('\n\r\0\x1b\x7f\x85\u2028\u202e\ud800"\\{}'),
    max_size=MAXIMUM_TEXT,
)
VALUES = {
    str: HOSTILE,
    int: st.integers(0, 2**64),
    float: st.floats(0, 1e9, allow_nan=False).map(lambda value: round(value, 6)),
    bool: st.booleans(),
    tuple[str, ...]: st.lists(HOSTILE, max_size=4).map(tuple),
    records.ChannelClass: st.sampled_from(records.ChannelClass),
    records.AuthResult: st.sampled_from(AuthResult),
    records.Side: st.sampled_from(Side),
}


def hints(record_type: type[Record]) -> dict[str, object]:
    found = get_type_hints(record_type)
    return {field.name: found[field.name] for field in fields(record_type)}


@st.composite
def any_record(draw: st.DrawFn) -> Record:
    record_type = KINDS[draw(st.sampled_from(sorted(KINDS)))]
    return record_type(**{name: draw(VALUES[hint]) for name, hint in hints(record_type).items()})


@given(any_record(), st.integers(0, 2**60))
def test_a_record_is_one_clean_line_and_comes_back(record: Record, seq: int) -> None:
    line = encode(record, seq, NOW_NS, 5_000_000, "ab" * 32)
    assert all(0x20 <= byte < 0x7F for byte in line)
    found = decode(line)
    assert (found["v"], found["seq"], found["prev"]) == (1, seq, "ab" * 32)
    assert (found["time"], found["mono_us"]) == ("2026-11-18T11:06:40.123456Z", 5000)
    record_type = KINDS[found["kind"]]
    values = {name: found[name] for name in hints(record_type)}
    for name, value in values.items():
        values[name] = tuple(value) if isinstance(value, list) else value
    assert record_type(**values) == record


def test_there_is_no_field_for_a_secret_or_for_bytes() -> None:
    assert len(KINDS) == 21
    for record_type in KINDS.values():
        for name, hint in hints(record_type).items():
            assert hint in VALUES, name
            assert not any(word in name for word in ("password", "secret", "blob", "signature"))
        assert not set(hints(record_type)) & {"v", "seq", "time", "mono_us", "prev", "kind", "mac"}


def test_every_control_character_is_escaped() -> None:
    text = "".join(map(chr, range(0x100))) + "\u2028\u202e\ufeff\ud800"
    line = encode(Noise("192.0.2.0/24", text, 1), 0, 0, 0, "")
    assert all(0x20 <= byte < 0x7F for byte in line)
    assert decode(line)["reason"] == text


def test_long_texts_are_cut() -> None:
    auth = Auth(1, "192.0.2.1", "x" * 30_000, "publickey", AuthResult.REFUSED, 1)
    auth = dataclasses.replace(auth, principals=("p" * 9000,) * 5000)
    found = decode(encode(auth, 0, 0, 0, ""))
    assert found["user"] == "x" * MAXIMUM_TEXT + "…"
    assert len(found["principals"]) == MAXIMUM_TEXTS + 1
    assert found["principals"][-1] == "… and 4936 more"
    assert len(encode(auth, 0, 0, 0, "")) < 64 * 1024


def test_a_big_certificate_serial_stays_exact() -> None:
    auth = Auth(
        1, "::1", "u", "publickey", AuthResult.ACCEPTED, 1, certificate_serial=str(2**64 - 1)
    )
    assert decode(encode(auth, 0, 0, 0, ""))["certificate_serial"] == "18446744073709551615"


@pytest.mark.parametrize(
    "line",
    [b"", b"\xff", b"[]", b"{}", b"null", b"[" * 100_000, b'{"v":2}', b'{"v":1,"seq":"1"}'],
)
def test_what_is_no_record_is_a_value_error(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"not JSON|schema version|no usable"):
        decode(line)


def test_times_are_utc_with_microseconds_across_a_second() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00.000000Z"
    assert rfc3339(999_999_999) == "1970-01-01T00:00:00.999999Z"
    assert rfc3339(1_000_000_000) == "1970-01-01T00:00:01.000000Z"


def test_hassh_of_a_published_client() -> None:
    """Cyberduck 6.7.1, from the README of https://github.com/salesforce/hassh."""
    kex = (
        "curve25519-sha256@libssh.org,diffie-hellman-group-exchange-sha256,ecdh-sha2-nistp521,"
        "ecdh-sha2-nistp384,ecdh-sha2-nistp256,diffie-hellman-group-exchange-sha1,"
        "diffie-hellman-group1-sha1,diffie-hellman-group14-sha1,diffie-hellman-group14-sha256,"
        "diffie-hellman-group15-sha512,diffie-hellman-group16-sha512,diffie-hellman-group17-sha512,"
        "diffie-hellman-group18-sha512,diffie-hellman-group14-sha256@ssh.com,"
        "diffie-hellman-group15-sha256,diffie-hellman-group15-sha256@ssh.com,"
        "diffie-hellman-group15-sha384@ssh.com,diffie-hellman-group16-sha256,"
        "diffie-hellman-group16-sha384@ssh.com,diffie-hellman-group16-sha512@ssh.com,"
        "diffie-hellman-group18-sha512@ssh.com"
    )
    ciphers = (
        "aes128-cbc,aes128-ctr,aes192-cbc,aes192-ctr,aes256-cbc,aes256-ctr,blowfish-cbc,"
        "blowfish-ctr,cast128-cbc,cast128-ctr,idea-cbc,idea-ctr,serpent128-cbc,serpent128-ctr,"
        "serpent192-cbc,serpent192-ctr,serpent256-cbc,serpent256-ctr,3des-cbc,3des-ctr,"
        "twofish128-cbc,twofish128-ctr,twofish192-cbc,twofish192-ctr,twofish256-cbc,"
        "twofish256-ctr,twofish-cbc,arcfour,arcfour128,arcfour256"
    )
    macs = "hmac-sha1,hmac-sha1-96,hmac-md5,hmac-md5-96,hmac-sha2-256,hmac-sha2-512"
    lists = [names.split(",") for names in (kex, ciphers, macs, "zlib@openssh.com,zlib,none")]
    assert hassh(*lists) == "8a8ae540028bf433cd68356c1b9e8d5b"


@pytest.mark.parametrize(
    ("address", "prefix"),
    [
        ("192.0.2.77", "192.0.2.0/24"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("nonsense\n", "nonsense\\n"),
    ],
)
def test_a_source_is_a_network(address: str, prefix: str) -> None:
    assert source_prefix(address) == prefix


def test_a_tally_is_bounded_and_begins_again() -> None:
    tally = Tally(maximum=3)
    for number in range(1000):
        tally.add(("noise", f"net {number}", "no version"))
    counts = tally.take()
    assert counts["noise", "others", ""] == 997
    assert len(counts) == 4
    assert not tally.take()


def test_who_is_a_stranger() -> None:
    accepted = Auth(1, "192.0.2.1", "u", "publickey", AuthResult.ACCEPTED, 1)
    refused = dataclasses.replace(accepted, result=AuthResult.REFUSED)
    assert (accepted.pre_auth, accepted.repeat_key) == (False, None)
    assert (refused.pre_auth, refused.repeat_key) == (True, ("auth", "192.0.2.0/24", "publickey"))
    gone = ConnClose(1, "192.0.2.1", "", 0, 1, 2, 0.5, "reset", Side.CLIENT)
    assert gone.pre_auth
    assert not dataclasses.replace(gone, user="alice").pre_auth
    assert Noise("192.0.2.0/24", "no version", 3).pre_auth
    denied = PolicyDecision(7, "alice", "db", "open", "alice", "x:1", allowed=False)
    assert denied.repeat_key == ("policy.decision", "connection 7", "db")
    assert dataclasses.replace(denied, allowed=True).repeat_key is None
    assert json.loads(encode(denied, 0, 0, 0, ""))["allowed"] is False
