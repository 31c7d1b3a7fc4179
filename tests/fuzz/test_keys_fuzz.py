"""Keys, key files, known_hosts, authorized_keys: any bytes in, one family of errors out."""

import base64
from unittest import mock

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ConfigError, RemoteProtocolError
from gateway.ssh import keyfiles
from gateway.ssh.authorized_keys import parse_authorized_keys
from gateway.ssh.certificates import (
    Certificate,
    CertificateError,
    check_for_host,
    check_for_user,
    parse_key_or_certificate_untrusted,
    parse_public_key_file_untrusted,
)
from gateway.ssh.keyfiles import encode_private_key_file, parse_private_key_file_untrusted
from gateway.ssh.keys import (
    KEY_TYPES,
    PrivateKey,
    match_pattern,
    parse_public_key_untrusted,
    read_key_text,
)
from gateway.ssh.known_hosts import KnownHosts, Status
from gateway.ssh.krl import MAGIC as KRL_MAGIC
from gateway.ssh.krl import parse_krl_untrusted
from gateway.ssh.wire import string, uint32, uint64
from tests.support.keys import (
    PRIVATE_TYPES,
    SK_ECDSA,
    SK_ED25519,
    SecurityKey,
    a_certificate,
    a_private_key,
    options,
)

PEM_KEY = ec.derive_private_key(12345678901234567890, ec.SECP256R1())
GOOD_DER = base64.b64decode(
    b"".join(
        PEM_KEY.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")
        ).splitlines()[1:-1]
    )
)
KEY = PrivateKey.generate(lambda length: b"k" * length)
OTHER = PrivateKey.generate(lambda length: b"o" * length)
BLOB = KEY.public.blob
SIGNATURE = KEY.sign(b"data", "ssh-ed25519")
PLAIN = encode_private_key_file(KEY, "comment", randbytes=lambda length: b"r" * length)
CONTENT = base64.b64decode(b"".join(PLAIN.splitlines()[1:-1]))
LOCKED_CONTENT = (  # what it decrypts to is noise: a wrong passphrase at best
    keyfiles.MAGIC
    + string(b"aes256-ctr")
    + string(b"bcrypt")
    + string(string(b"s" * 16) + uint32(1))
    + uint32(1)
    + string(BLOB)
    + string(bytes(160))
)


def mutations(good):
    """Copies of ``good`` with some bytes changed, put in or taken out."""
    edit = st.tuples(st.integers(0, len(good)), st.integers(0, 3), st.binary(max_size=5))

    def apply(edits):
        data = bytearray(good)
        for at, removed, inserted in edits:
            data[at : at + removed] = inserted
        return bytes(data)

    return st.lists(edit, max_size=4).map(apply)


@given(st.binary(max_size=200) | mutations(BLOB))
def test_public_keys(blob):
    key, message = None, ""
    try:
        key = parse_public_key_untrusted(blob)
    except RemoteProtocolError as exc:
        message = str(exc)
    assert message.isprintable()
    if key is not None:
        assert key.blob == blob
        assert read_key_text(key.openssh_text()) == (key.algorithm, blob, "")
        with pytest.raises(RemoteProtocolError):
            key.verify(SIGNATURE, b"other data")


@given(st.binary(max_size=200) | mutations(SIGNATURE), st.binary(max_size=10))
def test_signatures(blob, data):
    if blob == SIGNATURE:
        KEY.public.verify(blob, b"data")
        return
    with pytest.raises(RemoteProtocolError) as caught:
        KEY.public.verify(blob, b"data")
    assert str(caught.value).isprintable()
    with pytest.raises(RemoteProtocolError):
        KEY.public.verify(SIGNATURE, b"data" + data + b"!")


KEYS = [a_private_key(name) for name in PRIVATE_TYPES]
SECURITY_KEYS = [SecurityKey(name) for name in (SK_ED25519, SK_ECDSA)]
PUBLIC_KEYS = [key.public for key in (*KEYS, *SECURITY_KEYS)]
CERTIFICATES = [
    a_certificate(
        key,
        KEY,
        kind=1,
        critical=options((b"force-command", string(b"x")), (b"source-address", string(b"::/0"))),
        extensions=options((b"permit-pty", b"")),
    )
    for key in PUBLIC_KEYS
]


SIGNATURES = [
    *((key.public, key.sign(b"data", key.public.signature_algorithms[-1])) for key in KEYS),
    *((key.public, key.sign(b"data")) for key in SECURITY_KEYS),
]


def attempt(errors, function, *arguments):
    """Return what the function returns, or None with the message of one of the errors."""
    value, message = None, ""
    try:
        value = function(*arguments)
    except errors as exc:
        message = str(exc)
    assert message.isprintable()
    return value, message


@given(st.one_of([mutations(key.blob) for key in PUBLIC_KEYS]))
def test_public_keys_of_every_type(blob):
    key, _ = attempt(RemoteProtocolError, parse_key_or_certificate_untrusted, blob)
    if key is not None:
        assert key.blob == blob
        assert not isinstance(key, Certificate)
        for _, good in SIGNATURES:
            assert attempt(RemoteProtocolError, key.verify, good, b"other data")[1]


@given(st.sampled_from(SIGNATURES), st.data())
def test_signatures_of_every_type(pair, data):
    """No signature has a second form, but for leading zeros of RSA."""
    key, good = pair
    blob = data.draw(mutations(good))
    _, message = attempt(RemoteProtocolError, key.verify, blob, b"data")
    assert (message == "") == (blob == good)


@given(st.sampled_from(CERTIFICATES), st.data())
def test_certificates(good, data):
    blob = data.draw(mutations(good))
    certificate, _ = attempt(RemoteProtocolError, parse_key_or_certificate_untrusted, blob)
    assert isinstance(certificate, Certificate) == (blob == good)


@given(
    st.binary(max_size=60) | mutations(options((b"a", b""), (b"force-command", string(b"x")))),
    st.binary(max_size=60) | mutations(options((b"permit-pty", b""))),
    st.lists(st.binary(max_size=8), max_size=4),
    st.integers(0, 3),
)
def test_certificates_with_anything_in_them(critical, extensions, principals, kind):
    """What a CA itself signed may be anything too."""
    blob = a_certificate(
        OTHER.public,
        KEY,
        kind=kind,
        critical=critical,
        extensions=extensions,
        principals=tuple(principals),
    )
    certificate, _ = attempt(RemoteProtocolError, parse_key_or_certificate_untrusted, blob)
    if certificate is not None:
        assert certificate.description.isprintable()
        attempt(CertificateError, check_for_host, certificate, "host", 1)
        attempt(CertificateError, check_for_user, certificate, ("alice",), 1)


def wrapped(content):
    return b"\n".join((keyfiles.BEGIN, base64.b64encode(content), keyfiles.END, b""))


@given(
    st.binary(max_size=200)
    | mutations(PLAIN)
    | st.binary(max_size=200).map(wrapped)
    | st.binary(max_size=200).map(lambda content: wrapped(keyfiles.MAGIC + content))
    | mutations(CONTENT).map(wrapped)
    | mutations(LOCKED_CONTENT).map(wrapped),
    st.none() | st.text(max_size=5) | st.binary(max_size=5),
)
def test_private_key_files(text, passphrase):
    """The rounds are limited further, so that an example with 500 of them does not take 4 s."""
    key, message = KEY, "name: "
    with mock.patch.object(keyfiles, "MAXIMUM_ROUNDS", 1):
        try:
            key = parse_private_key_file_untrusted(text, "name").decrypt(passphrase)
        except ConfigError as exc:
            message = str(exc)
    assert key == KEY  # whatever was changed, it is no other key
    assert message.startswith("name: ")
    assert message.isprintable()


PEM_FILES = [
    PEM_KEY.private_bytes(Encoding.PEM, form, protection)
    for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL)
    for protection in (NoEncryption(), BestAvailableEncryption(b"x"))
]


@given(st.one_of([mutations(text) for text in PEM_FILES]), st.sampled_from([None, "x", "wrong"]))
def test_pem_files(text, passphrase):
    def read():
        return parse_private_key_file_untrusted(text, "name").decrypt(passphrase)

    with (
        mock.patch.object(keyfiles, "MAXIMUM_ITERATIONS", 1 << 16),
        mock.patch.object(keyfiles, "MAXIMUM_SCRYPT_COST", 1 << 16),
    ):
        key, message = attempt(ConfigError, read)
    assert message.startswith("name: ") if key is None else key.public.algorithm in KEY_TYPES


@given(st.binary(max_size=100) | mutations(GOOD_DER))
def test_der_of_encrypted_files(content):
    label = b" ENCRYPTED PRIVATE KEY-----\n"
    text = b"-----BEGIN" + label + base64.encodebytes(content) + b"-----END" + label
    with mock.patch.object(keyfiles, "MAXIMUM_ITERATIONS", 1 << 12):
        file, _ = attempt(ConfigError, parse_private_key_file_untrusted, text, "name")
    if file is not None:
        attempt(ConfigError, file.decrypt, "x")


@given(st.binary(max_size=100) | mutations(KEY.public.openssh_text().encode()))
def test_public_key_files(text):
    key, message = attempt(ConfigError, parse_public_key_file_untrusted, text, "name")
    assert key is not None or message.startswith("name: ")


# Words that mean something to the parsers come up often enough to reach their corners.
WORDS = st.sampled_from(
    [
        " ",
        "\t",
        "\n",
        "\r\n",
        ",",
        "!",
        "*",
        "?",
        "#",
        '"',
        "\\",
        "=",
        "|1|",
        "host",
        "[host]:2222",
        "@revoked",
        "@cert-authority",
        "ssh-ed25519",
        KEY.public.openssh_text(),
        OTHER.public.openssh_text().split()[1],
        "ssh-rsa",
        "\u00a0",
        "\0",
        "\udcff",
        "restrict",
        "no-port-forwarding",
        'permitopen="host:80"',
        'command="x"',
        "cert-authority",
        'principals="a,b"',
        parse_key_or_certificate_untrusted(CERTIFICATES[0]).openssh_text(),
    ]
)
TEXTS = (
    st.text(max_size=200)
    | st.binary(max_size=200)
    | st.lists(WORDS | st.text(max_size=3), max_size=30).map("".join)
)


@given(TEXTS, st.text(max_size=10) | st.just("host"), st.sampled_from([22, 2222]))
def test_known_hosts(text, host, port):
    hosts = KnownHosts.parse([("name", text)])
    assert all(problem.isprintable() for problem in hosts.problems)
    hosts.lookup(host, port, parse_key_or_certificate_untrusted(CERTIFICATES[0]), 0.0)
    verdict = hosts.lookup(host, port, KEY.public, 0.0)
    assert (verdict.entry is None) == (verdict.status is Status.UNKNOWN)
    if verdict.status in (Status.KNOWN, Status.REVOKED):
        assert verdict.entry.blob == BLOB
    algorithms = hosts.host_key_algorithms_for(host, port, ("a", "ssh-ed25519", "ssh-rsa"))
    assert sorted(algorithms) == ["a", "ssh-ed25519", "ssh-rsa"]
    assert hosts.lookup(host, port, KEY.public, 0.0) == verdict
    revoked = [("name", text), ("last", f"\n@revoked * {KEY.public.openssh_text()}")]
    assert KnownHosts.parse(revoked).lookup(host, port, KEY.public, 0.0).status is Status.REVOKED


@given(TEXTS)
def test_authorized_keys(text):
    keys = parse_authorized_keys(text, "name")
    assert all(problem.isprintable() for problem in keys.problems)
    found = keys.find(KEY.public, "192.0.2.1", 0.0)
    lines_of_key = (entry for entry in keys.entries if entry.key == KEY.public)
    usable = (entry for entry in lines_of_key if not entry.refusal("192.0.2.1", 0.0))
    assert found == next(usable, None)
    lines = text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else text
    for entry in keys.entries:
        line = lines.split("\n")[entry.line - 1].strip(" \t\r")
        assert entry.options or line.startswith(entry.key.algorithm)
        assert "command" not in {name for name, _ in entry.options}
        assert entry.cert_authority == (("cert-authority", None) in entry.options)
    assert found is None or not found.cert_authority


@given(st.text("ab?*", max_size=12), st.text("ab", max_size=12))
def test_patterns_match_as_the_definition_says(pattern, text):
    def slow(text, pattern):
        if not pattern:
            return not text
        if pattern[0] == "*":
            return slow(text, pattern[1:]) or (text != "" and slow(text[1:], pattern))
        return text != "" and pattern[0] in ("?", text[0]) and slow(text[1:], pattern[1:])

    assert match_pattern(text, pattern) is slow(text, pattern)


KRL_HEADER = KRL_MAGIC + uint32(1) + bytes(24) + string(b"") + string(b"")
KRL = (
    KRL_HEADER
    + b"\1"
    + string(
        string(OTHER.public.blob)
        + string(b"")
        + b"\x20"
        + string(uint64(9) + uint64(7))
        + b"\x21"
        + string(uint64(100) + uint64(200))
        + b"\x22"
        + string(uint64(1) + string(b"\1\1"))
        + b"\x23"
        + string(string(b"the id"))
    )
    + b"\2"
    + string(string(BLOB))
    + b"\5"
    + string(string(bytes(32)))
)


@given(mutations(KRL) | st.binary(max_size=100).map(lambda data: KRL_HEADER + data))
def test_key_revocation_lists(data):
    certificate = parse_key_or_certificate_untrusted(a_certificate(KEY.public, OTHER))
    message = ""
    try:
        revoked = parse_krl_untrusted(data)
        message = revoked.reason(certificate) + revoked.reason(KEY.public)
    except RemoteProtocolError as exc:
        message = str(exc)
    assert message.isprintable()
    if data == KRL:
        assert message == "by itself" * 2
