"""Keys and certificates of every type, well-formed or not, without a program that makes them."""

from __future__ import annotations

import functools
import hashlib
import os

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from gateway.ssh.keys import PrivateKey, PublicKey, parse_public_key_untrusted
from gateway.ssh.keys import read_private_key_untrusted as read_private_key
from gateway.ssh.keytypes import certificate_name, private_wire
from gateway.ssh.wire import Reader, string, uint32, uint64

PRIVATE_TYPES = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
)
SK_ED25519 = "sk-ssh-ed25519@openssh.com"
SK_ECDSA = "sk-ecdsa-sha2-nistp256@openssh.com"

FOREVER = 2**64 - 1
_CURVES = {
    "ecdsa-sha2-nistp256": ec.SECP256R1(),
    "ecdsa-sha2-nistp384": ec.SECP384R1(),
    "ecdsa-sha2-nistp521": ec.SECP521R1(),
}


@functools.cache
def a_private_key(name: str, letter: str = "k") -> PrivateKey:
    """Return a key of this type, the same one for the same letter."""
    if name == "ssh-ed25519":
        return PrivateKey.generate(lambda length: letter.encode() * length)
    if name == "ssh-rsa":
        return read_private_key(Reader(private_wire(rsa.generate_private_key(65537, 2048))))
    return read_private_key(Reader(private_wire(ec.generate_private_key(_CURVES[name]))))


class SecurityKey:
    """A security key in software: a public key and signatures with any flags."""

    def __init__(self, name: str, application: bytes = b"ssh:") -> None:
        self._application = application
        self._inner = a_private_key(
            "ssh-ed25519" if name == SK_ED25519 else "ecdsa-sha2-nistp256", "s"
        )
        self._name = name
        blob = Reader(self._inner.public.blob)
        blob.string()
        self.public = parse_public_key_untrusted(
            string(name.encode()) + blob.rest() + string(application)
        )

    def sign(self, data: bytes, flags: int = 1, counter: int = 9) -> bytes:
        """Return a signature blob (PROTOCOL.u2f)."""
        trailer = bytes((flags,)) + uint32(counter)
        signed = hashlib.sha256(self._application).digest() + trailer
        signed += hashlib.sha256(data).digest()
        blob = Reader(self._inner.sign(signed, self._inner.public.algorithm))
        blob.string()
        return string(self._name.encode()) + string(blob.string()) + trailer


def options(*pairs: tuple[bytes, bytes]) -> bytes:
    """Encode the options of a certificate."""
    return b"".join(string(name) + string(value) for name, value in pairs)


def a_certificate(
    key: PublicKey,
    ca: PrivateKey,
    *,
    name: str = "",
    kind: int = 2,
    serial: int = 7,
    key_id: bytes = b"the id",
    principals: tuple[bytes, ...] = (b"host",),
    valid: tuple[int, int] = (0, FOREVER),
    critical: bytes = b"",
    extensions: bytes = b"",
    ca_blob: bytes | None = None,
    ca_algorithm: str = "",
    signature: bytes | None = None,
    after: bytes = b"",
) -> bytes:
    """Return the blob of a certificate with any field replaced."""
    fields = Reader(key.blob)
    fields.string()
    signed = b"".join(
        (
            string((name or certificate_name(key.algorithm)).encode()),
            string(os.urandom(32)),
            fields.rest(),
            uint64(serial),
            uint32(kind),
            string(key_id),
            string(b"".join(map(string, principals))),
            uint64(valid[0]),
            uint64(valid[1]),
            string(critical),
            string(extensions),
            string(b""),
            string(ca.public.blob if ca_blob is None else ca_blob),
        )
    )
    if signature is None:
        signature = ca.sign(signed, ca_algorithm or ca.public.signature_algorithms[0])
    return signed + string(signature) + after
