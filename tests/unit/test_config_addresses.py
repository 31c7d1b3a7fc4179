"""Names and addresses: what is read, and what is refused before anything can see it."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.addresses import (
    Destination,
    HostPort,
    check_host_name,
    check_user_name,
    parse_destination,
    parse_listen_address,
)
from gateway.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("6000", "*", 6000),
        ("*:0", "*", 0),
        ("localhost:6000", "localhost", 6000),
        ("127.0.0.1:6000", "127.0.0.1", 6000),
        ("127.0.0.1/6000", "127.0.0.1", 6000),
        ("[::1]:6000", "::1", 6000),
        ("::1/6000", "::1", 6000),
        ("[fe80::1%eth0]:6000", "fe80::1%eth0", 6000),
        ("*:6000", "*", 6000),
        (":6000", "*", 6000),
        ("[]:6000", "*", 6000),
        ("LocalHost:65535", "localhost", 65535),
    ],
)
def test_listen_address(text, host, port):
    assert parse_listen_address(text) == (host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "65536",
        "-1",
        "+22",
        "\u0661\u0662",
        "ssh",
        "1:2:3",
        "::1:6000",
        "localhost:",
        "a b:6000",
        "/run/socket",
        "[::1]6000",
        "[::1:6000",
        "-x:6000",
        "a;b:6000",
        "host:60\x0000",
    ],
)
def test_listen_address_refused(text):
    with pytest.raises(ConfigError, match="--listen: "):
        parse_listen_address(text, where="--listen")


@pytest.mark.parametrize(
    ("text", "destination"),
    [
        ("jump", Destination(None, "jump", None)),
        ("alice@jump", Destination("alice", "jump", None)),
        ("a@b@jump", Destination("a@b", "jump", None)),
        ("Jump.Example.Com", Destination(None, "Jump.Example.Com", None)),
        ("CORP\\alice@jump", Destination("CORP\\alice", "jump", None)),
        ("::1", Destination(None, "::1", None)),
        ("alice@[::1]", Destination("alice", "::1", None)),
        ("fe80::1%eth0", Destination(None, "fe80::1%eth0", None)),
        ("ssh://jump", Destination(None, "jump", None)),
        ("ssh://jump/", Destination(None, "jump", None)),
        ("SSH://alice@jump:2222", Destination("alice", "jump", 2222)),
        ("ssh://a%40b@jump:2222/", Destination("a@b", "jump", 2222)),
        ("ssh://a@b@jump", Destination("a@b", "jump", None)),
        ("ssh://[::1]:2222", Destination(None, "::1", 2222)),
        ("ssh://[::1]", Destination(None, "::1", None)),
        ("ssh://[fe80::1%eth0]:22/", Destination(None, "fe80::1%eth0", 22)),
    ],
)
def test_destination(text, destination):
    assert parse_destination(text) == destination


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@jump",
        "alice@",
        "jump:22",
        "[jump:22",
        "-oProxyCommand=x",
        "-lroot@jump",
        "ssh://",
        "ssh:///",
        "ssh://@jump",
        "ssh://jump:",
        "ssh://jump:0",
        "ssh://jump:99999",
        "ssh://jump/path",
        "ssh://alice:secret@jump",
        "ssh://alice;fingerprint=x@jump",
        "ssh://alice%@jump",
        "ssh://alice%4@jump",
        "ssh://a%00b@jump",
        "ssh://a%0ab@jump",
        "ssh://a%ff@jump",
        "ssh://%2doProxyCommand@jump",
        "ssh://::1",
        "ssh://a*b",
        "a" * 300,
        "a" * 300 + "@jump",
    ],
)
def test_destination_refused(text):
    with pytest.raises(ConfigError, match="destination: "):
        parse_destination(text)


# CVE-2023-51385, CVE-2025-61984, CVE-2025-61985, CVE-2026-35386, CVE-2025-47203.
HOSTILE = [*"'`\"$;&<>|(){},\n\r\t\0\x7f \x1b\x85\xa0\u2028\u202e", "%h", "${X}", "$(x)", "\udcff"]


@pytest.mark.parametrize("part", HOSTILE, ids=ascii)
def test_no_name_from_outside_carries_shell_or_control_characters(part):
    for name in (f"a{part}b", f"a{part}"):
        with pytest.raises(ConfigError):
            check_host_name(name)
        with pytest.raises(ConfigError):
            check_user_name(name)
        with pytest.raises(ConfigError):
            parse_destination(f"{name}@jump")
        with pytest.raises(ConfigError):
            parse_destination(f"alice@{name}")


def test_a_host_has_no_backslash_where_a_user_may_have_one():
    assert check_user_name("CORP\\alice") == "CORP\\alice"
    with pytest.raises(ConfigError):
        check_host_name("CORP\\box")


def test_the_message_says_what_is_wrong():
    with pytest.raises(ConfigError, match=r"contains the character ;: write the host name without"):
        check_host_name("a;b")
    with pytest.raises(ConfigError, match=r"contains a blank or control character"):
        check_user_name("a\nb")
    with pytest.raises(ConfigError, match=r"begins with a dash"):
        check_user_name("-x")
    with pytest.raises(ConfigError, match=r"ends with a backslash"):
        check_user_name("a\\")


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("*:*", None, None),
        ("*:443", None, 443),
        ("Example.com:*", "example.com", None),
        ("10.0.0.1:22", "10.0.0.1", 22),
        ("[2001:DB8::0:1]:22", "2001:db8::1", 22),
    ],
)
def test_host_port_rule(text, host, port):
    rule = HostPort.parse(text)
    assert rule == HostPort(host, port)
    assert HostPort.parse(str(rule)) == rule


@pytest.mark.parametrize(
    "text",
    ["", "*", "host", "host:", ":22", "host:0", "::1:22", "[*]:22", "*.a:22", "a b:22", "a:b:c"],
)
def test_host_port_rule_refused(text):
    with pytest.raises(ConfigError, match="--permit-open: "):
        HostPort.parse(text, where="--permit-open")


@pytest.mark.parametrize("parse", [parse_listen_address, parse_destination, HostPort.parse])
@given(text=st.text(alphabet="a1-@:[]/*%.\\ \0é", max_size=20) | st.text(max_size=20))
def test_any_text_gives_an_address_or_a_config_error(parse, text):
    for candidate in (text, f"ssh://{text}", f"[{text}]:22"):
        with contextlib.suppress(ConfigError):
            parse(candidate)
