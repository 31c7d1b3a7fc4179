"""`gateway explain`: the same verdict as the policy's, and each step on the way to it."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from gateway.errors import ConfigError
from gateway.policy.explain import explain, requested_host
from gateway.policy.rules import Action, Policy, Rule, Subject, parse_target

GROUPS = {"alice": frozenset({"staff", "dba"}), "bob": frozenset()}
DB = ip_address("10.0.0.5")


def a_rule(rule_id: str, said: str, *to: str, **whom) -> Rule:
    word, _, name = said.partition(" ")
    action = Action(name)
    whom = {kind: frozenset(names) for kind, names in whom.items()}
    targets = tuple(parse_target(text, action) for text in to)
    return Rule(rule_id, word == "allow", action, targets, **whom)


POLICY = Policy(
    (
        a_rule("web", "allow open", "*:80", "*:443"),
        a_rule("db", "allow open", "db.internal:5432", "10.0.0.0/8:*", groups=["dba", "x"]),
        a_rule("no-dev", "deny open", "*.dev:*", users=["carol", "bob"]),
        a_rule("no-net", "deny open", "10.9.0.0/16:*"),
        a_rule("hooks", "allow listen", "localhost:8000-9000", users=["alice"]),
        a_rule("vpn", "allow tun", "tun"),
        a_rule("run", "allow unix", "/run/app/*"),
    ),
    lambda address: address == ip_address("198.51.100.7"),
)


def test_the_steps_to_a_rule_that_allows() -> None:
    found = explain(POLICY, GROUPS, "alice", "open db.internal:5432", addresses=[DB])
    assert found.lines == (
        "may alice (groups: dba, staff) open db.internal port 5432 at 10.0.0.5?",
        "  rule no-dev: for others: users bob, carol",
        "  rule no-net: denies something else: 10.9.0.0/16:*",
        "  rule web: allows something else: *:80, *:443",
        "  rule db: db.internal:5432 allows this",
        "allowed by rule db: db.internal:5432",
    )
    assert found.verdict.allowed
    assert found.verdict.rule_id == "db"


def test_the_steps_to_a_rule_that_denies_stop_there() -> None:
    found = explain(POLICY, GROUPS, "bob", "open x.dev:80", addresses=[DB])
    assert found.lines == (
        "may bob (groups: none) open x.dev port 80 at 10.0.0.5?",
        "  rule no-dev: *.dev:* denies this",
        "denied by rule no-dev: *.dev:*",
    )


def test_no_rule() -> None:
    found = explain(POLICY, GROUPS, "bob", "open db.internal:5432", addresses=[DB])
    assert found.lines[-2:] == (
        "  rule run: about unix only",
        "denied: no rule allows bob to open db.internal port 5432",
    )
    assert "  rule db: for others: groups dba, x" in found.lines
    assert len(found.lines) == 2 + len(POLICY.rules)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("open 198.51.100.7:80", "198.51.100.7 is the jump box itself; a rule must name it"),
        ("open [::ffff:127.0.0.1]:80", "127.0.0.1 is the loopback of the jump box; a rule must"),
    ],
)
def test_what_a_rule_has_to_name(text: str, why: str) -> None:
    found = explain(POLICY, GROUPS, "alice", text)
    assert "  rule web: *:80 covers this, but does not name it" in found.lines
    assert why in found.lines[-1]
    assert not found.verdict.allowed


def test_the_steps_of_a_packet() -> None:
    rules = Policy(
        (
            a_rule("lab", "allow tun", "10.20.0.0/16", "tap"),
            a_rule("no", "deny tun", "10.20.9.0/24"),
        ),
        lambda _: False,
    )
    assert explain(rules, GROUPS, "bob", "tun 10.20.0.5").lines == (
        "may bob (groups: none) reach 10.20.0.5 through a tun device?",
        "  rule no: denies something else: 10.20.9.0/24",
        "  rule lab: 10.20.0.0/16 allows this",
        "allowed by rule lab: 10.20.0.0/16",
    )
    assert explain(rules, GROUPS, "bob", "tun 10.20.9.5").lines[-1] == (
        "denied by rule no: 10.20.9.0/24"
    )
    assert explain(rules, GROUPS, "bob", "tun fd20::5").lines[-1] == (
        "denied: no rule allows bob to reach fd20::5 through a tun device"
    )


def test_all_addresses_of_a_name_have_to_be_allowed() -> None:
    addresses = [DB, ip_address("10.9.0.1"), ip_address("192.0.2.1")]
    found = explain(POLICY, GROUPS, "alice", "open a.example:443", addresses=addresses)
    assert (found.verdict.allowed, found.verdict.rule_id) == (False, "no-net")
    asked = [line for line in found.lines if line.startswith("may alice")]
    assert [line.rpartition(" ")[2] for line in asked] == ["10.0.0.5?", "10.9.0.1?", "192.0.2.1?"]


@pytest.mark.parametrize(
    ("user_name", "text", "rule_id"),
    [
        ("alice", "listen localhost:8080", "hooks"),
        ("alice", " listen  127.0.0.1:8080 ", "hooks"),
        ("alice", "listen 0.0.0.0:8080", "built-in:no-rule"),
        ("alice", "listen *:8080", "built-in:no-rule"),
        ("alice", "listen [::1]:8080", "hooks"),
        ("bob", "listen localhost:8080", "built-in:no-rule"),
        ("alice", "listen jump.example:8080", "built-in:malformed"),
        ("alice", "tun tun", "vpn"),
        ("alice", "tun tap", "built-in:no-rule"),
        ("alice", "tun", "built-in:malformed"),
        ("alice", "tun 10.20.0.5", "vpn"),
        ("alice", "tun 198.51.100.7", "built-in:special-address"),
        ("alice", "tun ::1", "built-in:special-address"),
        ("alice", "tun 10.20.0.0/16", "built-in:malformed"),
        ("alice", "unix /run/app/x.sock", "run"),
        ("alice", "unix /run/app/../x.sock", "built-in:malformed"),
        ("alice", "open 192.0.2.1:0", "built-in:malformed"),
        ("alice", "open [2001:db8::1]:443", "web"),
        ("mallory", "tun tun", "built-in:unknown-user"),
    ],
)
def test_it_says_what_the_policy_says(user_name: str, text: str, rule_id: str) -> None:
    found = explain(POLICY, GROUPS, user_name, text)
    assert found.verdict.rule_id == rule_id
    assert found.verdict.reason == found.lines[-1]
    assert found.verdict.allowed is not rule_id.startswith("built-in:")
    assert all(line.isprintable() for line in found.lines)


def test_keys_and_principals_are_looked_at() -> None:
    fingerprint = "SHA256:" + "a" * 43
    for whom in ({"keys": [fingerprint]}, {"principals": ["ops"]}):
        policy = Policy((a_rule("one", "allow tun", "*", **whom),), lambda _: False)
        assert not explain(policy, GROUPS, "bob", "tun tun").verdict.allowed
        found = explain(
            policy, GROUPS, "bob", "tun tun",
            fingerprint=fingerprint, principals=frozenset({"ops"}),
        )  # fmt: skip
        assert found.verdict.allowed
        subject = Subject("bob", frozenset(), fingerprint, frozenset({"ops"}), "")
        assert found.verdict == policy.decide_tun(subject, "tun")


def test_which_host_is_to_be_resolved() -> None:
    assert requested_host("open db.internal:5432") == "db.internal"
    assert requested_host("open [2001:db8::1]:443") == "2001:db8::1"
    assert requested_host("listen localhost:80") == requested_host("tun tun") == ""


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "an empty text is nothing that a user may ask for"),
        ("dial db:1", "dial db:1 is nothing that a user may ask for"),
        ("OPEN db:1", "is nothing that a user may ask for"),
        ("open", "an empty text is not of the form HOST:PORT"),
        ("open db", "db is not of the form HOST:PORT"),
        ("open db:*", "is not of the form HOST:PORT"),
        ("open ::1:80", "is not of the form HOST:PORT"),
        ("listen 8080", "8080 is not of the form HOST:PORT"),
        ("open db.internal:5432", "db.internal has no address here"),
        ("open \x1b[2J:1", "is not of the form HOST:PORT"),
    ],
)
def test_texts_that_mean_nothing(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        explain(POLICY, GROUPS, "alice", text)
    assert problem in str(error.value)
    assert str(error.value).isprintable()
    assert error.value.remedy
