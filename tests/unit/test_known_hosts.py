"""known_hosts: every form of line, OpenSSH's decisions, and agreement with ssh-keygen and ssh."""

import base64
import os
import pathlib
import shutil
import subprocess
import time

import pytest

from gateway.errors import ConfigError
from gateway.ssh.certificates import parse_certificate_untrusted
from gateway.ssh.keyfiles import encode_private_key_file
from gateway.ssh.keys import PrivateKey, fingerprint, match_pattern
from gateway.ssh.known_hosts import (
    KnownHosts,
    Marker,
    Status,
    format_line,
    host_name,
)
from gateway.ssh.wire import mpint, string
from tests.support.keys import PRIVATE_TYPES, a_certificate, a_private_key, options


def private_key(letter):
    return PrivateKey.generate(lambda length: letter.encode() * length)


def public_key(letter):
    return private_key(letter).public


NOW = 1_800_000_000.0
KEY = public_key("k")
OTHER = public_key("o")
THIRD = public_key("t")
K, O, T = KEY.openssh_text(), OTHER.openssh_text(), THIRD.openssh_text()  # noqa: E741 - short lines
RSA_BLOB = string(b"ssh-rsa") + mpint(65537) + mpint(2**2047 + 12345)
RSA = f"ssh-rsa {base64.b64encode(RSA_BLOB).decode()}"
SHORT_RSA_BLOB = string(b"ssh-rsa") + mpint(65537) + mpint(2**1023 + 12345)
SHORT_RSA = f"ssh-rsa {base64.b64encode(SHORT_RSA_BLOB).decode()}"


def known(*lines):
    return KnownHosts.parse([("kh", "\n".join(lines) + "\n")])


def status(text, host="host", port=22, key=KEY):
    hosts = known(*text.split("\n"))
    assert not hosts.problems
    return hosts.lookup(host, port, key, NOW).status


@pytest.mark.parametrize(
    ("text", "host", "port", "expected"),
    [
        ("", "host", 22, Status.UNKNOWN),
        (f"host {K}", "host", 22, Status.KNOWN),
        (f"host {K} a comment", "host", 22, Status.KNOWN),
        (f" \thost\t {K}\t", "host", 22, Status.KNOWN),
        (f"host {K}\r", "host", 22, Status.KNOWN),
        (f"host {K}", "HOST", 22, Status.KNOWN),
        (f"HoSt {K}", "host", 22, Status.KNOWN),
        (f"host {K}", "hosts", 22, Status.UNKNOWN),
        (f"# host {K}", "host", 22, Status.UNKNOWN),
        (f"a,host,b {K}", "host", 22, Status.KNOWN),
        (f"a,host,b {K}", "a,host,b", 22, Status.UNKNOWN),
        (f"192.0.2.1 {K}", "192.0.2.1", 22, Status.KNOWN),
        (f"2001:db8::1 {K}", "2001:DB8::1", 22, Status.KNOWN),
        (f"[2001:db8::1]:2222 {K}", "2001:db8::1", 2222, Status.KNOWN),
        # CHANGED: any other plain key, of the same type or not
        (f"host {O}", "host", 22, Status.CHANGED),
        (f"host {RSA}", "host", 22, Status.CHANGED),
        (f"host {SHORT_RSA}", "host", 22, Status.CHANGED),
        (f"host {O}\nhost {K}", "host", 22, Status.KNOWN),
        (f"host {K}\nhost {O}", "host", 22, Status.KNOWN),
        (f"host {RSA}\nhost {K}", "host", 22, Status.KNOWN),
        # wildcards and negation
        (f"*.example.com {K}", "a.example.com", 22, Status.KNOWN),
        (f"*.example.com {K}", "example.com", 22, Status.UNKNOWN),
        (f"h?st {K}", "host", 22, Status.KNOWN),
        (f"*.example.com,!bad.example.com {K}", "bad.example.com", 22, Status.UNKNOWN),
        (f"!bad.example.com,*.example.com {K}", "bad.example.com", 22, Status.UNKNOWN),
        (f"!bad.example.com,*.example.com {K}", "good.example.com", 22, Status.KNOWN),
        (f"!bad.example.com {K}", "good.example.com", 22, Status.UNKNOWN),
        (f"*.example.com,!BAD.* {K}", "bad.example.com", 22, Status.UNKNOWN),
        # ports
        (f"[host]:2222 {K}", "host", 2222, Status.KNOWN),
        (f"[host]:2222 {K}", "host", 22, Status.UNKNOWN),
        (f"[host]:2222 {O}", "host", 22, Status.UNKNOWN),
        (f"[host]:2222 {K}", "host", 2223, Status.UNKNOWN),
        (f"[host]:22 {K}", "host", 22, Status.UNKNOWN),
        (f"[*.example.com]:2222 {K}", "a.example.com", 2222, Status.KNOWN),
        (f"*:2222 {K}", "host", 2222, Status.KNOWN),
        (f"host:2222 {K}", "host", 2222, Status.UNKNOWN),
        (f"* {K}", "host", 2222, Status.KNOWN),
        (f"host {K}", "host", 2222, Status.KNOWN),  # ssh: "found matching key w/out port"
        (f"host {O}", "host", 2222, Status.UNKNOWN),
        (f"[host]:2222 {O}\nhost {K}", "host", 2222, Status.CHANGED),
        # markers
        (f"@revoked host {K}", "host", 22, Status.REVOKED),
        (f"@revoked\thost {K}", "host", 22, Status.REVOKED),
        (f"@revoked * {K}", "host", 2222, Status.REVOKED),
        (f"@revoked host {K}\nhost {K}", "host", 22, Status.REVOKED),
        (f"host {K}\n@revoked host {K}", "host", 22, Status.REVOKED),
        (f"host {O}\n@revoked * {K}", "host", 22, Status.REVOKED),
        (f"@revoked host {O}", "host", 22, Status.UNKNOWN),
        (f"@revoked host {O}\nhost {K}", "host", 22, Status.KNOWN),
        (f"@revoked other {K}\nhost {K}", "host", 22, Status.KNOWN),
        (f"@cert-authority host {K}", "host", 22, Status.UNKNOWN),
        (f"@cert-authority host {O}", "host", 22, Status.UNKNOWN),
        (f"@cert-authority host {K}\n@revoked host {K}", "host", 22, Status.REVOKED),
        # stricter than ssh, which accepts this one
        (f"[host]:2222 {K}\n@revoked host {K}", "host", 2222, Status.REVOKED),
    ],
)
def test_decisions(text, host, port, expected):
    assert status(text, host, port) is expected


def test_a_verdict_names_the_line_and_the_other_keys():
    hosts = KnownHosts.parse(
        [("a", f"# first\nhost {RSA}\nhost {O}\n"), ("b", f"\nhost {K}\n@revoked host {T}\n")]
    )
    verdict = hosts.lookup("Host", 22, KEY, NOW)
    assert (verdict.status, verdict.name) == (Status.KNOWN, "host")
    assert (verdict.entry.file, verdict.entry.line) == ("b", 2)
    assert verdict.entry.fingerprint == KEY.fingerprint
    assert [entry.algorithm for entry in verdict.other_keys] == ["ssh-rsa", "ssh-ed25519"]

    revoked = hosts.lookup("host", 22, THIRD, NOW)
    assert (revoked.status, revoked.entry.file, revoked.entry.line) == (Status.REVOKED, "b", 3)
    assert revoked.entry.marker is Marker.REVOKED

    changed = hosts.lookup("host", 22, public_key("x"), NOW)
    assert changed.status is Status.CHANGED
    assert (changed.entry.file, changed.entry.line) == ("a", 3)  # the one of the same type
    assert changed.entry.fingerprint == OTHER.fingerprint
    assert len(changed.other_keys) == 3

    only_rsa = known(f"host {RSA}").lookup("host", 22, KEY, NOW)
    assert (only_rsa.status, only_rsa.entry.algorithm) == (Status.CHANGED, "ssh-rsa")
    assert only_rsa.entry.fingerprint == fingerprint(RSA_BLOB)

    unknown = known(f"host {O}").lookup("host", 2222, KEY, NOW)
    assert (unknown.status, unknown.entry) == (Status.UNKNOWN, None)
    assert unknown.name == "[host]:2222"
    assert [entry.fingerprint for entry in unknown.other_keys] == [OTHER.fingerprint]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("host", "ends before the key"),
        ("host ssh-ed25519", "ends before the key"),
        (f"host {K[:-1]}", "base64"),
        (f"host {K}!", "base64"),
        (
            f"host ssh-rsa {K.split()[1]}",
            "the line says ssh-rsa, but the key is of type ssh-ed25519",
        ),
        (f"host SSH-ED25519 {K.split()[1]}", "but the key is of type ssh-ed25519"),
        (f"host ssh-ed25519 {RSA.split()[1]}", "but the key is of type ssh-rsa"),
        ("host ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAAA==", "0 bytes instead of 32"),
        (K, "but the key is of type|base64|ends before"),
        (f"host 1024 35 {'1' * 300}", "base64|but the key"),  # SSH 1
        ("@revoked", "ends before the key"),
        (f"@revoked {K}", "ends before the key|base64"),
        (f"@unknown host {K}", "unknown marker @unknown"),
        (f"@REVOKED host {K}", "unknown marker @REVOKED"),
        (f"@ host {K}", "unknown marker @,"),
        (f"@revoked@cert-authority host {K}", "unknown marker"),
        (f"@revoked @cert-authority host {K}", "more than one marker"),
        (f"@revoked @revoked host {K}", "more than one marker"),
        (f"@revoked\u00a0host {K}", "unknown marker"),
        (f"host\u00a0{K}", "ends before the key"),
        (f"host\u2003{K}", "ends before the key"),
        (f"host\x0b{K}", "ends before the key"),
        (f"ho\0st {K}", "holds a NUL"),
        (f"host {K}\0", "holds a NUL"),
        (f"{'x' * 1023} {K}", "a host name of 1023 characters"),
        (f"host {K} {'x' * 65536}", "longer than 65536 characters"),
        (f"|1|x {K}", "malformed hashed"),
        (f"|1|AAAA|AAAA {K}", "malformed hashed"),
        (f"|2|{'A' * 27}=|{'A' * 27}= {K}", "malformed hashed"),
        (f"|1|{'A' * 27}=|{'A' * 27}=,host {K}", "malformed hashed|base64|padding|Excess"),
        (f"|1|{'A' * 27}=|{'A' * 27}=| {K}", "malformed hashed"),
        (f"|1|{'A' * 26}B=|{'A' * 27}= {K}", "malformed hashed"),
        (f"| {K}", "malformed hashed"),
    ],
)
def test_a_line_that_cannot_be_read_is_a_problem_and_trusts_nothing(line, problem):
    hosts = known(line, f"host {O}")
    assert len(hosts.problems) == 1
    assert hosts.problems[0].startswith("kh:1: ")
    assert hosts.problems[0].endswith(", line ignored")
    assert any(part in hosts.problems[0] for part in problem.split("|"))
    assert hosts.problems[0].isprintable()
    assert hosts.lookup("host", 22, KEY, NOW).status is Status.CHANGED
    assert hosts.lookup("host", 22, OTHER, NOW).status is Status.KNOWN


def test_only_line_feeds_separate_lines():
    """A key that another reader would find behind U+2028 or a lone CR is part of a comment."""
    for separator in ("\u2028", "\x85", "\r", "\x0b", "\x0c"):
        hosts = known(f"# comment{separator}host {K}")
        assert not hosts.entries
        hosts = known(f"other {O} comment{separator}host {K}")
        assert hosts.lookup("host", 22, KEY, NOW).status is Status.UNKNOWN


def test_case_is_ascii_only():
    """The Kelvin sign is a "k" for str.lower() and str.casefold()."""
    assert status(f"\u212aiwi {K}", "kiwi") is Status.UNKNOWN
    assert status(f"kiwi {K}", "\u212aiwi") is Status.UNKNOWN
    assert host_name("\u212aIWI", 22) == "\u212aiwi"


def test_bytes_that_are_no_text_are_read():
    hosts = KnownHosts.parse([("kh", b"h\xffst " + K.encode() + b" \xfe\nhost " + K.encode())])
    assert hosts.problems == ()
    assert hosts.lookup("host", 22, KEY, NOW).status is Status.KNOWN
    assert hosts.lookup("h\udcffst", 22, KEY, NOW).status is Status.KNOWN
    assert hosts.lookup("h\ud800st", 22, KEY, NOW).status is Status.UNKNOWN


def test_absurd_size_is_refused_as_a_whole():
    with pytest.raises(ConfigError, match="kh: the file has more than"):
        known(*["#"] * 100_001)


@pytest.mark.parametrize(
    ("text", "pattern", "expected"),
    [
        ("", "", True),
        ("", "*", True),
        ("", "?", False),
        ("a", "", False),
        ("abc", "abc", True),
        ("abc", "a?c", True),
        ("abc", "a*", True),
        ("abc", "*c", True),
        ("abc", "**", True),
        ("abc", "*b*", True),
        ("abc", "*b", False),
        ("abcabd", "*ab?d", False),
        ("abcabxd", "*ab?d", True),
        ("abab", "*ab", True),
        ("a.b", "a[.]b", False),
        ("[a]:22", "[*]:22", True),
        ("aXb", "a\\*b", False),
    ],
)
def test_patterns(text, pattern, expected):
    assert match_pattern(text, pattern) is expected


def test_patterns_take_bounded_time():
    start = time.process_time()
    assert not match_pattern("a" * 1000, "*a" * 500 + "b")
    assert not match_pattern("a" * 1000, "*?" * 500 + "b")
    assert time.process_time() - start < 2


def test_host_key_algorithms_are_ordered_as_ssh_orders_them():
    preferred = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa")
    hosts = known(f"rsa {RSA}", f"both {RSA}", f"both {K}", f"@revoked gone {RSA}", f"[p]:9 {RSA}")
    order = hosts.host_key_algorithms_for
    assert order("rsa", 22, preferred) == ("ssh-rsa", "ssh-ed25519", "ecdsa-sha2-nistp256")
    assert order("both", 22, preferred) == preferred
    assert order("both", 22, preferred[1:]) == ("ssh-rsa", "ecdsa-sha2-nistp256")
    assert order("gone", 22, preferred) == preferred
    assert order("nobody", 22, preferred) == preferred
    assert order("p", 9, preferred)[0] == "ssh-rsa"
    assert order("p", 22, preferred) == preferred
    assert order("rsa", 9, preferred) == preferred  # by the name with the port only
    assert order("rsa", 22, ()) == ()


def test_certificate_algorithms_are_ordered_too():
    """order_hostkeyalgs: all certificates where a CA is known, and those of known keys."""
    preferred = (
        "ssh-ed25519-cert-v01@openssh.com",
        "rsa-sha2-512-cert-v01@openssh.com",
        "ssh-ed25519",
        "ecdsa-sha2-nistp256",
        "rsa-sha2-512",
        "rsa-sha2-256",
    )
    hosts = known(
        f"rsa,ca {RSA}", f"ed {K}", f"@cert-authority ca,only-ca {O}", f"@revoked gone {O}"
    )
    order = hosts.host_key_algorithms_for
    rsa = tuple(name for name in preferred if name.startswith("rsa"))
    others = tuple(name for name in preferred if name not in rsa)
    assert order("rsa", 22, preferred) == rsa + others
    assert order("ed", 22, preferred) == preferred
    assert order("only-ca", 22, preferred[2:] + preferred[:2]) == preferred
    assert order("ca", 22, preferred) == (
        *preferred[:2], "rsa-sha2-512", "rsa-sha2-256", "ssh-ed25519", "ecdsa-sha2-nistp256"
    )  # fmt: skip
    assert order("gone", 22, preferred[2:] + preferred[:2]) == preferred[2:] + preferred[:2]


# ---- certificates ------------------------------------------------------------


def certified(letter="k", ca="o", **fields):
    return parse_certificate_untrusted(a_certificate(public_key(letter), private_key(ca), **fields))


@pytest.mark.parametrize(
    ("text", "host", "port", "fields", "expected"),
    [
        (f"@cert-authority host {O}", "host", 22, {}, Status.KNOWN),
        (f"@cert-authority HOST {O}", "HOST", 22, {}, Status.KNOWN),
        (f"@cert-authority * {O}", "host", 22, {}, Status.KNOWN),
        (f"@cert-authority h*,!host {O}", "host", 22, {}, Status.UNKNOWN),
        (f"@cert-authority [host]:2222 {O}", "host", 2222, {}, Status.KNOWN),
        (f"@cert-authority host {O}", "host", 2222, {}, Status.KNOWN),
        (f"@cert-authority [host]:2222 {O}", "host", 22, {}, Status.UNKNOWN),
        (f"@cert-authority host {T}", "host", 22, {}, Status.UNKNOWN),
        (f"@cert-authority host {K}", "host", 22, {}, Status.UNKNOWN),
        (f"host {O}", "host", 22, {}, Status.CHANGED),  # a CA's key without its marker
        ("", "host", 22, {}, Status.UNKNOWN),
        # a certificate that is not good is judged as its plain key
        (f"@cert-authority host {O}", "host", 22, {"principals": (b"x",)}, Status.UNKNOWN),
        (f"@cert-authority host {O}", "host", 22, {"principals": ()}, Status.UNKNOWN),
        (f"@cert-authority host {O}", "host", 22, {"valid": (0, 1)}, Status.UNKNOWN),
        (f"@cert-authority host {O}", "host", 22, {"valid": (2**63, 2**64 - 1)}, Status.UNKNOWN),
        (f"@cert-authority host {O}", "host", 22, {"kind": 1}, Status.UNKNOWN),
        (f"@cert-authority host {O}\nhost {K}", "host", 22, {"valid": (0, 1)}, Status.KNOWN),
        (f"@cert-authority host {O}\nhost {T}", "host", 22, {"valid": (0, 1)}, Status.CHANGED),
        (f"host {K}", "host", 22, {}, Status.KNOWN),
        (f"host {T}", "host", 22, {}, Status.CHANGED),
        (f"@cert-authority host {O}\nhost {T}", "host", 22, {}, Status.KNOWN),
        # revoked: the CA, the plain key, the certificate's own line elsewhere
        (f"@cert-authority host {O}\n@revoked * {O}", "host", 22, {}, Status.REVOKED),
        (f"@revoked host {O}\nhost {K}", "host", 22, {}, Status.REVOKED),
        (f"@cert-authority host {O}\n@revoked * {K}", "host", 22, {}, Status.REVOKED),
        (f"@cert-authority [host]:9 {O}\n@revoked host {O}", "host", 9, {}, Status.REVOKED),
        (f"@cert-authority host {O}\n@revoked x {O}", "host", 22, {}, Status.KNOWN),
        (f"@cert-authority host {O}\n@revoked * {T}", "host", 22, {}, Status.KNOWN),
    ],
)
def test_certificates(text, host, port, fields, expected):
    hosts = known(*text.split("\n"))
    assert not hosts.problems
    key = certified(**fields)
    verdict = hosts.lookup(host, port, key, NOW)
    assert verdict.status is expected
    if expected is Status.REVOKED:
        assert (verdict.key, verdict.certificate_problem) == (key, "")
    elif verdict.entry is not None and verdict.entry.marker is Marker.CERT_AUTHORITY:
        assert (verdict.key, verdict.certificate_problem) == (key, "")
        assert verdict.entry.blob == OTHER.blob
    else:
        assert verdict.key == KEY
        assert verdict.certificate_problem.isprintable()
        assert verdict.certificate_problem != ""


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"valid": (0, 1)}, "has expired"),
        ({"principals": (b"a", b"b")}, "is for a, b, not for host"),
        ({"kind": 1}, "is not for hosts"),
        ({"critical": options((b"x", b""))}, "critical option x"),
        ({"ca": "t"}, "no @cert-authority line for this host has its CA's key"),
    ],
)
def test_a_verdict_says_what_is_wrong_with_a_certificate(fields, problem):
    hosts = known(f"@cert-authority host {O}")
    assert problem in hosts.lookup("host", 22, certified(**fields), NOW).certificate_problem


@pytest.mark.parametrize("name", PRIVATE_TYPES)
def test_keys_and_cas_of_every_type(name):
    key, ca = a_private_key(name), a_private_key(name, "c")
    hosts = known(
        f"plain {key.public.openssh_text()}",
        f"@cert-authority ca {ca.public.openssh_text()}",
        f"other {KEY.openssh_text() if name != 'ssh-ed25519' else RSA}",
    )
    assert not hosts.problems
    certificate = parse_certificate_untrusted(
        a_certificate(key.public, ca, principals=(b"ca", b"other"))
    )
    assert hosts.lookup("plain", 22, key.public, NOW).status is Status.KNOWN
    assert hosts.lookup("ca", 22, certificate, NOW).status is Status.KNOWN
    assert hosts.lookup("plain", 22, ca.public, NOW).status is Status.CHANGED
    assert hosts.lookup("other", 22, key.public, NOW).status is Status.CHANGED
    assert hosts.lookup("other", 22, certificate, NOW).status is Status.CHANGED


def test_a_written_line_is_found_again():
    for host, port in [("Host", 22), ("host", 2222), ("2001:db8::1", 22), ("fe80::1%eth0", 9)]:
        for hashed in (False, True):
            line = format_line(host, port, KEY, hashed=hashed)
            assert line.endswith("\n")
            assert line.count("\n") == 1
            assert (host.lower() in line) is not hashed
            assert status(line[:-1], host, port) is Status.KNOWN
            assert status(line[:-1], host + "x", port) is Status.UNKNOWN
    assert format_line("Host", 22, KEY) == f"host {K}\n"
    assert format_line("Host", 2222, KEY) == f"[host]:2222 {K}\n"


def test_a_hashed_line_is_that_of_hostfile_c():
    line = format_line("host", 22, KEY, hashed=True, randbytes=lambda length: b"s" * length)
    assert line == f"|1|c3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3M=|vNHfXYc/dMJx+OIBctj3HYBVo2o= {K}\n"


@pytest.mark.parametrize(
    "host",
    [
        "",
        "*",
        "h?st",
        "!host",
        "a,b",
        "a b",
        "a\tb",
        "a\nb",
        "a\0b",
        "@revoked",
        "#x",
        "|1|x",
        "h\u00f6st",
        "\x1b",
        "[host]:2222",
        "a\u00a0b",
    ],
)
@pytest.mark.parametrize("hashed", [False, True])
def test_a_name_that_would_mean_something_else_is_not_written(host, hashed):
    with pytest.raises(ConfigError, match="cannot stand in known_hosts") as caught:
        format_line(host, 22, KEY, hashed=hashed)
    assert str(caught.value).isprintable()


# ---- against the real ssh-keygen and ssh --------------------------------------


def keygen(*arguments):
    program = shutil.which("ssh-keygen")
    assert program, "ssh-keygen is needed"
    return subprocess.run([program, *map(str, arguments)], capture_output=True, check=False)


LINES = [
    f"host {K}",
    f"*.example.com,!bad.example.com {O}",
    f"[host]:2222,[2001:db8::1]:22 {T}",
    f"@revoked host {O}",
    f"@cert-authority *.example.com {T}",
    f"Upper,h?st {T}",
    f"[*.example.com]:2222 {K}",
]
NAMES = [
    ("host", 22),
    ("HOST", 22),
    ("hast", 22),
    ("host", 2222),
    ("a.example.com", 22),
    ("bad.example.com", 22),
    ("example.com", 22),
    ("a.example.com", 2222),
    ("upper", 22),
    ("2001:db8::1", 22),
    ("nobody", 22),
]


@pytest.mark.interop
def test_ssh_keygen_finds_the_lines_that_we_find(tmp_path):
    path = tmp_path / "kh"
    path.write_text("\n".join(LINES) + "\n")
    hosts = KnownHosts.parse([("kh", path.read_bytes())])
    assert hosts.problems == ()
    for host, port in NAMES:
        name = host_name(host, port)
        found = keygen("-F", name, "-f", path).stdout.decode().splitlines()
        theirs = [int(line.split()[5]) for line in found if line.startswith("# Host")]
        assert theirs == [entry.line for entry in hosts.entries if entry.matches(name)], name


@pytest.mark.interop
def test_a_file_hashed_by_ssh_keygen_says_the_same(tmp_path):
    path = tmp_path / "kh"
    path.write_text(f"Host,192.0.2.1 {K}\n[host]:2222 {O}\n@revoked host {T}\n")
    before = KnownHosts.parse([("kh", path.read_bytes())])
    assert keygen("-H", "-f", path).returncode == 0
    after = KnownHosts.parse([("kh", path.read_bytes())])
    assert after.problems == ()
    assert path.read_text().count("|1|") >= 3
    for host in ("host", "HOST", "192.0.2.1", "192.0.2.2"):
        for port in (22, 2222, 23):
            for key in (KEY, OTHER, THIRD):
                ours = before.lookup(host, port, key, NOW).status
                assert after.lookup(host, port, key, NOW).status is ours


@pytest.mark.interop
@pytest.mark.parametrize("hashed", [False, True])
def test_ssh_keygen_finds_and_removes_what_we_write(tmp_path, hashed):
    path = tmp_path / "kh"
    names = [("host", 22), ("host", 2222), ("2001:db8::1", 22), ("2001:db8::1", 2222)]
    path.write_text("".join(format_line(*name, KEY, hashed=hashed) for name in names))
    for host, port in names:
        name = host_name(host, port)
        assert keygen("-F", name, "-f", path).returncode == 0
        assert keygen("-R", name, "-f", path).returncode == 0
        assert keygen("-F", name, "-f", path).returncode == 1
        hosts = KnownHosts.parse([("kh", path.read_bytes())])
        assert hosts.problems == ()
        assert not any(entry.matches(name) for entry in hosts.entries)
    assert path.read_text() == ""


SSHD = pathlib.Path("/usr/sbin/sshd")


@pytest.mark.interop
@pytest.mark.parametrize(
    ("text", "port"),
    [
        (f"host {K}", 22),
        (f"host {O}", 22),
        (f"host {RSA}", 22),
        (f"host {O}\nhost {K}", 22),
        (f"host {K}\n@revoked * {K}", 22),
        (f"@revoked host {O}\nhost {K}", 22),
        (f"@cert-authority host {K}", 22),
        (f"@unknown host {K}", 22),
        (f"host\u00a0x {K}", 22),
        (f"host ssh-rsa {K.split()[1]}", 22),
        (f"HOST {K}\r", 22),
        (f"*,!host {K}", 22),
        (f"host {K}", 2222),
        (f"host {O}", 2222),
        (f"[host]:2222 {O}\nhost {K}", 2222),
        (f"[host]:2222 {K}\nhost {O}", 2222),
    ],
)
def test_ssh_trusts_and_distrusts_the_same_keys(tmp_path, text, port):
    """A real ssh with sshd -i as its ProxyCommand: authentication starts only after trust."""
    if not SSHD.exists():
        pytest.skip("no sshd")
    if os.geteuid() == 0:
        pathlib.Path("/run/sshd").mkdir(exist_ok=True)
    host_key = tmp_path / "host_key"
    host_key.write_bytes(encode_private_key_file(private_key("k")))
    host_key.chmod(0o600)
    (tmp_path / "kh").write_text(text + "\n")
    options = [
        f"ProxyCommand={SSHD} -i -f /dev/null -h {host_key} -o UsePAM=no",
        f"UserKnownHostsFile={tmp_path / 'kh'}",
        "GlobalKnownHostsFile=none",
        "StrictHostKeyChecking=yes",
        "HostKeyAlgorithms=ssh-ed25519",
        "BatchMode=yes",
        "IdentityFile=none",
        "IdentityAgent=none",
    ]
    command = ["ssh", "-F", "none", "-p", str(port), *(f"-o{option}" for option in options)]
    done = subprocess.run([*command, "nobody@host", "true"], capture_output=True, check=False)
    said = done.stderr.decode()
    verdict = KnownHosts.parse([("kh", text)]).lookup("host", port, KEY, NOW).status
    if verdict is Status.KNOWN:
        assert "Permission denied" in said
        return
    assert "Host key verification failed" in said
    assert ("IDENTIFICATION HAS CHANGED" in said) == (verdict is Status.CHANGED)
    assert ("REVOKED HOST KEY" in said) == (verdict is Status.REVOKED)
    assert ("host key is known for" in said) == (verdict is Status.UNKNOWN)
