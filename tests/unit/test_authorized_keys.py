"""authorized_keys: options, every bad line, and never a key without its restriction."""

import base64
import shutil
import subprocess
import time

import pytest

from gateway.errors import ConfigError
from gateway.ssh.authorized_keys import parse_authorized_keys
from gateway.ssh.certificates import CertificateError, parse_certificate_untrusted
from gateway.ssh.keys import PrivateKey
from gateway.ssh.wire import mpint, string
from tests.support.keys import (
    PRIVATE_TYPES,
    SK_ECDSA,
    SK_ED25519,
    SecurityKey,
    a_certificate,
    a_private_key,
    options,
)


def public_key(letter):
    return PrivateKey.generate(lambda length: letter.encode() * length).public


KEY = public_key("k")
OTHER = public_key("o")
K, O = KEY.openssh_text(), OTHER.openssh_text()  # noqa: E741 - short lines
RSA_BLOB = string(b"ssh-rsa") + mpint(65537) + mpint(2**2047 + 12345)
RSA = f"ssh-rsa {base64.b64encode(RSA_BLOB).decode()}"
SHORT_RSA_BLOB = string(b"ssh-rsa") + mpint(65537) + mpint(2**1023 + 12345)
SHORT_RSA = f"ssh-rsa {base64.b64encode(SHORT_RSA_BLOB).decode()}"
DSS = f"ssh-dss {base64.b64encode(string(b'ssh-dss') + mpint(7)).decode()}"
NOW = 1_800_000_000.0
HERE = "192.0.2.1"


def certificate_of(key, **fields):
    fields = {"kind": 1, "principals": (b"alice",)} | fields
    return parse_certificate_untrusted(
        a_certificate(key, a_private_key("ssh-ed25519", "k"), **fields)
    )


CERTIFICATE = certificate_of(OTHER).openssh_text()


def parse(*lines):
    return parse_authorized_keys("\n".join(lines) + "\n", "ak")


def the_key(line):
    keys = parse(line)
    assert keys.problems == ()
    assert len(keys.entries) == 1
    assert keys.find(KEY, HERE, NOW) is keys.entries[0]
    return keys.entries[0]


def the_problem(line, key=KEY):
    """The one problem of a line, which must not let anybody in."""
    keys = parse(f"# before\n{line}", O)
    assert keys.find(key, HERE, NOW) is None
    assert [entry.key for entry in keys.entries] == [OTHER]
    assert len(keys.problems) == 1
    problem = keys.problems[0]
    assert problem.startswith("ak, line 2: ")
    assert problem.endswith(", key ignored")
    assert problem.isprintable()
    return problem


@pytest.mark.parametrize(
    ("line", "comment"),
    [
        (K, ""),
        (f"{K} me@here", "me@here"),
        (f"{K}\tme  and my key \t", "me  and my key"),
        (f" \t{K.replace(' ', '  ')}", ""),
        (f"{K}\r", ""),
        (f"{K} me\r", "me"),
        (f"{K} # no comment", "# no comment"),
        (f'{K} command="x"', 'command="x"'),
        (f"{K} \u00a0", "\u00a0"),
    ],
)
def test_a_key_without_options(line, comment):
    entry = the_key(line)
    assert entry.key == KEY
    assert entry.comment == comment
    assert (entry.permit_open, entry.port_forwarding, entry.options) == (None, True, ())
    assert entry.line == 1


@pytest.mark.parametrize(
    ("options", "port_forwarding", "permit_open"),
    [
        ("restrict", False, None),
        ("RESTRICT", False, None),
        ("no-port-forwarding", False, None),
        ("No-Port-Forwarding", False, None),
        ("restrict,port-forwarding", True, None),
        ("port-forwarding,restrict", False, None),
        ("no-port-forwarding,port-forwarding", True, None),
        ("no-pty", True, None),
        ("no-pty,no-X11-forwarding,no-agent-forwarding,no-user-rc", True, None),
        ("restrict,pty,X11-forwarding,agent-forwarding,user-rc", False, None),
        ('permitopen="localhost:80"', True, (("localhost", "80"),)),
        ('PermitOpen="localhost:80"', True, (("localhost", "80"),)),
        ('permitopen="a:1",permitopen="b:65535"', True, (("a", "1"), ("b", "65535"))),
        ('permitopen="*:*"', True, (("*", "*"),)),
        ('permitopen="*:443"', True, (("*", "443"),)),
        ('permitopen="192.0.2.1:*"', True, (("192.0.2.1", "*"),)),
        ('permitopen="[2001:db8::1]:22"', True, (("2001:db8::1", "22"),)),
        ('permitopen="a:0080"', True, (("a", "80"),)),
        ('restrict,port-forwarding,permitopen="a:1"', True, (("a", "1"),)),
        ('permitopen="a:1",restrict', False, (("a", "1"),)),
    ],
)
def test_options(options, port_forwarding, permit_open):
    entry = the_key(f"{options} {K} me")
    assert entry.port_forwarding is port_forwarding
    assert entry.permit_open == permit_open
    assert entry.comment == "me"
    assert the_key(f"{options} \t {K}\r").options == entry.options


def test_raw_options_are_kept():
    entry = the_key(f'restrict,permitopen="a:1",No-PTY {K}')
    assert entry.options == (("restrict", None), ("permitopen", "a:1"), ("no-pty", None))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ('command="/bin/true"', "command"),
        ('Command="/bin/true"', "command"),
        ('command="echo \\"a b\\", c"', "command"),
        ('command=""', "command"),
        ('environment="A=b"', "environment"),
        ("no-touch-required", "no-touch-required"),
        ("verify-required", "verify-required"),
        ('restrict,command="x"', "command"),
        ('from="192.0.2.0/24",command="x"', "command"),
        ('cert-authority,environment="A=b"', "environment"),
    ],
)
def test_an_option_that_cannot_be_honoured_makes_the_key_useless(options, name):
    problem = the_problem(f"{options} {K}")
    assert problem == f"ak, line 2: option {name} is not supported yet, key ignored"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"unheard-of {K}", "option unheard-of is unknown"),
        (f'unheard-of="x" {K}', "option unheard-of is unknown"),
        (f"no-restrict {K}", "option no-restrict is unknown"),
        (f"no-command {K}", "option no-command is unknown"),
        (f'restrict="yes" {K}', "option restrict is unknown or misused"),
        (f'no-pty="x" {K}', "option no-pty is unknown or misused"),
        (f"permitopen {K}", "option permitopen is unknown or misused"),
        (f"permitopen=a:1 {K}", "malformed option permitopen"),
        (f"command=x {K}", "malformed option command"),
        (f"restrict, {K}", "malformed options restrict,"),
        (f",restrict {K}", "malformed options ,restrict"),
        (f"restrict,,no-pty {K}", "malformed options"),
        (f"restrict , no-pty {K}", "base64"),
        (f'permitopen="a:1"x {K}', "malformed option permitopen"),
        (f'permitopen="a:1""b:1" {K}', "malformed option permitopen"),
        (f'"restrict" {K}', "malformed options"),
        (f'command="x {K}', "a quote is not closed"),
        (f'command="x\\" {K}', "a quote is not closed"),
        (f'x" {K}', "a quote is not closed"),
        (f'restrict\\" {K}', "malformed option restrict"),
        (f"restrict\u00a0{K}", "ends before the key"),
        (f"restrict\u2003{K}", "ends before the key"),
        (f"restrict\x0b{K}", "ends before the key"),
        (f"restrict\r{K}", "ends before the key"),
        (f"restrict\0{K}", "holds a NUL"),
        (f"{K} comment\0", "holds a NUL"),
        ("restrict", "ends before the key"),
        ("restrict ssh-ed25519", "ends before the key"),
        ("ssh-ed25519", "ends before the key"),
        ("ssh-ed25519 ", "ends before the key"),
        (f"ssh-ed25519 {K}", "base64"),
        (f"ssh-ed25519,restrict {K}", "the key is of type|base64"),
        (f"ssh-rsa {K.split()[1]}", "says ssh-rsa, but the key is of type ssh-ed25519"),
        (f"restrict ssh-rsa {K.split()[1]}", "says ssh-rsa, but the key is of type ssh-ed25519"),
        (f"ssh-ed25519 {RSA.split()[1]}", "but the key is of type ssh-rsa"),
        (f"{K.split()[1]}", "ends before the key"),
        (f"1024 35 1234567 {K}", "but the key is of type|base64"),
        (DSS, "keys of type ssh-dss are not supported"),
        (f"restrict {DSS}", "keys of type ssh-dss are not supported"),
        (SHORT_RSA, "an RSA key of 1024 bits is too short: 2048 are the least"),
        (f"cert-authority {SHORT_RSA}", "an RSA key of 1024 bits is too short"),
        (CERTIFICATE, "a certificate cannot stand here, only its key or its CA's"),
        (f"cert-authority {CERTIFICATE}", "a certificate cannot stand here"),
        (f'cert-authority="x" {K}', "option cert-authority is unknown or misused"),
        (f'principals="a" {K}', "option principals without cert-authority"),
        (f"cert-authority,principals {K}", "option principals is unknown or misused"),
        (f'cert-authority,principals="" {K}', "option principals has an empty name"),
        (f'cert-authority,principals="a,,b" {K}', "option principals has an empty name"),
        (f'cert-authority,principals="a",principals="b" {K}', "option principals stands twice"),
        (f"\ufeff{K}", "ends before the key"),
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAAA==", "0 bytes instead of 32"),
        (f'permitopen="a:80,b:80" {K}', "is not host:port"),
        (f'permitopen="" {K}', "is not host:port"),
        (f'permitopen="a" {K}', "is not host:port"),
        (f'permitopen="a:" {K}', "is not host:port"),
        (f'permitopen=":80" {K}', "is not host:port"),
        (f'permitopen="a:0" {K}', "is not host:port"),
        (f'permitopen="a:65536" {K}', "is not host:port"),
        (f'permitopen="a:-1" {K}', "is not host:port"),
        (f'permitopen="a:+1" {K}', "is not host:port"),
        (f'permitopen="a:1 " {K}', "is not host:port"),
        (f'permitopen="a b:1" {K}', "is not host:port"),
        (f'permitopen="a:http" {K}', "is not host:port"),
        (f'permitopen="a:\u0661" {K}', "is not host:port"),
        (f'permitopen="a:100000" {K}', "is not host:port"),
        (f'permitopen="2001:db8::1:80" {K}', "is not host:port"),
        (f'permitopen="[a:80" {K}', "is not host:port"),
        (f'permitopen="[]:80" {K}', "is not host:port"),
        (f'permitopen="a:80\\"" {K}', "is not host:port"),
        (f'permitopen="{"a" * 1025}:80" {K}', "is not host:port"),
    ],
)
def test_a_bad_line_lets_nobody_in(line, message):
    problem = the_problem(line)
    assert any(part in problem for part in message.split("|"))


def test_a_long_line_is_refused_whole():
    """Dropbear 2026.92 took the tail of a long line for a line of its own, without options."""
    for length in (8192 - len(K) - 1, 8192, 16384):
        padding = "x" * length
        assert "longer than 8192" in the_problem(f'command="{padding}" {K}')
    exactly = f"{K} ".ljust(8191, "c") + "c"
    assert len(exactly) == 8192
    assert the_key(exactly)
    assert "longer than 8192" in the_problem(exactly + "c")


def test_the_first_line_of_a_key_decides():
    keys = parse(f'permitopen="a:1" {K} first', f"{K} second")
    assert keys.find(KEY, HERE, NOW).comment == "first"
    assert len(keys.entries) == 2


@pytest.mark.parametrize("options", ['command="x"', 'from="10.0.0.1/8"', "unheard-of", "restrict,"])
def test_a_key_whose_first_line_cannot_be_honoured_stays_useless(options):
    """sshd would have used the first line; the second would free the key from its restriction."""
    keys = parse(f"{options} {K}", f"{K} again", f"no-pty {K}", O)
    assert keys.find(KEY, HERE, NOW) is None
    assert keys.find(OTHER, HERE, NOW) is not None
    assert len(keys.problems) == 3
    assert "line 1 has the same key with other options" in keys.problems[1]


def test_blank_lines_and_comments():
    keys = parse("", " \t", "# comment", f"#{K}", f" # {K}", "\r", K)
    assert keys.problems == ()
    assert [entry.line for entry in keys.entries] == [7]


def test_only_line_feeds_separate_lines():
    for separator in ("\u2028", "\x85", "\r", "\x0b", "\x0c", "\x1e"):
        keys = parse(f"# comment{separator}{K}", f"{O} comment{separator}{K}")
        assert keys.problems == ()
        assert keys.find(KEY, HERE, NOW) is None


def test_bytes_that_are_no_text():
    keys = parse_authorized_keys(K.encode() + b" m\xff\nr\xffstrict " + O.encode(), "ak")
    assert keys.find(KEY, HERE, NOW).comment == "m\udcff"
    assert keys.find(OTHER, HERE, NOW) is None
    assert keys.problems[0].isprintable()


def test_thousands_of_keys_and_not_more():
    lines = [public_key("k").openssh_text()] * 9_999 + [O, DSS, f"{O} one too many"]
    keys = parse(*lines)
    assert len(keys.entries) == 10_000
    assert keys.find(OTHER, HERE, NOW).line == 10_000
    assert [problem.split(": ")[1] for problem in keys.problems] == [
        "keys of type ssh-dss are not supported, key ignored",
        "more than 10000 keys, key ignored",
    ]


def test_absurd_size_is_refused_as_a_whole():
    with pytest.raises(ConfigError, match="ak: the file has more than"):
        parse(*["#"] * 100_001)


def test_an_empty_file():
    keys = parse_authorized_keys("", "ak")
    assert (keys.entries, keys.problems, keys.find(KEY, HERE, NOW)) == ((), (), None)


# ---- when and from where ----------------------------------------------------


# Patterns, and which addresses they let in of ADDRESSES; addr_match_list and match_pattern_list.
ADDRESSES = ("192.0.2.1", "192.0.2.77", "198.51.100.1", "::ffff:192.0.2.1", "2001:db8::1", "::1")
SOURCES = [
    ("192.0.2.1", "192.0.2.1 ::ffff:192.0.2.1"),
    ("192.0.2.0/24", "192.0.2.1 192.0.2.77 ::ffff:192.0.2.1"),
    ("192.0.2.0/24,!192.0.2.77", "192.0.2.1 ::ffff:192.0.2.1"),
    ("!192.0.2.77,192.0.2.0/24", "192.0.2.1 ::ffff:192.0.2.1"),
    ("!192.0.2.64/26,192.0.2.*", "192.0.2.1 ::ffff:192.0.2.1"),
    ("!192.0.2.77", ""),
    ("*,!*", ""),
    ("*", " ".join(ADDRESSES)),
    ("!*:*,*", "192.0.2.1 192.0.2.77 198.51.100.1 ::ffff:192.0.2.1"),
    ("192.0.2.?", "192.0.2.1 ::ffff:192.0.2.1"),
    ("192.0.2.?7,198.51.100.1", "192.0.2.77 198.51.100.1"),
    ("0.0.0.0/0", "192.0.2.1 192.0.2.77 198.51.100.1 ::ffff:192.0.2.1"),
    ("::/0", "2001:db8::1 ::1"),
    ("2001:DB8::/32", "2001:db8::1"),
    ("2001:0db8:0::1", "2001:db8::1"),
    ("2001:DB8:*", "2001:db8::1"),
    ("fe80:*:1", ""),
    ("jump.example,*.example", ""),
]


@pytest.mark.parametrize(("patterns", "expected"), SOURCES)
def test_from(patterns, expected):
    keys = parse(f'from="{patterns}" {K}')
    assert keys.problems == ()
    let_in = [address for address in ADDRESSES if keys.find(KEY, address, NOW)]
    assert let_in == expected.split()
    assert keys.find(KEY, "", NOW) is keys.find(KEY, "nobody knows", NOW) is None
    for address in ADDRESSES:
        refused = f"from= of line 1 does not name {address}"
        assert (keys.why_not(KEY, address, NOW) == refused) is (address not in let_in)


def test_the_zone_of_an_address_is_not_looked_at():
    assert parse(f'from="fe80::/10" {K}').find(KEY, "fe80::1%eth0", NOW)
    assert parse(f'from="fe80::/10,!fe80::1" {K}').find(KEY, "fe80::1%eth0", NOW) is None


@pytest.mark.parametrize(
    "patterns",
    [
        "",
        "!",
        "192.0.2.1,",
        ",192.0.2.1",
        "192.0.2.1,,*",
        "192.0.2.1 , *",
        "192.0.2.1/24",
        "192.0.2.0/33",
        "192.0.2.0/24/24",
        "192.0.2.0/255.255.255.0",
        "192.0.2.0/",
        "192.0.2",
        "!10.1",
        "0x7f.1",
        "2130706433",
        "2001:db8",
        "2001:db8::1/32",
        "[::1]",
        "*.example/24",
    ],
)
def test_a_bad_pattern_makes_the_key_useless(patterns):
    """sshd skips some of these, and one that was meant to forbid would then forbid nothing."""
    problem = the_problem(f'from="{patterns}" {K}')
    assert f'from="{patterns}" has a bad pattern' in problem


@pytest.mark.parametrize(
    ("times", "expires_s"),
    [
        (["19700101Z"], 0),
        (["20300102Z"], 1893542400),
        (["203001020304Z"], 1893553440),
        (["20300102030405Z"], 1893553445),
        (["20300102030405z"], 1893553445),
        (["20300102Z", "20290102Z", "20310102Z"], 1862006400),
        (["20240229Z"], 1709164800),
    ],
)
def test_expiry_time(times, expires_s):
    keys = parse(",".join(f'expiry-time="{time}"' for time in times) + f" {K}")
    assert keys.problems == ()
    assert keys.entries[0].expires_s == expires_s
    assert keys.find(KEY, HERE, expires_s - 0.001)
    assert keys.find(KEY, HERE, expires_s) is None
    assert keys.why_not(KEY, HERE, expires_s) == "the key of line 1 has expired"


def test_expiry_time_in_local_time(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    time.tzset()
    try:
        local = parse(f'expiry-time="20300102" {K}').entries[0]
        utc = parse(f'expiry-time="20300102Z" {K}').entries[0]
    finally:
        monkeypatch.undo()
        time.tzset()
    assert utc.expires_s - local.expires_s == (5 * 60 + 45) * 60


@pytest.mark.parametrize(
    "value",
    ["", "Z", "2030", "203001", "20301301", "20300230", "2030010224", "203001022400Z",
     "20300102030460Z", "20300102 ", "+0300102", "20300102ZZ", "20300102+01", "never", "00000101",
     "\u0662\u0660300102"],
)  # fmt: skip
def test_a_time_that_is_none_makes_the_key_useless(value):
    assert "is not YYYYMMDD[HHMM[SS]][Z]" in the_problem(f'expiry-time="{value}" {K}')


def test_the_first_line_that_lets_a_key_in_decides():
    """As in sshd: a line whose from= or expiry-time= says no is passed over."""
    keys = parse(
        f'expiry-time="20200101Z" {K}',
        f'from="198.51.100.0/24",restrict {K}',
        f'from="192.0.2.0/24" {K}',
    )
    assert keys.find(KEY, "198.51.100.9", NOW).line == 2
    assert keys.find(KEY, "192.0.2.9", NOW).line == 3
    assert keys.find(KEY, "203.0.113.9", NOW) is None
    assert keys.why_not(KEY, "203.0.113.9", NOW).count("of line") == 3
    assert "not in authorized_keys" in keys.why_not(OTHER, HERE, NOW)


def test_a_ca_may_be_limited_too():
    lines = [
        f'cert-authority,from="192.0.2.0/24" {K}',
        f'cert-authority,expiry-time="20200101Z" {K}',
    ]
    keys = parse(*lines)
    assert keys.problems == ()
    assert keys.find_authority(certificate_of(OTHER), "alice", HERE, NOW)[0].line == 1
    with pytest.raises(CertificateError, match="has expired"):
        keys.find_authority(certificate_of(OTHER), "alice", "198.51.100.1", NOW)
    with pytest.raises(CertificateError, match="from= of line 1"):
        parse(lines[0]).find_authority(certificate_of(OTHER), "alice", "198.51.100.1", NOW)


# ---- what may be listened on, and tun ----------------------------------------


@pytest.mark.parametrize(
    ("options", "permit_listen"),
    [
        ('permitlisten="8080"', (("*", "8080"),)),
        ('permitlisten="*"', (("*", "*"),)),
        ('permitlisten="*:*"', (("*", "*"),)),
        ('PermitListen="localhost:8080"', (("localhost", "8080"),)),
        ('permitlisten="[::1]:08"', (("::1", "8"),)),
        ('permitlisten="1",permitlisten="a:2"', (("*", "1"), ("a", "2"))),
        ('permitopen="a:1"', None),
    ],
)
def test_permitlisten(options, permit_listen):
    entry = the_key(f"{options} {K}")
    assert entry.permit_listen == permit_listen
    assert entry.port_forwarding


@pytest.mark.parametrize(
    "value", ["", "0", "65536", ":80", "a:", "a", "a:b", "*.example:1", "local?:1", "::1:80", "1-2"]
)
def test_a_bad_permitlisten_makes_the_key_useless(value):
    assert f'permitlisten="{value}"' in the_problem(f'permitlisten="{value}" {K}')


def test_tunnel():
    assert the_key(K).tunnel is None
    assert the_key(f'tunnel="7" {K}').tunnel == 7
    assert the_key(f'restrict,tunnel="0" {K}').port_forwarding is False
    for value in ("", "any", "-1", "0:1", "tun0", "1" * 10, "\u0661"):
        assert "is not the number of a tun device" in the_problem(f'tunnel="{value}" {K}')


@pytest.mark.parametrize("option", ['from="*"', 'tunnel="1"'])
def test_options_that_may_stand_once(option):
    name = option.partition("=")[0]
    assert f"option {name} stands twice" in the_problem(f"{option},{option} {K}")


@pytest.mark.parametrize("name", ["from", "expiry-time", "permitlisten", "tunnel"])
def test_options_that_need_a_value(name):
    assert f"option {name} is unknown or misused" in the_problem(f"{name} {K}")
    assert f"malformed option {name}" in the_problem(f"{name}=1 {K}")


# ---- every type, and CAs ------------------------------------------------------


def test_keys_of_every_type():
    keys = [a_private_key(name).public for name in PRIVATE_TYPES]
    keys += [SecurityKey(name).public for name in (SK_ED25519, SK_ECDSA)]
    found = parse(RSA, *(f"restrict {key.openssh_text()} me" for key in keys))
    assert found.problems == ()
    for key in keys:
        assert found.find(key, HERE, NOW).key == key
        assert found.find(key, HERE, NOW).port_forwarding is False


def test_a_ca_lets_its_certificates_in_and_not_itself():
    certificate = certificate_of(OTHER)
    keys = parse(f"cert-authority,no-port-forwarding {K} the CA")
    assert keys.problems == ()
    assert keys.entries[0].cert_authority
    assert keys.entries[0].principals is None
    assert keys.find(KEY, HERE, NOW) is None
    assert keys.find(OTHER, HERE, NOW) is None
    assert keys.find(certificate, HERE, NOW) is None
    entry, allowed = keys.find_authority(certificate, "alice", HERE, NOW)
    assert entry is keys.entries[0]
    assert not allowed.port_forwarding
    assert not entry.port_forwarding
    with pytest.raises(CertificateError, match="is for alice, not for bob"):
        keys.find_authority(certificate, "bob", HERE, NOW)


def test_a_certificate_is_not_let_in_by_its_plain_key_or_another_ca():
    certificate = certificate_of(OTHER)
    for lines in ([O], [K], [f"cert-authority {O}"], []):
        with pytest.raises(CertificateError, match="is not in authorized_keys"):
            parse(*lines).find_authority(certificate, "alice", HERE, NOW)


def test_principals_replace_the_user_name():
    keys = parse(
        f'cert-authority,principals="alice,carol" {K}', f'cert-authority,principals="x" {K}'
    )
    assert keys.problems == ()
    assert keys.entries[0].principals == ("alice", "carol")
    assert keys.find_authority(certificate_of(OTHER), "bob", HERE, NOW)[0].line == 1
    other = certificate_of(OTHER, principals=(b"x", b"y"))
    assert keys.find_authority(other, "bob", HERE, NOW)[0].line == 2
    for principals in ((b"bob",), (), (b"alice,carol",), (b"*",)):
        with pytest.raises(CertificateError, match="is for"):
            keys.find_authority(certificate_of(OTHER, principals=principals), "bob", HERE, NOW)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"valid": (0, 1)}, "has expired"),
        ({"valid": (2**63, 2**64 - 1)}, "is not valid yet"),
        ({"kind": 2}, "is not for users"),
        ({"critical": options((b"unheard-of", b""))}, "critical option unheard-of"),
    ],
)
def test_certificates_that_are_not_good(fields, message):
    with pytest.raises(CertificateError, match=message):
        parse(f"cert-authority {K}").find_authority(
            certificate_of(OTHER, **fields), "alice", HERE, NOW
        )


def test_a_ca_whose_first_line_cannot_be_honoured_stays_useless():
    keys = parse(f'cert-authority,command="x" {K}', f"cert-authority {K}", K)
    assert keys.entries == ()
    with pytest.raises(CertificateError):
        keys.find_authority(certificate_of(OTHER), "alice", HERE, NOW)


@pytest.mark.interop
def test_ssh_keygen_sees_the_same_keys(tmp_path):
    """ssh-keygen -l lists an authorized_keys file, whatever the options are."""
    program = shutil.which("ssh-keygen")
    assert program, "ssh-keygen is needed"
    lines = [
        f"{K} plain",
        f"restrict,no-pty {O} restricted",
        f'permitopen="a:1",permitopen="[::1]:*" {public_key("p").openssh_text()} two words',
        f"\t{public_key('t').openssh_text()}\r",
    ]
    path = tmp_path / "ak"
    path.write_text("\n".join(lines) + "\n", newline="")
    listed = subprocess.run([program, "-l", "-f", path], capture_output=True, check=True)
    theirs = [line.split()[1].decode() for line in listed.stdout.splitlines()]
    keys = parse_authorized_keys(path.read_bytes(), "ak")
    assert [entry.key.fingerprint for entry in keys.entries] == theirs
