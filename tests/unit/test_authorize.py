"""A tun device needs the rules, and every key that signed."""

from __future__ import annotations

import pytest

from gateway.policy.rules import Action, Policy, Rule, Subject, parse_target
from gateway.serving.authorize import Login, authorize_device, key_grant
from gateway.ssh.authorized_keys import parse_authorized_keys
from gateway.ssh.keys import PrivateKey

SUBJECT = Subject("alice", frozenset(), "", frozenset(), "192.0.2.1")
KEY = PrivateKey.generate(lambda length: b"k" * length).public


def login(*options: str) -> Login:
    """Return a login with a key for each of these options of its line."""
    lines = [parse_authorized_keys(f"{text} {KEY.openssh_text()}", "ak") for text in options]
    return Login(SUBJECT, (KEY,) * len(lines), tuple(key_grant(one.entries[0]) for one in lines))


@pytest.mark.parametrize(
    ("to", "options", "kind", "unit", "reason"),
    [
        ("tun", [""], "tun", None, "allowed by rule vpn: tun"),
        ("10.20.0.0/16", [""], "tun", 5, "allowed by rule vpn: 10.20.0.0/16"),
        ("tun", [""], "tap", None, "denied: no rule allows alice to use a tap device"),
        ("*", ["", "restrict"], "tun", None,
         "denied: the options of this key in authorized_keys forbid forwarding"),
        ("*", ['tunnel="3"'], "tun", None, "allowed by rule vpn: *"),
        ("*", ['tunnel="3"'], "tap", 3, "allowed by rule vpn: *"),
        ("*", ["", 'tunnel="3"'], "tun", 4, "denied: this key may use tun3 only"),
        ("*", ['permitopen="db:1"'], "tun", None,
         "denied: a key with permitopen may not use a tun device"),
    ],
)  # fmt: skip
def test_a_device(to: str, options: list[str], kind: str, unit: int | None, reason: str) -> None:
    rule = Rule("vpn", allow=True, action=Action.TUN, to=(parse_target(to, Action.TUN),))
    policy = Policy((rule,), lambda _: False)
    verdict, given = authorize_device(policy, login(*options), kind, unit)
    assert verdict.reason == reason
    assert verdict.allowed is reason.startswith("allowed")
    if verdict.allowed:
        assert given == (3 if 'tunnel="3"' in options else unit)
