"""Every kind of key: RFC vectors, what may not be a key, and what may not be a signature."""

import dataclasses
import hashlib
import time

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA1

from gateway.errors import ConfigError, LocalProtocolError
from gateway.ssh import algorithms, keytypes
from gateway.ssh.keys import (
    KEY_TYPES,
    KeySizeError,
    PrivateKey,
    PublicKeyError,
    SignatureError,
    UnsupportedKeyError,
    key_type_of,
    parse_public_key_untrusted,
    plain_name,
    read_private_key_untrusted,
)
from gateway.ssh.keytypes import certificate_name, private_wire
from gateway.ssh.wire import Reader, mpint, string, uint32
from tests.support.keys import PRIVATE_TYPES, SK_ECDSA, SK_ED25519, SecurityKey, a_private_key

RSA = a_private_key("ssh-rsa")
P256 = a_private_key("ecdsa-sha2-nistp256")

# RFC 6979 A.2.5 to A.2.7, "sample" with the hash that RFC 5656 takes: x, r, s.
ECDSA_VECTORS = {
    "nistp256": (
        "C9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721",
        "EFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716",
        "F7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8",
    ),
    "nistp384": (
        (
            "6B9D3DAD2E1B8C1C05B19875B6659F4DE23C3B667BF297BA9AA47740787137D8"
            "96D5724E4C70A825F872C9EA60D2EDF5"
        ),
        (
            "94EDBB92A5ECB8AAD4736E56C691916B3F88140666CE9FA73D64C4EA95AD133C"
            "81A648152E44ACF96E36DD1E80FABE46"
        ),
        (
            "99EF4AEB15F178CEA1FE40DB2603138F130E740A19624526203B6351D0A3A94F"
            "A329C145786E679E7B82C71A38628AC8"
        ),
    ),
    "nistp521": (
        (
            "00FAD06DAA62BA3B25D2FB40133DA757205DE67F5BB0018FEE8C86E1B68C7E75"
            "CAA896EB32F1F47C70855836A6D16FCC1466F6D8FBEC67DB89EC0C08B0E996B83538"
        ),
        (
            "00C328FAFCBD79DD77850370C46325D987CB525569FB63C5D3BC53950E6D4C5F"
            "174E25A1EE9017B5D450606ADD152B534931D7D4E8455CC91F9B15BF05EC36E377FA"
        ),
        (
            "00617CCE7CF5064806C467F678D3B4080D6F1CC50AF26CA209417308281B68AF"
            "282623EAA63E5B5C0723D8B8C37FF0777B1A20F8CCB1DCCC43997F1EE0E44DA4A67A"
        ),
    ),
}
CURVES = {"nistp256": ec.SECP256R1(), "nistp384": ec.SECP384R1(), "nistp521": ec.SECP521R1()}


def fields_of(blob):
    """What follows the type name."""
    fields = Reader(blob)
    fields.string()
    return fields.rest()


def signature_of(blob):
    """What the signature's wrapping holds."""
    fields = Reader(blob)
    fields.string()
    return fields.string()


@pytest.mark.parametrize("curve", ECDSA_VECTORS)
def test_rfc_6979_vectors_in_rfc_5656_frames(curve):
    x, r, s = (int(number, 16) for number in ECDSA_VECTORS[curve])
    name = f"ecdsa-sha2-{curve}"
    key = read_private_key_untrusted(Reader(private_wire(ec.derive_private_key(x, CURVES[curve]))))
    assert key.public.algorithm == name
    blob = string(name.encode()) + string(mpint(r) + mpint(s))
    key.public.verify(blob, b"sample", name)
    with pytest.raises(SignatureError, match=f"wrong {name} signature"):
        key.public.verify(blob, b"Sample", name)
    key.public.verify(key.sign(b"test", name), b"test", name)


@pytest.mark.parametrize("name", PRIVATE_TYPES)
def test_sign_and_verify_and_the_private_section(name):
    key = a_private_key(name)
    assert key.public.algorithm == name
    assert parse_public_key_untrusted(key.public.blob) == key.public
    assert read_private_key_untrusted(Reader(key.private_section())) == key
    for algorithm in key.public.signature_algorithms:
        signature = key.sign(b"data", algorithm)
        assert Reader(signature).string() == algorithm.encode()
        key.public.verify(signature, b"data", algorithm)
        key.public.verify(signature, b"data")
        with pytest.raises(SignatureError, match="wrong"):
            key.public.verify(signature, b"Data", algorithm)
        with pytest.raises(SignatureError):
            key.public.verify(signature[:-1], b"data")
        with pytest.raises(SignatureError, match="malformed signature"):
            key.public.verify(signature + b"\0", b"data")


def test_the_algorithms_of_each_type():
    assert RSA.public.signature_algorithms == ("rsa-sha2-512", "rsa-sha2-256")
    assert key_type_of("rsa-sha2-256") == "ssh-rsa"
    assert key_type_of("ssh-rsa") == "ssh-rsa"
    assert key_type_of("rsa-sha2-512-cert-v01@openssh.com") == "ssh-rsa-cert-v01@openssh.com"
    assert certificate_name(SK_ED25519) == "sk-ssh-ed25519-cert-v01@openssh.com"
    for kind in KEY_TYPES.values():
        for algorithm in kind.signature_algorithms:
            assert key_type_of(algorithm) == kind.name
            assert plain_name(algorithm) == algorithm
            assert plain_name(certificate_name(algorithm)) == algorithm
            assert plain_name(key_type_of(certificate_name(algorithm))) == kind.name
    assert plain_name("unheard-of-cert-v01@openssh.com") == "unheard-of-cert-v01@openssh.com"


def test_what_is_offered_is_what_there_is():
    can = {name for kind in KEY_TYPES.values() for name in kind.signature_algorithms}
    assert set(algorithms.PLAIN_KEY_ALGORITHMS) == can
    assert set(algorithms.DEFAULT_USER_KEY_ALGORITHMS) == can | set(map(certificate_name, can))
    assert "ssh-rsa" not in algorithms.DEFAULT_HOST_KEY_ALGORITHMS
    certificates = [name for name in algorithms.DEFAULT_HOST_KEY_ALGORITHMS if "-cert-" in name]
    plain = tuple(map(plain_name, certificates))
    assert (*certificates, *plain) == algorithms.DEFAULT_HOST_KEY_ALGORITHMS


# ---- ecdsa -------------------------------------------------------------------

POINT = Reader(fields_of(P256.public.blob))
POINT.string()
POINT = POINT.string()


def ecdsa(name, curve, point):
    return string(name) + string(curve) + string(point)


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (ecdsa(b"ecdsa-sha2-nistp256", b"nistp384", POINT), "its curve is not nistp256"),
        (ecdsa(b"ecdsa-sha2-nistp384", b"nistp256", POINT), "its curve is not nistp384"),
        (ecdsa(b"ecdsa-sha2-nistp384", b"nistp384", POINT), "point of nistp384: 65 bytes"),
        (ecdsa(b"ecdsa-sha2-nistp256", b"", POINT), "its curve is not"),
        (ecdsa(b"ecdsa-sha2-nistp256", b"nistp256", b""), "point of nistp256: 0 bytes"),
        (ecdsa(b"ecdsa-sha2-nistp256", b"nistp256", b"\0"), "point of nistp256: 1 bytes"),
        (ecdsa(b"ecdsa-sha2-nistp256", b"nistp256", POINT[:-1]), "64 bytes"),
        (ecdsa(b"ecdsa-sha2-nistp256", b"nistp256", POINT + b"\0"), "66 bytes"),
        (ecdsa(b"ecdsa-sha2-nistp256", b"nistp256", b"\2" + POINT[1:33]), "33 bytes"),
        (ecdsa(b"ecdsa-sha2-nistp256", b"nistp256", b"\6" + POINT[1:]), "no uncompressed"),
        (ecdsa(b"ecdsa-sha2-nistp256", b"nistp256", b"\4" + bytes(64)), "no point of nistp256"),
        (
            ecdsa(b"ecdsa-sha2-nistp256", b"nistp256", POINT[:-1] + bytes([POINT[-1] ^ 1])),
            "no point of nistp256",
        ),
        (ecdsa(b"ecdsa-sha2-nistp256", b"nistp256", b"\4" + b"\xff" * 64), "no point"),
        (P256.public.blob + b"\0", "1 bytes after the last field"),
    ],
)
def test_what_is_no_ecdsa_key(blob, message):
    """T35: the curve is the one that the name says."""
    with pytest.raises(PublicKeyError, match=message):
        parse_public_key_untrusted(blob)


@pytest.mark.parametrize(
    "signature",
    [
        b"",
        mpint(1),
        mpint(0) + mpint(0),
        mpint(1) + mpint(0),
        mpint(2**256) + mpint(1),
        mpint(2**16000) + mpint(2**16000),
        mpint(1) + mpint(1) + b"\0",
        string(b"\xff") + mpint(1),
        string(b"\0\1") + mpint(1),
        string(b"\0" * 4000) + mpint(1),
    ],
)
def test_what_is_no_ecdsa_signature(signature):
    with pytest.raises(SignatureError):
        P256.public.verify(string(b"ecdsa-sha2-nistp256") + string(signature), b"data")


def test_a_signature_of_another_curve_is_refused():
    """CVE-2026-35387."""
    p384 = a_private_key("ecdsa-sha2-nistp384")
    signature = p384.sign(b"data", "ecdsa-sha2-nistp384")
    with pytest.raises(SignatureError, match="where ecdsa-sha2-nistp256 was due"):
        P256.public.verify(signature, b"data")
    with pytest.raises(SignatureError, match="where ecdsa-sha2-nistp256 was due"):
        p384.public.verify(signature, b"data", "ecdsa-sha2-nistp256")
    with pytest.raises(LocalProtocolError):
        P256.sign(b"data", "ecdsa-sha2-nistp384")


def test_nonces_of_nistp521_are_not_biased():
    """T90, CVE-2024-31497: with the secret at hand the nonce can be computed, and looked at.

    Each of its bits is set half of the time, but for seven standard deviations. The library
    makes them, and nothing of ours does.
    """
    key = a_private_key("ecdsa-sha2-nistp521")
    section = Reader(key.private_section())
    for _ in range(3):
        section.string()
    x = section.mpint()
    order = (1 << 521) - 0x5AE79787C40D069948033FEB708F65A2FC44A36477663B851449048E16EC79BF7
    z = int.from_bytes(hashlib.sha512(b"data").digest(), "big")
    count, ones, seen = 500, [0] * 521, set()
    for _ in range(count):
        fields = Reader(signature_of(key.sign(b"data", "ecdsa-sha2-nistp521")))
        r, s = fields.mpint(), fields.mpint()
        nonce = (z + r * x) * pow(s, -1, order) % order
        seen.add(nonce)
        for bit in range(521):
            ones[bit] += nonce >> bit & 1
    assert len(seen) == count, "none twice"
    margin = 7 * (count / 4) ** 0.5
    assert [bit for bit, found in enumerate(ones) if abs(found - count / 2) > margin] == []


@pytest.mark.parametrize(
    ("secret", "message"),
    [
        (mpint(0), "not a number of nistp256"),
        (mpint(2**256), "not a number of nistp256"),
        (mpint(1), "does not belong to the private half"),
        (string(b"\xff"), "negative"),
    ],
)
def test_what_is_no_ecdsa_secret(secret, message):
    with pytest.raises(PublicKeyError, match=message):
        read_private_key_untrusted(Reader(P256.public.blob + secret))


# ---- rsa ---------------------------------------------------------------------


def rsa_blob(e, n):
    return string(b"ssh-rsa") + mpint(e) + mpint(n)


N = Reader(fields_of(RSA.public.blob))
N.mpint()
N = N.mpint()


@pytest.mark.parametrize("bits", [0, 1, 512, 768, 1024, 1536, 2047])
def test_a_short_rsa_key_is_refused_with_one_sentence(bits):
    n = (1 << bits) - 1
    with pytest.raises(KeySizeError) as caught:
        parse_public_key_untrusted(rsa_blob(65537, n))
    assert str(caught.value) == f"an RSA key of {bits} bits is too short: 2048 are the least"
    assert caught.value.algorithm == "ssh-rsa"


def test_a_long_rsa_key_is_refused_before_anything_is_computed(monkeypatch):
    monkeypatch.setattr(keytypes.rsa, "RSAPublicNumbers", lambda *_: pytest.fail("computed"))
    with pytest.raises(PublicKeyError, match="an mpint of 2051 bytes"):
        parse_public_key_untrusted(rsa_blob(65537, (1 << 16400) - 1))
    with pytest.raises(KeySizeError, match="of 16385 bits is too long: 16384 are the most"):
        keytypes._check_rsa_numbers(65537, (1 << 16385) - 1)


def test_the_longest_rsa_key_takes_less_than_a_second():
    """T89: a pathological key may not hold the loop."""
    started = time.process_time()
    key = parse_public_key_untrusted(rsa_blob(2**64 - 1, 2**16384 - 1))
    with pytest.raises(SignatureError):
        key.verify(string(b"rsa-sha2-512") + string(b"\x7f" * 2048), b"data")
    assert time.process_time() - started < 1


@pytest.mark.parametrize("e", [0, 1, 2, 4, 65536, 2**64, 2**64 + 1, 2**2000 + 1])
def test_exponents_that_are_not_sane(e):
    with pytest.raises(PublicKeyError, match="its exponent is not"):
        parse_public_key_untrusted(rsa_blob(e, N))


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (rsa_blob(65537, N - 1), "its modulus is even"),
        (string(b"ssh-rsa") + mpint(3) + string(b"\xff" * 257), "negative"),
        (string(b"ssh-rsa") + mpint(3) + string(b"\0" + mpint(N)[4:]), "leading zeros"),
        (RSA.public.blob + b"\0", "1 bytes after"),
        (RSA.public.blob[:-1], "with only"),
    ],
)
def test_what_is_no_rsa_key(blob, message):
    with pytest.raises(PublicKeyError, match=message):
        parse_public_key_untrusted(blob)


def test_no_sha1_with_rsa():
    """RFC 8332: an ssh-rsa key never makes, and is never believed, an ssh-rsa signature."""
    x = Reader(RSA.private_section())
    x.string()
    n, e, d, iqmp, p, q = (x.mpint() for _ in range(6))
    raw = rsa.RSAPrivateNumbers(
        p, q, d, d % (p - 1), d % (q - 1), iqmp, rsa.RSAPublicNumbers(e, n)
    ).private_key()
    signature = string(b"ssh-rsa") + string(raw.sign(b"data", PKCS1v15(), SHA1()))
    for algorithm in (None, "ssh-rsa", "rsa-sha2-512"):
        with pytest.raises(SignatureError, match="of algorithm ssh-rsa where"):
            RSA.public.verify(signature, b"data", algorithm)
    for name in (b"rsa-sha2-256", b"rsa-sha2-512"):
        renamed = string(name) + string(raw.sign(b"data", PKCS1v15(), SHA1()))
        with pytest.raises(SignatureError, match="wrong"):
            RSA.public.verify(renamed, b"data")
    with pytest.raises(LocalProtocolError):
        RSA.sign(b"data", "ssh-rsa")


def test_the_two_rsa_algorithms_are_not_mixed_up():
    signature = RSA.sign(b"data", "rsa-sha2-256")
    with pytest.raises(SignatureError, match="rsa-sha2-256 where rsa-sha2-512 was due"):
        RSA.public.verify(signature, b"data", "rsa-sha2-512")
    renamed = string(b"rsa-sha2-512") + string(signature_of(signature))
    with pytest.raises(SignatureError, match="a wrong rsa-sha2-512 signature"):
        RSA.public.verify(renamed, b"data")


def test_an_rsa_signature_may_lack_leading_zeros_and_have_none_to_spare():
    for number in range(3000):
        data = str(number).encode()
        signature = signature_of(RSA.sign(data, "rsa-sha2-256"))
        if signature[0] == 0:
            break
    else:
        pytest.fail("no signature with a leading zero")
    for variant in (signature, signature.lstrip(b"\0")):
        RSA.public.verify(string(b"rsa-sha2-256") + string(variant), data)
    with pytest.raises(SignatureError):
        RSA.public.verify(string(b"rsa-sha2-256") + string(b"\0" + signature), data)


def rsa_section(**changed):
    names = ("n", "e", "d", "iqmp", "p", "q")
    fields = Reader(RSA.private_section())
    name = fields.string()
    numbers = {number: fields.mpint() for number in names} | changed
    return string(name) + b"".join(mpint(numbers[number]) for number in names)


@pytest.mark.parametrize(
    "changed", [{"d": 3}, {"d": 0}, {"iqmp": 5}, {"p": 1}, {"q": 0}, {"p": 7, "q": 11}, {"e": 3}]
)
def test_rsa_numbers_that_do_not_fit(changed):
    with pytest.raises(PublicKeyError, match="are not those of one RSA key"):
        read_private_key_untrusted(Reader(rsa_section(**changed)))


def test_a_wrong_rsa_signature_never_leaves(monkeypatch):
    """T90: one bad signature gives both primes away. Here p is not prime, which nobody notices."""
    p, q = 3 * ((1 << 1024) - 105), (1 << 1026) - 5
    n, e = p * q, 65537
    d = pow(e, -1, (p - 1) * (q - 1))
    section = string(b"ssh-rsa") + b"".join(map(mpint, (n, e, d, pow(q, -1, p), p, q)))
    key = read_private_key_untrusted(Reader(section))
    with pytest.raises(ConfigError, match="the RSA key makes wrong signatures: it is damaged"):
        key.sign(b"data", "rsa-sha2-512")


def test_repr_shows_no_secret_number():
    for name in PRIVATE_TYPES:
        key = a_private_key(name)
        assert repr(key) == repr(dataclasses.replace(key))
        assert "signer" not in repr(key).lower()


# ---- security keys -----------------------------------------------------------

SECURITY_KEYS = [SecurityKey(SK_ED25519), SecurityKey(SK_ECDSA)]


@pytest.mark.parametrize("key", SECURITY_KEYS, ids=lambda key: key.public.algorithm)
def test_a_security_key_must_have_been_touched(key):
    """T37."""
    key.public.verify(key.sign(b"data"), b"data", key.public.algorithm)
    for flags in (0, 4, 0xFE):
        with pytest.raises(SignatureError, match="signed without being touched"):
            key.public.verify(key.sign(b"data", flags), b"data")
        key.public.verify(key.sign(b"data", flags), b"data", touch_required=False)
    key.public.verify(key.sign(b"data", 5), b"data", verification_required=True)
    with pytest.raises(SignatureError, match="without verifying its user"):
        key.public.verify(key.sign(b"data"), b"data", verification_required=True)


@pytest.mark.parametrize("key", SECURITY_KEYS, ids=lambda key: key.public.algorithm)
def test_flags_counter_and_application_are_signed(key):
    signature = key.sign(b"data", 0, 1)
    pretended = signature[:-5] + b"\1" + uint32(1)
    with pytest.raises(SignatureError, match="a wrong sk-"):
        key.public.verify(pretended, b"data")
    with pytest.raises(SignatureError, match="a wrong sk-"):
        key.public.verify(key.sign(b"data")[:-1] + b"\0", b"data")
    other = SecurityKey(key.public.algorithm, b"ssh:other")
    assert other.public != key.public
    with pytest.raises(SignatureError, match="a wrong sk-"):
        key.public.verify(other.sign(b"data"), b"data")
    for length in range(len(signature)):
        with pytest.raises(SignatureError):
            key.public.verify(signature[:length], b"data", touch_required=False)
    with pytest.raises(SignatureError, match="malformed signature"):
        key.public.verify(signature + b"\0", b"data")


@pytest.mark.parametrize("key", SECURITY_KEYS, ids=lambda key: key.public.algorithm)
def test_a_plain_signature_is_not_one_of_a_security_key(key):
    with pytest.raises(SignatureError):
        key.public.verify(RSA.sign(b"data", "rsa-sha2-512"), b"data")
    plain = key._inner.sign(b"data", key._inner.public.algorithm)
    renamed = string(key.public.algorithm.encode()) + string(signature_of(plain)) + b"\1\0\0\0\0"
    with pytest.raises(SignatureError):
        key.public.verify(renamed, b"data")


def test_no_file_holds_a_security_key():
    key = SECURITY_KEYS[0].public
    with pytest.raises(UnsupportedKeyError, match="never leave their device"):
        read_private_key_untrusted(Reader(key.blob + bytes(100)))


def test_generate_makes_ed25519():
    assert PrivateKey.generate(bytes).public.algorithm == "ssh-ed25519"


def test_other_keys_of_the_library_are_named():
    key = ec.generate_private_key(ec.SECP256K1())
    with pytest.raises(UnsupportedKeyError, match="ECDSA on secp256k1"):
        private_wire(key)
    with pytest.raises(UnsupportedKeyError, match="keys of type object"):
        private_wire(object())
