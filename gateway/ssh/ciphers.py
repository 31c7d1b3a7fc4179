"""Packet ciphers: how one framed packet is sealed and opened (RFC 4253 §6, RFC 5647).

A cipher is one direction of one key. It never sees messages: it gets views of a whole packet,
``packet_length | padding_length | payload | padding``, and room for the tag behind it.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES, ChaCha20
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.poly1305 import Poly1305

from gateway.errors import RemoteProtocolError
from gateway.ssh.numbers import Disconnect

if TYPE_CHECKING:
    from collections.abc import Callable

_ZERO_BLOCK: Final = bytes(64)


def damaged() -> RemoteProtocolError:
    """Return the error of a packet whose tag or MAC is wrong."""
    return RemoteProtocolError(
        "a packet arrived damaged: its authentication tag is wrong", Disconnect.MAC_ERROR
    )


class PacketCipher(Protocol):
    """What `gateway.ssh.packets` needs from a cipher.

    ``block_size`` rounds the packet; ``aligned_header`` is how many of the 4 bytes of packet_length
    take part in the rounding: none where they are only authenticated. ``rekey_after_bytes`` is how
    much one key may carry.
    """

    block_size: int
    tag_size: int
    aligned_header: int
    length_prefix: int
    rekey_after_bytes: int

    def packet_length(self, sequence_number: int, prefix: memoryview, /) -> int:
        """Return packet_length from the first bytes of a packet, which stay as they are."""

    def seal_into(self, sequence_number: int, plain: memoryview, sealed: memoryview, /) -> None:
        """Seal ``plain`` into ``sealed``, which is ``tag_size`` longer."""

    def open_in_place(self, sequence_number: int, packet: memoryview, /) -> None:
        """Undo ``seal_into`` where the packet stands, or raise RemoteProtocolError."""


class _ClearLength:
    """What the ciphers share whose packet_length is sent in clear."""

    __slots__ = ()
    length_prefix = 0

    def packet_length(self, _sequence_number: int, prefix: memoryview, /) -> int:
        """Return the length."""
        return int.from_bytes(prefix[:4], "big")


class NoCipher(_ClearLength):
    """Before the first NEWKEYS: packets in clear, in multiples of 8 (RFC 4253 §6)."""

    block_size = 8
    tag_size = 0
    aligned_header = 4
    rekey_after_bytes = 1 << 62

    def seal_into(self, _sequence_number: int, plain: memoryview, sealed: memoryview, /) -> None:
        """Copy."""
        sealed[:] = plain

    def open_in_place(self, _sequence_number: int, packet: memoryview, /) -> None:
        """Nothing to do."""


class AesGcm(_ClearLength):
    """aes128-gcm and aes256-gcm @openssh.com (RFC 5647 §7): one C call for a packet.

    packet_length goes in clear as associated data; the nonce is 4 fixed bytes and a counter of 8,
    one up for each packet, which no sequence-number reset touches.
    """

    block_size = 16
    tag_size = 16
    aligned_header = 0
    rekey_after_bytes = (1 << 32) * 16  # RFC 4344 §3.2: 2^(L/4) blocks, as OpenSSH
    __slots__ = ("_counter", "_fixed", "_open", "_seal")

    def __init__(self, key: bytes, initial_iv: bytes) -> None:
        aead = AESGCM(key)
        self._seal = aead.encrypt_into
        self._open = aead.decrypt_into
        self._fixed = initial_iv[:4]
        self._counter = int.from_bytes(initial_iv[4:], "big")

    def seal_into(self, _sequence_number: int, plain: memoryview, sealed: memoryview, /) -> None:
        """Seal; see `PacketCipher`."""
        nonce = self._fixed + self._counter.to_bytes(8, "big")
        self._counter = (self._counter + 1) & 0xFFFF_FFFF_FFFF_FFFF
        header = plain[:4]
        sealed[:4] = header
        self._seal(nonce, plain[4:], header, sealed[4:])

    def open_in_place(self, _sequence_number: int, packet: memoryview, /) -> None:
        """Open; see `PacketCipher`."""
        nonce = self._fixed + self._counter.to_bytes(8, "big")
        self._counter = (self._counter + 1) & 0xFFFF_FFFF_FFFF_FFFF
        try:
            self._open(nonce, packet[4:], packet[:4], packet[4:-16])
        except InvalidTag:
            raise damaged() from None


class ChaCha20Poly1305:
    """chacha20-poly1305@openssh.com (OpenSSH PROTOCOL.chacha20poly1305).

    Two keys: K_1 hides packet_length, K_2 the rest; the nonce is the sequence number. Block 0 of
    K_2's stream is the Poly1305 key, so the payload follows in the same stream from block 1 on.
    """

    block_size = 8
    tag_size = 16
    aligned_header = 0
    length_prefix = 4
    rekey_after_bytes = 1 << 30  # RFC 4344 §3.2 for 8-byte blocks, as OpenSSH
    __slots__ = ("_length_stream", "_stream")

    def __init__(self, key: bytes, _initial_iv: bytes) -> None:
        self._stream = Cipher(ChaCha20(key[:32], bytes(16)), None).encryptor()
        self._length_stream = Cipher(ChaCha20(key[32:], bytes(16)), None).encryptor()

    def packet_length(self, sequence_number: int, prefix: memoryview, /) -> int:
        """Decrypt the length; nothing vouches for it before the tag was checked."""
        self._length_stream.reset_nonce(sequence_number.to_bytes(16, "big"))
        return int.from_bytes(self._length_stream.update(prefix), "big")

    def seal_into(self, sequence_number: int, plain: memoryview, sealed: memoryview, /) -> None:
        """Seal; see `PacketCipher`."""
        end = len(plain)
        nonce = sequence_number.to_bytes(16, "big")  # a counter of 0, little-endian, then the nonce
        self._length_stream.reset_nonce(nonce)
        self._stream.reset_nonce(nonce)
        poly_key = self._stream.update(_ZERO_BLOCK)[:32]
        self._length_stream.update_into(plain[:4], sealed)
        self._stream.update_into(plain[4:], sealed[4:])
        sealed[end:] = Poly1305.generate_tag(poly_key, sealed[:end])

    def open_in_place(self, sequence_number: int, packet: memoryview, /) -> None:
        """Open; see `PacketCipher`. The tag is checked before anything is decrypted."""
        self._stream.reset_nonce(sequence_number.to_bytes(16, "big"))
        poly_key = self._stream.update(_ZERO_BLOCK)[:32]
        if not hmac.compare_digest(Poly1305.generate_tag(poly_key, packet[:-16]), packet[-16:]):
            raise damaged()
        self._stream.update_into(packet[4:-16], packet[4:-16])


class AesCtrHmac:
    """aes*-ctr (RFC 4344 §4) with hmac-sha2-* (RFC 6668): MAC of the plaintext, length encrypted.

    The first block must be decrypted to learn the length; it is kept until the packet is whole.
    """

    block_size = 16
    aligned_header = 4
    length_prefix = 16
    rekey_after_bytes = (1 << 32) * 16
    __slots__ = ("_cipher", "_first_block", "_mac", "tag_size")

    def __init__(self, key: bytes, initial_iv: bytes, mac: hmac.HMAC) -> None:
        self._cipher = Cipher(AES(key), CTR(initial_iv)).encryptor()  # CTR: both ways the same
        self._mac = mac
        self.tag_size = mac.digest_size
        self._first_block = b""

    def packet_length(self, _sequence_number: int, prefix: memoryview, /) -> int:
        """Decrypt the first block, once per packet."""
        if not self._first_block:
            self._first_block = self._cipher.update(prefix)
        return int.from_bytes(self._first_block[:4], "big")

    def seal_into(self, sequence_number: int, plain: memoryview, sealed: memoryview, /) -> None:
        """Seal; see `PacketCipher`."""
        end = len(plain)
        self._cipher.update_into(plain, sealed)
        sealed[end:] = _mac_of(self._mac, sequence_number, plain)

    def open_in_place(self, sequence_number: int, packet: memoryview, /) -> None:
        """Open; see `PacketCipher`."""
        end = len(packet) - self.tag_size
        packet[:16] = self._first_block
        self._first_block = b""
        self._cipher.update_into(packet[16:end], packet[16:end])
        tag = _mac_of(self._mac, sequence_number, packet[:end])
        if not hmac.compare_digest(tag, packet[end:]):
            raise damaged()


class AesCtrHmacEtm(_ClearLength):
    """aes*-ctr with hmac-sha2-*-etm@openssh.com (OpenSSH PROTOCOL §1.5): MAC of the ciphertext."""

    block_size = 16
    aligned_header = 0
    rekey_after_bytes = (1 << 32) * 16
    __slots__ = ("_cipher", "_mac", "tag_size")

    def __init__(self, key: bytes, initial_iv: bytes, mac: hmac.HMAC) -> None:
        self._cipher = Cipher(AES(key), CTR(initial_iv)).encryptor()
        self._mac = mac
        self.tag_size = mac.digest_size

    def seal_into(self, sequence_number: int, plain: memoryview, sealed: memoryview, /) -> None:
        """Seal; see `PacketCipher`."""
        end = len(plain)
        sealed[:4] = plain[:4]
        self._cipher.update_into(plain[4:], sealed[4:])
        sealed[end:] = _mac_of(self._mac, sequence_number, sealed[:end])

    def open_in_place(self, sequence_number: int, packet: memoryview, /) -> None:
        """Open; see `PacketCipher`. The MAC is checked before anything is decrypted."""
        end = len(packet) - self.tag_size
        tag = _mac_of(self._mac, sequence_number, packet[:end])
        if not hmac.compare_digest(tag, packet[end:]):
            raise damaged()
        self._cipher.update_into(packet[4:end], packet[4:end])


def _mac_of(mac: hmac.HMAC, sequence_number: int, data: memoryview) -> bytes:
    """Return MAC(key, sequence_number || data) (RFC 4253 §6.4)."""
    running = mac.copy()
    running.update(sequence_number.to_bytes(4, "big"))
    running.update(data)
    return running.digest()


# ---- the tables ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MacSpec:
    """One row of `MACS`; sizes in bytes."""

    key_size: int
    digest_name: str
    is_etm: bool


MACS: Final = {
    "hmac-sha2-256-etm@openssh.com": MacSpec(32, "sha256", is_etm=True),
    "hmac-sha2-512-etm@openssh.com": MacSpec(64, "sha512", is_etm=True),
    "hmac-sha2-256": MacSpec(32, "sha256", is_etm=False),
    "hmac-sha2-512": MacSpec(64, "sha512", is_etm=False),
}


@dataclass(frozen=True, slots=True)
class CipherSpec:
    """One row of `CIPHERS`: what the key derivation must deliver, in bytes, and what it makes.

    ``aead`` is None for a cipher that needs a MAC beside it.
    """

    key_size: int
    iv_size: int
    aead: Callable[[bytes, bytes], PacketCipher] | None

    def make(self, key: bytes, iv: bytes, mac_name: str, mac_key: bytes) -> PacketCipher:
        """Make the cipher of one direction; the MAC counts only where there is no AEAD."""
        if self.aead is not None:
            return self.aead(key, iv)
        spec = MACS[mac_name]
        mac = hmac.new(mac_key, digestmod=spec.digest_name)
        return (AesCtrHmacEtm if spec.is_etm else AesCtrHmac)(key, iv, mac)


CIPHERS: Final = {
    "aes128-gcm@openssh.com": CipherSpec(16, 12, AesGcm),
    "aes256-gcm@openssh.com": CipherSpec(32, 12, AesGcm),
    "chacha20-poly1305@openssh.com": CipherSpec(64, 0, ChaCha20Poly1305),
    "aes128-ctr": CipherSpec(16, 16, None),
    "aes192-ctr": CipherSpec(24, 16, None),
    "aes256-ctr": CipherSpec(32, 16, None),
}
