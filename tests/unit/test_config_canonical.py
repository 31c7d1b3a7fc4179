"""Canonical names: what is looked up, what may be followed, and the addresses of this machine."""

import socket
from ipaddress import ip_address, ip_interface

import pytest

from gateway.config import interfaces
from gateway.config.canonical import CanonicalizeHostname, Rules, canonical_host, system_resolve
from gateway.config.interfaces import local_addresses, own_subnets
from gateway.config.ssh_config import Environment, read_host_config
from gateway.errors import ConfigError
from gateway.policy.leases import Subnet

YES, ALWAYS = CanonicalizeHostname.YES, CanonicalizeHostname.ALWAYS
DOMAINS = ("a.example", "b.example")
DNS = {
    "db.b.example.": "db.b.example",
    "www.a.example.": "Web-1.a.example.",
    "full.": "full",
    "out.": "evil.example",
    "db.x": "db.x",
    "odd.a.example.": "$(id).a.example",
}


@pytest.fixture
def asked():
    return []


@pytest.fixture
def resolve(asked):
    def resolve(name, family):
        asked.append(name)
        return DNS.get(name)

    return resolve


@pytest.mark.parametrize(
    ("host", "rules", "result", "questions"),
    [
        ("db", Rules(), "db", []),
        ("db", Rules(YES, DOMAINS), "db.b.example", ["db.a.example.", "db.b.example."]),
        ("none", Rules(YES, DOMAINS), "none", ["none.a.example.", "none.b.example."]),
        ("a.b.c", Rules(YES, DOMAINS), "a.b.c", []),
        ("a.b", Rules(YES, DOMAINS, max_dots=0), "a.b", []),
        ("full.", Rules(YES, DOMAINS), "full", ["full."]),
        ("db", Rules(YES, DOMAINS, through_proxy=True), "db", []),
        (
            "db",
            Rules(ALWAYS, ("b.example",), through_proxy=True),
            "db.b.example",
            ["db.b.example."],
        ),
        ("www", Rules(YES, ("a.example",)), "www.a.example", ["www.a.example."]),
        (
            "www",
            Rules(YES, ("a.example",), permitted_cnames=(("*.b.example", "*"), ("*.a.*", "w*"))),
            "web-1.a.example",
            ["www.a.example."],
        ),
        ("out.", Rules(YES, permitted_cnames=(("*", "*.a.example"),)), "out", ["out."]),
        ("out.", Rules(YES, permitted_cnames=(("*", "!evil*,*"),)), "out", ["out."]),
        ("db.x", Rules(YES, max_dots=0, permitted_cnames=(("*", "*"),)), "db.x", ["db.x"]),
        ("127.1", Rules(), "127.0.0.1", []),
        ("0:0::1", Rules(YES, DOMAINS), "::1", []),
        ("fe80::1%nowhere", Rules(YES, DOMAINS), "fe80::1%nowhere", []),
        ("999.1.1.1", Rules(YES, DOMAINS), "999.1.1.1", []),
    ],
)
def test_names(host, rules, result, questions, resolve, asked):
    assert canonical_host(host, rules, resolve, "w") == result
    assert asked == questions


@pytest.mark.parametrize(
    ("host", "rules", "problem"),
    [
        ("x", Rules(YES, DOMAINS, fallback_local=False), "w: there is no host x in the Canonical"),
        ("x.", Rules(YES, fallback_local=False), "there is no host x. in the DNS"),
        ("x", Rules(YES, permitted_cnames=(("*", "*"),)), "the host x cannot be found"),
        ("odd", Rules(YES, DOMAINS, permitted_cnames=(("*", "*"),)), "contains the character"),
    ],
)
def test_names_that_cannot_be_used(host, rules, problem, resolve):
    with pytest.raises(ConfigError, match=problem):
        canonical_host(host, rules, resolve, "w")


def test_a_proxy_finds_its_names_itself(resolve):
    rules = Rules(ALWAYS, permitted_cnames=(("*", "*"),), through_proxy=True)
    assert canonical_host("x", rules, resolve, "w") == "x"


def read(tmp_path, text, resolve):
    file = tmp_path / "config"
    file.write_text(text)
    environment = Environment(tmp_path, "alice", "box", 1000, resolve=resolve)
    return read_host_config("db", files=[file], environment=environment)


def test_the_files_are_read_again_for_the_canonical_name(tmp_path, resolve):
    config = read(
        tmp_path,
        "CanonicalizeHostname yes\nCanonicalDomains A.example b.example.\n"
        "Match canonical host db.b.example\n Port 7\n"
        "Host db.b.example\n User bob\nMatch originalhost db !canonical\n ConnectTimeout 3\n"
        "Match final\n HostName late\n",
        resolve,
    )
    assert (config.alias, config.host_name) == ("db", "db.b.example")
    assert (config.port, config.user, config.connect_timeout_s) == (7, "bob", 3.0)


def test_a_host_name_is_canonicalised_too(tmp_path, resolve):
    text = "CanonicalizeHostname yes\nCanonicalDomains a.example\nHostName www\n"
    assert read(tmp_path, text, resolve).host_name == "www.a.example"


def test_no_question_to_the_dns_without_being_told(tmp_path, resolve, asked):
    read(tmp_path, "CanonicalDomains a.example\nCanonicalizePermittedCNAMEs *\n", resolve)
    assert asked == []


def test_the_systems_resolver(monkeypatch):
    assert system_resolve("localhost", socket.AF_INET) is not None
    assert system_resolve("a" * 300, socket.AF_UNSPEC) is None

    def fail(*_arguments, **_more):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert system_resolve("no-such-host.invalid.", socket.AF_UNSPEC) is None


def test_the_addresses_of_this_machine():
    assert ip_address("127.0.0.1") in local_addresses()
    assert Subnet("lo", ip_interface("127.0.0.1/8")) in own_subnets()


def test_addresses_of_ipv6(tmp_path, monkeypatch):
    lines = tmp_path / "if_inet6"
    monkeypatch.setattr(interfaces, "_IPV6_FILE", lines)
    lines.write_text(
        "00000000000000000000000000000001 01 80 10 80       lo\n"
        "fd000000000000000000000000000001 63 40 00 80   nosuch\n"
    )
    found = local_addresses()
    assert ip_address("::1") in found
    assert ip_address("fd00::1") not in found
    lines.unlink()
    assert ip_address("::1") not in local_addresses()
