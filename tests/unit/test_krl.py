"""Key revocation lists that ssh-keygen does not make: what must be refused, and what passed over.

tests/interop/test_krl.py has those that it makes.
"""

import hashlib

import pytest

from gateway.errors import RemoteProtocolError
from gateway.ssh import krl
from gateway.ssh.certificates import parse_certificate_untrusted
from gateway.ssh.krl import CertificateSection as Part
from gateway.ssh.krl import Section, parse_krl_untrusted
from gateway.ssh.wire import boolean, mpint, string, uint32, uint64
from tests.support.keys import a_certificate, a_private_key

KEY, CA = a_private_key("ssh-ed25519").public, a_private_key("ssh-ed25519", "c")
CERTIFICATE = parse_certificate_untrusted(a_certificate(KEY, CA, key_id=b"\xffid"))
MOST = (1 << 64) - 1


def header(version=1, comment=b"a comment"):
    return krl.MAGIC + uint32(version) + bytes(24) + string(b"reserved") + string(comment)


def section(number, *content):
    return bytes((number,)) + string(b"".join(content))


def certificates(*parts, ca=CA.public.blob):
    return section(Section.CERTIFICATES, string(ca), string(b"reserved"), *parts)


def extension(number, *, critical, more=b""):
    return section(number, string(b"x@example.com"), boolean(critical), string(b"content"), more)


def bitmap(first, bits):
    return section(Part.SERIAL_BITMAP, uint64(first), mpint(bits))


SHA1 = hashlib.sha1(KEY.blob, usedforsecurity=False).digest()
REVOKING = {
    "by itself": section(Section.EXPLICIT_KEY, string(b""), string(KEY.blob)),
    "by its SHA1 hash": section(Section.FINGERPRINT_SHA1, string(SHA1)),
    "by its SHA256 hash": section(
        Section.FINGERPRINT_SHA256, string(hashlib.sha256(KEY.blob).digest())
    ),
}
REVOKING_CERTIFICATES = {
    "list": section(Part.SERIAL_LIST, uint64(1), uint64(7)),
    "range": section(Part.SERIAL_RANGE, uint64(6), uint64(7)),
    "bitmap": bitmap(4, 0b1000),
    "key ID": section(Part.KEY_ID, string(b"other"), string(b"\xffid")),
}


@pytest.mark.parametrize("reason", REVOKING)
def test_keys(reason):
    found = parse_krl_untrusted(header() + REVOKING[reason])
    assert found.reason(KEY) == found.reason(CERTIFICATE) == reason
    assert not found.reason(CA.public)


@pytest.mark.parametrize("kind", REVOKING_CERTIFICATES)
def test_certificates(kind):
    part = REVOKING_CERTIFICATES[kind]
    for ca, revoked in ((CA.public.blob, True), (b"", True), (KEY.blob, False)):
        found = parse_krl_untrusted(header() + certificates(part, ca=ca))
        assert bool(found.reason(CERTIFICATE)) == revoked
        assert not found.reason(KEY)
        assert not found.reason(CA.public)


def test_the_key_of_a_ca():
    listed = section(Section.EXPLICIT_KEY, string(CA.public.blob))
    assert parse_krl_untrusted(header() + listed).reason(CERTIFICATE) == "its CA by itself"


@pytest.mark.parametrize(
    ("part", "revoked"),
    [
        (section(Part.SERIAL_RANGE, uint64(8), uint64(MOST)), False),
        (section(Part.SERIAL_RANGE, uint64(1), uint64(6)), False),
        (bitmap(8, 0b1), False),
        (bitmap(0, 0b10000000), True),
        (bitmap(6, 0b01), False),
        (bitmap(7, 0), False),
        (bitmap(MOST, 1), False),
    ],
)
def test_serial_numbers_at_the_edges(part, revoked):
    found = parse_krl_untrusted(header() + certificates(part))
    assert bool(found.reason(CERTIFICATE)) == revoked


def test_a_certificate_without_a_serial_number_has_no_number_at_all():
    unnumbered = parse_certificate_untrusted(a_certificate(KEY, CA, serial=0))
    every = section(Part.SERIAL_RANGE, uint64(1), uint64(MOST))
    found = parse_krl_untrusted(header() + certificates(every, bitmap(1, 1)))
    assert found.reason(CERTIFICATE)
    assert not found.reason(unnumbered)


def test_what_is_not_critical_is_passed_over():
    text = (
        header()
        + extension(Section.EXTENSION, critical=False)
        + certificates(extension(Part.EXTENSION, critical=False), REVOKING_CERTIFICATES["list"])
    )
    assert parse_krl_untrusted(text).reason(CERTIFICATE) == "by its serial number 7"


def test_a_ca_of_a_type_that_we_cannot_use():
    found = parse_krl_untrusted(
        header() + certificates(REVOKING_CERTIFICATES["list"], ca=string(b"ssh-dss") + b"rest")
    )
    assert not found.reason(CERTIFICATE)


UNUSABLE = {
    "begin": b"SSHKRL\n\1",
    "version 2": header(version=2),
    "a NUL": header(comment=b"\0"),
    "x@example.com": header() + extension(Section.EXTENSION, critical=True),
    "critical extension": header()
    + certificates(extension(Part.EXTENSION, critical=True), REVOKING_CERTIFICATES["list"]),
    "after the last": header() + extension(Section.EXTENSION, critical=False, more=b"!"),
    "unknown type 6": header() + section(6),
    "unknown type 48": header() + certificates(section(0x30)),
    "signed": header() + section(Section.SIGNATURE, b"key") + string(b"signature"),
    "another length than 20": header() + section(Section.FINGERPRINT_SHA1, string(bytes(32))),
    "another length than 32": header() + section(Section.FINGERPRINT_SHA256, string(bytes(20))),
    "from 0 to 0": header() + certificates(section(Part.SERIAL_LIST, uint64(0))),
    "from 0 to 9": header() + certificates(section(Part.SERIAL_RANGE, uint64(0), uint64(9))),
    "from 9 to 8": header() + certificates(section(Part.SERIAL_RANGE, uint64(9), uint64(8))),
    "from 0 to 1": header() + certificates(bitmap(0, 0b11)),
    f"to {MOST + 1}": header() + certificates(bitmap(MOST, 0b10)),
    "bytes after": header() + certificates(section(Part.SERIAL_RANGE, uint64(1), uint64(2), b"!")),
    "negative": header() + certificates(section(Part.SERIAL_BITMAP, bytes(8), string(b"\x80"))),
    "mpint of 4096": header()
    + certificates(section(Part.SERIAL_BITMAP, bytes(8), string(b"\1" * 4096))),
    "key ID with a NUL": header() + certificates(section(Part.KEY_ID, string(b"\0"))),
    "bytes left": header() + certificates(ca=string(b"ssh-ed25519") + string(b"!")[:-1]),
    "16 MiB": header() + bytes(krl.MAXIMUM_KRL_BYTES),
}


@pytest.mark.parametrize("reason", UNUSABLE)
def test_a_list_that_cannot_be_used(reason):
    with pytest.raises(RemoteProtocolError) as caught:
        parse_krl_untrusted(UNUSABLE[reason])
    assert reason in str(caught.value)
    assert str(caught.value).isprintable()


EVERYTHING = (
    header()
    + extension(Section.EXTENSION, critical=False)
    + b"".join(REVOKING.values())
    + certificates(
        *REVOKING_CERTIFICATES.values(),
        extension(Part.EXTENSION, critical=False),
        ca=CA.public.blob,
    )
    + certificates(*REVOKING_CERTIFICATES.values(), ca=b"")
)


def verdict(data):
    """What it says of each key, or None where the list cannot be used."""
    try:
        found = parse_krl_untrusted(data)
    except RemoteProtocolError:
        return None
    return tuple(map(found.reason, (KEY, CERTIFICATE, CA.public)))


def test_a_list_that_is_cut_off():
    """Only between two sections a list may end."""
    usable = [n for n in range(len(EVERYTHING)) if verdict(EVERYTHING[:n]) is not None]
    assert usable[0] == len(header())
    assert len(usable) == 1 + 1 + len(REVOKING) + 1  # the sections before which it was cut


def test_every_bit_flipped():
    """A verdict or our error and nothing else."""
    for at in range(len(EVERYTHING)):
        for bit in range(8):
            changed = bytearray(EVERYTHING)
            changed[at] ^= 1 << bit
            if at < len(krl.MAGIC) + 4:  # and the version
                assert verdict(bytes(changed)) is None
            else:
                verdict(bytes(changed))
