"""Key files: made by ssh-keygen, made here and read by ssh-keygen, damaged at every byte."""

import base64
import hashlib
import os
import shutil
import subprocess
import time

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from gateway.errors import ConfigError
from gateway.ssh import keyfiles
from gateway.ssh.keyfiles import (
    WrongPassphrase,
    encode_private_key_file,
    parse_private_key_file_untrusted,
)
from gateway.ssh.keys import PrivateKey
from gateway.ssh.wire import mpint, string, uint32
from tests.support.keys import (
    PRIVATE_TYPES,
    SK_ECDSA,
    SK_ED25519,
    SecurityKey,
    a_private_key,
)

# Made by ssh-keygen 9.2 for this test; the passphrase is PASSPHRASE, with one round of bcrypt.
PASSPHRASE = "correct horse"
PLAIN = b"""\
-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW
QyNTUxOQAAACAI9PqIQhd9KGgVpRRY8jP7gQyMkkYMzyUp1W2up6iQ1gAAAJD568Q/+evE
PwAAAAtzc2gtZWQyNTUxOQAAACAI9PqIQhd9KGgVpRRY8jP7gQyMkkYMzyUp1W2up6iQ1g
AAAEAw9BVTN3nTVk6/qLpuE9ZZacEXGEnzmoSpymgTBPmTWQj0+ohCF30oaBWlFFjyM/uB
DIySRgzPJSnVba6nqJDWAAAADXBsYWluQGV4YW1wbGU=
-----END OPENSSH PRIVATE KEY-----
"""
CTR = b"""\
-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAGYmNyeXB0AAAAGAAAABCJMv0UQ9
So2HWIWbL68AsHAAAAAQAAAAEAAAAzAAAAC3NzaC1lZDI1NTE5AAAAIG+helS9E1LUfuPJ
st3pX2bx2T0nYK8tCE5x57ASAqCZAAAAoIb/7YvLzAx6b4lC0c5wfAzTmddfJdbdZCZ7Kv
20AV+HvYUgidLAlRuLH2Dgk27FwXbMe9gkD56KicYuQOGCenofXpHYWEimlr3/IuSvDBah
9SwCgy34ULuRIkdifsxcnAK2JNQxxdO5wubT9wnyj8qvjwxM2Vyb1PATwbUiFV2VoIbBHB
VErMcLjWubUVL66O739sSL40GxLnpK/m2H6i4=
-----END OPENSSH PRIVATE KEY-----
"""
GCM = b"""\
-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAAFmFlczI1Ni1nY21Ab3BlbnNzaC5jb20AAAAGYmNyeXB0AA
AAGAAAABCDdM8veQ2WwA2HsBU6oJUfAAAAAQAAAAEAAAAzAAAAC3NzaC1lZDI1NTE5AAAA
ICzH5dyY9Gw1sOcRpbebIIA2Ke0nvZ6o/UwayVfxAoK3AAAAoKeMbnGoBprzuB3dGOEsTS
L5Tb7M0H53jxbiIiMxUjISRiVRLDZSrwjyqGD3cFGryuUDyGR8UwIoZcMNytu1NPwAjf61
Sq14gVv4/jQN2AA0SjWCUNQZa/d/xvvWsjScn5Tp8wP2rDe0G8HPn6k1ThiDfCjPH43yCi
+6k99MrY1COf63tcymrkOC73l6Mc3P1m/AoaOOQPLjBfC+WaXvRVnJQjhj+7m8NCQEKhr/
/U5Y
-----END OPENSSH PRIVATE KEY-----
"""
PLAIN_FINGERPRINT = "SHA256:ECSL7hvRSvJujWiMNozpreUBaWMtOvHNhSqoH0UsYxE"
LOCKED_PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG+helS9E1LUfuPJst3pX2bx2T0nYK8tCE5x57ASAqCZ"


def content_of(text):
    return base64.b64decode(b"".join(text.splitlines()[1:-1]))


def wrapped(content):
    return b"\n".join((keyfiles.BEGIN, base64.b64encode(content), keyfiles.END, b""))


def a_key(seed=b"k"):
    return PrivateKey.generate(lambda length: (seed * length)[:length])


def a_file(
    *,
    cipher=b"none",
    kdf=b"none",
    options=b"",
    count=1,
    public=None,
    section=None,
    key=None,
    comment=b"c",
    checks=(7, 7),
    padding=None,
    after=b"",
):
    """A key file with any field replaced."""
    key = key or a_key()
    if section is None:
        section = uint32(checks[0]) + uint32(checks[1]) + key.private_section() + string(comment)
        section += bytes(range(1, 1 + -len(section) % 8)) if padding is None else padding
    public = key.public.blob if public is None else public
    fields = string(cipher) + string(kdf) + string(options) + uint32(count)
    return wrapped(keyfiles.MAGIC + fields + string(public) + string(section) + after)


def refusal(text, passphrase=None, where=""):
    """The message with which a file is refused, while reading or while decrypting."""
    with pytest.raises(ConfigError) as caught:
        parse_private_key_file_untrusted(text, where).decrypt(passphrase)
    return str(caught.value)


def test_a_plain_file():
    file = parse_private_key_file_untrusted(PLAIN, "id")
    assert not file.is_encrypted
    assert file.public_key.fingerprint == PLAIN_FINGERPRINT
    key = file.decrypt()
    assert key.public == file.public_key
    assert key.comment == "plain@example"
    assert file.decrypt("needless") == key
    key.public.verify(key.sign(b"data", "ssh-ed25519"), b"data")


def test_an_encrypted_file_shows_its_public_key_before_the_passphrase_is_known():
    file = parse_private_key_file_untrusted(CTR)
    assert file.is_encrypted
    assert file.public_key.openssh_text() == LOCKED_PUBLIC


@pytest.mark.parametrize("text", [CTR, GCM])
def test_an_encrypted_file(text):
    file = parse_private_key_file_untrusted(text, "id")
    for passphrase in (PASSPHRASE, PASSPHRASE.encode()):
        key = file.decrypt(passphrase)
        assert key.comment == "locked@example"
        assert key.public == file.public_key
    for wrong in ("Correct horse", "correct horse ", "\0", b"\xff", "\udc80\ud800"):
        with pytest.raises(WrongPassphrase, match="id: the passphrase is wrong"):
            file.decrypt(wrong)
    for missing in (None, "", b""):
        with pytest.raises(WrongPassphrase, match="id: the key needs its passphrase"):
            file.decrypt(missing)


def test_repr_shows_no_secret():
    file = parse_private_key_file_untrusted(PLAIN)
    assert "_sealed" not in repr(file)
    assert repr(content_of(PLAIN)[-60:-20]) not in repr(file)
    assert "_protection" not in repr(parse_private_key_file_untrusted(CTR))


@pytest.mark.parametrize(
    "text",
    [
        PLAIN.replace(b"\n", b"\r\n"),
        PLAIN.rstrip(b"\n"),
        b"\xef\xbb\xbf" + PLAIN,
        b"\n \t\n" + PLAIN,
        PLAIN + b"\nanything after it\n",
        keyfiles.BEGIN + b"".join(PLAIN.splitlines()[1:-1]) + keyfiles.END,
    ],
)
def test_what_editors_and_pipelines_do_to_a_file_is_forgiven(text):
    assert parse_private_key_file_untrusted(text).decrypt().comment == "plain@example"


@pytest.mark.parametrize("length", range(0, len(PLAIN) - 1, 7))
def test_every_truncated_file_is_refused(length):
    text = PLAIN[:length]
    if not PLAIN[length:].strip(b"\n"):
        return
    assert refusal(text)


@pytest.mark.parametrize("length", range(len(content_of(PLAIN))))
def test_every_truncated_content_is_refused(length):
    assert refusal(wrapped(content_of(PLAIN)[:length]))


def test_a_flipped_byte_is_refused_or_changes_nothing_but_the_comment():
    whole = content_of(PLAIN)
    good = parse_private_key_file_untrusted(PLAIN).decrypt()
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 0x01
        try:
            key = parse_private_key_file_untrusted(wrapped(bytes(changed))).decrypt()
        except ConfigError:
            continue
        assert key == good
        assert key.comment != "plain@example"


def test_a_file_made_here_field_by_field_is_read():
    assert parse_private_key_file_untrusted(a_file()).decrypt() == a_key()
    longer = a_file(padding=bytes(range(1, 85)))  # as OpenSSH, which writes less than a block
    assert parse_private_key_file_untrusted(longer).decrypt() == a_key()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (a_file(count=0), "holds 0 keys instead of one"),
        (a_file(count=2), "holds 2 keys instead of one"),
        (a_file(count=0xFFFFFFFF), "holds 4294967295 keys"),
        (a_file(public=a_key(b"o").public.blob), "are not a pair"),
        (a_file(public=b""), "damaged"),
        (a_file(public=a_key().public.blob + b"\0"), "1 bytes after the last field"),
        (a_file(checks=(1, 2)), "check numbers differ"),
        (a_file(padding=b"\1\2\3\5"), "padding is not 1, 2, 3"),
        (a_file(comment=b"12345", padding=b"\0" * 8), "padding is not 1, 2, 3"),
        (a_file(padding=b"\1"), "private section of"),
        (a_file(section=b""), "private section of 0 bytes"),
        (a_file(section=bytes(8)), "the key is damaged"),
        (a_file(section=bytes(16)), "the key is damaged"),
        (a_file(after=b"x"), "1 bytes after the last field"),
        (a_file(options=b"x"), "1 bytes after the last field"),
        (a_file(cipher=b"none", kdf=b"bcrypt"), "encrypted with none"),
        (a_file(cipher=b"aes256-ctr"), "derived with none"),
        (a_file(cipher=b"rot13\x1b"), r"encrypted with rot13\x1b, which is not supported"),
        (a_file(cipher=b"\xff"), "which is not supported"),
        (wrapped(b""), "does not hold openssh-key-v1"),
        (wrapped(b"openssh-key-v2\0"), "does not hold openssh-key-v1"),
        (wrapped(keyfiles.MAGIC), "cut off"),
        (keyfiles.BEGIN + b"\n!!!\n" + keyfiles.END, "not base64"),
        (keyfiles.BEGIN + b"\nAAAA\n", "END line is missing"),
        (b"\n" * (keyfiles.MAXIMUM_FILE_BYTES + 1), "too large"),
    ],
)
def test_damaged_files(text, message):
    assert message in refusal(text)


def ed25519_section(public, secret):
    body = uint32(1) * 2 + string(b"ssh-ed25519") + string(public) + string(secret) + string(b"")
    return body + bytes(range(1, 1 + -len(body) % 8))


SEED = (b"k" * 32)[:32]
PUBLIC = a_key().public.blob[-32:]


@pytest.mark.parametrize(
    ("public", "secret", "message"),
    [
        (PUBLIC, SEED, "a secret of 32 bytes instead of 64"),
        (PUBLIC, SEED + PUBLIC + b"\0", "a secret of 65 bytes"),
        (PUBLIC, b"", "a secret of 0 bytes"),
        (PUBLIC[:-1], SEED + PUBLIC, "does not belong"),
        (bytes(32), SEED + PUBLIC, "does not belong"),
        (PUBLIC, SEED + bytes(32), "does not belong"),
        (PUBLIC, bytes(32) + PUBLIC, "does not belong"),
    ],
)
def test_ed25519_fields_that_do_not_fit(public, secret, message):
    assert message in refusal(a_file(section=ed25519_section(public, secret)))


def locked(salt=b"s" * 16, rounds=1, extra=b"", **fields):
    options = string(salt) + uint32(rounds) + extra
    return a_file(
        cipher=b"aes256-ctr", kdf=b"bcrypt", options=options, section=bytes(160), **fields
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (locked(rounds=0), "takes 0 rounds"),
        (locked(rounds=501), "takes 501 rounds of bcrypt; 1 to 500 are accepted"),
        (locked(rounds=2**31), "takes 2147483648 rounds"),
        (locked(rounds=2**32 - 1), "takes 4294967295 rounds"),
        (locked(salt=b""), "a salt of 0 bytes"),
        (locked(salt=b"s" * 7), "a salt of 7 bytes"),
        (locked(salt=b"s" * 65), "a salt of 65 bytes"),
        (locked(extra=b"x"), "1 bytes after the last field"),
        (a_file(cipher=b"aes256-ctr", kdf=b"bcrypt", section=bytes(160)), "cut off"),
        (a_file(cipher=b"aes256-ctr", kdf=b"scrypt", section=bytes(160)), "derived with scrypt"),
    ],
)
def test_bad_protection_is_refused_before_any_computation(text, message, monkeypatch):
    monkeypatch.setattr(keyfiles.bcrypt, "kdf", lambda *args, **kwargs: pytest.fail("computed"))
    assert message in refusal(text, "passphrase")


def test_a_section_that_is_no_multiple_of_the_block_is_refused():
    options = string(b"s" * 16) + uint32(1)
    for length in (8, 152, 159, 161):
        text = a_file(cipher=b"aes256-ctr", kdf=b"bcrypt", options=options, section=bytes(length))
        assert f"private section of {length} bytes" in refusal(text, "x")


def test_gcm_needs_its_tag():
    whole = content_of(GCM)
    assert "cut off" in refusal(wrapped(whole[:-1]), PASSPHRASE)
    assert "after the last field" in refusal(wrapped(whole + b"\0"), PASSPHRASE)
    changed = whole[:-1] + bytes([whole[-1] ^ 1])
    with pytest.raises(WrongPassphrase):
        parse_private_key_file_untrusted(wrapped(changed)).decrypt(PASSPHRASE)


@pytest.mark.parametrize(
    ("start", "names", "remedy"),
    [
        (b"-----BEGIN DSA PRIVATE KEY-----", "a DSA key in old PEM", "ssh-keygen -t ed25519"),
        (b"PuTTY-User-Key-File-3: ssh-ed25519\r\n", "PuTTY", "puttygen 'my id'"),
        (b"PuTTY-User-Key-File-2: ssh-rsa\n", "PuTTY", "puttygen 'my id'"),
        (b"---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----", "SSH.COM", "ssh-keygen -i -f 'my id'"),
        (b"---- BEGIN SSH2 PUBLIC KEY ----", "a public key in RFC 4716", "name the private key"),
        (b"ssh-ed25519 AAAA me@here", "a public key", "without .pub"),
        (b"ssh-rsa AAAA me@here", "a public key", "without .pub"),
        (b"ecdsa-sha2-nistp256 AAAA me@here", "a public key", "without .pub"),
        (b"sk-ssh-ed25519@openssh.com AAAA", "a public key", "without .pub"),
        (b"-----BEGIN PUBLIC KEY-----", "a public key in PEM", "name the private key"),
        (b"-----BEGIN CERTIFICATE-----", "an X.509 certificate", "name the private key"),
        (b"SSH PRIVATE KEY FILE FORMAT 1.1\n", "SSH version 1", "ssh-keygen -t ed25519"),
        (b"\xff\xfe-\0-\0", "UTF-16", "plain text"),
        (b"0\x82\x01\x02", "binary DER", "openssl"),
        (b"", "is empty", ""),
        (b"hello", "not a private key", "ssh-keygen -t ed25519"),
    ],
)
def test_other_formats_are_named_with_their_remedy(start, names, remedy):
    message = refusal(start, where="my id")
    assert message.startswith("my id: ")
    assert names in message
    assert remedy in message


def test_an_encoded_key_is_deterministic_and_read_again():
    def randbytes(length):
        return b"r" * length

    for comment in ("", "a", "ab", "abc", "abcd", "abcde", "abcdef", "abcdefg", "müller@host"):
        text = encode_private_key_file(a_key(), comment, randbytes=randbytes)
        assert text == encode_private_key_file(a_key(), comment, randbytes=randbytes)
        key = parse_private_key_file_untrusted(text).decrypt()
        assert key == a_key()
        assert key.comment == comment
    assert max(map(len, text.splitlines())) == 70
    assert text.endswith(b"-----END OPENSSH PRIVATE KEY-----\n")


# ---- other types, PEM and PKCS#8 ----------------------------------------------


@pytest.mark.parametrize("name", PRIVATE_TYPES)
def test_every_type_is_encoded_and_read_again(name):
    key = a_private_key(name)
    file = parse_private_key_file_untrusted(encode_private_key_file(key, "c"))
    assert file.public_key == key.public
    assert file.decrypt() == key
    assert file.decrypt().comment == "c"


def library_key(name):
    curves = {"256": ec.SECP256R1(), "384": ec.SECP384R1(), "521": ec.SECP521R1()}
    if name == "ssh-ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if name == "ssh-rsa":
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(curves[name[-3:]])


def pem(key, form="PKCS8", passphrase=None):
    protection = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    return key.private_bytes(Encoding.PEM, getattr(PrivateFormat, form), protection)


FORMS = [
    (name, form)
    for name in PRIVATE_TYPES
    for form in ("PKCS8", "TraditionalOpenSSL")
    if (name, form) != ("ssh-ed25519", "TraditionalOpenSSL")
]


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_pem_files(name, form):
    theirs = library_key(name)
    text = pem(theirs, form)
    for variant in (text, text.replace(b"\n", b"\r\n"), b"\n" + text.rstrip() + b"\nafter"):
        file = parse_private_key_file_untrusted(variant, "id")
        assert not file.is_encrypted
        assert file.public_key.algorithm == name
        key = file.decrypt("needless")
        assert key.public == file.public_key
        assert key.comment == ""
        text_of_public = theirs.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        assert key.public.openssh_text() == text_of_public.decode()
    assert "PRIVATE" not in repr(file)


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_encrypted_pem_files_do_not_show_their_public_key(name, form):
    theirs = library_key(name)
    file = parse_private_key_file_untrusted(pem(theirs, form, PASSPHRASE), "id")
    assert file.is_encrypted
    assert file.public_key is None
    for missing in (None, "", b""):
        with pytest.raises(WrongPassphrase, match="id: the key needs its passphrase"):
            file.decrypt(missing)
    for wrong in ("Correct horse", b"\xff", "\udc80", "x" * 5000):
        with pytest.raises(WrongPassphrase, match="id: the passphrase is wrong"):
            file.decrypt(wrong)
    key = file.decrypt(PASSPHRASE)
    assert key.public.algorithm == name
    informed = file.with_public_key(key.public)
    assert informed.public_key == key.public
    assert informed.decrypt(PASSPHRASE) == key
    with pytest.raises(ConfigError, match="are not a pair"):
        file.with_public_key(a_key().public).decrypt(PASSPHRASE)


def test_keys_of_no_use_in_pem_are_named():
    short = rsa.generate_private_key(65537, 1024)
    for form in ("PKCS8", "TraditionalOpenSSL"):
        message = refusal(pem(short, form), where="id")
        assert message.startswith("id: an RSA key of 1024 bits is too short: 2048 are the least: ")
        assert "ssh-keygen -t ed25519" in message
        message = refusal(pem(short, form, PASSPHRASE), PASSPHRASE, where="id")
        assert "an RSA key of 1024 bits is too short" in message
    for key, name in (
        (ec.generate_private_key(ec.SECP256K1()), "ECDSA on secp256k1"),
        (ed448.Ed448PrivateKey.generate(), "Ed448"),
        (x25519.X25519PrivateKey.generate(), "X25519"),
        (dsa.generate_private_key(1024), "DSA"),
    ):
        message = refusal(pem(key))
        assert f"keys of type {name} are not supported" in message
        assert "ssh-keygen -t ed25519" in message


PKCS8 = pem(library_key("ecdsa-sha2-nistp256"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PKCS8[:-30], "its END line is missing"),
        (PKCS8[:30], "its END line is missing"),
        (b"-----BEGIN PRIVATE KEY-----", "its END line is missing"),
        (b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n", "its END line is missing"),
        (PKCS8.replace(b"PRIVATE", b"X PRIVATE"), "not a private key"),
        (PKCS8.replace(b"END PRIVATE", b"END RSA PRIVATE"), "its END line is missing"),
        (PKCS8.replace(b"PRIVATE", b"RSA PRIVATE"), "cannot be decoded"),
        (PKCS8.replace(b"PRIVATE", b"ENCRYPTED PRIVATE"), "damaged"),
        (b"-----BEGIN PRIVATE KEY-----\n!\n-----END PRIVATE KEY-----\n", "cannot be decoded"),
        (b"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n", "cannot be decoded"),
    ],
)
def test_damaged_pem_files(text, message):
    assert message in refusal(text)


def test_many_beginnings_take_no_time():
    started = time.process_time()
    for line in (b"-----BEGIN PRIVATE KEY-----\n", b"-----BEGIN EC PARAMETERS-----\n"):
        text = line * (keyfiles.MAXIMUM_FILE_BYTES // len(line))
        assert "END line is missing" in refusal(text)
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"DEK-Info: \x1b,00\n\n",
        b"DEK-Info: AES-128-CBC\n\n",
        b"DEK-Info: AES-128-CBC," + b"0" * 32 + b"\n",
        b"DEK-Info: AES-128-CBC," + b"0" * 30 + b"\n\n",  # the library panics
        b"DEK-Info: AES-128-CBC," + b"0" * 34 + b"\n\n",
        b"DEK-Info: AES-256-CBC," + b"0" * 31 + b"\n\n",
        b"DEK-Info: DES-EDE3-CBC," + b"0" * 14 + b"\n\n",
        b"DEK-Info: AES-128-CBC," + b"0" * 32 + b"\n\n!",
        b"DEK-Info: AES-128-CBC," + b"0" * 32 + b"\nDEK-Info: AES-128-CBC,00\n\n",
    ],
)
def test_malformed_headers_of_old_pem(header):
    text = b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n" + header
    message = refusal(text + b"AAAA\n-----END RSA PRIVATE KEY-----\n", "x", where="id")
    assert message == "id: the file is damaged: its DEK-Info is malformed"


@pytest.mark.parametrize("cipher", [b"AES-192-CBC", b"DES-CBC"])
def test_old_pem_ciphers_that_are_not_supported(cipher):
    text = b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: " + cipher
    text += b",00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n"
    message = refusal(text, "x", where="id")
    assert "the file is encrypted with" in message
    assert "which is not supported: `ssh-keygen -p -f id` changes that" in message
    assert message.isprintable()


def der(tag, *parts):
    content = b"".join(parts)
    length = len(content)
    head = bytes((length,)) if length < 128 else b"\x82" + length.to_bytes(2, "big")
    return bytes((tag,)) + head + content


def der_number(number):
    return der(2, number.to_bytes(number.bit_length() // 8 + 1, "big"))


PBES2 = der(6, bytes.fromhex("2a864886f70d01050d"))
PBKDF2 = der(6, bytes.fromhex("2a864886f70d01050c"))
SCRYPT = der(6, keyfiles._SCRYPT)
PKCS12_3DES = der(6, bytes.fromhex("2a864886f70d010c0103"))
AES256_CBC = der(0x30, der(6, bytes.fromhex("60864801650304012a")), der(4, bytes(16)))


def pkcs8(algorithm):
    encoded = base64.encodebytes(der(0x30, algorithm, der(4, bytes(160))))
    label = b" ENCRYPTED PRIVATE KEY-----\n"
    return b"-----BEGIN" + label + encoded + b"-----END" + label


def pbes2(name, *numbers):
    parameters = der(0x30, der(4, b"saltsalt"), *map(der_number, numbers))
    return der(0x30, PBES2, der(0x30, der(0x30, name, parameters), AES256_CBC))


@pytest.mark.parametrize(
    ("algorithm", "too_slow"),
    [
        (pbes2(PBKDF2, 2048), False),
        (pbes2(PBKDF2, 10_000_001), True),
        (pbes2(PBKDF2, 2**31, 32), True),
        (pbes2(PBKDF2, 2**2000), True),
        (pbes2(SCRYPT, 16384, 8, 1), False),
        (pbes2(SCRYPT, 2**30, 8, 1), True),
        (pbes2(SCRYPT, 16384, 8, 10_000), True),
        (pbes2(SCRYPT, 1024, 2**20, 1), True),
        (der(0x30, PKCS12_3DES, der(0x30, der(4, b"saltsalt"), der_number(2048))), False),
        (der(0x30, PKCS12_3DES, der(0x30, der(4, b"saltsalt"), der_number(2**31))), True),
    ],
)
def test_a_slow_derivation_is_refused_before_it_is_begun(algorithm, too_slow):
    started = time.process_time()
    message = refusal(pkcs8(algorithm), "passphrase", where="id")
    assert time.process_time() - started < 1
    assert ("would take too long" in message) is too_slow
    assert "openssl pkcs8 -topk8 -in id" in message or not too_slow
    if not too_slow:
        assert message == "id: the passphrase is wrong"


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        (PBKDF2, ()),
        (PBKDF2, (0,)),
        (PBKDF2, (2048, 0)),
        (SCRYPT, (0, 0, 0)),
        (SCRYPT, (1, 8, 1)),
        (SCRYPT, (3, 8, 1)),
        (SCRYPT, (16384, 0, 1)),
        (SCRYPT, (16384, 8, 0)),
    ],
)
def test_a_derivation_without_sense_is_refused_before_it_is_begun(name, numbers, monkeypatch):
    """OpenSSL would refuse it too, but leave an error behind for whoever comes next."""
    monkeypatch.setattr(
        serialization, "load_pem_private_key", lambda *_, **__: pytest.fail("begun")
    )
    assert "key derivation make no sense" in refusal(pkcs8(pbes2(name, *numbers)), "x")


@pytest.mark.parametrize(
    "content",
    [b"", b"\x30", b"\x30\x84\xff\xff\xff\xff", der(0x30), der(0x30, der(0x30)), b"\x30\x80",
     der(0x30, der(0x30, PBES2)), der(0x30, der(0x30, PBES2, der(0x30)))],
)  # fmt: skip
def test_pkcs8_that_is_cut_off(content):
    label = b" ENCRYPTED PRIVATE KEY-----\n"
    text = b"-----BEGIN" + label + base64.encodebytes(content) + b"-----END" + label
    assert "damaged or cut off" in refusal(text, "passphrase")


@pytest.mark.parametrize("name", [SK_ED25519, SK_ECDSA])
def test_the_handle_of_a_security_key_belongs_into_an_agent(name):
    message = refusal(a_file(public=SecurityKey(name).public.blob), where="my id")
    assert f"this belongs to a security key ({name}), which only an agent can use" in message
    assert "`ssh-add 'my id'`" in message


def test_a_short_rsa_key_in_a_file():
    blob = string(b"ssh-rsa") + mpint(65537) + mpint(2**1023 + 1)
    message = refusal(a_file(public=blob), where="id")
    assert "id: an RSA key of 1024 bits is too short: 2048 are the least" in message
    section = uint32(1) * 2 + string(b"ssh-rsa") + mpint(2**1023 + 1) + mpint(65537) + mpint(1) * 4
    section += string(b"") + bytes(range(1, 9))
    section += bytes(range(9, 9 + -len(section) % 8))
    message = refusal(a_file(public=a_private_key("ssh-rsa").public.blob, section=section))
    assert "an RSA key of 1024 bits is too short" in message


# ---- against the real ssh-keygen and openssl ----------------------------------


def keygen(*arguments, check=True):
    program = shutil.which("ssh-keygen")
    assert program, "ssh-keygen is needed"
    done = subprocess.run(
        [program, *map(str, arguments)], capture_output=True, check=False, stdin=subprocess.DEVNULL
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done.stdout.decode()


@pytest.mark.interop
def test_ssh_keygen_reads_what_we_write(tmp_path):
    for length in range(9):
        key = PrivateKey.generate(os.urandom)
        path = tmp_path / f"host_key_{length}"
        path.write_bytes(encode_private_key_file(key, "c" * length))
        path.chmod(0o600)
        assert keygen("-y", "-f", path).split()[:2] == key.public.openssh_text().split()
        assert keygen("-l", "-f", path).split()[1] == key.public.fingerprint
        changed = keygen("-p", "-f", path, "-N", "new phrase", "-a", "1")
        assert "saved" in changed
        assert parse_private_key_file_untrusted(path.read_bytes()).decrypt("new phrase") == key


@pytest.mark.interop
@pytest.mark.parametrize("cipher", [*keyfiles.FILE_CIPHERS, None])
def test_we_read_what_ssh_keygen_writes(tmp_path, cipher):
    path = tmp_path / "id"
    options = ["-Z", cipher, "-a", "2"] if cipher else []  # without: its default cipher and rounds
    keygen("-q", "-t", "ed25519", "-N", "pass phrase", "-C", "me@here", "-f", path, *options)
    file = parse_private_key_file_untrusted(path.read_bytes(), str(path))
    assert file.is_encrypted
    public_text = path.with_suffix(".pub").read_text()
    assert file.public_key.openssh_text() == public_text.rsplit(maxsplit=1)[0]
    assert file.public_key.fingerprint == keygen("-l", "-f", path).split()[1]
    assert file.decrypt("pass phrase").comment == "me@here"
    with pytest.raises(WrongPassphrase):
        file.decrypt("pass phrase ")


@pytest.mark.interop
def test_we_read_an_unencrypted_file_of_ssh_keygen(tmp_path):
    path = tmp_path / "id"
    keygen("-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path)
    key = parse_private_key_file_untrusted(path.read_bytes()).decrypt()
    assert key.public.openssh_text() == path.with_suffix(".pub").read_text().strip()
    assert key.comment == ""
    refused = refusal(path.with_suffix(".pub").read_bytes())
    assert "this is a public key: name the private key" in refused


TYPES = {
    "ssh-ed25519": ["-t", "ed25519"],
    "ecdsa-sha2-nistp256": ["-t", "ecdsa", "-b", "256"],
    "ecdsa-sha2-nistp384": ["-t", "ecdsa", "-b", "384"],
    "ecdsa-sha2-nistp521": ["-t", "ecdsa", "-b", "521"],
    "ssh-rsa": ["-t", "rsa", "-b", "2048"],
}


@pytest.mark.interop
@pytest.mark.parametrize("form", ["RFC4716", "PEM", "PKCS8"])
@pytest.mark.parametrize("passphrase", ["", "pass phrase"])
@pytest.mark.parametrize("name", TYPES)
def test_every_type_and_form_of_ssh_keygen(tmp_path, name, passphrase, form):
    path = tmp_path / "id"
    keygen("-q", *TYPES[name], "-m", form, "-a", "1", "-N", passphrase, "-C", "me", "-f", path)
    public_text = path.with_suffix(".pub").read_text().rsplit(maxsplit=1)[0]
    file = parse_private_key_file_untrusted(path.read_bytes(), str(path))
    is_openssh = path.read_bytes().startswith(keyfiles.BEGIN)
    assert is_openssh == (form == "RFC4716" or name == "ssh-ed25519")
    assert file.is_encrypted == bool(passphrase)
    if is_openssh or not passphrase:
        assert file.public_key.openssh_text() == public_text
    if passphrase:
        with pytest.raises(WrongPassphrase):
            file.decrypt("pass phrase ")
    key = file.decrypt(passphrase)
    assert key.public.openssh_text() == public_text
    assert key.comment == ("me" if is_openssh else "")
    ours = tmp_path / "ours"
    ours.write_bytes(encode_private_key_file(key, "again"))
    ours.chmod(0o600)
    assert keygen("-y", "-f", ours).split()[:2] == public_text.split()


@pytest.mark.interop
def test_a_short_rsa_key_of_ssh_keygen(tmp_path):
    for form in ("RFC4716", "PEM"):
        path = tmp_path / form
        keygen("-q", "-t", "rsa", "-b", "1024", "-m", form, "-N", "", "-f", path)
        assert "an RSA key of 1024 bits is too short" in refusal(path.read_bytes())


def openssl(*arguments):
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl")
    subprocess.run([program, *map(str, arguments)], capture_output=True, check=True)


@pytest.mark.interop
@pytest.mark.parametrize(
    "options",
    [
        ["-v2", "aes256"],
        ["-v2", "aes-128-cbc", "-v2prf", "hmacWithSHA1"],
        ["-v2", "des3", "-iter", "100000"],
        ["-scrypt"],
        ["-scrypt", "-scrypt_N", "4096", "-scrypt_p", "2"],
        ["-v1", "PBE-SHA1-3DES"],
    ],
)
def test_pkcs8_of_openssl(tmp_path, options):
    path = tmp_path / "id"
    keygen("-q", "-t", "ecdsa", "-m", "PEM", "-N", "", "-f", path)
    public = parse_private_key_file_untrusted(path.read_bytes()).public_key
    made = tmp_path / "made"
    openssl("pkcs8", "-topk8", "-in", path, *options, "-passout", "pass:secret", "-out", made)
    file = parse_private_key_file_untrusted(made.read_bytes())
    assert file.decrypt("secret").public == public
    with pytest.raises(WrongPassphrase):
        file.decrypt("Secret")


@pytest.mark.interop
@pytest.mark.parametrize("cipher", ["aes128", "aes256", "des3"])
def test_old_encrypted_pem_of_openssl(tmp_path, cipher):
    path = tmp_path / "id"
    openssl("genrsa", "-traditional", f"-{cipher}", "-passout", "pass:secret", "-out", path, "2048")
    file = parse_private_key_file_untrusted(path.read_bytes())
    assert b"DEK-Info" in path.read_bytes()
    assert file.decrypt("secret").public.algorithm == "ssh-rsa"
    with pytest.raises(WrongPassphrase):
        file.decrypt("Secret")


@pytest.mark.interop
@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["ecparam", "-genkey", "-name", "prime256v1"], "ecdsa-sha2-nistp256"),
        (["genpkey", "-algorithm", "ed25519"], "ssh-ed25519"),
        (["genpkey", "-algorithm", "rsa", "-pkeyopt", "rsa_keygen_bits:3072"], "ssh-rsa"),
        (["genpkey", "-algorithm", "ec", "-pkeyopt", "ec_paramgen_curve:P-521"],
         "ecdsa-sha2-nistp521"),
    ],
)  # fmt: skip
def test_plain_keys_of_openssl(tmp_path, arguments, name):
    path = tmp_path / "id"
    openssl(*arguments, "-out", path)
    assert parse_private_key_file_untrusted(path.read_bytes()).public_key.algorithm == name


@pytest.mark.interop
@pytest.mark.parametrize("name", TYPES)
def test_ssh_keygen_checks_our_signature(tmp_path, name):
    """The sshsig format wraps an ordinary signature blob (PROTOCOL.sshsig)."""
    key = a_private_key(name)
    digest = hashlib.sha512(b"message").digest()
    preamble = b"SSHSIG" + string(b"file") + string(b"") + string(b"sha512")
    signature = key.sign(preamble + string(digest), key.public.signature_algorithms[0])
    blob = b"SSHSIG" + uint32(1) + string(key.public.blob) + string(b"file") + string(b"")
    blob += string(b"sha512") + string(signature)
    text = b"-----BEGIN SSH SIGNATURE-----\n" + base64.encodebytes(blob)
    (tmp_path / "sig").write_bytes(text + b"-----END SSH SIGNATURE-----\n")
    (tmp_path / "message").write_bytes(b"message")
    with (tmp_path / "message").open("rb") as message:
        done = subprocess.run(
            ["ssh-keygen", "-Y", "check-novalidate", "-n", "file", "-s", tmp_path / "sig"],
            stdin=message,
            capture_output=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert key.public.fingerprint.encode() in done.stdout
