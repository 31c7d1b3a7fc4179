"""Which targets a jump box opens (T54, T55): every form of every special address."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from gateway.net import dial as dial_module
from gateway.net.dial import dial, resolve
from gateway.policy.permit import OpenPolicy, OpenRule, PermissionDenied

OWN = ip_address("198.51.100.7")
ANYTHING = OpenRule(None, None)

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
    "64:ff9b::7f00:1": "loopback",
    "64:ff9b::a9fe:a9fe": "link-local",
    "224.0.0.1": "multicast",
    "ff02::1": "multicast",
    "255.255.255.255": "broadcast",
    str(OWN): "jump box itself",
    f"::ffff:{OWN}": "jump box itself",
}
ORDINARY = ("192.0.2.1", "10.0.0.1", "100.64.0.1", "8.8.8.8", "2001:db8::1", "fd00::1")
LEGACY = {  # what the resolver of C takes for 127.0.0.1
    "0x7f.1": "127.0.0.1",
    "2130706433": "127.0.0.1",
    "0177.0.0.1": "127.0.0.1",
    "127.1": "127.0.0.1",
    "0x7f000001": "127.0.0.1",
    "0": "0.0.0.0",
}


def policy(*rules: OpenRule) -> OpenPolicy:
    return OpenPolicy(rules, lambda address: address == OWN)


def check(rules: tuple[OpenRule, ...], host: str, port: int = 80, address: str = "") -> str:
    return policy(*rules).check(host, port, ip_address(address or host))


@pytest.mark.parametrize("rules", [(), (ANYTHING,), (OpenRule("db", 80),), (OpenRule(None, 80),)])
@pytest.mark.parametrize(("address", "reason"), SPECIAL.items())
def test_special_addresses_need_a_rule_that_names_them(
    rules: tuple[OpenRule, ...], address: str, reason: str
) -> None:
    for host in (address, "some.name"):
        with pytest.raises(PermissionDenied, match=f"^denied: .*{reason}"):
            check(rules, host, address=address)


@pytest.mark.parametrize("address", SPECIAL)
def test_a_rule_may_name_a_special_address(address: str) -> None:
    rule = OpenRule(address, 80)
    assert check((rule,), address) == f"--permit-open {rule}"
    with pytest.raises(PermissionDenied):
        check((rule,), address, 81)


def test_a_rule_for_an_ipv4_address_names_its_ipv6_forms() -> None:
    rule = OpenRule("127.0.0.1", None)
    for form in ("::ffff:127.0.0.1", "64:ff9b::7f00:1"):
        assert check((rule,), form)
    with pytest.raises(PermissionDenied):
        check((rule,), "::1")


@pytest.mark.parametrize("address", ORDINARY)
def test_ordinary_addresses(address: str) -> None:
    assert check((), address) == "no --permit-open: everything but the box itself"
    assert check((ANYTHING,), address) == "--permit-open *:*"
    assert check((OpenRule(None, 80),), address) == "--permit-open *:80"
    for rule in (OpenRule(None, 443), OpenRule("192.0.2.99", None), OpenRule("name", 80)):
        with pytest.raises(PermissionDenied, match="no --permit-open names it"):
            check((rule,), address)


def test_a_name_that_resolves_to_the_box_needs_a_rule_with_that_name() -> None:
    named = OpenRule("web.internal", 80)
    assert check((named,), "web.internal", address="127.0.0.1") == "--permit-open web.internal:80"
    assert check((named,), "WEB.internal.", address="::1")
    for host in ("other.internal", "127.0.0.1", "web.internal.example", "xweb.internal"):
        with pytest.raises(PermissionDenied):
            check((named, ANYTHING), host, address="127.0.0.1")


def test_a_rule_for_an_address_names_whatever_resolves_to_it() -> None:
    assert check((OpenRule("192.0.2.1", 80),), "some.name", address="192.0.2.1")
    with pytest.raises(PermissionDenied):
        check((OpenRule("192.0.2.1", 80),), "some.name", address="192.0.2.2")


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (OpenRule("db", 5432), "db:5432"),
        (OpenRule(None, 443), "*:443"),
        (OpenRule("2001:db8::1", None), "[2001:db8::1]:*"),
    ],
)
def test_a_rule_is_shown_as_it_is_written(rule: OpenRule, text: str) -> None:
    assert str(rule) == text


@pytest.mark.parametrize(("host", "meant"), LEGACY.items())
async def test_old_forms_of_an_address_are_checked_as_what_they_mean(
    host: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {str(address.ip) for address in await resolve(host, 80)} == {meant}
    monkeypatch.setattr(dial_module, "_attempt", None)  # nothing may be dialled
    with pytest.raises(PermissionDenied):
        await dial(host, 80, permit=lambda ip: _check_any(host, ip))


def _check_any(host: str, ip) -> None:
    policy(ANYTHING).check(host, 80, ip)
