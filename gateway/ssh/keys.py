"""Public and private keys and their signatures, of whatever kind (RFC 4253 §6.6).

The kinds are in `gateway.ssh.keytypes`. The name at the front of a blob is looked up before the
rest of it is read, so no parser ever sees another kind's fields. A certificate is no key here: its
name is one of a type that is not supported, and `gateway.ssh.certificates` reads it.

The end of the file holds the text form "type base64 comment" that known_hosts and authorized_keys
share. There only ASCII space and tab separate, and only "\\n" or "\\r\\n" ends a line: Python's own
``split`` and ``splitlines`` would also accept NBSP, U+2028 and others, which sshd takes for part of
a word.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from gateway.errors import ConfigError, LocalProtocolError, RemoteProtocolError, printable
from gateway.ssh.keytypes import (
    ED25519_KEY_LENGTH,
    KEY_TYPES,
    USER_PRESENT,
    USER_VERIFIED,
    Ed25519Signer,
    KeySizeError,
    PublicKeyError,
    SignatureError,
    UnsupportedKeyError,
    key_type_of,
    plain_name,
)
from gateway.ssh.wire import MAXIMUM_NAME_LENGTH, Reader, string

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gateway.ssh.keytypes import KeyType, Signer, Verifier

__all__ = [
    "KEY_TYPES",
    "MAXIMUM_BLOB_LENGTH",
    "KeySizeError",
    "PrivateKey",
    "PublicKey",
    "PublicKeyError",
    "SignatureError",
    "UnsupportedKeyError",
    "fingerprint",
    "key_type_of",
    "match_pattern",
    "numbered_lines",
    "parse_public_key_untrusted",
    "plain_name",
    "read_key_name",
    "read_key_text",
    "read_private_key_untrusted",
    "rsa_bits",
    "split_words",
]

# Our own choices.
MAXIMUM_BLOB_LENGTH: Final = 16384  # an RSA key of 16 384 bits has 2 KiB, a certificate a few more
MAXIMUM_TEXT_BYTES: Final = 16 << 20  # a known_hosts or authorized_keys file
MAXIMUM_TEXT_LINES: Final = 100_000


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key; equal when the blobs are equal."""

    algorithm: str
    blob: bytes
    _verifier: Verifier = field(repr=False, compare=False)

    @property
    def fingerprint(self) -> str:
        """The SHA-256 fingerprint as ssh prints it."""
        return fingerprint(self.blob)

    @property
    def signature_algorithms(self) -> tuple[str, ...]:
        """The signature algorithms that this key can be used with, the preferred one first."""
        return KEY_TYPES[self.algorithm].signature_algorithms

    def verify(
        self,
        signature_blob: bytes,
        data: bytes,
        algorithm: str | None = None,
        *,
        touch_required: bool = True,
        verification_required: bool = False,
    ) -> None:
        """Raise `SignatureError` unless ``signature_blob`` (RFC 4253 §6.6) signs ``data``.

        ``algorithm``, where one was negotiated or announced, is the only one that is accepted. The
        name inside the blob is never that of a certificate, whatever was negotiated. The last two
        are about security keys; others ignore them.
        """
        demanded_flags = touch_required * USER_PRESENT | verification_required * USER_VERIFIED
        accepted = self.signature_algorithms if algorithm is None else (algorithm,)
        try:
            fields = Reader(signature_blob)
            name = fields.string()
            for candidate in accepted:
                plain = plain_name(candidate)
                if name == plain.encode() and candidate in self.signature_algorithms:
                    if self._verifier.verify(plain, fields, data, demanded_flags):
                        return
                    raise SignatureError(f"a wrong {plain} signature")
        except SignatureError:
            raise
        except RemoteProtocolError as exc:
            raise SignatureError(f"a malformed signature: {exc}") from exc
        raise SignatureError(
            f"a signature of algorithm {printable(name, MAXIMUM_NAME_LENGTH)}"
            f" where {' or '.join(map(plain_name, accepted))} was due"
        )

    def openssh_text(self) -> str:
        """Return "type base64", as in a .pub file and without a comment."""
        return f"{self.algorithm} {base64.b64encode(self.blob).decode()}"


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A private key; its repr shows the public half only."""

    public: PublicKey
    _signer: Signer = field(repr=False, compare=False)
    comment: str = field(default="", compare=False)

    @classmethod
    def generate(cls, randbytes: Callable[[int], bytes]) -> Self:
        """Make a new ed25519 key from 32 random bytes."""
        return cls.from_signer("ssh-ed25519", Ed25519Signer(randbytes(ED25519_KEY_LENGTH)))

    @classmethod
    def from_signer(cls, algorithm: str, signer: Signer, comment: str = "") -> Self:
        """Return the key whose private half is ``signer``."""
        blob = string(algorithm.encode()) + signer.public_fields()
        return cls(parse_public_key_untrusted(blob), signer, comment)

    def sign(self, data: bytes, algorithm: str) -> bytes:
        """Return a signature blob over ``data`` (RFC 4253 §6.6).

        ``algorithm`` is one of ``public.signature_algorithms``, with a certificate one of its.
        """
        if algorithm not in self.public.signature_algorithms:
            raise LocalProtocolError(
                f"{algorithm} cannot be made with a {self.public.algorithm} key"
            )
        plain = plain_name(algorithm)
        return string(plain.encode()) + string(self._signer.sign(plain, data))

    def private_section(self) -> bytes:
        """Return type name and secret fields as PROTOCOL.key and the agent protocol want them."""
        return string(plain_name(self.public.algorithm).encode()) + self._signer.private_fields()


def rsa_bits(key: PublicKey) -> int | None:
    """Return the size of an RSA key; None for another type (RFC 4253 §6.6: e, then n)."""
    if key.algorithm != "ssh-rsa":
        return None
    fields = Reader(key.blob)
    fields.string()
    fields.mpint()
    return fields.mpint().bit_length()


def fingerprint(blob: bytes) -> str:
    """Return "SHA256:…" of a public key blob, base64 without padding, as OpenSSH's sshkey.c."""
    digest = base64.b64encode(hashlib.sha256(blob).digest())
    return "SHA256:" + digest.decode().rstrip("=")


def parse_public_key_untrusted(blob: bytes) -> PublicKey:
    """Return the key in ``blob`` (RFC 4253 §6.6).

    `UnsupportedKeyError` if it is of another type, or a certificate; `KeySizeError` if it is too
    short or too long; `PublicKeyError` if it is malformed.
    """
    if len(blob) > MAXIMUM_BLOB_LENGTH:
        raise PublicKeyError(f"a public key of {len(blob)} bytes")
    fields = Reader(blob)
    kind = _read_key_type(fields)
    try:
        verifier = kind.parse_public(fields)
        fields.end()
    except KeySizeError:
        raise
    except RemoteProtocolError as exc:
        raise PublicKeyError(f"a malformed {kind.name} key: {exc}", kind.name) from exc
    return PublicKey(kind.name, blob, verifier)


def read_private_key_untrusted(fields: Reader) -> PrivateKey:
    """Take one private key, type name first, from the private section of PROTOCOL.key.

    The same errors as for a public key; what follows the key is left to the caller.
    """
    kind = _read_key_type(fields)
    if kind.parse_private is None:
        raise UnsupportedKeyError(f"{kind.name} keys never leave their device", kind.name)
    try:
        signer = kind.parse_private(fields)
    except KeySizeError:
        raise
    except RemoteProtocolError as exc:
        raise PublicKeyError(f"a malformed {kind.name} private key: {exc}", kind.name) from exc
    return PrivateKey.from_signer(kind.name, signer)


def _read_key_type(fields: Reader) -> KeyType:
    name = read_key_name(fields)
    kind = KEY_TYPES.get(name)
    if kind is None:
        raise UnsupportedKeyError(f"keys of type {name} are not supported", name)
    return kind


def read_key_name(fields: Reader) -> str:
    """Take the name at the front of a blob, so checked that it can be shown (RFC 4251 §6)."""
    try:
        data = fields.string()
    except RemoteProtocolError as exc:
        raise PublicKeyError(f"a key without a type: {exc}") from exc
    name = data.decode("latin-1")
    is_name = name.isascii() and name.isprintable() and " " not in name
    if not is_name or not 0 < len(name) <= MAXIMUM_NAME_LENGTH:
        raise PublicKeyError(f"a key whose type is no name: {printable(data, 64)}")
    return name


# ---- the text form -----------------------------------------------------------

_BLANKS: Final = re.compile(r"[ \t]+")


def split_words(text: str, maximum_words: int) -> list[str]:
    """Split at ASCII space and tab only; the last word keeps its blanks, "" gives no word."""
    text = text.strip(" \t")
    return _BLANKS.split(text, maxsplit=maximum_words - 1) if text else []


def match_pattern(text: str, pattern: str) -> bool:
    """Match ``*`` and ``?`` as match.c does, but in time bounded by the product of the lengths."""
    if "*" not in pattern and "?" not in pattern:
        return text == pattern
    at = star = 0
    after_star = -1  # where to go on in the pattern, and in the text from `star`
    in_pattern = 0
    while at < len(text):
        if in_pattern < len(pattern) and pattern[in_pattern] == "*":
            in_pattern += 1
            after_star, star = in_pattern, at
        elif in_pattern < len(pattern) and pattern[in_pattern] in ("?", text[at]):
            in_pattern += 1
            at += 1
        elif after_star >= 0:
            star += 1
            in_pattern, at = after_star, star
        else:
            return False
    return not pattern[in_pattern:].strip("*")


def read_key_text(text: str) -> tuple[str, bytes, str]:
    """Split "type base64 comment" into type, blob and comment; the blob is of that type.

    Works for types that we do not support too. `PublicKeyError` says what is wrong otherwise.
    """
    words = split_words(text, 3)
    if len(words) < 2:
        raise PublicKeyError("the line ends before the key")
    label, encoded = words[0], words[1]
    try:
        blob = base64.b64decode(encoded, validate=True)
    except ValueError:
        blob = b""
    if not blob or base64.b64encode(blob).decode() != encoded or len(blob) > MAXIMUM_BLOB_LENGTH:
        raise PublicKeyError("the key is not well-formed base64")
    name = read_key_name(Reader(blob))
    if name != label:
        raise PublicKeyError(f"the line says {printable(label, 64)}, but the key is of type {name}")
    return name, blob, words[2] if len(words) == 3 else ""


def numbered_lines(text: str | bytes, where: str) -> Iterator[tuple[int, str]]:
    """Yield each line with its number from 1; `ConfigError` if there are too many of them."""
    if len(text) > MAXIMUM_TEXT_BYTES:
        raise ConfigError(f"the file has more than {MAXIMUM_TEXT_BYTES >> 20} MiB", where=where)
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    if text.count("\n") > MAXIMUM_TEXT_LINES:
        raise ConfigError(f"the file has more than {MAXIMUM_TEXT_LINES} lines", where=where)
    for number, line in enumerate(text.split("\n"), start=1):
        yield number, line.removesuffix("\r")
