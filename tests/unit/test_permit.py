"""Which targets a jump box opens (T54, T55): every form of every special address."""

from __future__ import annotations

import encodings.idna
from ipaddress import ip_address

import pytest

from gateway.errors import ConfigError, GatewayError
from gateway.net import dial as dial_module
from gateway.net.dial import dial, resolve
from gateway.policy.rules import (
    EVERYTHING_BUT_THE_BOX,
    Action,
    Policy,
    Rule,
    Subject,
    Verdict,
    parse_target,
)
from gateway.policy.targets import HostPorts, ListenRequest

OWN = ip_address("198.51.100.7")
ALICE = Subject("alice", frozenset({"staff"}), "", frozenset(), "203.0.113.1")

SPECIAL = {
    "127.0.0.1": "loopback",
    "127.255.255.254": "loopback",
    "::1": "loopback",
    "0.0.0.0": "unspecified",
    "::": "unspecified",
    "::ffff:127.0.0.1": "loopback",
    "::ffff:0.0.0.0": "unspecified",
    "::ffff:169.254.169.254": "link-local",
    "169.254.169.254": "link-local",
    "169.254.0.1": "link-local",
    "fd00:ec2::254": "metadata",
    "fe80::1": "link-local",
    "fe80::1%1": "link-local",
    "febf::1": "link-local",
    "64:ff9b::7f00:1": "loopback",
    "64:ff9b::a9fe:a9fe": "link-local",
    "224.0.0.1": "multicast",
    "239.255.255.255": "multicast",
    "ff02::1": "multicast",
    "255.255.255.255": "broadcast",
    "100.64.0.1": "carrier-grade NAT",
    "100.127.255.255": "carrier-grade NAT",
    "::ffff:100.100.100.200": "carrier-grade NAT",
    str(OWN): "jump box itself",
    f"::ffff:{OWN}": "jump box itself",
}
ORDINARY = (
    "192.0.2.1", "10.0.0.1", "8.8.8.8", "2001:db8::1", "fd00::1", "100.63.255.255", "100.128.0.0",
    "128.0.0.1", "126.255.255.255", "fec0::1", "::ffff:10.0.0.1",
)  # fmt: skip
LEGACY = {  # what the resolver of C takes for 127.0.0.1
    "0x7f.1": "127.0.0.1",
    "2130706433": "127.0.0.1",
    "0177.0.0.1": "127.0.0.1",
    "127.1": "127.0.0.1",
    "0x7f000001": "127.0.0.1",
    "0": "0.0.0.0",
}
WIDE = ("*:*", "*:80", "*:1-65535", "0.0.0.0/0:*", "[::/0]:*", "126.0.0.0/7:80", "*.name:*",
        "198.51.100.0/24:80", "100.0.0.0/8:80", "db:80")  # fmt: skip


def a_rule(*to: str, allow: bool = True, rule_id: str = "r", action=Action.OPEN, **whom) -> Rule:
    whom = {kind: frozenset(names) for kind, names in whom.items()}
    return Rule(rule_id, allow, action, tuple(parse_target(text, action) for text in to), **whom)


def policy(*rules: Rule) -> Policy:
    return Policy(rules, lambda address: address == OWN)


def decide(rules, host: str, port: int = 80, address: str = "") -> Verdict:
    return policy(*rules).decide_open(ALICE, host, port, ip_address(address or host))


def check_allowed(rules, *request) -> None:
    verdict = decide(rules, *request)
    assert verdict.allowed, verdict.reason
    assert verdict.reason.startswith(f"allowed by rule {verdict.rule_id}: ")


def check_denied(rules, *request, reason: str = "", rule_id: str = "") -> None:
    verdict = decide(rules, *request)
    assert not verdict.allowed, verdict.reason
    assert verdict.reason.startswith("denied")
    assert reason in verdict.reason
    assert rule_id in verdict.rule_id
    assert verdict.reason.isprintable()


@pytest.mark.parametrize("to", [(), ("built-in",), *((text,) for text in WIDE), WIDE])
@pytest.mark.parametrize(("address", "reason"), SPECIAL.items())
def test_special_addresses_need_a_rule_that_names_them(to, address: str, reason: str) -> None:
    rules = (EVERYTHING_BUT_THE_BOX,) if to == ("built-in",) else (a_rule(*to),) if to else ()
    for host in (address, "some.name"):
        check_denied(rules, host, 80, address, reason=reason, rule_id="built-in:special-address")
        check_denied(rules, host, 80, address, reason="a rule must name it")


@pytest.mark.parametrize("address", SPECIAL)
def test_a_rule_may_name_a_special_address(address: str) -> None:
    rules = (a_rule(f"[{address}]:80"),)
    check_allowed(rules, address)
    check_allowed(rules, "some.name", 80, address)
    check_denied(rules, address, 81)


@pytest.mark.parametrize(
    ("network", "inside", "outside"),
    [
        ("127.0.0.0/8:*", "127.3.2.1", "126.255.255.255"),
        ("127.0.0.0/30:80", "127.0.0.3", "127.0.0.4"),
        ("169.254.0.0/16:80", "::ffff:169.254.1.1", "10.0.0.1"),
        ("[fe80::/64]:80", "fe80::9%eth0", "fe80:1::9"),
        ("100.64.0.0/10:80", "100.100.0.1", "192.0.2.1"),
        ("[::ffff:127.0.0.0/104]:80", "127.0.0.1", "::1"),
        ("[64:ff9b::7f00:0/104]:80", "127.0.0.1", "::1"),
    ],
)
def test_a_network_inside_what_is_special_names_it(network, inside, outside) -> None:
    rules = (a_rule(network),)
    check_allowed(rules, inside)
    check_denied(rules, outside)


def test_a_rule_for_an_ipv4_address_names_its_ipv6_forms() -> None:
    for written in ("127.0.0.1", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]"):
        rules = (a_rule(f"{written}:*"),)
        for form in ("127.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"):
            check_allowed(rules, form)
            check_denied((*rules, a_rule(f"{written}:*", allow=False)), form, reason="by rule r")
        check_denied(rules, "::1")


def test_a_zone_narrows_a_rule_down() -> None:
    rules = (a_rule("[fe80::1%eth0]:80"),)
    check_allowed(rules, "fe80::1%eth0")
    check_denied(rules, "fe80::1%eth1", reason="link-local")
    check_denied(rules, "fe80::1", reason="link-local")
    check_allowed((a_rule("[fe80::1]:80"),), "fe80::1%eth1")
    check_denied((*rules, a_rule("[fe80::1]:80", allow=False)), "fe80::1%eth0", reason="by rule")


@pytest.mark.parametrize("address", ORDINARY)
def test_ordinary_addresses(address: str) -> None:
    check_allowed((EVERYTHING_BUT_THE_BOX,), address)
    check_denied((), address, reason=f"no rule allows alice to open {address} port 80")
    for to in ("*:*", "*:80", "*:79-81"):
        check_allowed((a_rule(to),), address)
    for to in ("*:443", "*:81-65535", "192.0.2.99:*", "name:80", "192.0.2.128/25:80"):
        check_denied((a_rule(to),), address, rule_id="built-in:no-rule")


@pytest.mark.parametrize("port", [25, 465, 587])
def test_ports_for_mail_need_a_rule_that_names_them(port: int) -> None:
    for to in ("*:*", "mail:*", f"mail:{port}-{port + 1}", "192.0.2.1:1-1024", "mail:80"):
        rules = (EVERYTHING_BUT_THE_BOX, a_rule(to))
        check_denied(rules, "mail", port, "192.0.2.1", reason=f"port {port} is for sending mail")
    for to in (f"mail:{port}", f"192.0.2.0/24:{port}", f"*:{port}", f"*:{port}-{port}"):
        check_allowed((a_rule(to),), "mail", port, "192.0.2.1")
    check_denied((a_rule(f"*:{port}"),), "mail", port, "127.0.0.1", reason="loopback")
    check_denied((a_rule("mail:*"),), "mail", port, "127.0.0.1", reason=f"name it and port {port}")


@pytest.mark.parametrize("port", [0, -1, 65536, 2**32 - 1])
def test_ports_that_do_not_exist(port: int) -> None:
    check_denied((a_rule("*:*"),), "192.0.2.1", port, reason=f"port {port} does not exist")


def test_a_name_that_resolves_to_the_box_needs_a_rule_with_that_name() -> None:
    named = a_rule("web.internal:80")
    check_allowed((named,), "web.internal", 80, "127.0.0.1")
    check_allowed((named,), "WEB.internal.", 80, "::1")
    for host in ("other.internal", "127.0.0.1", "web.internal.example", "xweb.internal"):
        check_denied((named, a_rule("*:*"), a_rule("*.internal:80")), host, 80, "127.0.0.1")


def test_a_wildcard_covers_what_is_below_a_name_only() -> None:
    rules = (a_rule("*.corp:80"),)
    for host in ("a.corp", "a.b.corp", "A.CORP.", "*.corp"):
        check_allowed(rules, host, 80, "10.0.0.1")
    for host in ("corp", ".corp", "acorp", "a.corp.example", "10.0.0.1"):
        check_denied(rules, host, 80, "10.0.0.1", rule_id="no-rule")


def test_a_name_in_any_alphabet_is_the_one_that_is_looked_up() -> None:
    for written in ("bücher.example", "xn--bcher-kva.example", "BÜCHER.example"):
        rules = (a_rule("*:80"), a_rule(f"{written}:*", allow=False, rule_id="books"))
        for host in (
            "bücher.example",
            "XN--BCHER-KVA.example",
            "Bücher。example",
            "bücher.example.",
        ):
            check_denied(rules, host, 80, "192.0.2.1", rule_id="books")
    for written in ("\uff44\uff42.corp", "db.corp"):  # full width; the resolver folds it
        rules = (a_rule("*:80"), a_rule("db.corp:*", allow=False, rule_id="db"))
        check_denied(rules, written, 80, "192.0.2.1", rule_id="db")


def test_what_is_too_long_for_a_name_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """T49: IDNA takes seconds with as long a text as a packet holds."""

    def nameprep(label: str) -> str:
        raise AssertionError(f"looked at {len(label)} characters")

    monkeypatch.setattr(encodings.idna, "nameprep", nameprep)
    long = "\u00fc." * 85_000
    check_denied((a_rule("*:80"),), long, 80, "192.0.2.1", rule_id="malformed")
    assert ListenRequest.make(long, 80).problem


@pytest.mark.parametrize(
    "host",
    ["", "db\0.example", "db\0", " db", "db ", "a b", "db\n", "db\x1b[2J", "d" * 256, "db\u00ad"],
)
def test_a_host_that_no_rule_can_mean(host: str) -> None:
    """The resolver ends a name at a NUL, so a rule for "db" would be asked about another name."""
    rules = (a_rule("*:80"), a_rule("db:80", allow=False))
    check_denied(rules, host, 80, "192.0.2.1", rule_id="built-in:malformed")


def test_a_rule_for_an_address_names_whatever_resolves_to_it() -> None:
    check_allowed((a_rule("192.0.2.1:80"),), "some.name", 80, "192.0.2.1")
    check_denied((a_rule("192.0.2.1:80"),), "some.name", 80, "192.0.2.2")


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("db:5432", (5432, 5432)),
        ("*:443", (443, 443)),
        ("*.Corp:1-1024", (1, 1024)),
        ("10.0.0.0/8:*", (0, 65535)),
        ("[2001:db8::1]:*", (0, 65535)),
        ("[2001:db8::/32]:0443", (443, 443)),
        ("[192.0.2.1]:1-65535", (1, 65535)),
        ("_x-1.a_b:1", (1, 1)),
        ("bücher.example:1", (1, 1)),
    ],
)
def test_targets(text: str, ports: tuple[int, int]) -> None:
    target = parse_target(text)
    assert isinstance(target, HostPorts)
    assert (target.first, target.last) == ports
    assert target.text == text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "an empty text is not of the form HOST:PORTS"),
        ("db", "db is not of the form HOST:PORTS"),
        ("::1:22", "is not of the form HOST:PORTS"),
        ("2001:db8::/32:22", "is not of the form HOST:PORTS"),
        ("a:1:2", "is not of the form HOST:PORTS"),
        (":80", "an empty text is neither a name nor an address"),
        ("db:", "an empty text is not a port"),
        ("db:0", "0 is not a port"),
        ("db:65536", "is not a port"),
        ("db:80,443", "80,443 is not a port"),
        ("db:2-1", "2-1 is not a port"),
        ("db:1-", "is not a port"),
        ("db:-1", "is not a port"),
        ("db:http", "is not a port"),
        ("db:\u0661", "is not a port"),
        ("[db]:80", "db is neither a name nor an address"),
        ("[*]:80", "is neither a name nor an address"),
        ("a*:80", "is neither a name nor an address"),
        ("a.*.b:80", "is neither a name nor an address"),
        ("**.b:80", "is neither a name nor an address"),
        ("*.:80", "is neither a name nor an address"),
        ("*.*:80", "is neither a name nor an address"),
        ("a..b:80", "is neither a name nor an address"),
        (".a:80", "is neither a name nor an address"),
        ("-a:80", "is neither a name nor an address"),
        ("a b:80", "is neither a name nor an address"),
        ("a\n:80", r"a\n:80 has a character that cannot be seen"),
        ("db\u00ad:80", r"db\xad:80 has a character that cannot be seen"),
        ("a@b:80", "is neither a name nor an address"),
        (f"{'a' * 254}:80", "is neither a name nor an address"),
        ("10.0.0.5/8:80", "10.0.0.5/8 is an address inside 10.0.0.0/8: write 10.0.0.0/8"),
        ("[2001:db8::1/32]:80", "is an address inside 2001:db8::/32"),
        ("10.0.0.0/33:80", "10.0.0.0/33 is not a network"),
        ("10.0.0.0/255.0.0.0:80", "is not a network"),
        ("10.0.0.0/:80", "is not a network"),
        ("10/8:80", "is not a network"),
        ("a/8:80", "is not a network"),
        ("[fe80::%1/64]:80", "is not a network"),
        *((f"{host}:80", f"{host} is neither a name nor an address") for host in LEGACY),
        ("*.1:80", "is neither a name nor an address"),
        ("1.2.3.4.:80", "is neither a name nor an address"),
    ],
)
def test_targets_that_mean_nothing(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_target(text, where="gateway.toml, rules.db.to")
    assert str(error.value).startswith("gateway.toml, rules.db.to: ")
    assert problem in str(error.value)
    assert "write " in error.value.remedy or error.value.remedy == "remove it"


@pytest.mark.parametrize(("host", "meant"), LEGACY.items())
async def test_old_forms_of_an_address_are_checked_as_what_they_mean(
    host: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {str(address.ip) for address in await resolve(host, 80)} == {meant}
    monkeypatch.setattr(dial_module, "_attempt", None)  # nothing may be dialled

    def permit(ip) -> None:
        verdict = policy(a_rule("*:*")).decide_open(ALICE, host, 80, ip)
        if not verdict.allowed:
            raise GatewayError(verdict.reason)

    with pytest.raises(GatewayError, match="a rule must name it"):
        await dial(host, 80, permit=permit)
