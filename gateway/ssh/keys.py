"""Public and private keys: RFC 4253 §6.6 in general, RFC 8709 for ed25519.

`KEY_TYPES` is the one place that knows which kinds of key exist. A new kind is a parser for each
half and an entry there; nothing else in this file or above it asks "is it ed25519?". The name at
the front of a blob is looked up before the rest of it is read, so no parser ever sees another
kind's fields.

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
from typing import TYPE_CHECKING, Final, Protocol, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from gateway.errors import ConfigError, LocalProtocolError, RemoteProtocolError, printable
from gateway.ssh.wire import MAXIMUM_NAME_LENGTH, Reader, string

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# From the specifications.
ED25519_KEY_LENGTH: Final = 32  # RFC 8032 §5.1.5
ED25519_SIGNATURE_LENGTH: Final = 64  # RFC 8032 §5.1.6

# Our own choices.
MAXIMUM_BLOB_LENGTH: Final = 16384  # an RSA key of 16 384 bits has 2 KiB, a certificate a few more
MAXIMUM_TEXT_BYTES: Final = 16 << 20  # a known_hosts or authorized_keys file
MAXIMUM_TEXT_LINES: Final = 100_000


class PublicKeyError(RemoteProtocolError):
    """A public key cannot be used: one attempt or one line fails, the link need not.

    ``algorithm`` is the key type where it could be read, safe to print.
    """

    def __init__(self, message: str, algorithm: str = "") -> None:
        super().__init__(message)
        self.algorithm = algorithm


class UnsupportedKeyError(PublicKeyError):
    """The key may be right, but it is of a type that is not in `KEY_TYPES`."""


class SignatureError(RemoteProtocolError):
    """A signature is malformed, of the wrong algorithm, or was not made with this key."""


class Verifier(Protocol):
    """The public half of one kind of key."""

    def verify(self, algorithm: str, signature: bytes, data: bytes) -> bool:
        """Say whether ``signature`` (without its wrapping) over ``data`` is right."""


class Signer(Protocol):
    """The private half of one kind of key."""

    def sign(self, algorithm: str, data: bytes) -> bytes:
        """Return a signature without its wrapping."""

    def public_fields(self) -> bytes:
        """Return what follows the type name in the public blob."""

    def private_fields(self) -> bytes:
        """Return what follows the type name in the private section of PROTOCOL.key."""


@dataclass(frozen=True, slots=True)
class KeyType:
    """One kind of key; both parsers start behind the type name."""

    name: str
    signature_algorithms: tuple[str, ...]
    parse_public: Callable[[Reader], Verifier]
    parse_private: Callable[[Reader], Signer]


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

    def verify(self, signature_blob: bytes, data: bytes, algorithm: str | None = None) -> None:
        """Raise `SignatureError` unless ``signature_blob`` (RFC 4253 §6.6) signs ``data``.

        ``algorithm``, where one was negotiated or announced, is the only one that is accepted.
        """
        try:
            fields = Reader(signature_blob)
            name = fields.string()
            signature = fields.string()
            fields.end()
        except RemoteProtocolError as exc:
            raise SignatureError(f"a malformed signature: {exc}") from exc
        accepted = self.signature_algorithms if algorithm is None else (algorithm,)
        for candidate in accepted:
            if name == candidate.encode() and candidate in self.signature_algorithms:
                if self._verifier.verify(candidate, signature, data):
                    return
                raise SignatureError(f"a wrong {candidate} signature")
        raise SignatureError(
            f"a signature of algorithm {printable(name, MAXIMUM_NAME_LENGTH)}"
            f" where {' or '.join(accepted)} was due"
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
        return cls.from_signer("ssh-ed25519", _Ed25519Signer(randbytes(ED25519_KEY_LENGTH)))

    @classmethod
    def from_signer(cls, algorithm: str, signer: Signer, comment: str = "") -> Self:
        """Return the key whose private half is ``signer``."""
        blob = string(algorithm.encode()) + signer.public_fields()
        return cls(parse_public_key_untrusted(blob), signer, comment)

    def sign(self, data: bytes, algorithm: str) -> bytes:
        """Return a signature blob over ``data`` (RFC 4253 §6.6)."""
        if algorithm not in self.public.signature_algorithms:
            raise LocalProtocolError(
                f"{algorithm} cannot be made with a {self.public.algorithm} key"
            )
        return string(algorithm.encode()) + string(self._signer.sign(algorithm, data))

    def private_section(self) -> bytes:
        """Return type name and secret fields as PROTOCOL.key and the agent protocol want them."""
        return string(self.public.algorithm.encode()) + self._signer.private_fields()


def fingerprint(blob: bytes) -> str:
    """Return "SHA256:…" of a public key blob, base64 without padding, as OpenSSH's sshkey.c."""
    digest = base64.b64encode(hashlib.sha256(blob).digest())
    return "SHA256:" + digest.decode().rstrip("=")


def parse_public_key_untrusted(blob: bytes) -> PublicKey:
    """Return the key in ``blob`` (RFC 4253 §6.6).

    `UnsupportedKeyError` if it is of another type, `PublicKeyError` if it is malformed.
    """
    if len(blob) > MAXIMUM_BLOB_LENGTH:
        raise PublicKeyError(f"a public key of {len(blob)} bytes")
    fields = Reader(blob)
    kind = _read_key_type(fields)
    try:
        verifier = kind.parse_public(fields)
        fields.end()
    except RemoteProtocolError as exc:
        raise PublicKeyError(f"a malformed {kind.name} key: {exc}", kind.name) from exc
    return PublicKey(kind.name, blob, verifier)


def read_private_key_untrusted(fields: Reader) -> PrivateKey:
    """Take one private key, type name first, from the private section of PROTOCOL.key.

    The same errors as for a public key; what follows the key is left to the caller.
    """
    kind = _read_key_type(fields)
    try:
        signer = kind.parse_private(fields)
    except RemoteProtocolError as exc:
        raise PublicKeyError(f"a malformed {kind.name} private key: {exc}", kind.name) from exc
    return PrivateKey.from_signer(kind.name, signer)


def _read_key_type(fields: Reader) -> KeyType:
    name = _read_type_name(fields)
    kind = KEY_TYPES.get(name)
    if kind is None:
        raise UnsupportedKeyError(f"keys of type {name} are not supported", name)
    return kind


def _read_type_name(fields: Reader) -> str:
    """Return the name at the front of a blob, so checked that it can be shown (RFC 4251 §6)."""
    try:
        name = fields.string()
    except RemoteProtocolError as exc:
        raise PublicKeyError(f"a key without a type: {exc}") from exc
    if not 0 < len(name) <= MAXIMUM_NAME_LENGTH or not all(0x20 < byte < 0x7F for byte in name):
        raise PublicKeyError(f"a key whose type is no name: {printable(name, 64)}")
    return name.decode("ascii")


# ---- ed25519, RFC 8709 -------------------------------------------------------


class _Ed25519Verifier:
    __slots__ = ("_key",)

    def __init__(self, public_bytes: bytes) -> None:
        if len(public_bytes) != ED25519_KEY_LENGTH:
            raise PublicKeyError(f"{len(public_bytes)} bytes instead of {ED25519_KEY_LENGTH}")
        try:
            self._key = Ed25519PublicKey.from_public_bytes(public_bytes)
        except ValueError as exc:
            raise PublicKeyError("no point of the curve") from exc

    def verify(self, algorithm: str, signature: bytes, data: bytes) -> bool:  # noqa: ARG002 - one only
        if len(signature) != ED25519_SIGNATURE_LENGTH:
            return False
        try:
            self._key.verify(signature, data)
        except InvalidSignature:
            return False
        return True


class _Ed25519Signer:
    __slots__ = ("_key", "_public_bytes", "_seed")

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self._public_bytes = self._key.public_key().public_bytes_raw()

    def sign(self, algorithm: str, data: bytes) -> bytes:  # noqa: ARG002 - there is only one
        return self._key.sign(data)

    def public_fields(self) -> bytes:
        return string(self._public_bytes)

    def private_fields(self) -> bytes:
        return string(self._public_bytes) + string(self._seed + self._public_bytes)


def _parse_ed25519_public(fields: Reader) -> Verifier:
    return _Ed25519Verifier(fields.string())


def _parse_ed25519_private(fields: Reader) -> Signer:
    """RFC 8709 says nothing here; PROTOCOL.key: string public, string seed with public again."""
    public_bytes = fields.string()
    secret = fields.string()
    if len(secret) != 2 * ED25519_KEY_LENGTH:
        raise PublicKeyError(f"a secret of {len(secret)} bytes instead of {2 * ED25519_KEY_LENGTH}")
    signer = _Ed25519Signer(secret[:ED25519_KEY_LENGTH])
    if signer.private_fields() != string(public_bytes) + string(secret):
        raise PublicKeyError("the public half does not belong to the private half")
    return signer


KEY_TYPES: Final[Mapping[str, KeyType]] = {
    kind.name: kind
    for kind in (
        KeyType("ssh-ed25519", ("ssh-ed25519",), _parse_ed25519_public, _parse_ed25519_private),
    )
}

_TYPE_OF_SIGNATURE: Final[Mapping[str, str]] = {
    algorithm: kind.name for kind in KEY_TYPES.values() for algorithm in kind.signature_algorithms
}


def key_type_of(signature_algorithm: str) -> str:
    """Return the key type that makes these signatures; a name we do not know stands for itself."""
    return _TYPE_OF_SIGNATURE.get(signature_algorithm, signature_algorithm)


# ---- the text form -----------------------------------------------------------

_BLANKS: Final = re.compile(r"[ \t]+")


def split_words(text: str, maximum_words: int) -> list[str]:
    """Split at ASCII space and tab only; the last word keeps its blanks, "" gives no word."""
    text = text.strip(" \t")
    return _BLANKS.split(text, maxsplit=maximum_words - 1) if text else []


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
    name = _read_type_name(Reader(blob))
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
