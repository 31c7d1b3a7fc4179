"""Key revocation lists: OpenSSH's PROTOCOL.krl, as ``ssh-keygen -k`` writes them.

A list revokes plain keys, by themselves or by a hash of their blob, and the certificates of a CA,
or of every CA, by serial number or key ID. The verdicts are those of krl.c, is_key_revoked. What
cannot be understood makes the whole list unusable, for it may have said more; so do signatures, as
since OpenSSH 9.4. An extension that is not critical is passed over.

Numbers that a list holds are never looped over: a bitmap stays the one number that it is.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from gateway.errors import RemoteProtocolError, printable
from gateway.ssh.certificates import Certificate
from gateway.ssh.keys import (
    KeySizeError,
    PublicKey,
    UnsupportedKeyError,
    parse_public_key_untrusted,
)
from gateway.ssh.wire import Reader

MAGIC: Final = b"SSHKRL\n\0"
FORMAT_VERSION: Final = 1
MAXIMUM_SERIAL: Final = (1 << 64) - 1
SHA1_LENGTH: Final = 20
SHA256_LENGTH: Final = 32

# Our own choice.
MAXIMUM_KRL_BYTES: Final = 16 << 20


class Section(IntEnum):
    """PROTOCOL.krl §1: what a list consists of."""

    CERTIFICATES = 1
    EXPLICIT_KEY = 2
    FINGERPRINT_SHA1 = 3
    SIGNATURE = 4
    FINGERPRINT_SHA256 = 5
    EXTENSION = 255


class CertificateSection(IntEnum):
    """PROTOCOL.krl §2: what a section of certificates consists of."""

    SERIAL_LIST = 0x20
    SERIAL_RANGE = 0x21
    SERIAL_BITMAP = 0x22
    KEY_ID = 0x23
    EXTENSION = 0x39


@dataclass(slots=True)
class RevokedCertificates:
    """The certificates that one section revokes: of one CA, or of all where ``ca_blob`` is empty.

    A range is its first and its last number; a bitmap is the number of its first bit and the bits.
    """

    ca_blob: bytes
    serials: set[int] = field(default_factory=set)
    ranges: list[tuple[int, int]] = field(default_factory=list)
    bitmaps: list[tuple[int, int]] = field(default_factory=list)
    key_ids: set[str] = field(default_factory=set)

    def reason(self, certificate: Certificate) -> str:
        """Say by what a certificate is revoked; nothing if it is not."""
        if self.ca_blob and self.ca_blob != certificate.ca_key.blob:
            return ""
        if certificate.key_id in self.key_ids:
            return f"by its key ID {printable(certificate.key_id, 64)}"
        if self._has_serial(certificate.serial):
            return f"by its serial number {certificate.serial}"
        return ""

    def _has_serial(self, serial: int) -> bool:
        """A serial number of 0 is none: the CA did not choose one."""
        return serial != 0 and (
            serial in self.serials
            or any(first <= serial <= last for first, last in self.ranges)
            or any(first <= serial and bits >> serial - first & 1 for first, bits in self.bitmaps)
        )


@dataclass(slots=True)
class RevocationList:
    """A whole list."""

    keys: set[bytes] = field(default_factory=set)
    sha1: set[bytes] = field(default_factory=set)
    sha256: set[bytes] = field(default_factory=set)
    certificates: list[RevokedCertificates] = field(default_factory=list)

    def reason(self, key: PublicKey) -> str:
        """Say by what a key or certificate, the key inside, or its CA's is revoked; or nothing."""
        if not isinstance(key, Certificate):
            return self._reason_plain(key.blob)
        if reason := self._reason_plain(key.key.blob):
            return reason
        for section in self.certificates:
            if reason := section.reason(key):
                return reason
        if reason := self._reason_plain(key.ca_key.blob):
            return f"its CA {reason}"
        return ""

    def _reason_plain(self, blob: bytes) -> str:
        if blob in self.keys:
            return "by itself"
        if self.sha256 and hashlib.sha256(blob).digest() in self.sha256:
            return "by its SHA256 hash"
        if self.sha1 and hashlib.sha1(blob, usedforsecurity=False).digest() in self.sha1:
            return "by its SHA1 hash"
        return ""


def parse_krl_untrusted(data: bytes) -> RevocationList:
    """Return the list; `RemoteProtocolError` says why it cannot be used."""
    if len(data) > MAXIMUM_KRL_BYTES:
        raise RemoteProtocolError(f"it has more than {MAXIMUM_KRL_BYTES >> 20} MiB")
    reader = Reader(data)
    _header_untrusted(reader)
    found = RevocationList()
    while reader.remaining:
        _section_untrusted(reader.byte(), Reader(reader.string()), found)
    return found


def _header_untrusted(reader: Reader) -> None:
    """PROTOCOL.krl §1."""
    if reader.take(len(MAGIC)) != MAGIC:
        raise RemoteProtocolError("it does not begin as a key revocation list")
    if (version := reader.uint32()) != FORMAT_VERSION:
        raise RemoteProtocolError(f"its format has version {version}")
    for _ in ("krl_version", "generated_date", "flags"):
        reader.uint64()
    reader.string()  # reserved
    if b"\0" in reader.string():
        raise RemoteProtocolError("its comment has a NUL")


def _section_untrusted(number: int, section: Reader, found: RevocationList) -> None:
    match number:
        case Section.CERTIFICATES:
            found.certificates.append(_certificates_untrusted(section))
        case Section.EXPLICIT_KEY:
            found.keys.update(_strings_untrusted(section))
        case Section.FINGERPRINT_SHA1:
            found.sha1.update(_hashes_untrusted(section, SHA1_LENGTH))
        case Section.FINGERPRINT_SHA256:
            found.sha256.update(_hashes_untrusted(section, SHA256_LENGTH))
        case Section.EXTENSION:
            _extension_untrusted(section)
        case Section.SIGNATURE:
            raise RemoteProtocolError("it is signed, which OpenSSH does not support either")
        case _:
            raise RemoteProtocolError(f"it has a section of the unknown type {number}")


def _strings_untrusted(section: Reader) -> set[bytes]:
    found = set()
    while section.remaining:
        found.add(section.string())
    return found


def _hashes_untrusted(section: Reader, length: int) -> set[bytes]:
    found = _strings_untrusted(section)
    if any(len(digest) != length for digest in found):
        raise RemoteProtocolError(f"it has a hash of another length than {length} bytes")
    return found


def _certificates_untrusted(section: Reader) -> RevokedCertificates:
    """PROTOCOL.krl §2."""
    ca_blob = section.string()
    if ca_blob:
        _check_key_untrusted(ca_blob)
    section.string()  # reserved
    found = RevokedCertificates(ca_blob)
    while section.remaining:
        number = section.byte()
        part = Reader(section.string())
        _certificate_section_untrusted(number, part, found)
        part.end()
    return found


def _certificate_section_untrusted(number: int, part: Reader, found: RevokedCertificates) -> None:
    match number:
        case CertificateSection.SERIAL_LIST:
            while part.remaining:
                serial = part.uint64()
                _check_range_untrusted(serial, serial)
                found.serials.add(serial)
        case CertificateSection.SERIAL_RANGE:
            first, last = part.uint64(), part.uint64()
            _check_range_untrusted(first, last)
            found.ranges.append((first, last))
        case CertificateSection.SERIAL_BITMAP:
            first, bits = part.uint64(), part.mpint()
            if bits:
                lowest = first + (bits & -bits).bit_length() - 1
                _check_range_untrusted(lowest, first + bits.bit_length() - 1)
                found.bitmaps.append((first, bits))
        case CertificateSection.KEY_ID:
            while part.remaining:
                found.key_ids.add(_key_id_untrusted(part))
        case CertificateSection.EXTENSION:
            _extension_untrusted(part)
        case _:
            raise RemoteProtocolError(
                f"it has a section of certificates of the unknown type {number}"
            )


def _check_key_untrusted(blob: bytes) -> None:
    """Refuse a CA's key that is none; one of a type that we cannot use revokes nothing here."""
    with contextlib.suppress(UnsupportedKeyError, KeySizeError):
        parse_public_key_untrusted(blob)


def _check_range_untrusted(first: int, last: int) -> None:
    """Serial numbers, as krl.c has them: not 0, which is none, in order, and of 64 bits."""
    if not 0 < first <= last <= MAXIMUM_SERIAL:
        raise RemoteProtocolError(f"it revokes the serial numbers from {first} to {last}")


def _key_id_untrusted(part: Reader) -> str:
    """Read a key ID in the way that a certificate's is read."""
    key_id = part.loose_text()
    if "\0" in key_id:
        raise RemoteProtocolError("it has a key ID with a NUL")
    return key_id


def _extension_untrusted(section: Reader) -> None:
    """PROTOCOL.krl §2.5 and §5: we know none."""
    name = section.string()
    critical = section.boolean()
    section.string()
    section.end()
    if critical:
        shown = printable(name.decode("utf-8", "replace"), 64)
        raise RemoteProtocolError(f"it has the critical extension {shown}, which is not supported")
