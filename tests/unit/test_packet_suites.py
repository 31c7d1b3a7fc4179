"""Lengths, padding and flipped bits under every cipher with every MAC (T9, T10, T22)."""

from __future__ import annotations

import os
import tracemalloc

import pytest

from gateway.errors import RemoteProtocolError
from gateway.ssh.algorithms import AEAD_CIPHERS
from gateway.ssh.ciphers import CIPHERS, MACS, NoCipher
from gateway.ssh.packets import MAXIMUM_PACKET_LENGTH, RECEIVE_SIZE, Inbound

SUITES = [
    ("none", ""),
    *((name, "") for name in CIPHERS if name in AEAD_CIPHERS),
    *((name, mac) for name in CIPHERS if name not in AEAD_CIPHERS for mac in MACS),
]
EVERY = pytest.mark.parametrize(("name", "mac_name"), SUITES)
FLIPS = 200


class Ends:
    """A cipher that seals, and packets that are opened with the same keys."""

    def __init__(self, name, mac_name):
        if name == "none":
            self.cipher, cipher = NoCipher(), NoCipher()
        else:
            spec = CIPHERS[name]
            mac_key = bytes(MACS[mac_name].key_size) if mac_name else b""
            keys = (bytes(range(spec.key_size)), bytes(range(spec.iv_size)), mac_name, mac_key)
            self.cipher, cipher = spec.make(*keys), spec.make(*keys)
        self.inbound = Inbound()
        self.inbound.start_cipher(cipher, reset_sequence_number=True)

    def seal(self, plain, sequence_number=0):
        sealed = bytearray(len(plain) + self.cipher.tag_size)
        self.cipher.seal_into(sequence_number, memoryview(plain), memoryview(sealed))
        return bytes(sealed)

    def put(self, data):
        self.inbound.space()[: len(data)] = data
        self.inbound.filled(len(data))

    def length_near(self, least):
        """The next legal packet_length."""
        block = self.cipher.block_size
        return least + -(self.cipher.aligned_header + least) % block


def plain(length, padding_length, fill=b"\2"):
    return length.to_bytes(4, "big") + bytes((padding_length,)) + fill * (length - 1)


@EVERY
@pytest.mark.parametrize(
    "length",
    [0, 1, 4, 7, "block - 1", "not a multiple", 262_145, "the next", 2**31 - 1, 2**31, 2**32 - 1],
)
def test_a_bad_length_is_refused_as_soon_as_it_can_be_read(name, mac_name, length):
    """Nothing is waited for, and no room is made."""
    ends = Ends(name, mac_name)
    cipher = ends.cipher
    beyond = ends.length_near(MAXIMUM_PACKET_LENGTH + 1)
    length = {
        "block - 1": cipher.block_size - 1 - cipher.aligned_header,
        "not a multiple": ends.length_near(35_000) + 1,
        "the next": beyond,
    }.get(length, length)
    start = ends.seal(length.to_bytes(4, "big") + bytes(60))[: cipher.length_prefix or 4]
    ends.put(start)
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError, match=f"packet_length {length} is out of range"):
            ends.inbound.next_payload()
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()
        ends.inbound.discard()


@EVERY
def test_the_largest_and_the_smallest_length(name, mac_name):
    ends = Ends(name, mac_name)
    largest = ends.length_near(MAXIMUM_PACKET_LENGTH - ends.cipher.block_size + 1)
    for number, length in enumerate((ends.length_near(8), largest, ends.length_near(8))):
        packet = ends.seal(plain(length, 4), number)
        for at in range(0, len(packet), RECEIVE_SIZE):
            assert ends.inbound.next_payload() is None
            ends.put(packet[at : at + RECEIVE_SIZE])
        assert len(ends.inbound.next_payload()) == length - 5
        ends.inbound.idle()


@EVERY
@pytest.mark.parametrize("which", ["0", "1", "3", "all but one", "all", "beyond", "255"])
def test_bad_padding_in_a_packet_that_is_authentic(name, mac_name, which):
    ends = Ends(name, mac_name)
    length = ends.length_near(40)
    padding = {
        "0": 0, "1": 1, "3": 3, "all but one": length - 1, "all": length, "beyond": length + 1,
        "255": 255,
    }[which]  # fmt: skip
    ends.put(ends.seal(plain(length, padding)))
    with pytest.raises(RemoteProtocolError, match=f"padding_length {padding} in a packet"):
        ends.inbound.next_payload()
    ends.inbound.discard()


@pytest.mark.parametrize(("name", "mac_name"), SUITES[1:])
def test_a_flipped_bit_at_200_offsets(name, mac_name):
    """Whatever length it becomes, the end comes within one largest packet, and no data before."""
    follow_up = os.urandom(MAXIMUM_PACKET_LENGTH + 1024)
    size = len(Ends(name, mac_name).seal(plain(Ends(name, mac_name).length_near(600), 4)))
    offsets = {number * size // FLIPS for number in range(FLIPS)} | set(range(20))
    assert len(offsets) >= FLIPS
    for offset in sorted(offsets):
        ends = Ends(name, mac_name)
        packet = bytearray(ends.seal(plain(ends.length_near(600), 4)))
        packet[offset] ^= 1 << offset % 8
        with pytest.raises(RemoteProtocolError, match=r"tag is wrong|packet_length"):
            feed(ends, bytes(packet), follow_up)
        ends.inbound.discard()
    ends = Ends(name, mac_name)
    ends.put(ends.seal(plain(ends.length_near(600), 4)))
    assert ends.inbound.next_payload() is not None, "as it was sent it is taken"
    ends.inbound.discard()


def feed(ends, packet, follow_up):
    """Give the packet, then the rest in pieces, for as long as nothing is said against it."""
    ends.put(packet)
    assert ends.inbound.next_payload() is None
    for at in range(0, len(follow_up), RECEIVE_SIZE // 4):
        ends.put(follow_up[at : at + RECEIVE_SIZE // 4])
        assert ends.inbound.next_payload() is None
