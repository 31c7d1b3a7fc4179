"""Packet ciphers against references written out from the specifications, a new object each time."""

from __future__ import annotations

import hashlib
import hmac
import os

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES, ChaCha20
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.poly1305 import Poly1305

from gateway.errors import RemoteProtocolError
from gateway.ssh.algorithms import AEAD_CIPHERS, DEFAULT_CIPHERS, DEFAULT_MACS
from gateway.ssh.ciphers import CIPHERS, MACS

SUITES = [(name, "") for name in AEAD_CIPHERS] + [
    (name, mac) for name in DEFAULT_CIPHERS if name not in AEAD_CIPHERS for mac in DEFAULT_MACS
]
SEQUENCE_NUMBERS = (0, 1, 255, 2**31, 2**32 - 1)


def chacha20(key, counter, sequence_number, data):
    nonce = counter.to_bytes(8, "little") + sequence_number.to_bytes(8, "big")
    return Cipher(ChaCha20(key, nonce), None).encryptor().update(data)


def seal_chacha20(key, _iv, sequence_number, plain):
    """OpenSSH PROTOCOL.chacha20poly1305, "Detailed construction"."""
    k_2, k_1 = key[:32], key[32:]
    length = chacha20(k_1, 0, sequence_number, plain[:4])
    payload = chacha20(k_2, 1, sequence_number, plain[4:])
    poly_key = chacha20(k_2, 0, sequence_number, bytes(32))
    return length + payload + Poly1305.generate_tag(poly_key, length + payload)


def seal_gcm(key, iv, packets_before, plain):
    """RFC 5647 §7.1; packet_length is associated data in clear (OpenSSH PROTOCOL §1.6)."""
    counter = (int.from_bytes(iv[4:], "big") + packets_before) % 2**64
    nonce = iv[:4] + counter.to_bytes(8, "big")
    return plain[:4] + AESGCM(key).encrypt(nonce, plain[4:], plain[:4])


def aes_ctr(key, iv, blocks_before, data):
    counter = (int.from_bytes(iv, "big") + blocks_before) % 2**128
    return Cipher(AES(key), CTR(counter.to_bytes(16, "big"))).encryptor().update(data)


def mac(name, key, sequence_number, data):
    digest = hashlib.sha256 if "256" in name else hashlib.sha512
    return hmac.new(key, sequence_number.to_bytes(4, "big") + data, digest).digest()


def frame(cipher, size):
    """A plaintext packet whose payload has ``size`` bytes."""
    block = cipher.block_size
    padding = block - (cipher.aligned_header + 1 + size) % block + block
    packet_length = 1 + size + padding
    return packet_length.to_bytes(4, "big") + bytes((padding,)) + os.urandom(size + padding)


def both_ends(name, mac_name):
    spec = CIPHERS[name]
    key, iv = os.urandom(spec.key_size), os.urandom(spec.iv_size)
    mac_key = os.urandom(MACS[mac_name].key_size) if mac_name else b""
    one, two = (spec.make(key, iv, mac_name, mac_key) for _ in range(2))
    return one, two, (key, iv, mac_key)


def seal(cipher, sequence_number, plain):
    sealed = bytearray(len(plain) + cipher.tag_size)
    cipher.seal_into(sequence_number, memoryview(plain), memoryview(sealed))
    return sealed


def expected(name, mac_name, keys, sequence_number, before, plain):
    """What the packet must look like, after packets of ``before`` bytes under these keys."""
    key, iv, mac_key = keys
    if name.startswith("chacha20"):
        return seal_chacha20(key, iv, sequence_number, plain)
    if "gcm" in name:
        return seal_gcm(key, iv, len(before), plain)
    if "etm" in mac_name:
        blocks = sum(size - 4 for size in before) // 16
        body = plain[:4] + aes_ctr(key, iv, blocks, plain[4:])
        return body + mac(mac_name, mac_key, sequence_number, body)
    body = aes_ctr(key, iv, sum(before) // 16, plain)
    return body + mac(mac_name, mac_key, sequence_number, plain)


@pytest.mark.parametrize(("name", "mac_name"), SUITES)
def test_sealed_as_specified_and_opened_again(name, mac_name):
    one, two, keys = both_ends(name, mac_name)
    before = []
    for sequence_number in SEQUENCE_NUMBERS:
        for size in (1, 2, 7, 8, 9, 100, 32_768):
            plain = frame(one, size)
            sealed = seal(one, sequence_number, plain)
            assert sealed == expected(name, mac_name, keys, sequence_number, before, plain)
            before.append(len(plain))
            packet = memoryview(sealed)
            prefix = two.length_prefix or 4
            for _ in range(3):  # as often as more bytes of the packet arrive
                assert two.packet_length(sequence_number, packet[:prefix]) == len(plain) - 4
            two.open_in_place(sequence_number, packet)
            assert packet[4 : len(plain)] == plain[4:], "the length was read before"


@pytest.mark.parametrize(("name", "mac_name"), SUITES)
def test_another_sequence_number_is_refused_where_it_counts(name, mac_name):
    one, two, _ = both_ends(name, mac_name)
    packet = memoryview(seal(one, 5, frame(one, 20)))
    two.packet_length(6, packet[: two.length_prefix or 4])
    if "gcm" in name:
        two.open_in_place(6, packet)
        return
    with pytest.raises(RemoteProtocolError, match="tag is wrong"):
        two.open_in_place(6, packet)


def test_every_cipher_and_mac_that_we_offer_exists():
    assert set(DEFAULT_CIPHERS) == set(CIPHERS)
    assert set(DEFAULT_MACS) == set(MACS)
    assert {name for name, spec in CIPHERS.items() if spec.aead} == set(AEAD_CIPHERS)
