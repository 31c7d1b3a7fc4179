"""Keys and signatures: RFC 8032 vectors in the frames of RFC 8709, and every malformed blob."""

import base64
import os

import pytest

from gateway.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from gateway.ssh import keys
from gateway.ssh.keys import (
    KEY_TYPES,
    PrivateKey,
    PublicKeyError,
    SignatureError,
    UnsupportedKeyError,
    parse_public_key_untrusted,
)
from gateway.ssh.wire import string

NAME = string(b"ssh-ed25519")

# RFC 8032 §7.1: secret key, public key, message, signature.
VECTORS = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555"
            "fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
        ),
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da0"
            "85ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        ),
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        (
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac1"
            "8ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
        ),
    ),
]


def a_key(seed=b"k"):
    return PrivateKey.generate(lambda length: (seed * length)[:length])


@pytest.mark.parametrize(("secret", "public", "message", "signature"), VECTORS)
def test_rfc_8032_vectors_in_rfc_8709_frames(secret, public, message, signature):
    private_key = PrivateKey.generate(lambda length: bytes.fromhex(secret))
    assert private_key.public.blob == NAME + string(bytes.fromhex(public))
    blob = NAME + string(bytes.fromhex(signature))
    assert private_key.sign(bytes.fromhex(message), "ssh-ed25519") == blob
    public_key = parse_public_key_untrusted(NAME + string(bytes.fromhex(public)))
    assert public_key == private_key.public
    public_key.verify(blob, bytes.fromhex(message))
    public_key.verify(blob, bytes.fromhex(message), algorithm="ssh-ed25519")
    with pytest.raises(SignatureError, match="wrong ssh-ed25519 signature"):
        public_key.verify(blob, bytes.fromhex(message) + b"x")


def test_public_key_in_text_and_as_fingerprint_are_those_of_ssh_keygen():
    text = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAj0+ohCF30oaBWlFFjyM/uBDIySRgzPJSnVba6nqJDW"
    key = parse_public_key_untrusted(base64.b64decode(text.split()[1]))
    assert key.algorithm == "ssh-ed25519"
    assert key.openssh_text() == text
    assert key.fingerprint == "SHA256:ECSL7hvRSvJujWiMNozpreUBaWMtOvHNhSqoH0UsYxE"
    assert key.signature_algorithms == ("ssh-ed25519",)


def test_equal_keys_are_equal_and_hash_alike():
    one, same, other = a_key().public, parse_public_key_untrusted(a_key().public.blob), a_key(b"o")
    assert one == same
    assert len({one, same, other.public}) == 2


def test_repr_shows_no_secret():
    key = a_key(b"\x41")
    shown = repr(key)
    assert "AAAA" not in shown.replace(repr(key.public), "")
    assert "signer" not in shown.lower()
    assert "verifier" not in shown.lower()


def test_generate_draws_32_bytes_once():
    drawn = []

    def randbytes(length):
        drawn.append(length)
        return os.urandom(length)

    assert PrivateKey.generate(randbytes) != PrivateKey.generate(randbytes)
    assert drawn == [32, 32]


GOOD = a_key().public.blob


@pytest.mark.parametrize("length", range(len(GOOD)))
def test_every_truncated_blob_is_refused(length):
    with pytest.raises(PublicKeyError):
        parse_public_key_untrusted(GOOD[:length])


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (GOOD + b"\0", "1 bytes after the last field"),
        (NAME + string(bytes(31)), "31 bytes instead of 32"),  # CVE-2020-9283
        (NAME + string(bytes(33)), "33 bytes instead of 32"),
        (NAME + string(b""), "0 bytes instead of 32"),
        (NAME, "malformed ssh-ed25519 key"),
        (NAME + b"\xff\xff\xff\xff", "a field of 4294967295 bytes"),
        (string(b""), "whose type is no name"),
        (string(b"ssh ed25519") + string(bytes(32)), "whose type is no name"),
        (string(b"a" * 65), "whose type is no name"),
        (string(b"ssh-\x1b[2J"), r"\\x1b"),
        (string("ssh-\u00a0".encode()), "whose type is no name"),
        (bytes(16385), "of 16385 bytes"),
    ],
)
def test_malformed_public_keys(blob, message):
    with pytest.raises(PublicKeyError, match=message) as caught:
        parse_public_key_untrusted(blob)
    assert not isinstance(caught.value, UnsupportedKeyError)


@pytest.mark.parametrize(
    "name",
    [
        "ssh-dss",
        "ecdsa-sha2-nistp192",
        "rsa-sha2-512",
        "SSH-ED25519",
        "ssh-ed25519-cert-v01@openssh.com",
    ],
)
def test_an_unsupported_type_is_told_apart_and_its_fields_are_never_read(name):
    with pytest.raises(UnsupportedKeyError) as caught:
        parse_public_key_untrusted(string(name.encode()) + b"\xff\xff\xff\xff junk")
    assert caught.value.algorithm == name
    assert isinstance(caught.value, RemoteProtocolError)


SIGNATURE = a_key().sign(b"data", "ssh-ed25519")


@pytest.mark.parametrize("length", range(len(SIGNATURE)))
def test_every_truncated_signature_is_refused(length):
    with pytest.raises(SignatureError):
        a_key().public.verify(SIGNATURE[:length], b"data")


@pytest.mark.parametrize("position", range(len(SIGNATURE)))
def test_every_flipped_byte_of_a_signature_is_refused(position):
    changed = bytearray(SIGNATURE)
    changed[position] ^= 0x20
    with pytest.raises(SignatureError):
        a_key().public.verify(bytes(changed), b"data")


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (SIGNATURE + b"\0", "malformed signature"),
        (string(b"ssh-rsa") + string(bytes(64)), "algorithm ssh-rsa where ssh-ed25519"),
        (string(b"SSH-ED25519") + string(SIGNATURE[-64:]), "algorithm SSH-ED25519"),
        (NAME + string(SIGNATURE[-64:] + b"\0"), "wrong ssh-ed25519 signature"),
        (NAME + string(SIGNATURE[-64:-1]), "wrong ssh-ed25519 signature"),
        (string(b"\x1b[2J") + string(bytes(64)), r"\\x1b"),
        (b"", "malformed signature"),
    ],
)
def test_malformed_signatures(blob, message):
    with pytest.raises(SignatureError, match=message):
        a_key().public.verify(blob, b"data")


def test_a_signature_with_s_beyond_the_group_order_is_refused():
    order = 2**252 + 27742317777372353535851937790883648493
    s = int.from_bytes(SIGNATURE[-32:], "little") + order
    forged = SIGNATURE[:-32] + s.to_bytes(32, "little")
    with pytest.raises(SignatureError):
        a_key().public.verify(forged, b"data")


@pytest.mark.parametrize("algorithm", ["ssh-rsa", "rsa-sha2-512", "", "ssh-ed25519x"])
def test_only_the_agreed_signature_algorithm_is_accepted(algorithm):
    """T35: neither an algorithm that was not agreed, nor one that the key cannot make."""
    with pytest.raises(SignatureError):
        a_key().public.verify(SIGNATURE, b"data", algorithm=algorithm)
    forged = string(algorithm.encode()) + string(SIGNATURE[-64:])
    with pytest.raises(SignatureError):
        a_key().public.verify(forged, b"data", algorithm=algorithm)


def test_signing_with_another_algorithm_is_our_bug():
    with pytest.raises(LocalProtocolError, match="rsa-sha2-512 cannot be made with a ssh-ed25519"):
        a_key().sign(b"data", "rsa-sha2-512")


def test_the_table_names_every_type_once():
    assert all(name == kind.name for name, kind in KEY_TYPES.items())
    assert keys.key_type_of("ssh-ed25519") == "ssh-ed25519"
    assert keys.key_type_of("unheard-of") == "unheard-of"


def test_key_text():
    key = a_key().public
    name, blob, comment = keys.read_key_text(f" \t{key.openssh_text()}\t a  comment \t")
    assert (name, blob, comment) == ("ssh-ed25519", key.blob, "a  comment")
    assert keys.read_key_text(key.openssh_text())[2] == ""
    rsa = string(b"ssh-rsa") + b"anything"
    assert keys.read_key_text(f"ssh-rsa {base64.b64encode(rsa).decode()}")[:2] == ("ssh-rsa", rsa)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "ends before the key"),
        ("ssh-ed25519", "ends before the key"),
        ("ssh-ed25519 ", "ends before the key"),
        ("ssh-ed25519 AAAA!", "base64"),
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5=", "base64"),
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AB==", "base64"),  # bits beyond the last byte
        ("ssh-ed25519 \u0391AAA", "base64"),
        ("ssh-ed25519 AAAA", "without a type"),
        ("ssh-rsa " + a_key().public.openssh_text().split()[1], "but the key is of type ssh-ed25"),
        ("\u00a0" + a_key().public.openssh_text(), "but the key is of type"),
        (a_key().public.openssh_text().replace(" ", "\u00a0"), "ends before the key"),
        (a_key().public.openssh_text().replace(" ", "\u2003"), "ends before the key"),
        (a_key().public.openssh_text() + "\u00a0comment", "base64"),
        (a_key().public.openssh_text() + "\x0bcomment", "base64"),
    ],
)
def test_malformed_key_text(text, message):
    with pytest.raises(PublicKeyError, match=message):
        keys.read_key_text(text)


def test_only_line_feeds_end_a_line():
    text = "a\r\nb\x0bc\x0cd\x85e\u2028f\rg\r\r\n\nh"
    lines = list(keys.numbered_lines(text, "f"))
    assert lines == [(1, "a"), (2, "b\x0bc\x0cd\x85e\u2028f\rg\r"), (3, ""), (4, "h")]
    assert list(keys.numbered_lines(b"\xff\n", "f")) == [(1, "\udcff"), (2, "")]


def test_absurd_files_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match="f: the file has more than 100000 lines"):
        list(keys.numbered_lines("\n" * 100_001, "f"))
    with pytest.raises(ConfigError, match="more than 16 MiB"):
        list(keys.numbered_lines(b"x" * ((16 << 20) + 1), "f"))
