"""What we assemble ourselves, against vectors that others have published.

The vectors and their sources are in tests/vectors/published; a test's id names the document, or the
public test data, and the case in it. Every pair of a cipher and a MAC that we offer has a whole
packet there.

Nobody has published a vector for all of mlkem768x25519-sha256: its two halves are held against
Wycheproof and RFC 7748, and K against SHA-256 of what those publish. The whole exchange is in the
sessions recorded with OpenSSH (tests/pair/test_recordings.py).
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.poly1305 import Poly1305

from gateway.errors import RemoteProtocolError
from gateway.ssh import messages, wire
from gateway.ssh.algorithms import AEAD_CIPHERS, DEFAULT_CIPHERS, DEFAULT_MACS
from gateway.ssh.certificates import (
    CertificateError,
    CertificateKind,
    check_for_host,
    check_for_user,
    parse_certificate_untrusted,
)
from gateway.ssh.ciphers import CIPHERS, MACS
from gateway.ssh.kex import METHODS, KeyMaterial, Mlkem768X25519, Transcript
from gateway.ssh.keys import KeySizeError, PublicKeyError

PUBLISHED = Path(__file__).parent.parent / "vectors" / "published"

unhex = bytes.fromhex


def load(name):
    return json.loads((PUBLISHED / f"{name}.json").read_text())


def rows(vectors):
    return [pytest.param(vector, id=vector["source"]) for vector in vectors]


KDF = load("kdf")["vectors"]
PACKETS = load("packets")["vectors"]
PRIMITIVES = load("primitives")
ECDH = load("ecdh")["vectors"]
EXCHANGES = load("exchange")["vectors"]
MLKEM = load("mlkem768")
CERTIFICATES = load("certificates")


# ---- key derivation (RFC 4253 §7.2) --------------------------------------------------------------


@pytest.mark.parametrize("vector", rows(KDF))
def test_derived_keys(vector):
    k, exchange_hash, session_id = (
        unhex(vector[name]) for name in ("k", "exchange_hash", "session_id")
    )
    material = KeyMaterial(vector["hash"], k, exchange_hash, session_id)
    assert set(vector["keys"]) == set("ABCDEF")
    for letter, key in vector["keys"].items():
        assert material.derive(letter.encode(), len(key) // 2).hex() == key


def test_each_hash_is_among_them():
    """SHA-1, which no method of ours has, is the only one with keys longer than the hash."""
    assert {vector["hash"] for vector in KDF} == {"sha1", "sha256", "sha384", "sha512"}
    longest = {vector["hash"]: len(unhex(vector["keys"]["C"])) for vector in KDF}
    assert longest["sha1"] > hashlib.sha1().digest_size


# ---- whole packets -------------------------------------------------------------------------------


def packet_cipher(vector):
    mac_key = unhex(vector["mac_key"])
    spec = CIPHERS[vector["cipher"]]
    return spec.make(unhex(vector["key"]), unhex(vector["iv"]), vector["mac"], mac_key)


def seal(cipher, sequence_number, plain):
    sealed = bytearray(len(plain) + cipher.tag_size)
    cipher.seal_into(sequence_number, memoryview(plain), memoryview(sealed))
    return sealed


@pytest.mark.parametrize("vector", rows(PACKETS))
def test_packets(vector):
    """Opened, it is what was published, of which some have no padding; sealed, it is the same."""
    number, published, sealed = (
        vector["sequence_number"],
        unhex(vector["plain"]),
        unhex(vector["sealed"]),
    )
    cipher = packet_cipher(vector)
    packet = memoryview(bytearray(sealed))
    packet_length = cipher.packet_length(number, packet[: cipher.length_prefix or 4])
    assert packet_length == len(sealed) - 4 - cipher.tag_size
    cipher.open_in_place(number, packet)
    plain = packet_length.to_bytes(4, "big") + bytes(packet[4 : -cipher.tag_size])
    assert plain.startswith(published)
    assert seal(packet_cipher(vector), number, plain) == sealed


def test_each_suite_has_a_packet():
    suites = {(name, "") for name in AEAD_CIPHERS}
    suites |= {
        (name, mac) for name in set(DEFAULT_CIPHERS) - {*AEAD_CIPHERS} for mac in DEFAULT_MACS
    }
    assert {(vector["cipher"], vector["mac"]) for vector in PACKETS} == suites


# ---- the parts of packets ------------------------------------------------------------------------


@pytest.mark.parametrize("mac_name", MACS)
@pytest.mark.parametrize("vector", rows(PRIMITIVES["aes_ctr"]))
def test_aes_ctr(vector, mac_name):
    """With ETM the length comes before it, in clear."""
    spec = CIPHERS[vector["cipher"]]
    cipher = spec.make(unhex(vector["key"]), unhex(vector["iv"]), mac_name, b"key")
    header = bytes(4 - cipher.aligned_header)
    sealed = seal(cipher, 0, header + unhex(vector["plain"]))
    assert sealed[: -cipher.tag_size] == header + unhex(vector["sealed"])


@pytest.mark.parametrize("vector", rows(PRIMITIVES["aes_gcm"]))
def test_aes_gcm(vector):
    """The ciphertext only: the tag covers the length too, of which NIST has no case."""
    spec = CIPHERS[vector["cipher"]]
    cipher = spec.make(unhex(vector["key"]), unhex(vector["iv"]), "", b"")
    sealed = seal(cipher, 0, bytes(4) + unhex(vector["plain"]))
    assert sealed[4 : -cipher.tag_size] == unhex(vector["sealed"])


@pytest.mark.parametrize("vector", rows(PRIMITIVES["hmac"]))
def test_hmac(vector):
    """The first 4 bytes are the sequence number; the rest is the packet or, with ETM, is sent."""
    name, data, mac = f"hmac-{vector['hash']}", unhex(vector["data"]), unhex(vector["mac"])
    number, body = int.from_bytes(data[:4], "big"), data[4:]

    def cipher(mac_name):
        return CIPHERS["aes128-ctr"].make(bytes(16), bytes(16), mac_name, unhex(vector["key"]))

    assert seal(cipher(name), number, body)[len(body) :] == mac
    etm = f"{name}-etm@openssh.com"
    packet = bytearray(body + mac)
    cipher(etm).open_in_place(number, memoryview(packet))
    assert seal(cipher(etm), number, bytes(packet[: len(body)])) == body + mac


def chacha20_poly1305(payload_key, length_key):
    spec = CIPHERS["chacha20-poly1305@openssh.com"]
    return spec.make(payload_key + length_key, b"", "", b"")


@pytest.mark.parametrize("vector", rows(PRIMITIVES["chacha20"]))
def test_chacha20_payload_begins_in_block_1(vector):
    """A nonce of 96 bits whose first 32 are zero is the sequence number."""
    cipher = chacha20_poly1305(unhex(vector["key"]), bytes(32))
    before = bytes(4 + 64 * (vector["block"] - 1))
    sealed = seal(cipher, vector["sequence_number"], before + unhex(vector["plain"]))
    assert sealed[len(before) : -16] == unhex(vector["sealed"])


@pytest.mark.parametrize("vector", rows(PRIMITIVES["poly1305_key"]))
def test_block_0_is_the_poly1305_key_and_hides_the_length(vector):
    key, number, poly1305_key = (
        unhex(vector["key"]),
        vector["sequence_number"],
        unhex(vector["poly1305_key"]),
    )
    sealed = seal(chacha20_poly1305(key, key[::-1]), number, bytes(20))
    assert sealed[-16:] == Poly1305.generate_tag(poly1305_key, bytes(sealed[:-16]))
    sealed = seal(chacha20_poly1305(bytes(range(32)), key), number, bytes(20))
    assert sealed[:4] == poly1305_key[:4]
    cipher = chacha20_poly1305(bytes(range(32)), key)
    assert cipher.packet_length(number, memoryview(sealed[:4])) == 0


# ---- key exchange --------------------------------------------------------------------------------


def method_with(name, private):
    """The method, on one of whose sides ``private`` is drawn; the NIST curves add 1 to it."""
    if name.startswith("ecdh"):
        drawn = int.from_bytes(private, "big") - 1
        return METHODS[name](lambda size: drawn.to_bytes(size, "big"))
    return METHODS[name](lambda size: private[:size])


def run(vector, side, host_key, private, peer):
    """One side's run of the exchange: our value, what is hashed, and K."""
    method = method_with(vector["method"], private)
    init = messages.KexEcdhInit(peer).encode()
    if side == "server":
        return method.respond_untrusted(init)
    value = messages.KexEcdhInit.decode_untrusted(method.request()).client_ephemeral
    reply = method.receive_untrusted(messages.KexEcdhReply(host_key, peer, b"signature").encode())
    return value, reply.hashed, reply.k


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("vector", rows(ECDH))
def test_ecdh(vector, side):
    d, ours, theirs = (unhex(vector[name]) for name in ("d", "q_iut", "q_cavs"))
    value, hashed, k = run(vector, side, b"", d, theirs)
    assert value == ours
    first, second = (ours, theirs) if side == "client" else (theirs, ours)
    assert hashed == wire.string(first) + wire.string(second)
    assert k == wire.mpint(int(vector["z"], 16))


@pytest.mark.parametrize("vector", rows(EXCHANGES))
def test_exchange_hash(vector):
    host_key = vector["host_key"].encode()
    private, peer = unhex(vector["private"]), unhex(vector["peer"])
    value, hashed, k = run(vector, vector["side"], host_key, private, peer)
    assert value.hex() == vector.get("public", value.hex())
    assert k == wire.mpint(int(vector["k"], 16))
    local, remote = (
        (b"SSH-2.0-paramiko_1.0", b"local-kex-init"),
        (b"SSH-2.0-lame", b"remote-kex-init"),
    )
    client, server = (local, remote) if vector["side"] == "client" else (remote, local)
    transcript = Transcript(client[0], server[0], client[1], server[1])
    exchange_hash = transcript.exchange_hash("sha256", host_key, hashed, k)
    assert exchange_hash.hex() == vector["exchange_hash"]


X25519 = {name: unhex(value) for name, value in MLKEM["x25519"].items()}


def mlkem_client(vector):
    draws = {32: X25519["private"], 64: unhex(vector["seed"])}
    return Mlkem768X25519(draws.__getitem__)


@pytest.mark.parametrize("vector", rows(MLKEM["decapsulation"]))
def test_mlkem768x25519(vector):
    client = mlkem_client(vector)
    c_init = client.start()
    assert c_init == unhex(vector["ek"]) + X25519["public"]
    k = hashlib.sha256(unhex(vector["K"]) + X25519["shared"]).digest()
    assert client.finish(unhex(vector["c"]) + X25519["peer"]) == wire.string(k)
    answer, k_server = Mlkem768X25519(lambda size: bytes(range(size))).respond(c_init)
    assert client.finish(answer) == k_server, "encapsulated for the published key"


@pytest.mark.parametrize("vector", rows(MLKEM["refused_ciphertexts"]))
def test_mlkem768x25519_refuses_ciphertexts(vector):
    client = mlkem_client(vector)
    client.start()
    with pytest.raises(RemoteProtocolError, match="instead of 1120"):
        client.finish(unhex(vector["c"]) + X25519["peer"])


@pytest.mark.parametrize("vector", rows(MLKEM["refused_public_keys"]))
def test_mlkem768x25519_refuses_public_keys(vector):
    server = Mlkem768X25519(lambda size: bytes(range(size)))
    with pytest.raises(RemoteProtocolError, match=r"malformed|instead of 1216"):
        server.respond(unhex(vector["ek"]) + X25519["public"])


# ---- certificates (OpenSSH PROTOCOL.certkeys) ----------------------------------------------------

LINES = {
    row["source"]: row["line"]
    for name in ("accepted", "refused", "refused_for_users")
    for row in CERTIFICATES[name]
}
IN_1999 = 930_000_000  # between valid_after and valid_before of OpenSSH's
IN_2027 = 1_800_000_000


def blob_of(source):
    return base64.b64decode(LINES[source].split(" ")[1])


@pytest.mark.parametrize("row", rows(CERTIFICATES["accepted"]))
def test_certificates(row):
    certificate = parse_certificate_untrusted(blob_of(row["source"]))
    assert certificate.openssh_text() == row["line"]
    assert certificate.algorithm == row["type"]
    assert certificate.kind is CertificateKind[row["kind"].upper()]
    assert certificate.fingerprint == row["fingerprint"]
    assert certificate.ca_key.fingerprint == row["ca_fingerprint"]
    assert certificate.ca_signature_algorithm == row["ca_signature_algorithm"]
    assert (certificate.key_id, certificate.serial) == (row["key_id"], row["serial"])
    assert [certificate.valid_after, certificate.valid_before] == row["valid"]
    assert list(certificate.principals) == row["principals"]
    for name in ("critical_options", "extensions"):
        options = [[option, value.hex()] for option, value in getattr(certificate, name)]
        assert options == row[name]


@pytest.mark.parametrize("row", rows(CERTIFICATES["accepted"]))
def test_certificates_with_another_nonce(row):
    blob = bytearray(blob_of(row["source"]))
    blob[4 + len(row["type"]) + 4] ^= 1
    with pytest.raises(PublicKeyError, match=r"a wrong .* signature"):
        parse_certificate_untrusted(bytes(blob))


# All but the sizes, the types and SHA-1, which OpenSSH accepts or has accepted, are damaged.
REFUSED = {
    "OpenSSH sshkey/testdata/dsa_1-cert.pub": "no certificate of a type that is supported",
    "OpenSSH sshkey/testdata/rsa_1-cert.pub": "1024 bits is too short",
    "OpenSSH sshkey/testdata/rsa_1_sha512-cert.pub": "1024 bits is too short",
    "Go ssh/certs_test.go exampleSSHCert": "768 bits is too short",
    "Go ssh/certs_test.go exampleSSHCertWithOptions": "algorithm ssh-rsa where rsa-sha2",
    "Go ssh/testdata/keys.go rsa": "algorithm ssh-rsa where rsa-sha2",
    "libssh tests/torture_key.c torture_rsa_testkey_cert": "algorithm ssh-rsa where rsa-sha2",
    "pyca certs/p256-dsa.pub": "ssh-dss are not supported",
    "pyca certs/p256-rsa-sha1.pub": "algorithm ssh-rsa where rsa-sha2",
    "pyca certs/p256-p256-broken-signature-key-type.pub": "algorithm rsa-sha2-256 where ecdsa",
    "pyca certs/p256-p256-duplicate-crit-opts.pub": "critical option .* out of order or",
    "pyca certs/p256-p256-duplicate-extension.pub": "extension .* out of order or",
    "pyca certs/p256-p256-invalid-cert-type.pub": "of kind 50",
    "pyca certs/p256-p256-non-lexical-crit-opts.pub": "critical option .* out of order or",
    "pyca certs/p256-p256-non-lexical-extensions.pub": "extension .* out of order or",
}


@pytest.mark.parametrize(("source", "reason"), REFUSED.items(), ids=REFUSED)
def test_refused_certificates(source, reason):
    with pytest.raises((KeySizeError, PublicKeyError), match=reason):
        parse_certificate_untrusted(blob_of(source))


def test_each_refused_certificate_has_its_reason():
    assert set(REFUSED) == {row["source"] for row in CERTIFICATES["refused"]}


@pytest.mark.parametrize(
    ("name", "port_forwarding", "pty", "force_command"),
    [
        ("all_permit", True, True, None),
        ("no_permit", False, False, None),
        ("no_portfwd", False, True, None),
        ("no_pty", True, False, None),
        ("only_portfwd", True, False, None),
        ("only_pty", False, True, None),
        ("force_command", True, True, "foo"),
    ],
)
def test_what_openssh_lets_a_certificate_permit(name, port_forwarding, pty, force_command):
    """The options that OpenSSH's regress/unittests/authopt/tests.c expects."""
    blob = blob_of(f"OpenSSH authopt/testdata/{name}.cert")
    options = check_for_user(parse_certificate_untrusted(blob), ["user"], IN_1999)
    assert (options.port_forwarding, options.pty) == (port_forwarding, pty)
    assert options.force_command == force_command
    assert options.source_addresses is None


def test_source_addresses():
    certificate = parse_certificate_untrusted(blob_of("OpenSSH authopt/testdata/sourceaddr.cert"))
    options = check_for_user(certificate, ["user"], IN_1999)
    allowed = [options.allows_address(host) for host in ("127.0.0.1", "::1", "127.0.0.2", "::2")]
    assert allowed == [True, True, False, False]


@pytest.mark.parametrize(
    ("source", "now_s", "reason"),
    [
        ("OpenSSH authopt/testdata/unknown_critical.cert", IN_1999, "blah .* is unknown"),
        ("OpenSSH authopt/testdata/bad_sourceaddr.cert", IN_1999, "not a list of networks"),
        ("OpenSSH authopt/testdata/host.cert", IN_1999, "is not for users"),
        ("OpenSSH authopt/testdata/all_permit.cert", IN_2027, "has expired"),
        ("pyca certs/p256-ed25519-non-singular-crit-opt-val.pub", 1_672_600_000, "force-command"),
        ("libssh tests/torture_key.c torture_ed25519_testkey_cert", IN_2027, "is for nobody"),
    ],
)
def test_certificates_refused_for_users(source, now_s, reason):
    certificate = parse_certificate_untrusted(blob_of(source))
    with pytest.raises(CertificateError, match=reason):
        check_for_user(certificate, ["user"], now_s)


@pytest.mark.parametrize(
    ("source", "host", "now_s", "after_s"),
    [
        ("OpenSSH sshkey/testdata/ecdsa_1-cert.pub", "host1", IN_1999, IN_2027),
        ("OpenSSH sshkey/testdata/ed25519_1-cert.pub", "host2", IN_1999, IN_2027),
        ("OpenSSH sshkey/testdata/ecdsa_sk1-cert.pub", "host1", IN_1999, IN_2027),
        ("OpenSSH sshkey/testdata/ed25519_sk1-cert.pub", "host2", IN_1999, IN_2027),
        ("Go ssh/testdata/keys.go rsa-sha2-512", "host.example.com", IN_2027, 2_100_000_000),
    ],
)
def test_certificates_for_hosts(source, host, now_s, after_s):
    certificate = parse_certificate_untrusted(blob_of(source))
    check_for_host(certificate, host, now_s)
    with pytest.raises(CertificateError, match="not for host3"):
        check_for_host(certificate, "host3", now_s)
    with pytest.raises(CertificateError, match="expired"):
        check_for_host(certificate, host, after_s)
