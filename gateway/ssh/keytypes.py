"""The kinds of key, each with its parsers, its signature algorithms and its limits.

`KEY_TYPES` is the one place that knows which kinds exist. A new kind is a parser for each half and
an entry there; nothing else in this file or above it asks "is it ed25519?". The kinds are those of
RFC 8709 (ed25519), RFC 5656 (ecdsa), RFC 8332 (rsa; SHA-1 is not among its algorithms) and of
OpenSSH's PROTOCOL.u2f (sk-: keys in a security key; we verify their signatures, an agent makes
them).

Everything about a key that can make it slow or wrong is looked at before anything is computed with
it: the curve must be the one of the name, a point must be on it, an RSA key has its limits.

The private halves are laid out as PROTOCOL.key and the agent protocol have them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from cryptography.exceptions import InternalError, InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from gateway.errors import ConfigError, RemoteProtocolError
from gateway.ssh.wire import Reader, mpint, string

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# From the specifications.
ED25519_KEY_LENGTH: Final = 32  # RFC 8032 §5.1.5
ED25519_SIGNATURE_LENGTH: Final = 64  # RFC 8032 §5.1.6
USER_PRESENT: Final = 0x01  # PROTOCOL.u2f, flags of a signature: somebody touched it
USER_VERIFIED: Final = 0x04  # … and gave a PIN or a finger
UNCOMPRESSED_POINT: Final = b"\x04"  # SEC 1 §2.3.3; no other form is accepted, as OpenSSH
MAXIMUM_RSA_BITS: Final = 16384  # as OpenSSH, SSHBUF_MAX_BIGNUM

# Our own choices.
MINIMUM_RSA_BITS: Final = 2048
MAXIMUM_RSA_EXPONENT_BITS: Final = 64  # as OpenSSL's OPENSSL_RSA_MAX_PUBEXP_BITS, at every size


class PublicKeyError(RemoteProtocolError):
    """A public key cannot be used: one attempt or one line fails, the link need not.

    ``algorithm`` is the key type where it could be read, safe to print.
    """

    def __init__(self, message: str, algorithm: str = "") -> None:
        super().__init__(message)
        self.algorithm = algorithm


class UnsupportedKeyError(PublicKeyError):
    """The key may be right, but it is of a type that is not in `KEY_TYPES`."""


class KeySizeError(PublicKeyError):
    """The key is well-formed, but too short to be safe or too long to be computed with."""


class SignatureError(RemoteProtocolError):
    """A signature is malformed, of the wrong algorithm, or was not made with this key."""


class Verifier(Protocol):
    """The public half of one kind of key."""

    def verify(self, algorithm: str, fields: Reader, data: bytes, demanded_flags: int) -> bool:
        """Say whether the signature in ``fields``, which stand behind its name, signs ``data``.

        ``demanded_flags`` are what a security key must have been told by a person; it raises
        `SignatureError` where they are not set, and all other kinds ignore them.
        """


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
    """One kind of key; both parsers start behind the type name.

    ``parse_private`` is None for a kind whose private half no file holds.
    """

    name: str
    signature_algorithms: tuple[str, ...]  # the preferred one first
    parse_public: Callable[[Reader], Verifier]
    parse_private: Callable[[Reader], Signer] | None


def _only_signature(fields: Reader) -> bytes:
    signature = fields.string()
    fields.end()
    return signature


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

    def verify(self, algorithm: str, fields: Reader, data: bytes, demanded_flags: int) -> bool:  # noqa: ARG002 - one only
        return self.check(_only_signature(fields), data)

    def check(self, signature: bytes, data: bytes) -> bool:
        if len(signature) != ED25519_SIGNATURE_LENGTH:
            return False
        try:
            self._key.verify(signature, data)
        except InvalidSignature:
            return False
        return True


class Ed25519Signer:
    """The private half of an ed25519 key, from its 32 random bytes."""

    __slots__ = ("_key", "_public_bytes", "_seed")

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self._public_bytes = self._key.public_key().public_bytes_raw()

    def sign(self, algorithm: str, data: bytes) -> bytes:  # noqa: ARG002 - there is only one
        """Return the 64 bytes of RFC 8032."""
        return self._key.sign(data)

    def public_fields(self) -> bytes:
        """Return the public key."""
        return string(self._public_bytes)

    def private_fields(self) -> bytes:
        """Return public key, and seed with public key again."""
        return string(self._public_bytes) + string(self._seed + self._public_bytes)


def _parse_ed25519_public(fields: Reader) -> Verifier:
    return _Ed25519Verifier(fields.string())


def _parse_ed25519_private(fields: Reader) -> Signer:
    """RFC 8709 says nothing here; PROTOCOL.key: string public, string seed with public again."""
    public_bytes = fields.string()
    secret = fields.string()
    if len(secret) != 2 * ED25519_KEY_LENGTH:
        raise PublicKeyError(f"a secret of {len(secret)} bytes instead of {2 * ED25519_KEY_LENGTH}")
    signer = Ed25519Signer(secret[:ED25519_KEY_LENGTH])
    if signer.private_fields() != string(public_bytes) + string(secret):
        raise PublicKeyError("the public half does not belong to the private half")
    return signer


# ---- ecdsa, RFC 5656 §3 ------------------------------------------------------


def encode_point(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return a point in uncompressed form (SEC 1 §2.3.3)."""
    numbers, size = key.public_numbers(), (key.curve.key_size + 7) // 8
    return UNCOMPRESSED_POINT + numbers.x.to_bytes(size, "big") + numbers.y.to_bytes(size, "big")


@dataclass(frozen=True, slots=True)
class _Curve:
    name: str  # RFC 5656 §10.1
    curve: ec.EllipticCurve
    hash: hashes.HashAlgorithm  # RFC 5656 §6.2.1

    @property
    def algorithm(self) -> str:
        return f"ecdsa-sha2-{self.name}"

    @property
    def point_length(self) -> int:
        return 1 + 2 * ((self.curve.key_size + 7) // 8)


_NISTP256: Final = _Curve("nistp256", ec.SECP256R1(), hashes.SHA256())
_CURVES: Final = (
    _NISTP256,
    _Curve("nistp384", ec.SECP384R1(), hashes.SHA384()),
    _Curve("nistp521", ec.SECP521R1(), hashes.SHA512()),
)


class _EcdsaVerifier:
    __slots__ = ("_curve", "_key")

    def __init__(self, curve: _Curve, point: bytes) -> None:
        self._curve = curve
        if len(point) != curve.point_length or not point.startswith(UNCOMPRESSED_POINT):
            raise PublicKeyError(f"no uncompressed point of {curve.name}: {len(point)} bytes")
        try:
            self._key = ec.EllipticCurvePublicKey.from_encoded_point(curve.curve, point)
        except ValueError as exc:
            raise PublicKeyError(f"no point of {curve.name}") from exc

    def verify(self, algorithm: str, fields: Reader, data: bytes, demanded_flags: int) -> bool:  # noqa: ARG002 - one only
        return self.check(_only_signature(fields), data)

    def check(self, signature: bytes, data: bytes) -> bool:
        """RFC 5656 §3.1.2: the signature is mpint r, mpint s."""
        fields = Reader(signature)
        r, s = fields.mpint(), fields.mpint()
        fields.end()
        try:
            self._key.verify(encode_dss_signature(r, s), data, ec.ECDSA(self._curve.hash))
        except InvalidSignature:
            return False
        return True


class _EcdsaSigner:
    __slots__ = ("_curve", "_key", "_point", "_secret")

    def __init__(self, curve: _Curve, secret: int) -> None:
        self._curve = curve
        self._secret = secret
        try:
            self._key = ec.derive_private_key(secret, curve.curve)
        except ValueError as exc:
            raise PublicKeyError(f"the secret is not a number of {curve.name}") from exc
        self._point = encode_point(self._key.public_key())

    def sign(self, algorithm: str, data: bytes) -> bytes:  # noqa: ARG002 - one for each curve
        """The nonce is the library's: a home-made one gave keys away (CVE-2024-31497)."""
        r, s = decode_dss_signature(self._key.sign(data, ec.ECDSA(self._curve.hash)))
        return mpint(r) + mpint(s)

    def public_fields(self) -> bytes:
        return string(self._curve.name.encode()) + string(self._point)

    def private_fields(self) -> bytes:
        return self.public_fields() + mpint(self._secret)


def _read_curve(fields: Reader, curve: _Curve) -> None:
    """The curve stands in the blob twice; the key is of the one that its name says."""
    if fields.string() != curve.name.encode():
        raise PublicKeyError(f"its curve is not {curve.name}")


def _ecdsa_type(curve: _Curve) -> KeyType:
    def parse_public(fields: Reader) -> Verifier:
        _read_curve(fields, curve)
        return _EcdsaVerifier(curve, fields.string())

    def parse_private(fields: Reader) -> Signer:
        _read_curve(fields, curve)
        point = fields.string()
        signer = _EcdsaSigner(curve, fields.mpint())
        if signer.public_fields() != string(curve.name.encode()) + string(point):
            raise PublicKeyError("the public half does not belong to the private half")
        return signer

    return KeyType(curve.algorithm, (curve.algorithm,), parse_public, parse_private)


# ---- rsa, RFC 8332 -----------------------------------------------------------

_RSA_HASHES: Final[Mapping[str, hashes.HashAlgorithm]] = {
    "rsa-sha2-512": hashes.SHA512(),
    "rsa-sha2-256": hashes.SHA256(),
}


class _RsaVerifier:
    __slots__ = ("_key", "_length")

    def __init__(self, e: int, n: int) -> None:
        _check_rsa_numbers(e, n)
        self._length = (n.bit_length() + 7) // 8
        try:
            self._key = rsa.RSAPublicNumbers(e, n).public_key()
        except ValueError as exc:
            raise PublicKeyError("no RSA key") from exc

    def verify(self, algorithm: str, fields: Reader, data: bytes, demanded_flags: int) -> bool:  # noqa: ARG002 - no flags
        return self.check(algorithm, _only_signature(fields), data)

    def check(self, algorithm: str, signature: bytes, data: bytes) -> bool:
        """A signature without its leading zeros is accepted, as in OpenSSH's ssh-rsa.c."""
        if len(signature) > self._length:
            return False
        signature = signature.rjust(self._length, b"\0")
        try:
            self._key.verify(signature, data, PKCS1v15(), _RSA_HASHES[algorithm])
        except InvalidSignature:
            return False
        return True


def _check_rsa_numbers(e: int, n: int) -> None:
    """Refuse what would be unsafe, or slow, before the library sees it."""
    bits = n.bit_length()
    if bits < MINIMUM_RSA_BITS:
        raise KeySizeError(
            f"an RSA key of {bits} bits is too short: {MINIMUM_RSA_BITS} are the least", "ssh-rsa"
        )
    if bits > MAXIMUM_RSA_BITS:
        raise KeySizeError(
            f"an RSA key of {bits} bits is too long: {MAXIMUM_RSA_BITS} are the most", "ssh-rsa"
        )
    if not n & 1:
        raise PublicKeyError("its modulus is even")
    if e < 3 or not e & 1 or e.bit_length() > MAXIMUM_RSA_EXPONENT_BITS:
        raise PublicKeyError("its exponent is not an odd number of 3 or more and at most 64 bits")


@dataclass(frozen=True, slots=True)
class _RsaNumbers:
    """In the order of PROTOCOL.key; ``iqmp`` is the inverse of q modulo p."""

    n: int
    e: int
    d: int
    iqmp: int
    p: int
    q: int

    def are_a_key(self) -> bool:
        """Say whether they fit; that p and q are primes would take too long to prove."""
        p, q = self.p, self.q
        return (
            p > 2
            and q > 2
            and 0 < self.d < self.n
            and p * q == self.n
            and (self.d * self.e - 1) % (p - 1) == 0
            and (self.d * self.e - 1) % (q - 1) == 0
            and self.iqmp * q % p == 1
        )


class _RsaSigner:
    __slots__ = ("_key", "_numbers", "_verifier")

    def __init__(self, numbers: _RsaNumbers) -> None:
        self._numbers = numbers
        self._verifier = _RsaVerifier(numbers.e, numbers.n)
        if not numbers.are_a_key():
            raise PublicKeyError("its numbers are not those of one RSA key")
        d, p, q = numbers.d, numbers.p, numbers.q
        try:
            self._key = rsa.RSAPrivateNumbers(
                p, q, d, d % (p - 1), d % (q - 1), numbers.iqmp,
                rsa.RSAPublicNumbers(numbers.e, numbers.n),
            ).private_key(unsafe_skip_rsa_key_validation=True)  # fmt: skip
        except ValueError as exc:
            raise PublicKeyError("no RSA key") from exc

    def sign(self, algorithm: str, data: bytes) -> bytes:
        """One computed wrongly would give the key away (Lenstra 1996), so it is verified."""
        try:
            signature = self._key.sign(data, PKCS1v15(), _RSA_HASHES[algorithm])
        except (ValueError, InternalError):
            signature = b""
        if not self._verifier.check(algorithm, signature, data):
            raise ConfigError("the RSA key makes wrong signatures: it is damaged")
        return signature

    def public_fields(self) -> bytes:
        return mpint(self._numbers.e) + mpint(self._numbers.n)

    def private_fields(self) -> bytes:
        x = self._numbers
        return b"".join(map(mpint, (x.n, x.e, x.d, x.iqmp, x.p, x.q)))


def _parse_rsa_public(fields: Reader) -> Verifier:
    e, n = fields.mpint(), fields.mpint()
    return _RsaVerifier(e, n)


def _parse_rsa_private(fields: Reader) -> Signer:
    n, e, d, iqmp, p, q = (fields.mpint() for _ in range(6))
    return _RsaSigner(_RsaNumbers(n, e, d, iqmp, p, q))


# ---- security keys, PROTOCOL.u2f ---------------------------------------------


class _SecurityKeyVerifier:
    """A signature is over hashes, flags and a counter, which follow it in its blob."""

    __slots__ = ("_application", "_verifier")

    def __init__(self, verifier: _Ed25519Verifier | _EcdsaVerifier, application: bytes) -> None:
        self._verifier = verifier
        self._application = application

    def verify(self, algorithm: str, fields: Reader, data: bytes, demanded_flags: int) -> bool:  # noqa: ARG002 - one only
        signature = fields.string()
        flags = fields.byte()
        counter = fields.take(4)
        fields.end()
        signed = b"".join(
            (
                hashlib.sha256(self._application).digest(),
                bytes((flags,)),
                counter,
                hashlib.sha256(data).digest(),
            )
        )
        if not self._verifier.check(signature, signed):
            return False
        missing = demanded_flags & ~flags
        if missing & USER_PRESENT:
            raise SignatureError("the security key signed without being touched")
        if missing & USER_VERIFIED:
            raise SignatureError("the security key signed without verifying its user")
        return True


def _parse_sk_ed25519_public(fields: Reader) -> Verifier:
    verifier = _Ed25519Verifier(fields.string())
    return _SecurityKeyVerifier(verifier, fields.string())


def _parse_sk_ecdsa_public(fields: Reader) -> Verifier:
    _read_curve(fields, _NISTP256)
    verifier = _EcdsaVerifier(_NISTP256, fields.string())
    return _SecurityKeyVerifier(verifier, fields.string())


# ---- the table ---------------------------------------------------------------

_SK_ED25519: Final = "sk-ssh-ed25519@openssh.com"
_SK_ECDSA: Final = "sk-ecdsa-sha2-nistp256@openssh.com"

KEY_TYPES: Final[Mapping[str, KeyType]] = {
    kind.name: kind
    for kind in (
        KeyType("ssh-ed25519", ("ssh-ed25519",), _parse_ed25519_public, _parse_ed25519_private),
        *map(_ecdsa_type, _CURVES),
        KeyType("ssh-rsa", tuple(_RSA_HASHES), _parse_rsa_public, _parse_rsa_private),
        KeyType(_SK_ED25519, (_SK_ED25519,), _parse_sk_ed25519_public, None),
        KeyType(_SK_ECDSA, (_SK_ECDSA,), _parse_sk_ecdsa_public, None),
    )
}


def certificate_name(name: str) -> str:
    """Return the name for a certificate, of a key type or of a signature algorithm."""
    return name.removesuffix("@openssh.com") + "-cert-v01@openssh.com"


_PLAIN_NAMES: Final[Mapping[str, str]] = {
    certificate_name(name): name
    for kind in KEY_TYPES.values()
    for name in (kind.name, *kind.signature_algorithms)
}

_TYPE_OF_SIGNATURE: Final[Mapping[str, str]] = {
    name: kind_name
    for kind in KEY_TYPES.values()
    for algorithm in kind.signature_algorithms
    for name, kind_name in (
        (algorithm, kind.name),
        (certificate_name(algorithm), certificate_name(kind.name)),
    )
}


def plain_name(name: str) -> str:
    """Return the name without a certificate; any other name stands for itself."""
    return _PLAIN_NAMES.get(name, name)


def key_type_of(signature_algorithm: str) -> str:
    """Return the key type that makes these signatures; a name we do not know stands for itself.

    For a certificate's algorithm it is the certificate's type.
    """
    return _TYPE_OF_SIGNATURE.get(signature_algorithm, signature_algorithm)


# ---- keys that the library has read ------------------------------------------


def private_wire(key: object) -> bytes:
    """Return type name and secret fields of one of cryptography's keys.

    `UnsupportedKeyError` if it is of another kind, `KeySizeError` if it is too short or too long.
    """
    if isinstance(key, Ed25519PrivateKey):
        return string(b"ssh-ed25519") + Ed25519Signer(key.private_bytes_raw()).private_fields()
    if isinstance(key, ec.EllipticCurvePrivateKey):
        for curve in _CURVES:
            if curve.curve.name == key.curve.name:
                secret = key.private_numbers().private_value
                fields = _EcdsaSigner(curve, secret).private_fields()
                return string(curve.algorithm.encode()) + fields
        name = f"ECDSA on {key.curve.name}"
        raise UnsupportedKeyError(f"keys of type {name} are not supported", name)
    if isinstance(key, rsa.RSAPrivateKey):
        x = key.private_numbers()
        public = x.public_numbers
        _check_rsa_numbers(public.e, public.n)
        numbers = (public.n, public.e, x.d, x.iqmp, x.p, x.q)
        return string(b"ssh-rsa") + b"".join(map(mpint, numbers))
    name = type(key).__name__.removesuffix("PrivateKey").lstrip("_")
    raise UnsupportedKeyError(f"keys of type {name} are not supported", name)
