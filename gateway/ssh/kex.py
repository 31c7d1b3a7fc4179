"""Key exchange methods, the exchange hash and key derivation (RFC 4253 §7.2 and §8, RFC 8731).

Every method is one round trip: the client calls ``start`` and then ``finish``, the server calls
``respond``. What they return as K is already in the form in which it enters the hash: an mpint for
curve25519, a string for the hybrids (draft-ietf-sshm-mlkem-hybrid-kex).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from cryptography.hazmat.primitives.asymmetric.mlkem import (
    MLKEM768PrivateKey,
    MLKEM768PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from gateway.errors import RemoteProtocolError
from gateway.ssh import wire
from gateway.ssh.ciphers import CIPHERS, PacketCipher
from gateway.ssh.numbers import Disconnect

if TYPE_CHECKING:
    from collections.abc import Callable

X25519_SIZE: Final = 32
MLKEM768_SEED_SIZE: Final = 64
MLKEM768_PUBLIC_SIZE: Final = 1184  # FIPS 203, table 3
MLKEM768_CIPHERTEXT_SIZE: Final = 1088


class KexMethod(Protocol):
    """One run of one method; an instance is used for one exchange only."""

    def start(self) -> bytes:
        """Client: return the client's public value."""

    def finish(self, server_value: bytes) -> bytes:
        """Client: return K, encoded for the hash."""

    def respond(self, client_value: bytes) -> tuple[bytes, bytes]:
        """Server: return the server's public value and K, encoded for the hash."""


def _check_size(what: str, value: bytes, size: int) -> None:
    if len(value) != size:
        raise RemoteProtocolError(
            f"{what} has {len(value)} bytes instead of {size}", Disconnect.KEY_EXCHANGE_FAILED
        )


class _X25519:
    """The X25519 half that both methods share (RFC 7748 §6.1)."""

    def __init__(self, randbytes: Callable[[int], bytes]) -> None:
        self._private = X25519PrivateKey.from_private_bytes(randbytes(X25519_SIZE))
        self.public = self._private.public_key().public_bytes_raw()

    def shared(self, peer_public: bytes) -> bytes:
        """Return the shared secret; a peer value of small order is refused (RFC 8731 §3)."""
        try:
            return self._private.exchange(X25519PublicKey.from_public_bytes(peer_public))
        except ValueError:
            raise RemoteProtocolError(
                "the peer's X25519 value is of small order", Disconnect.KEY_EXCHANGE_FAILED
            ) from None


class Curve25519Sha256:
    """curve25519-sha256 (RFC 8731)."""

    def __init__(self, randbytes: Callable[[int], bytes]) -> None:
        self._x25519 = _X25519(randbytes)

    def start(self) -> bytes:
        """Client: return Q_C."""
        return self._x25519.public

    def finish(self, server_value: bytes) -> bytes:
        """Client: return K as an mpint."""
        _check_size("the X25519 value", server_value, X25519_SIZE)
        return wire.mpint(int.from_bytes(self._x25519.shared(server_value), "big"))

    def respond(self, client_value: bytes) -> tuple[bytes, bytes]:
        """Server: return Q_S and K."""
        return self._x25519.public, self.finish(client_value)


class Mlkem768X25519Sha256:
    """mlkem768x25519-sha256: K = SHA-256(ML-KEM secret || X25519 secret), a string."""

    def __init__(self, randbytes: Callable[[int], bytes]) -> None:
        self._randbytes = randbytes
        self._x25519 = _X25519(randbytes)
        self._mlkem: MLKEM768PrivateKey | None = None

    def start(self) -> bytes:
        """Client: return C_INIT = ML-KEM public key || X25519 public value."""
        self._mlkem = MLKEM768PrivateKey.from_seed_bytes(self._randbytes(MLKEM768_SEED_SIZE))
        return self._mlkem.public_key().public_bytes_raw() + self._x25519.public

    def finish(self, server_value: bytes) -> bytes:
        """Client: return K."""
        if self._mlkem is None:
            raise RuntimeError("finish() before start()")
        _check_size("S_REPLY", server_value, MLKEM768_CIPHERTEXT_SIZE + X25519_SIZE)
        secret = self._mlkem.decapsulate(server_value[:MLKEM768_CIPHERTEXT_SIZE])
        return self._combine(secret, server_value[MLKEM768_CIPHERTEXT_SIZE:])

    def respond(self, client_value: bytes) -> tuple[bytes, bytes]:
        """Server: return S_REPLY = ML-KEM ciphertext || X25519 public value, and K."""
        _check_size("C_INIT", client_value, MLKEM768_PUBLIC_SIZE + X25519_SIZE)
        try:
            public = MLKEM768PublicKey.from_public_bytes(client_value[:MLKEM768_PUBLIC_SIZE])
        except ValueError:
            raise RemoteProtocolError(
                "the peer's ML-KEM public key is malformed", Disconnect.KEY_EXCHANGE_FAILED
            ) from None
        secret, ciphertext = public.encapsulate()
        k = self._combine(secret, client_value[MLKEM768_PUBLIC_SIZE:])
        return ciphertext + self._x25519.public, k

    def _combine(self, mlkem_secret: bytes, x25519_value: bytes) -> bytes:
        shared = mlkem_secret + self._x25519.shared(x25519_value)
        return wire.string(hashlib.sha256(shared).digest())


METHODS: Final[dict[str, Callable[[Callable[[int], bytes]], KexMethod]]] = {
    "mlkem768x25519-sha256": Mlkem768X25519Sha256,
    "curve25519-sha256": Curve25519Sha256,
    "curve25519-sha256@libssh.org": Curve25519Sha256,
}
"""Method by name. All of them hash with SHA-256; a method with another hash makes this a record."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """What the hash covers besides K (RFC 4253 §8): versions without CR LF, KEXINIT payloads."""

    client_version: bytes
    server_version: bytes
    client_kexinit: bytes
    server_kexinit: bytes

    def exchange_hash(
        self, server_host_key: bytes, client_value: bytes, server_value: bytes, k: bytes
    ) -> bytes:
        """Return H."""
        fields = (
            self.client_version,
            self.server_version,
            self.client_kexinit,
            self.server_kexinit,
            server_host_key,
            client_value,
            server_value,
        )
        return hashlib.sha256(b"".join(map(wire.string, fields)) + k).digest()


@dataclass(frozen=True, slots=True)
class KeyMaterial:
    """K, H and the session identifier, from which all keys come (RFC 4253 §7.2)."""

    k: bytes
    exchange_hash: bytes
    session_id: bytes

    def derive(self, letter: bytes, size: int) -> bytes:
        """Return ``size`` bytes of the key called ``letter``, "A" to "F"."""
        start = self.k + self.exchange_hash
        key = hashlib.sha256(start + letter + self.session_id).digest()
        while len(key) < size:
            key += hashlib.sha256(start + key).digest()
        return key[:size]

    def cipher(self, name: str, *, client_to_server: bool) -> PacketCipher:
        """Return the cipher of one direction."""
        spec = CIPHERS[name]
        iv, key = (b"A", b"C") if client_to_server else (b"B", b"D")
        return spec.make(self.derive(key, spec.key_size), self.derive(iv, spec.iv_size))
