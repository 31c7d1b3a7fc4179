"""Key exchange methods and key derivation against published vectors and a plain reference."""

from __future__ import annotations

import hashlib
import os

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.errors import RemoteProtocolError
from gateway.ssh import groups, messages, wire
from gateway.ssh.algorithms import DEFAULT_KEX, DEFAULT_SERVER_KEX
from gateway.ssh.ciphers import CIPHERS
from gateway.ssh.kex import (
    METHODS,
    MLKEM768_CIPHERTEXT_SIZE,
    MLKEM768_PUBLIC_SIZE,
    Curve25519,
    FiniteField,
    KeyMaterial,
    Mlkem768X25519,
    NistEcdh,
    ServerReply,
    Transcript,
)

# RFC 7748 §6.1
A = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
B = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
A_PUBLIC = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
B_PUBLIC = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
SHARED = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")


def fixed(value):
    return lambda size: value[:size]


def plain_mpint(secret):
    """RFC 4251 §5, step by step."""
    stripped = secret.lstrip(b"\0")
    if stripped and stripped[0] & 0x80:
        stripped = b"\0" + stripped
    return len(stripped).to_bytes(4, "big") + stripped


def test_curve25519_gives_rfc_7748s_secret():
    client, server = Curve25519(fixed(A)), Curve25519(fixed(B))
    assert client.start() == A_PUBLIC
    answer, k_server = server.respond(A_PUBLIC)
    assert answer == B_PUBLIC
    assert client.finish(B_PUBLIC) == k_server == plain_mpint(SHARED)


@pytest.mark.parametrize(
    ("starts", "length"),
    [
        (b"\x7f", 32),
        (b"\x80", 33),
        (b"\xff", 33),
        (b"\0\x01", 31),
        (b"\0\x80", 32),
        (b"\0\0\x01", 30),
        (b"\0\0\x80", 31),
    ],
)
def test_k_is_an_mpint_in_its_shortest_form(starts, length):
    """RFC 8731 §3.1: the secret's bytes are read big-endian; zeros go, a sign byte may come."""
    secret = starts + bytes(range(1, 33 - len(starts)))
    method = Curve25519(os.urandom)
    method._x25519.shared = lambda _value: secret
    k = method.finish(bytes(32))
    assert k == plain_mpint(secret)
    assert len(k) == 4 + length
    assert wire.Reader(k).mpint() == int.from_bytes(secret, "big")


def test_real_secrets_with_leading_zeros_agree():
    """One in 256 exchanges has one: the classic interoperability bug."""
    lengths = set()
    for _ in range(1500):
        client, server = Curve25519(os.urandom), Curve25519(os.urandom)
        answer, k = server.respond(client.start())
        assert client.finish(answer) == k
        lengths.add(len(k) - 4)
        if lengths >= {31, 32, 33}:
            break
    assert lengths >= {32, 33}


def test_mlkem_sizes_and_agreement():
    client, server = Mlkem768X25519(os.urandom), Mlkem768X25519(os.urandom)
    value = client.start()
    assert len(value) == 1216 == MLKEM768_PUBLIC_SIZE + 32
    answer, k = server.respond(value)
    assert len(answer) == 1120 == MLKEM768_CIPHERTEXT_SIZE + 32
    assert client.finish(answer) == k
    assert k[:4] == bytes((0, 0, 0, 32)), "a string of 32 bytes, never an mpint"
    assert len(k) == 36


def test_mlkem_k_is_the_hash_of_both_secrets_in_order():
    client, server = Mlkem768X25519(os.urandom), Mlkem768X25519(os.urandom)
    answer, k = server.respond(client.start())
    mlkem = client._mlkem.decapsulate(answer[:MLKEM768_CIPHERTEXT_SIZE])
    x25519 = client._x25519.shared(answer[MLKEM768_CIPHERTEXT_SIZE:])
    assert k == wire.string(hashlib.sha256(mlkem + x25519).digest())


def test_a_changed_mlkem_ciphertext_gives_another_secret_not_an_error():
    """FIPS 203's implicit rejection; the exchange hash then finds it."""
    client, server = Mlkem768X25519(os.urandom), Mlkem768X25519(os.urandom)
    answer, k = server.respond(client.start())
    assert client.finish(bytes((answer[0] ^ 1,)) + answer[1:]) != k


@pytest.mark.parametrize("agreement", [Curve25519, Mlkem768X25519])
@pytest.mark.parametrize("size", [0, 1, 31, 33, 1215, 1217, 1119, 1121, 1184, 1088])
def test_wrong_sizes(agreement, size):
    one = agreement(os.urandom)
    one.start()
    for call in (one.respond, one.finish):
        with pytest.raises(RemoteProtocolError, match=f"{size} bytes instead of"):
            call(bytes(size))


CURVES = [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()]


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
def test_nist_ecdh_agrees_and_sends_uncompressed_points(curve):
    client, server = NistEcdh(curve, os.urandom), NistEcdh(curve, os.urandom)
    q_c = client.start()
    assert q_c[0] == 4
    assert len(q_c) == 1 + 2 * ((curve.key_size + 7) // 8)
    q_s, k = server.respond(q_c)
    assert client.finish(q_s) == k == plain_mpint(wire.Reader(k).string())


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
def test_nist_ecdh_uses_our_randomness(curve):
    assert NistEcdh(curve, bytes).start() == NistEcdh(curve, bytes).start()


def test_rfc_5903_vector_for_p256():
    """RFC 5903 §8.1: the initiator's private key i, and the shared x coordinate."""
    i = int("C88F01F510D9AC3F70A292DAA2316DE544E9AAB8AFE84049C62A9C57862D1433", 16)
    r = bytes.fromhex(
        "04D12DFB5289C8D4F81208B70270398C342296970A0BCCB74C736FC7554494BF63"
        "56FBF3CA366CC23E8157854C13C58D6AAC23F046ADA30F8353E74F33039872AB"
    )
    g = bytes.fromhex("D6840F6B42F6EDAFD13116E0E12565202FEF8E9ECE7DCE03812464D04B9442DE")
    client = NistEcdh(ec.SECP256R1(), lambda size: (i - 1).to_bytes(size, "big"))
    assert client.finish(r) == plain_mpint(g)


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
def test_bad_points(curve):
    size = (curve.key_size + 7) // 8
    good = NistEcdh(curve, os.urandom).start()
    bad = [
        b"",
        b"\0",
        good[:-1],
        good + b"\0",
        good[:-1] + bytes((good[-1] ^ 1,)),
        b"\4" + bytes(2 * size),
        bytes((2 + (good[-1] & 1),)) + good[1 : 1 + size],
    ]
    for value in bad:
        with pytest.raises(RemoteProtocolError):
            NistEcdh(curve, os.urandom).finish(value)


# RFC 3526's groups end in these; the rest is checked by the primes being what OpenSSH has.
@pytest.mark.parametrize(
    ("bits", "middle", "last"),
    [
        (2048, "670C354E4ABC9804", "8AACAA68FFFFFFFFFFFFFFFF"),
        (4096, "670C354E4ABC9804", "34063199FFFFFFFFFFFFFFFF"),
        (8192, "670C354E4ABC9804", "98EDD3DFFFFFFFFFFFFFFFFF"),
    ],
)
def test_modp_groups(bits, middle, last):
    prime = groups.modp_prime(bits)
    text = f"{prime:X}"
    assert prime.bit_length() == bits
    assert text.startswith("FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD1")
    assert middle in text
    assert text.endswith(last)
    assert pow(2, prime - 1, prime) == 1


def test_finite_field_agrees():
    p = groups.modp_prime(2048)
    client, server = FiniteField(p, 2, os.urandom), FiniteField(p, 2, os.urandom)
    f, k = server.respond(client.start())
    assert client.finish(f) == k


@pytest.mark.parametrize("value", [0, 1, -1, "p", "p-1", "p+1"])
def test_finite_field_refuses_values_out_of_range(value):
    p = groups.modp_prime(2048)
    numbers = {"p": p, "p-1": p - 1, "p+1": p + 1}
    number = numbers.get(value, value)
    content = b"\xff" if number == -1 else wire.mpint(number)[4:]
    with pytest.raises(RemoteProtocolError):
        FiniteField(p, 2, os.urandom).finish(content)


@pytest.mark.parametrize(
    ("p", "g"),
    [
        (groups.modp_prime(2048) >> 1 | 1, 2),
        ((1 << 8192) + 1, 2),
        (groups.modp_prime(2048) - 1, 2),
        (groups.modp_prime(2048), 0),
        (groups.modp_prime(2048), 1),
        (groups.modp_prime(2048), groups.modp_prime(2048) - 1),
    ],
)
def test_group_exchange_refuses_bad_groups(p, g):
    method = METHODS["diffie-hellman-group-exchange-sha256"](os.urandom)
    method.request()
    with pytest.raises(RemoteProtocolError, match="not acceptable"):
        method.receive_untrusted(messages.KexDhGexGroup(p, g).encode())


def test_group_exchange_takes_its_messages_in_order_only():
    group = messages.KexDhGexGroup(groups.modp_prime(2048), 2).encode()
    reply = messages.KexDhGexReply(b"key", b"\2", b"signature").encode()
    method = METHODS["diffie-hellman-group-exchange-sha256"](os.urandom)
    method.request()
    with pytest.raises(RemoteProtocolError, match="not part of"):
        method.receive_untrusted(reply)
    assert isinstance(method.receive_untrusted(group), bytes)
    with pytest.raises(RemoteProtocolError, match="not part of"):
        method.receive_untrusted(group)
    assert method.receive_untrusted(reply).server_host_key == b"key"


def test_every_method_we_offer_exists():
    assert set(DEFAULT_KEX) == set(METHODS)
    assert set(DEFAULT_SERVER_KEX) <= set(METHODS)


# ---- exchange hash and keys (RFC 4253 §7.2, §8) --------------------------------------------------


def test_the_exchange_hash_covers_every_field():
    base = {
        "client_version": b"SSH-2.0-c",
        "server_version": b"SSH-2.0-s",
        "client_kexinit": b"\x14client",
        "server_kexinit": b"\x14server",
    }
    rest = {"server_host_key": b"host", "hashed": b"Q_C and Q_S", "k": wire.mpint(255)}
    expected = hashlib.sha384(
        b"\0\0\0\x09SSH-2.0-c\0\0\0\x09SSH-2.0-s\0\0\0\x07\x14client\0\0\0\x07\x14server"
        b"\0\0\0\x04hostQ_C and Q_S\0\0\0\x02\0\xff"
    ).digest()
    assert Transcript(**base).exchange_hash("sha384", **rest) == expected
    for name in base:
        assert Transcript(**base | {name: b"?"}).exchange_hash("sha384", **rest) != expected
    for name in rest:
        assert Transcript(**base).exchange_hash("sha384", **rest | {name: b"?"}) != expected


def plain_key(k, exchange_hash, session_id, letter, size):
    """RFC 4253 §7.2, written out for up to four blocks."""
    k1 = hashlib.sha256(k + exchange_hash + letter + session_id).digest()
    k2 = hashlib.sha256(k + exchange_hash + k1).digest()
    k3 = hashlib.sha256(k + exchange_hash + k1 + k2).digest()
    k4 = hashlib.sha256(k + exchange_hash + k1 + k2 + k3).digest()
    return (k1 + k2 + k3 + k4)[:size]


@pytest.mark.parametrize("size", [0, 1, 12, 16, 31, 32, 33, 64, 65, 100, 128])
@pytest.mark.parametrize("letter", [b"A", b"B", b"C", b"D", b"E", b"F"])
def test_keys_longer_than_one_hash(letter, size):
    k, exchange_hash, session_id = wire.mpint(2**255 + 7), b"H" * 32, b"S" * 32
    material = KeyMaterial("sha256", k, exchange_hash, session_id)
    assert material.derive(letter, size) == plain_key(k, exchange_hash, session_id, letter, size)


@pytest.mark.parametrize("name", CIPHERS)
def test_each_direction_has_its_own_letters(name, monkeypatch):
    asked = []
    monkeypatch.setattr(
        KeyMaterial,
        "derive",
        lambda _self, letter, size: asked.append((letter, size)) or bytes(size),
    )
    material = KeyMaterial("sha256", b"", b"", b"")
    spec = CIPHERS[name]
    for client_to_server, letters in ((True, (b"E", b"C", b"A")), (False, (b"F", b"D", b"B"))):
        asked.clear()
        material.cipher(name, "hmac-sha2-512", client_to_server=client_to_server)
        mac = [(letters[0], 64)] if spec.aead is None else []
        assert asked == [*mac, (letters[1], spec.key_size), (letters[2], spec.iv_size)]


def test_the_secret_is_not_shown():
    material = KeyMaterial("sha256", b"the secret", b"h", b"s")
    reply = ServerReply(b"", b"", b"", b"the secret")
    assert "secret" not in f"{material!r}{reply!r}"
