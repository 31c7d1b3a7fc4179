"""Rules about people, listeners, tun devices and sockets, and what keys limit (T53, T63, T68)."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ConfigError
from gateway.policy.key_limits import KeyLimits, limits_of
from gateway.policy.rules import Action, Policy, Rule, Subject, deny_wins, parse_target
from gateway.ssh.authorized_keys import parse_authorized_keys
from gateway.ssh.keys import PrivateKey

FINGERPRINT = "SHA256:" + "a" * 43
ALICE = Subject("alice", frozenset({"staff", "dba"}), FINGERPRINT, frozenset({"ops"}), "192.0.2.1")
BOB = Subject("bob", frozenset(), "", frozenset(), "192.0.2.1")
DB = ip_address("10.0.0.5")
KEY = PrivateKey.generate(lambda length: b"k" * length).public.openssh_text()


def a_rule(*to: str, allow: bool = True, rule_id: str = "r", action=Action.OPEN, **whom) -> Rule:
    whom = {kind: frozenset(names) for kind, names in whom.items()}
    return Rule(rule_id, allow, action, tuple(parse_target(text, action) for text in to), **whom)


def policy(*rules: Rule) -> Policy:
    return Policy(rules, lambda _: False)


def listens(host: str, port: int, *to: str, deny: tuple[str, ...] = ()) -> bool:
    rules = [a_rule(*to, action=Action.LISTEN)] if to else []
    rules += [a_rule(*deny, action=Action.LISTEN, allow=False)] if deny else []
    return policy(*rules).decide_listen(ALICE, host, port).allowed


def limits(options: str) -> KeyLimits:
    keys = parse_authorized_keys(f"{options} {KEY}", "ak")
    assert not keys.problems
    return limits_of(keys.entries[0])


# -- whom a rule is for ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("whom", "alice"),
    [
        ({}, True),
        ({"users": ["alice"]}, True),
        ({"users": ["Alice", "alice ", "*", "ali"]}, False),
        ({"groups": ["dba"]}, True),
        ({"groups": ["alice", "ops"]}, False),
        ({"keys": [FINGERPRINT]}, True),
        ({"keys": ["SHA256:" + "b" * 43]}, False),
        ({"principals": ["ops"]}, True),
        ({"principals": ["alice", "staff"]}, False),
        ({"users": ["bob"], "principals": ["ops"]}, True),
        ({"users": ["carol"], "groups": ["x"], "keys": [FINGERPRINT], "principals": ["y"]}, True),
    ],
)
def test_a_rule_is_for_whomever_it_names(whom, alice: bool) -> None:
    for allow in (True, False):
        rule = a_rule("db:1", allow=allow, **whom)
        fallback = () if allow else (a_rule("*:*"),)
        verdict = policy(rule, *fallback).decide_open(ALICE, "db", 1, DB)
        assert verdict.allowed is (alice is allow)
    assert a_rule("db:1", **whom).is_for(BOB) is ("bob" in whom.get("users", ["bob"] * (not whom)))


def test_deny_wins_whatever_the_order() -> None:
    allow, deny = a_rule("*:*", rule_id="a"), a_rule("10.0.0.0/8:5432", allow=False, rule_id="d")
    for rules in ((allow, deny), (deny, allow), (deny, allow, deny, allow)):
        verdict = policy(*rules).decide_open(ALICE, "db.internal", 5432, DB)
        assert (verdict.allowed, verdict.rule_id) == (False, "d")
        assert verdict.reason == "denied by rule d: 10.0.0.0/8:5432"
        verdict = policy(*rules).decide_open(ALICE, "db.internal", 5433, DB)
        assert (verdict.allowed, verdict.rule_id) == (True, "a")
        assert verdict.reason == "allowed by rule a: *:*"


def test_a_rule_that_denies_needs_no_exact_name_for_what_is_special() -> None:
    rules = (a_rule("127.0.0.1:25"), a_rule("*:*", allow=False, rule_id="d"))
    verdict = policy(*rules).decide_open(ALICE, "x", 25, ip_address("127.0.0.1"))
    assert (verdict.allowed, verdict.rule_id) == (False, "d")


def test_a_reason_shows_text_of_others_escaped() -> None:
    subject = Subject("al\x1b[2Jice\n", frozenset(), "", frozenset(), "")
    verdict = policy().decide_open(subject, "h\u00fcst.example", 1, DB)
    assert verdict.reason.isprintable()
    assert verdict.reason.startswith(r"denied: no rule allows al\x1b[2Jice\n to open h")
    for action in (
        lambda text: policy().decide_listen(subject, text, 1),
        lambda text: policy().decide_tun(subject, text),
        lambda text: policy().decide_unix(subject, text),
        lambda text: policy().decide_open(subject, text, 1, DB),
        policy().decide_other,
    ):
        verdict = action("\x1b]0;x\x07" * 200)
        assert not verdict.allowed
        assert verdict.reason.isprintable()
        assert len(verdict.reason) < 2000


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (a_rule, "it names no target"),
        (lambda: a_rule("db:1", keys=["MD5:aa"]), "MD5:aa is not the fingerprint of a key"),
        (lambda: a_rule("db:1", keys=[FINGERPRINT + "="]), "is not the fingerprint of a key"),
        (lambda: a_rule("db:1", keys=["a" * 43]), "is not the fingerprint of a key"),
        (lambda: a_rule("db:1", action=Action.LISTEN), "db:1 names a host"),
        (lambda: a_rule("*.db:1", action=Action.LISTEN), "names a host"),
        (lambda: Rule("r", True, Action.TUN, (parse_target("db:1"),)), "db:1 is no target of tun"),
        (lambda: Rule("r", True, Action.UNIX, (parse_target("*:*"),)), "no target of unix"),
        (lambda: Rule("r", True, Action.OPEN, (parse_target("tun", Action.TUN),)), "tun is no tar"),
        (lambda: a_rule("tun0", action=Action.TUN), "tun0 is no kind of device, and "),
        *(
            (lambda text=text: a_rule(text, action=Action.TUN), problem)
            for text, problem in (
                ("10.20.0.5/16", "is an address inside 10.20.0.0/16"),
                ("10.20.0.0/33", "is not a network"),
                ("10.20.0.0/255.255.0.0", "is not a network"),
                ("fe80::/64%eth0", "is not a network"),
                ("fe80::1%eth0", "no kind of device, and no network"),
                ("[fd20::]/64", "is not a network"),
                ("10.20.0.0/16:22", "is not a network"),
                ("db.internal", "no kind of device, and no network"),
            )
        ),
        (lambda: Rule("r", True, Action.OPEN, (parse_target("10.0.0.0/8", Action.TUN),)),
         "10.0.0.0/8 is no target of open"),
        (lambda: Rule("r", True, Action.UNIX, (parse_target("10.0.0.0/8", Action.TUN),)),
         "10.0.0.0/8 is no target of unix"),
        (lambda: a_rule("", action=Action.TUN), "an empty text is no kind of device"),
        *(
            (lambda path=path: a_rule(path, action=Action.UNIX), "is not the path of a socket")
            for path in ("", "x", "./x", "/a/../b", "/a//b", "/a/.", "/a/", "/", "/*/*/", "x/*",
                         "/a/*/b", "/a*", "/" + "a" * 108)
        ),
    ],
)  # fmt: skip
def test_a_rule_that_could_never_apply_is_refused(make, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        make()
    assert problem in str(error.value)
    assert error.value.remedy


# -- listeners -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "hosts"),
    [
        ((), ""),
        (
            ("*:8080",),
            "* 0.0.0.0 :: ::ffff:0.0.0.0 localhost 127.0.0.1 ::1 10.0.0.5 fd00::1 192.0.2.1",
        ),
        (("0.0.0.0:8080",), "0.0.0.0 ::ffff:0.0.0.0"),
        (("[::]:8080",), "::"),
        (("0.0.0.0/0:8080",), "localhost 127.0.0.1 10.0.0.5 192.0.2.1"),
        (("[::/0]:8080",), "localhost ::1 fd00::1"),
        (("localhost:8080",), "localhost 127.0.0.1 ::1"),
        (("127.0.0.1:8080",), "localhost 127.0.0.1"),
        (("[::1]:8080",), "localhost ::1"),
        (("127.0.0.2:8080",), ""),
        (("10.0.0.0/8:8000-9000",), "10.0.0.5"),
        (("10.0.0.5:8080", "[fd00::1]:*"), "10.0.0.5 fd00::1"),
        (("*:8081", "localhost:1-8079"), ""),
    ],
)
def test_only_addresses_that_a_rule_names_are_listened_on(to, hosts: str) -> None:
    asked = ["*", "0.0.0.0", "::", "::ffff:0.0.0.0", "localhost", "127.0.0.1", "::1", "10.0.0.5",
             "fd00::1", "192.0.2.1"]  # fmt: skip
    allowed = [host for host in asked if listens(host, 8080, *to)]
    assert allowed == [host for host in asked if host in hosts.split()]
    assert listens("", 8080, *to) is listens("*", 8080, *to)
    assert listens("LOCALHOST.", 8080, *to) is listens("localhost", 8080, *to)


@pytest.mark.parametrize(
    ("deny", "hosts"),
    [
        ("*:8080", "* 0.0.0.0 :: localhost 127.0.0.1 ::1 10.0.0.5"),
        ("10.0.0.0/8:8080", "* 0.0.0.0 :: 10.0.0.5"),
        ("127.0.0.1:1-65535", "* 0.0.0.0 :: localhost 127.0.0.1"),
        ("localhost:*", "* 0.0.0.0 :: localhost 127.0.0.1 ::1"),
        ("0.0.0.0:8080", "* 0.0.0.0 ::"),
        ("*:8081", ""),
    ],
)
def test_what_is_denied_on_one_address_is_denied_on_all_of_them(deny: str, hosts: str) -> None:
    asked = ["*", "0.0.0.0", "::", "localhost", "127.0.0.1", "::1", "10.0.0.5"]
    denied = [host for host in asked if not listens(host, 8080, "*:*", deny=(deny,))]
    assert denied == hosts.split()


@pytest.mark.parametrize(
    "host",
    ["jump.example", "0x7f.1", "2130706433", "127.1", "[::1]", " ", "localhost.example",
     "127.0.0.1\0", "lo", "10.0.0.0/8"],
)  # fmt: skip
def test_no_name_but_localhost_is_listened_on(host: str) -> None:
    verdict = policy(a_rule("*:*", action=Action.LISTEN)).decide_listen(ALICE, host, 8080)
    assert not verdict.allowed
    assert verdict.reason.endswith("is no address to listen on")


def test_ports_to_listen_on() -> None:
    assert listens("localhost", 0, "*:*")
    assert not listens("localhost", 0, "*:1-65535")
    assert not listens("localhost", 0, "*:*", deny=("localhost:*",))
    assert listens("localhost", 65535, "*:1-65535")
    assert listens("localhost", 25, "*:*"), "a listener sends no mail"
    for port in (-1, 65536, 2**32 - 1):
        assert not listens("localhost", port, "*:*")


# -- tun and unix ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "kinds"), [("tun", ["tun"]), ("tap", ["tap"]), ("*", ["tun", "tap"])]
)
def test_kinds_of_devices(to: str, kinds: list[str]) -> None:
    rules = policy(a_rule(to, action=Action.TUN))
    asked = ("tun", "tap", "", "*", "TUN", "tun0", "ethernet")
    assert [kind for kind in asked if rules.decide_tun(ALICE, kind).allowed] == kinds
    everything = (a_rule("*", action=Action.TUN), a_rule(to, action=Action.TUN, allow=False))
    assert [kind for kind in asked if policy(*everything).decide_tun(ALICE, kind).allowed] == [
        kind for kind in ("tun", "tap") if kind not in kinds
    ]


INSIDE = (
    "10.20.0.5", "10.21.0.5", "fd20::5", "2001:db8::1", "::ffff:10.20.0.5", "64:ff9b::10.20.0.5",
)  # fmt: skip
SPECIAL = (
    "198.51.100.7", "127.0.0.1", "::1", "0.0.0.0", "::", "169.254.169.254", "fe80::1", "224.0.0.1",
    "ff02::1", "255.255.255.255", "100.64.1.1", "fd00:ec2::254", "::ffff:127.0.0.1",
)  # fmt: skip
WITH_OWN = frozenset({ip_address("198.51.100.7")})


def reached(allow: tuple[str, ...], deny: tuple[str, ...] = ()) -> list[str]:
    """Return where packets may go, of all that is asked here; this machine is 198.51.100.7."""
    rules = [a_rule(*allow, action=Action.TUN)] if allow else []
    rules += [a_rule(*deny, action=Action.TUN, allow=False)] if deny else []
    asks = Policy(tuple(rules), WITH_OWN.__contains__).decide_tun_packet
    return [text for text in (*INSIDE, *SPECIAL) if asks(ALICE, ip_address(text)).allowed]


MAPPED = ["::ffff:10.20.0.5", "64:ff9b::10.20.0.5"]


@pytest.mark.parametrize(
    ("allow", "deny", "expected"),
    [
        ((), (), []),
        (("tun",), (), list(INSIDE)),
        (("*",), (), list(INSIDE)),
        (("tap",), (), []),
        (("10.20.0.0/16",), (), ["10.20.0.5", *MAPPED]),
        (("10.20.0.5",), (), ["10.20.0.5", *MAPPED]),
        (("10.20.0.0/16", "fd20::/64", "tap"), (), ["10.20.0.5", "fd20::5", *MAPPED]),
        (("0.0.0.0/0", "::/0"), (), list(INSIDE)),
        (("tun",), ("10.20.0.0/16",), ["10.21.0.5", "fd20::5", "2001:db8::1"]),
        (("10.0.0.0/8",), ("10.20.0.0/15",), []),
        (("10.20.0.5",), ("10.20.0.5",), []),
        (("tun", "10.20.0.0/16"), ("tun",), []),
        (("10.20.0.0/16",), ("*",), []),
        (("10.20.0.0/16",), ("tap",), ["10.20.0.5", *MAPPED]),
        # What has to be named: one address, or what is special in the same way.
        (("198.51.100.7",), (), ["198.51.100.7"]),
        (("198.51.100.0/24",), (), []),
        (("127.0.0.0/8",), (), ["127.0.0.1", "::ffff:127.0.0.1"]),
        (("169.254.0.0/16", "100.64.0.0/10"), (), ["169.254.169.254", "100.64.1.1"]),
        (("100.0.0.0/9",), (), []),
        (("fe80::/10", "ff02::/16"), (), ["fe80::1", "ff02::1"]),
        (("198.51.100.7",), ("198.51.100.0/24",), []),
    ],
)
def test_where_packets_may_go(allow, deny, expected: list[str]) -> None:
    assert reached(allow, deny) == expected


def test_a_network_means_a_layer_3_device() -> None:
    rules = policy(a_rule("10.20.0.0/16", action=Action.TUN))
    assert [rules.decide_tun(ALICE, kind).allowed for kind in ("tun", "tap")] == [True, False]
    denied = a_rule("10.20.0.0/16", action=Action.TUN, allow=False)
    rules = policy(a_rule("*", action=Action.TUN), denied)
    assert [rules.decide_tun(ALICE, kind).allowed for kind in ("tun", "tap")] == [True, True]


def test_why_a_packet_is_dropped() -> None:
    address = ip_address("10.20.0.5")
    rules = Policy((a_rule("tun", action=Action.TUN),), lambda own: own == address)
    verdict = rules.decide_tun_packet(ALICE, address)
    assert verdict.rule_id == "built-in:special-address"
    assert verdict.reason == ("denied: 10.20.0.5 is the jump box itself; a rule must name it")
    verdict = policy().decide_tun_packet(ALICE, address)
    assert verdict.reason == (
        "denied: no rule allows alice to reach 10.20.0.5 through a tun device"
    )


@pytest.mark.parametrize(
    ("allow", "deny", "networks"),
    [
        (("tun",), (), []),
        (("tun", "10.20.0.0/16"), (), ["10.20.0.0/16"]),
        (("fd20::/64", "10.20.1.0/24", "10.20.0.0/16", "10.20.0.0/16", "tap"), (),
         ["10.20.0.0/16", "fd20::/64"]),
        (("10.20.0.0/24", "10.20.1.0/24"), (), ["10.20.0.0/23"]),
        (("10.0.0.0/8", "10.9.1.0/24", "192.0.2.1"), ("10.9.0.0/16",),
         ["10.0.0.0/8", "192.0.2.1/32"]),
        (("10.20.0.0/16",), ("10.20.0.0/16",), []),
        (("10.20.0.0/16",), ("tun",), []),
    ],
)  # fmt: skip
def test_networks_that_are_pushed(allow, deny, networks: list[str]) -> None:
    rules = [a_rule(*allow, action=Action.TUN), a_rule("10.99.0.0/16", action=Action.TUN,
                                                       users=["bob"])]  # fmt: skip
    rules += [a_rule(*deny, action=Action.TUN, allow=False)] if deny else []
    rules.append(a_rule("10.98.0.0/16:*"))
    assert [str(network) for network in policy(*rules).allowed_networks(ALICE)] == networks


@pytest.mark.parametrize(
    ("to", "allowed"),
    [
        ("/run/x.sock", ["/run/x.sock"]),
        ("/run/*", ["/run/x.sock", "/run/a/b"]),
        ("/*", ["/run/x.sock", "/run/a/b", "/runner/x", "/tmp/x"]),
        ("*", ["/run/x.sock", "/run/a/b", "/runner/x", "/tmp/x"]),
    ],
)
def test_paths(to: str, allowed: list[str]) -> None:
    rules = policy(a_rule(to, action=Action.UNIX))
    asked = [
        "/run/x.sock", "/run/a/b", "/runner/x", "/tmp/x",
        "", "x", "run/x.sock", "/run/../tmp/x", "/run/./x.sock", "/run//x.sock", "/run/", "/run/*/",
        "/run/x.sock\0", "@abstract", "\0abstract", "/run/" + "x" * 120, "*", "/run/\udcff/..",
    ]  # fmt: skip
    assert [path for path in asked if rules.decide_unix(ALICE, path).allowed] == allowed


def test_what_there_is_no_action_for() -> None:
    verdict = Policy.decide_other("session")
    assert not verdict.allowed
    assert verdict.reason == "denied: there is no session on this server"


# -- what keys limit -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ("no-pty", "db:1 db:2 127.0.0.1:1"),
        ('permitopen="db:1"', "db:1"),
        ('permitopen="DB.:*"', "db:1 db:2"),
        ('permitopen="*:1"', "db:1 127.0.0.1:1"),
        ('permitopen="127.0.0.1:1",permitopen="other:2"', "127.0.0.1:1"),
        ('permitopen="10.0.0.5:2"', "db:2"),
        ('permitopen="[::ffff:10.0.0.5]:2"', "db:2"),
        ('permitopen="*.example:1"', ""),
        ('permitlisten="1"', "db:1 db:2 127.0.0.1:1"),
        ("restrict", ""),
        ('restrict,permitopen="*:*"', ""),
    ],
)
def test_permitopen(options: str, allowed: str) -> None:
    asked = (("db", 1, "10.0.0.5"), ("db", 2, "10.0.0.5"), ("127.0.0.1", 1, "127.0.0.1"))
    found = [
        f"{host}:{port}"
        for host, port, address in asked
        if limits(options).decide_open(host, port, ip_address(address)).allowed
    ]
    assert found == allowed.split()


def test_permitopen_does_not_ask_for_mail_ports_twice() -> None:
    assert limits('permitopen="*:*"').decide_open("mail", 25, DB).allowed


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ("no-pty", "localhost:1 localhost:0 *:1 10.0.0.5:2"),
        ('permitlisten="1"', "localhost:1 *:1"),
        ('permitlisten="*"', "localhost:1 localhost:0 *:1 10.0.0.5:2"),
        ('permitlisten="localhost:1"', "localhost:1"),
        ('permitlisten="10.0.0.5:*"', "10.0.0.5:2"),
        ('permitlisten="0.0.0.0:1"', ""),
        ('permitopen="db:1"', "localhost:1 localhost:0 *:1 10.0.0.5:2"),
        ("no-port-forwarding", ""),
    ],
)
def test_permitlisten(options: str, allowed: str) -> None:
    asked = (("localhost", 1), ("localhost", 0), ("*", 1), ("10.0.0.5", 2))
    found = [
        f"{host}:{port}"
        for host, port in asked
        if limits(options).decide_listen(host, port).allowed
    ]
    assert found == allowed.split()


def test_a_key_with_a_tun_device_of_its_own() -> None:
    limited = limits('tunnel="3"')
    assert limited.tun_unit == 3
    assert limited.decide_tun("tun").allowed
    assert limited.decide_tun("tun", 3).allowed
    verdict = limited.decide_tun("tun", 4)
    assert not verdict.allowed
    assert verdict.reason == "denied: this key may use tun3 only"
    assert limits("no-pty").decide_tun("tun", 4).allowed


def test_limits_deny_what_no_rule_could_mean() -> None:
    for verdict in (
        KeyLimits().decide_open("db\0", 1, DB),
        KeyLimits().decide_listen("jump.example", 1),
        KeyLimits().decide_tun("x"),
        KeyLimits().decide_unix("x"),
    ):
        assert not verdict.allowed


def test_the_first_verdict_that_denies_is_told() -> None:
    allowed = policy(a_rule("*:*")).decide_open(ALICE, "db", 1, DB)
    denied = limits("restrict").decide_open("db", 1, DB)
    assert deny_wins(allowed) == deny_wins(allowed, allowed) == allowed
    assert deny_wins(allowed, denied) == deny_wins(denied, allowed) == denied
    assert denied.reason == "denied: the options of this key in authorized_keys forbid forwarding"


# -- any text --------------------------------------------------------------------------------------

TEXTS = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="*.:/[]%0123456789afx-,!\0 \udcff\u0661", max_size=40),
    st.binary(max_size=20).map(lambda raw: raw.decode("utf-8", "surrogateescape")),
)


@given(TEXTS, st.sampled_from(Action))
def test_a_target_is_read_or_refused_with_a_sentence(text, action) -> None:
    try:
        said = parse_target(text, action).text
    except ConfigError as error:
        said = str(error)
    else:
        assert said == text
    assert said.isprintable()


@given(TEXTS, st.integers(-1, 2**32), st.ip_addresses())
def test_a_request_is_decided_whatever_its_text(text, port, address) -> None:
    nobody, everything = policy(), policy(a_rule("*:*"), a_rule("*:*", action=Action.LISTEN))
    for rules in (nobody, everything):
        for verdict in (
            rules.decide_open(ALICE, text, port, address),
            rules.decide_listen(ALICE, text, port),
            rules.decide_unix(ALICE, text),
            rules.decide_tun(ALICE, text),
            rules.decide_tun_packet(ALICE, address),
            limits('permitopen="db:1",permitlisten="1"').decide_open(text, port, address),
        ):
            assert verdict.reason.isprintable()
            assert verdict.reason
            assert not (
                verdict.allowed and rules is nobody and verdict.rule_id != "authorized_keys"
            )
