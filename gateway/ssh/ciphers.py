"""Packet ciphers: how one framed packet is sealed and opened (RFC 4253 §6, RFC 5647).

A cipher is one direction of one key. It never sees messages: it gets views of a whole packet,
``packet_length | padding_length | payload | padding``, and room for the tag behind it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gateway.errors import RemoteProtocolError
from gateway.ssh.numbers import Disconnect

if TYPE_CHECKING:
    from collections.abc import Callable


class PacketCipher(Protocol):
    """What `gateway.ssh.packets` needs from a cipher.

    ``block_size`` rounds the packet; ``aligned_header`` is how many of the 4 bytes of packet_length
    take part in the rounding: none where they are only authenticated. ``rekey_after_bytes`` is how
    much one key may carry.
    """

    block_size: int
    tag_size: int
    aligned_header: int
    rekey_after_bytes: int

    def seal_into(self, sequence_number: int, plain: memoryview, sealed: memoryview, /) -> None:
        """Seal ``plain`` into ``sealed``, which is ``tag_size`` longer."""

    def open_in_place(self, sequence_number: int, packet: memoryview, /) -> None:
        """Undo ``seal_into`` where the packet stands, or raise RemoteProtocolError."""


class NoCipher:
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


class AesGcm:
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
            raise RemoteProtocolError(
                "a packet arrived damaged: its authentication tag is wrong", Disconnect.MAC_ERROR
            ) from None


class CipherSpec:
    """One row of `CIPHERS`: what the key derivation must deliver and what it makes."""

    __slots__ = ("iv_size", "key_size", "make")

    def __init__(
        self, key_size: int, iv_size: int, make: Callable[[bytes, bytes], PacketCipher]
    ) -> None:
        self.key_size = key_size
        self.iv_size = iv_size
        self.make = make


CIPHERS: Final = {
    "aes128-gcm@openssh.com": CipherSpec(16, 12, AesGcm),
    "aes256-gcm@openssh.com": CipherSpec(32, 12, AesGcm),
}
