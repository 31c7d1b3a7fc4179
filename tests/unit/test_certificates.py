"""Certificates: read, refused at every damaged field, and judged for hosts and users."""

import base64
import dataclasses

import pytest

from gateway.errors import ConfigError
from gateway.ssh.certificates import (
    Certificate,
    CertificateError,
    CertificateKind,
    check_for_host,
    check_for_user,
    is_certificate_type,
    parse_certificate_untrusted,
    parse_key_or_certificate_untrusted,
    parse_public_key_file_untrusted,
    with_certificate,
)
from gateway.ssh.keys import (
    KeySizeError,
    PublicKeyError,
    SignatureError,
    UnsupportedKeyError,
    parse_public_key_untrusted,
)
from gateway.ssh.keytypes import certificate_name
from gateway.ssh.wire import mpint, string
from tests.support.keys import (
    FOREVER,
    PRIVATE_TYPES,
    SK_ECDSA,
    SK_ED25519,
    SecurityKey,
    a_certificate,
    a_private_key,
    options,
)

KEY = a_private_key("ssh-ed25519")
CA = a_private_key("ssh-ed25519", "c")
GOOD = a_certificate(KEY.public, CA)
NOW = 1_800_000_000


def user(**fields):
    return parse_certificate_untrusted(
        a_certificate(KEY.public, CA, **{"kind": 1, "principals": (b"alice",)} | fields)
    )


def host(**fields):
    return parse_certificate_untrusted(a_certificate(KEY.public, CA, **fields))


@pytest.mark.parametrize("name", PRIVATE_TYPES)
@pytest.mark.parametrize("ca_name", PRIVATE_TYPES)
def test_every_type_by_every_ca(name, ca_name):
    key, ca = a_private_key(name), a_private_key(ca_name, "c")
    for ca_algorithm in ca.public.signature_algorithms:
        blob = a_certificate(key.public, ca, ca_algorithm=ca_algorithm)
        certificate = parse_key_or_certificate_untrusted(blob)
        assert isinstance(certificate, Certificate)
        assert certificate.algorithm == certificate_name(name)
        assert certificate.blob == blob
        assert certificate.key == key.public
        assert certificate.ca_key == ca.public
        assert certificate.ca_signature_algorithm == ca_algorithm
        assert certificate.fingerprint == key.public.fingerprint
        assert certificate.openssh_text() == (
            f"{certificate_name(name)} {base64.b64encode(blob).decode()}"
        )
        check_for_host(certificate, "host", NOW)
    for plain in key.public.signature_algorithms:
        algorithm = certificate_name(plain)
        assert algorithm in certificate.signature_algorithms
        signature = with_certificate(key, certificate).sign(b"data", algorithm)
        assert signature.startswith(string(plain.encode()))
        certificate.verify(signature, b"data", algorithm)
        with pytest.raises(SignatureError, match="wrong"):
            certificate.verify(signature, b"Data", algorithm)
        with pytest.raises(SignatureError):
            certificate.verify(signature, b"data", plain)


@pytest.mark.parametrize("name", [SK_ED25519, SK_ECDSA])
def test_security_keys_have_certificates_and_can_be_a_ca(name):
    key = SecurityKey(name)
    certificate = parse_certificate_untrusted(a_certificate(key.public, CA, kind=1))
    assert certificate.key == key.public
    certificate.verify(key.sign(b"data"), b"data", certificate_name(name))
    with pytest.raises(SignatureError, match="without being touched"):
        certificate.verify(key.sign(b"data", 0), b"data")

    unsigned = a_certificate(KEY.public, CA, ca_blob=key.public.blob, signature=b"")[:-4]
    for flags in (1, 0):
        blob = unsigned + string(key.sign(unsigned, flags))
        if flags:
            assert parse_certificate_untrusted(blob).ca_key == key.public
        else:
            with pytest.raises(PublicKeyError, match="without being touched"):
                parse_certificate_untrusted(blob)


def test_the_fields():
    certificate = user(
        valid=(5, 6),
        critical=options((b"force-command", string(b"x"))),
        extensions=options((b"permit-pty", b""), (b"unheard-of", b"y")),
        principals=(b"alice", b"b,ob", b""),
        key_id="schl\u00fcssel\x1b".encode(),
    )
    assert certificate.kind is CertificateKind.USER
    assert (certificate.serial, certificate.key_id) == (7, "schl\u00fcssel\x1b")
    assert (certificate.valid_after, certificate.valid_before) == (5, 6)
    assert certificate.principals == ("alice", "b,ob", "")
    assert certificate.critical_options == (("force-command", string(b"x")),)
    assert certificate.extensions == (("permit-pty", b""), ("unheard-of", b"y"))
    assert certificate.description == r'the certificate "schlüssel\x1b" (serial 7)'


def test_a_certificate_is_no_plain_key():
    with pytest.raises(UnsupportedKeyError):
        parse_public_key_untrusted(GOOD)
    assert parse_key_or_certificate_untrusted(KEY.public.blob) == KEY.public
    assert type(parse_key_or_certificate_untrusted(KEY.public.blob)) is not Certificate
    with pytest.raises(PublicKeyError, match="it is no certificate"):
        parse_certificate_untrusted(KEY.public.blob)
    certificate = parse_certificate_untrusted(GOOD)
    assert certificate != KEY.public
    assert KEY.public != certificate
    assert certificate == parse_certificate_untrusted(GOOD)
    assert hash(certificate) == hash(parse_certificate_untrusted(GOOD))
    assert certificate != host()  # another nonce
    with pytest.raises(UnsupportedKeyError):
        parse_key_or_certificate_untrusted(string(b"ssh-rsa-cert-v00@openssh.com"))
    assert is_certificate_type("ssh-rsa-cert-v01@openssh.com")
    assert not is_certificate_type("ssh-rsa")
    assert not is_certificate_type("rsa-sha2-512-cert-v01@openssh.com")


@pytest.mark.parametrize("length", range(len(GOOD)))
def test_every_truncated_certificate_is_refused(length):
    with pytest.raises(PublicKeyError):
        parse_key_or_certificate_untrusted(GOOD[:length])


@pytest.mark.parametrize("position", range(len(GOOD)))
def test_every_flipped_byte_is_refused(position):
    changed = bytearray(GOOD)
    changed[position] ^= 0x20
    with pytest.raises(PublicKeyError):
        parse_key_or_certificate_untrusted(bytes(changed))


RSA_1024 = string(b"ssh-rsa") + mpint(65537) + mpint((1 << 1024) - 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": 0}, "of kind 0, neither user nor host"),
        ({"kind": 3}, "of kind 3"),
        ({"after": b"\0"}, "1 bytes after the last field"),
        ({"ca_blob": GOOD}, "signed by a certificate, not by a key"),
        ({"ca_blob": string(GOOD)}, "type"),
        ({"ca_blob": KEY.public.blob}, "a wrong ssh-ed25519 signature"),
        ({"ca_blob": b""}, "without a type"),
        ({"ca_blob": string(b"ssh-dss")}, "keys of type ssh-dss are not supported"),
        ({"signature": b""}, "a malformed signature"),
        ({"signature": string(b"ssh-rsa") + string(bytes(256))}, "of algorithm ssh-rsa where"),
        ({"principals": (b"a",) * 257}, "more than 256 principals"),
        ({"principals": (b"a\0b",)}, "a name holds a NUL"),
        ({"principals": (b"\xff",)}, "not UTF-8"),
        ({"critical": options((b"b", b""), (b"a", b""))}, "critical option a is out of order"),
        ({"critical": options((b"a", b""), (b"a", b""))}, "critical option a is out of order"),
        ({"extensions": options((b"b", b""), (b"a", b""))}, "extension a is out of order"),
        ({"extensions": options((b"\x1b", b""), (b"\1", b""))}, r"extension \\x01 is out of"),
        ({"extensions": string(b"a")}, "with only 0 bytes left"),
        ({"critical": b"\0"}, "with only 1 bytes left"),
        ({"name": "ssh-rsa-cert-v01@openssh.com"}, "malformed ssh-rsa-cert-v01@openssh.com"),
        ({"name": certificate_name("ecdsa-sha2-nistp256")}, "its curve is not nistp256"),
        ({"key_id": bytes(20000)}, "a certificate of 20"),
    ],
)
def test_malformed_certificates(fields, message):
    with pytest.raises(PublicKeyError, match=message) as caught:
        parse_key_or_certificate_untrusted(a_certificate(KEY.public, CA, **fields))
    assert str(caught.value).isprintable()


def test_short_rsa_keys_are_refused_in_both_places():
    blob = a_certificate(KEY.public, CA, ca_blob=RSA_1024)
    with pytest.raises(KeySizeError, match="an RSA key of 1024 bits is too short"):
        parse_certificate_untrusted(blob)
    short = dataclasses.replace(KEY.public, algorithm="ssh-rsa", blob=RSA_1024)
    with pytest.raises(KeySizeError, match="an RSA key of 1024 bits is too short"):
        parse_certificate_untrusted(a_certificate(short, CA))


def test_a_ca_does_not_sign_with_sha1():
    ca = a_private_key("ssh-rsa", "c")
    signature = string(b"ssh-rsa") + string(bytes(256))
    with pytest.raises(PublicKeyError, match="of algorithm ssh-rsa where rsa-sha2-512"):
        parse_certificate_untrusted(a_certificate(KEY.public, ca, signature=signature))


# ---- for a host --------------------------------------------------------------


@pytest.mark.parametrize(
    ("principals", "name", "expected"),
    [
        ((b"host",), "host", True),
        ((b"a", b"host"), "host", True),
        ((b"host",), "hosts", False),
        ((b"host,other",), "host", False),
        ((b"host,other",), "host,other", True),
        ((b"*.example.com",), "a.example.com", True),
        ((b"*.example.com",), "example.com", False),
        ((b"h?st",), "host", True),
        ((b"!host", b"*"), "host", True),  # no negation here, as in match_pattern
        ((b"",), "host", False),
        ((b"",), "", True),
        ((), "host", False),
        ((b"192.0.2.1",), "192.0.2.1", True),
        ((b"HOST",), "host", False),
    ],
)
def test_principals_of_a_host(principals, name, expected):
    certificate = host(principals=principals)
    if expected:
        check_for_host(certificate, name, NOW)
        return
    with pytest.raises(CertificateError, match=r"is for .*, not for") as caught:
        check_for_host(certificate, name, NOW)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("valid", "now", "message"),
    [
        ((NOW, NOW + 1), NOW, None),
        ((NOW, NOW + 1), NOW + 0.999, None),
        ((NOW, NOW + 1), NOW + 1, "has expired"),
        ((NOW, NOW + 1), NOW - 0.001, "is not valid yet"),
        ((NOW, NOW), NOW, "has expired"),
        ((NOW + 1, NOW), NOW, "is not valid yet"),
        ((0, FOREVER), 0, None),
        ((0, FOREVER), 2**60, None),
        ((FOREVER, FOREVER), NOW, "is not valid yet"),
    ],
)
def test_validity(valid, now, message):
    for check in (
        lambda: check_for_host(host(valid=valid), "host", now),
        lambda: check_for_user(user(valid=valid), ("alice",), now),
    ):
        if message is None:
            check()
            continue
        with pytest.raises(CertificateError) as caught:
            check()
        assert str(caught.value) == f'the certificate "the id" (serial 7) {message}'


def test_kinds_are_not_mixed_up():
    with pytest.raises(CertificateError, match="is not for hosts"):
        check_for_host(user(principals=(b"host",)), "host", NOW)
    with pytest.raises(CertificateError, match="is not for users"):
        check_for_user(host(principals=(b"alice",)), ("alice",), NOW)


@pytest.mark.parametrize("name", [b"force-command", b"source-address", b"x", b"\x1b"])
def test_a_host_has_no_critical_options(name):
    certificate = host(critical=options((name, string(b""))))
    with pytest.raises(CertificateError, match="unknown for hosts") as caught:
        check_for_host(certificate, "host", NOW)
    assert str(caught.value).isprintable()


def test_unknown_extensions_mean_nothing():
    check_for_host(host(extensions=options((b"permit-pty", b""), (b"zzz", b"1"))), "host", NOW)


# ---- for a user --------------------------------------------------------------


@pytest.mark.parametrize(
    ("principals", "accepted", "expected"),
    [
        ((b"alice",), ("alice",), True),
        ((b"bob", b"alice"), ("alice", "carol"), True),
        ((b"bob",), ("alice",), False),
        ((), ("alice",), False),  # CVE-2024-7594
        ((), ("",), False),
        ((b"alice,root",), ("root",), False),  # CVE-2026-35414
        ((b"alice,root",), ("alice", "root"), False),
        ((b"*",), ("alice",), False),
        ((b"alice",), ("*",), False),
        ((b"Alice",), ("alice",), False),
        ((b"alice",), (), False),
    ],
)
def test_principals_of_a_user(principals, accepted, expected):
    certificate = user(principals=principals)
    if expected:
        check_for_user(certificate, accepted, NOW)
        return
    with pytest.raises(CertificateError, match=r"is for .*, not for"):
        check_for_user(certificate, accepted, NOW)


def allowed(critical=b"", extensions=b""):
    return check_for_user(user(critical=critical, extensions=extensions), ("alice",), NOW)


def test_what_a_certificate_allows():
    nothing = allowed()
    assert (nothing.force_command, nothing.source_addresses) == (None, None)
    assert (nothing.touch_required, nothing.verification_required) == (True, False)
    assert (nothing.port_forwarding, nothing.pty) == (False, False)
    much = allowed(
        options((b"force-command", string(b"a b")), (b"verify-required", b"")),
        options(
            (b"no-touch-required", b""), (b"permit-port-forwarding", b""), (b"permit-pty", b"")
        ),
    )
    assert (much.force_command, much.verification_required) == ("a b", True)
    assert (much.touch_required, much.port_forwarding, much.pty) == (False, True, True)


@pytest.mark.parametrize(
    ("networks", "address", "expected"),
    [
        (b"192.0.2.0/24", "192.0.2.7", True),
        (b"192.0.2.0/24", "::ffff:192.0.2.7", True),
        (b"192.0.2.0/24", "192.0.3.7", False),
        (b"192.0.2.7", "192.0.2.7", True),
        (b"10.0.0.0/8,2001:db8::/32", "2001:db8::1", True),
        (b"2001:db8::/32", "192.0.2.7", False),
        (b"fe80::/10", "fe80::1%eth0", True),
        (b"0.0.0.0/0", "2001:db8::1", False),
        (b"", "192.0.2.7", False),  # T36: an empty value matches nothing
        (b"192.0.2.0/24", "host", False),
        (b"192.0.2.0/24", "", False),
    ],
)
def test_source_address(networks, address, expected):
    found = allowed(options((b"source-address", string(networks))))
    assert found.allows_address(address) is expected
    assert allowed().allows_address(address)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        (b"unheard-of", b""),
        (b"force-command", b""),
        (b"force-command", b"x"),
        (b"force-command", string(b"x") + b"y"),
        (b"force-command", string(b"\0")),
        (b"verify-required", string(b"")),
        (b"source-address", b""),
        (b"source-address", string(b",")),
        (b"source-address", string(b"192.0.2.0/24,")),
        (b"source-address", string(b"!192.0.2.0/24")),
        (b"source-address", string(b"192.0.2.1/24")),
        (b"source-address", string(b"192.0.2.0/33")),
        (b"source-address", string(b"192.0.2.0/255.255.255.0")),
        (b"source-address", string(b" 192.0.2.0/24")),
        (b"source-address", string(b"host")),
        (b"source-address", string(b"*")),
        (b"Verify-required", b""),
        (b"permit-pty", b""),
    ],
)
def test_critical_options_that_are_not_understood(name, data):
    with pytest.raises(CertificateError, match="critical option") as caught:
        allowed(options((name, data)))
    assert str(caught.value).isprintable()


# ---- files -------------------------------------------------------------------


def test_a_private_key_takes_its_own_certificate_only():
    certificate = parse_certificate_untrusted(GOOD)
    certified = with_certificate(KEY, certificate)
    assert certified.public == certificate
    assert certified.private_section() == KEY.private_section()
    with pytest.raises(ConfigError, match=r"is for the key SHA256:.*, not for SHA256:"):
        with_certificate(CA, certificate)


def test_public_key_files():
    certificate = parse_certificate_untrusted(GOOD)
    for key in (KEY.public, certificate):
        for text in (
            key.openssh_text(),
            f"{key.openssh_text()} me@here\r\n",
            f"\n# comment\n \t\n{key.openssh_text()}\nrest",
        ):
            assert parse_public_key_file_untrusted(text.encode()) == key


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "id.pub: the file holds no public key"),
        (b"# x\n\n", "id.pub: the file holds no public key"),
        (b"ssh-ed25519", "id.pub: the public key cannot be used: the line ends before the key"),
        (b"ssh-dss AAAAB3NzaC1kc3M=", "keys of type ssh-dss are not supported"),
        (b"ssh-rsa " + base64.b64encode(RSA_1024), "an RSA key of 1024 bits is too short"),
        (b"\xff\xfe", "id.pub: the public key cannot be used"),
        (bytes(1 << 17), "id.pub: the file is too large to be a public key"),
    ],
)
def test_public_key_files_that_cannot_be_used(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_public_key_file_untrusted(text, "id.pub")
    assert message in str(caught.value)
