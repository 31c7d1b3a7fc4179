"""Key exchange methods, the exchange hash and key derivation (RFC 4253 §7.2 and §8).

A method is a *way* (which messages go where) around an *agreement* (the arithmetic). There are two
ways: one round trip for all but group exchange, two for that one (RFC 4419). An object serves one
exchange.

An agreement's values are bytes as they stand inside the messages' strings. K comes back in the
form in which it enters the hash: an mpint for the classic ones, a string for the hybrids
(draft-ietf-sshm-mlkem-hybrid-kex).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Final, Protocol

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mlkem import (
    MLKEM768PrivateKey,
    MLKEM768PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from gateway.errors import LocalProtocolError, RemoteProtocolError
from gateway.ssh import groups, messages, wire
from gateway.ssh.ciphers import CIPHERS, MACS, PacketCipher
from gateway.ssh.keytypes import UNCOMPRESSED_POINT, encode_point
from gateway.ssh.numbers import Disconnect, Msg

if TYPE_CHECKING:
    from collections.abc import Callable

X25519_SIZE: Final = 32
MLKEM768_SEED_SIZE: Final = 64
MLKEM768_PUBLIC_SIZE: Final = 1184  # FIPS 203, table 3
MLKEM768_CIPHERTEXT_SIZE: Final = 1088


def _failed(message: str) -> RemoteProtocolError:
    return RemoteProtocolError(message, Disconnect.KEY_EXCHANGE_FAILED)


def _check_size(what: str, value: bytes, size: int) -> None:
    if len(value) != size:
        raise _failed(f"{what} has {len(value)} bytes instead of {size}")


# ---- agreements ----------------------------------------------------------------------------------


class Agreement(Protocol):
    """The arithmetic of one side of one exchange."""

    def start(self) -> bytes:
        """Client: return the client's public value."""

    def finish(self, server_value: bytes) -> bytes:
        """Client: return K, encoded for the hash."""

    def respond(self, client_value: bytes) -> tuple[bytes, bytes]:
        """Server: return the server's public value and K, encoded for the hash."""


class _X25519:
    """The X25519 half that two methods share (RFC 7748 §6.1)."""

    def __init__(self, randbytes: Callable[[int], bytes]) -> None:
        self._private = X25519PrivateKey.from_private_bytes(randbytes(X25519_SIZE))
        self.public = self._private.public_key().public_bytes_raw()

    def shared(self, peer_public: bytes) -> bytes:
        """Return the shared secret; a peer value of small order is refused (RFC 8731 §3)."""
        try:
            return self._private.exchange(X25519PublicKey.from_public_bytes(peer_public))
        except ValueError:
            raise _failed("the peer's X25519 value is of small order") from None


class Curve25519:
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


class Mlkem768X25519:
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
            raise LocalProtocolError("finish() before start()")
        _check_size("S_REPLY", server_value, MLKEM768_CIPHERTEXT_SIZE + X25519_SIZE)
        secret = self._mlkem.decapsulate(server_value[:MLKEM768_CIPHERTEXT_SIZE])
        return self._combine(secret, server_value[MLKEM768_CIPHERTEXT_SIZE:])

    def respond(self, client_value: bytes) -> tuple[bytes, bytes]:
        """Server: return S_REPLY = ML-KEM ciphertext || X25519 public value, and K."""
        _check_size("C_INIT", client_value, MLKEM768_PUBLIC_SIZE + X25519_SIZE)
        try:
            public = MLKEM768PublicKey.from_public_bytes(client_value[:MLKEM768_PUBLIC_SIZE])
        except ValueError:
            raise _failed("the peer's ML-KEM public key is malformed") from None
        secret, ciphertext = public.encapsulate()
        k = self._combine(secret, client_value[MLKEM768_PUBLIC_SIZE:])
        return ciphertext + self._x25519.public, k

    def _combine(self, mlkem_secret: bytes, x25519_value: bytes) -> bytes:
        shared = mlkem_secret + self._x25519.shared(x25519_value)
        return wire.string(hashlib.sha256(shared).digest())


class NistEcdh:
    """ecdh-sha2-nistp256, 384 and 521 (RFC 5656 §4); points are sent uncompressed."""

    def __init__(self, curve: ec.EllipticCurve, randbytes: Callable[[int], bytes]) -> None:
        self._curve = curve
        order = curve.group_order
        # 16 bytes more than the order has, so that the remainder is as good as uniform.
        drawn = int.from_bytes(randbytes(order.bit_length() // 8 + 17), "big")
        self._private = ec.derive_private_key(drawn % (order - 1) + 1, curve)

    def start(self) -> bytes:
        """Client: return Q_C."""
        return encode_point(self._private.public_key())

    def finish(self, server_value: bytes) -> bytes:
        """Client: return K as an mpint; a point that is not on the curve is refused."""
        if server_value[:1] != UNCOMPRESSED_POINT:
            raise _failed("the peer's point is not in uncompressed form")
        try:
            point = ec.EllipticCurvePublicKey.from_encoded_point(self._curve, server_value)
        except ValueError:
            raise _failed("the peer's point is not on the curve") from None
        return wire.mpint(int.from_bytes(self._private.exchange(ec.ECDH(), point), "big"))

    def respond(self, client_value: bytes) -> tuple[bytes, bytes]:
        """Server: return Q_S and K."""
        return self.start(), self.finish(client_value)


class FiniteField:
    """diffie-hellman-group14, 16 and 18 (RFC 8268), and the arithmetic of group exchange.

    e and f are mpints, which look like strings on the wire: the values here are their content.
    """

    def __init__(self, p: int, g: int, randbytes: Callable[[int], bytes]) -> None:
        self._group = groups.DiffieHellman(p, g, randbytes)

    def start(self) -> bytes:
        """Client: return e."""
        return wire.mpint(self._group.public)[4:]

    def finish(self, server_value: bytes) -> bytes:
        """Client: return K as an mpint."""
        f = wire.Reader(wire.string(server_value)).mpint()
        return wire.mpint(self._group.shared(f))

    def respond(self, client_value: bytes) -> tuple[bytes, bytes]:
        """Server: return f and K."""
        return self.start(), self.finish(client_value)


# ---- ways ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServerReply:
    """What the server's last message of an exchange says, as the client has understood it.

    ``hashed`` is what enters the hash between the host key and K.
    """

    server_host_key: bytes
    signature: bytes
    hashed: bytes
    k: bytes = field(repr=False)


class Method(Protocol):
    """One run of one method, from one side."""

    hash_name: str

    def request(self) -> bytes:
        """Client: return the first message."""

    def receive_untrusted(self, payload: bytes) -> bytes | ServerReply:
        """Client: take a message of 30-49; return the next one to send, or the end."""

    def respond_untrusted(self, payload: bytes) -> tuple[bytes, bytes, bytes]:
        """Server: take the client's value; return ours, what is hashed, and K."""


class OneRound:
    """KEX_ECDH_INIT and KEX_ECDH_REPLY, or KEXDH_INIT and KEXDH_REPLY, which look the same."""

    def __init__(self, agreement: Agreement, hash_name: str) -> None:
        self.hash_name = hash_name
        self._agreement = agreement
        self._client_value = b""

    def request(self) -> bytes:
        """Client: send the public value."""
        self._client_value = self._agreement.start()
        return messages.KexEcdhInit(self._client_value).encode()

    def receive_untrusted(self, payload: bytes) -> bytes | ServerReply:
        """Client: the server's answer is the end."""
        if payload[0] != Msg.KEX_ECDH_REPLY:
            raise RemoteProtocolError(f"message {payload[0]} is not part of this key exchange")
        reply = messages.KexEcdhReply.decode_untrusted(payload)
        k = self._agreement.finish(reply.server_ephemeral)
        hashed = wire.string(self._client_value) + wire.string(reply.server_ephemeral)
        return ServerReply(reply.server_host_key, reply.signature, hashed, k)

    def respond_untrusted(self, payload: bytes) -> tuple[bytes, bytes, bytes]:
        """Server: return our value, both values for the hash, and K."""
        client_value = messages.KexEcdhInit.decode_untrusted(payload).client_ephemeral
        server_value, k = self._agreement.respond(client_value)
        return server_value, wire.string(client_value) + wire.string(server_value), k


class GroupExchange:
    """diffie-hellman-group-exchange-sha256, the client's side only (RFC 4419 §3)."""

    def __init__(self, hash_name: str, randbytes: Callable[[int], bytes]) -> None:
        self.hash_name = hash_name
        self._randbytes = randbytes
        self._agreement: FiniteField | None = None
        self._hashed = wire.uint32(groups.MINIMUM_BITS)
        self._hashed += wire.uint32(groups.PREFERRED_BITS) + wire.uint32(groups.MAXIMUM_BITS)

    def request(self) -> bytes:
        """Client: ask for a group."""
        return messages.KexDhGexRequest(
            groups.MINIMUM_BITS, groups.PREFERRED_BITS, groups.MAXIMUM_BITS
        ).encode()

    def receive_untrusted(self, payload: bytes) -> bytes | ServerReply:
        """Client: the group comes first, then the server's value."""
        agreement = self._agreement
        if agreement is None and payload[0] == Msg.KEX_DH_GEX_GROUP:
            group = messages.KexDhGexGroup.decode_untrusted(payload)
            groups.check_group_untrusted(group.p, group.g)
            agreement = self._agreement = FiniteField(group.p, group.g, self._randbytes)
            e = agreement.start()
            self._hashed += wire.mpint(group.p) + wire.mpint(group.g) + wire.string(e)
            return messages.KexDhGexInit(e).encode()
        if agreement is None or payload[0] != Msg.KEX_DH_GEX_REPLY:
            raise RemoteProtocolError(f"message {payload[0]} is not part of this key exchange")
        reply = messages.KexDhGexReply.decode_untrusted(payload)
        k = agreement.finish(reply.f)
        hashed = self._hashed + wire.string(reply.f)
        return ServerReply(reply.server_host_key, reply.signature, hashed, k)

    def respond_untrusted(self, payload: bytes) -> tuple[bytes, bytes, bytes]:
        """No server of ours offers this method."""
        raise LocalProtocolError(f"group exchange is for clients: {payload[0]}")


# ---- the table -----------------------------------------------------------------------------------


@cache
def _modp(bits: int) -> int:
    return groups.modp_prime(bits)


def _one_round(
    agreement: Callable[[Callable[[int], bytes]], Agreement], hash_name: str
) -> Callable[[Callable[[int], bytes]], Method]:
    return lambda randbytes: OneRound(agreement(randbytes), hash_name)


def _group(bits: int, hash_name: str) -> Callable[[Callable[[int], bytes]], Method]:
    return lambda randbytes: OneRound(
        FiniteField(_modp(bits), groups.GENERATOR, randbytes), hash_name
    )


METHODS: Final[dict[str, Callable[[Callable[[int], bytes]], Method]]] = {
    "mlkem768x25519-sha256": _one_round(Mlkem768X25519, "sha256"),
    "curve25519-sha256": _one_round(Curve25519, "sha256"),
    "curve25519-sha256@libssh.org": _one_round(Curve25519, "sha256"),
    "ecdh-sha2-nistp256": _one_round(partial(NistEcdh, ec.SECP256R1()), "sha256"),
    "ecdh-sha2-nistp384": _one_round(partial(NistEcdh, ec.SECP384R1()), "sha384"),
    "ecdh-sha2-nistp521": _one_round(partial(NistEcdh, ec.SECP521R1()), "sha512"),
    "diffie-hellman-group-exchange-sha256": partial(GroupExchange, "sha256"),
    "diffie-hellman-group16-sha512": _group(4096, "sha512"),
    "diffie-hellman-group18-sha512": _group(8192, "sha512"),
    "diffie-hellman-group14-sha256": _group(2048, "sha256"),
}


# ---- hash and keys -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Transcript:
    """What the hash covers before the host key (RFC 4253 §8): versions without CR LF, KEXINITs."""

    client_version: bytes
    server_version: bytes
    client_kexinit: bytes
    server_kexinit: bytes

    def exchange_hash(
        self, hash_name: str, server_host_key: bytes, hashed: bytes, k: bytes
    ) -> bytes:
        """Return H; ``hashed`` is what the method puts between the host key and K."""
        fields = (
            self.client_version,
            self.server_version,
            self.client_kexinit,
            self.server_kexinit,
            server_host_key,
        )
        data = b"".join(map(wire.string, fields)) + hashed + k
        return hashlib.new(hash_name, data).digest()


@dataclass(frozen=True, slots=True)
class KeyMaterial:
    """K, H and the session identifier, from which all keys come (RFC 4253 §7.2)."""

    hash_name: str
    k: bytes = field(repr=False)
    exchange_hash: bytes
    session_id: bytes

    def derive(self, letter: bytes, size: int) -> bytes:
        """Return ``size`` bytes of the key called ``letter``, "A" to "F"."""
        start = self.k + self.exchange_hash
        key = hashlib.new(self.hash_name, start + letter + self.session_id).digest()
        while len(key) < size:
            key += hashlib.new(self.hash_name, start + key).digest()
        return key[:size]

    def cipher(self, name: str, mac_name: str, *, client_to_server: bool) -> PacketCipher:
        """Return the cipher of one direction; ``mac_name`` counts only if the cipher needs one."""
        spec = CIPHERS[name]
        iv, key, mac = (b"A", b"C", b"E") if client_to_server else (b"B", b"D", b"F")
        mac_key = self.derive(mac, MACS[mac_name].key_size) if spec.aead is None else b""
        return spec.make(
            self.derive(key, spec.key_size), self.derive(iv, spec.iv_size), mac_name, mac_key
        )
