"""Deny wins everywhere (T68): every layer's yes, no and silence, times everything one can ask for.

The expectation is written down from what the layers mean, and uses nothing of the policy but names.
"""

from __future__ import annotations

import itertools
from ipaddress import ip_address

import pytest

from gateway.policy.key_limits import limits_of
from gateway.policy.rules import (
    CHANNEL_ACTIONS,
    REQUEST_ACTIONS,
    Action,
    Policy,
    Rule,
    Subject,
    Verdict,
    deny_wins,
    parse_target,
)
from gateway.serving.authorize import Grant, Login, authorize, authorize_device
from gateway.ssh.authorized_keys import parse_authorized_keys
from gateway.ssh.certificates import check_for_user, parse_certificate_untrusted
from gateway.ssh.keys import PrivateKey
from tests.support.keys import a_certificate, a_private_key, options

KEY = PrivateKey.generate(lambda length: b"k" * length).public
ADDRESS = ip_address("10.0.0.5")
SUBJECT = Subject("alice", frozenset({"staff"}), KEY.fingerprint, frozenset({"ops"}), "203.0.113.1")

# Whom the rules of a layer are for. Each has a rule that allows, one that denies, or none.
SCOPES = {
    "global": {},
    "group": {"groups": frozenset({"staff"})},
    "user": {"users": frozenset({"alice"})},
    "key": {"keys": frozenset({KEY.fingerprint})},
    "principal": {"principals": frozenset({"ops"})},
}
RULES = ("none", "allow", "deny")
EVERYTHING = {
    Action.OPEN: "*:*", Action.LISTEN: "*:*", Action.TUN: "*", Action.UNIX: "*",
}  # fmt: skip

# What is asked for: by which message, and how.
ASKED = {
    "direct-tcpip": CHANNEL_ACTIONS,
    "tcpip-forward": REQUEST_ACTIONS,
    "tun@openssh.com tun": CHANNEL_ACTIONS,
    "tun@openssh.com tap": CHANNEL_ACTIONS,
    "tun@openssh.com 10.20.0.5": CHANNEL_ACTIONS,  # a packet through such a device
    "direct-streamlocal@openssh.com": CHANNEL_ACTIONS,
    "streamlocal-forward@openssh.com": REQUEST_ACTIONS,
    "session": CHANNEL_ACTIONS,
    "x11": CHANNEL_ACTIONS,
    "auth-agent@openssh.com": CHANNEL_ACTIONS,
    "forwarded-tcpip": CHANNEL_ACTIONS,
    "no-more-sessions@openssh.com": REQUEST_ACTIONS,
    "unheard-of@example.com": CHANNEL_ACTIONS,
}
TUNNELS = tuple(ASKED)[:7]
OPEN, LISTEN = TUNNELS[0], TUNNELS[1]

# Options of the key's line, and what remains possible with them.
KEY_OPTIONS = {
    "": TUNNELS,
    "port-forwarding": TUNNELS,
    "restrict,port-forwarding": TUNNELS,
    "no-pty,no-agent-forwarding,no-x11-forwarding": TUNNELS,
    'tunnel="3"': TUNNELS,
    'permitopen="db:5432"': (OPEN, LISTEN),
    'permitopen="db:5433"': (LISTEN,),
    'permitlisten="8080"': (OPEN, LISTEN),
    'permitlisten="8081"': (OPEN,),
    "restrict": (),
    "no-port-forwarding": (),
    'restrict,tunnel="3"': (),
    'restrict,permitopen="*:*",permitlisten="*"': (),
    "restrict,pty,agent-forwarding,x11-forwarding": (),
}
CERTIFICATES = {"none": TUNNELS, "permits": TUNNELS, "does not permit": ()}


def ask(policy: Policy, limits, what: str) -> Verdict:
    """Ask as a server does, for one message."""
    message, _, kind = what.partition(" ")
    login = Login(SUBJECT, (KEY,), tuple(map(Grant, limits)))
    match ASKED[what].get(message):
        case Action.OPEN:
            return authorize(policy, login, Action.OPEN, "db", 5432, ADDRESS)
        case Action.LISTEN:
            return authorize(policy, login, Action.LISTEN, "localhost", 8080)
        case Action.TUN if "." in kind:
            inner = policy.decide_tun_packet(SUBJECT, ip_address(kind))
            return deny_wins(inner, *(key.decide_tun("tun") for key in limits))
        case Action.TUN:
            return authorize_device(policy, login, kind, None)[0]
        case Action.UNIX:
            return authorize(policy, login, Action.UNIX, "/run/x.sock")
    return policy.decide_other(message)


def rules_of(layers: dict[str, str]) -> tuple[Rule, ...]:
    """Return rules about everything, for the layers that say something."""
    return tuple(
        Rule(f"{scope} {action.value}", says == "allow", action, (parse_target(text, action),),
             **SCOPES[scope])
        for scope, says in layers.items()
        if says != "none"
        for action, text in EVERYTHING.items()
    )  # fmt: skip


def key_options(text: str):
    keys = parse_authorized_keys(f"{text} {KEY.openssh_text()}", "ak")
    assert keys.problems == ()
    return keys.entries[0]


def certificate_options(name: str):
    if name == "none":
        return None
    extension = (b"permit-port-forwarding", b"") if name == "permits" else (b"permit-pty", b"")
    blob = a_certificate(
        KEY, a_private_key("ssh-ed25519", "c"), kind=1, principals=(b"ops",),
        extensions=options(extension),
    )  # fmt: skip
    return check_for_user(parse_certificate_untrusted(blob), ("ops",), 1.0)


@pytest.mark.parametrize("what", ASKED)
def test_every_combination_of_layers(what: str) -> None:
    limits = {
        (key_line, certificate): limits_of(key_options(key_line), certificate_options(certificate))
        for key_line, certificate in itertools.product(KEY_OPTIONS, CERTIFICATES)
    }
    allowed = 0
    for says in itertools.product(RULES, repeat=len(SCOPES)):
        layers = dict(zip(SCOPES, says, strict=True))
        policy = Policy(rules_of(layers), lambda _: False)
        for (key_line, certificate), limit in limits.items():
            verdict = ask(policy, (limit,), what)
            expected = (
                what in TUNNELS
                and "deny" not in says
                and "allow" in says
                and what in KEY_OPTIONS[key_line]
                and what in CERTIFICATES[certificate]
            )
            assert verdict.allowed is expected, (layers, key_line, certificate, verdict)
            assert verdict.rule_id
            assert verdict.reason.startswith("allowed by rule " if expected else "denied")
            allowed += expected
    assert (allowed > 0) is (what in TUNNELS)


@pytest.mark.parametrize("what", TUNNELS)
def test_each_of_several_keys_that_signed_denies(what: str) -> None:
    """T87: whichever signs first, what one line or certificate forbids is forbidden."""
    policy = Policy(rules_of({"global": "allow"}), lambda _: False)
    limits = {
        (key_line, certificate): limits_of(key_options(key_line), certificate_options(certificate))
        for key_line, certificate in itertools.product(KEY_OPTIONS, CERTIFICATES)
    }
    good = {
        name for name in limits if what in KEY_OPTIONS[name[0]] and what in CERTIFICATES[name[1]]
    }
    for names in itertools.product(limits, repeat=2):
        verdict = ask(policy, tuple(limits[name] for name in names), what)
        assert verdict.allowed is good.issuperset(names), (names, verdict)


@pytest.mark.parametrize("scope", SCOPES)
def test_each_layer_decides_by_itself(scope: str) -> None:
    """Alone it allows; and its no is told with its name, whatever the others say."""
    limits = (limits_of(None),)
    for what in TUNNELS:
        action = ASKED[what][what.partition(" ")[0]].value
        alone = ask(Policy(rules_of({scope: "allow"}), lambda _: False), limits, what)
        assert (alone.allowed, alone.rule_id) == (True, f"{scope} {action}")
        layers = dict.fromkeys(SCOPES, "allow") | {scope: "deny"}
        denied = ask(Policy(rules_of(layers), lambda _: False), limits, what)
        assert (denied.allowed, denied.rule_id) == (False, f"{scope} {action}")
        assert denied.reason.startswith(f"denied by rule {scope} {action}: ")
