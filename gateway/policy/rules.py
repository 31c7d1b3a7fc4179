"""Who may do what: rules, and the verdict about one request of one user.

Asked for every channel and every listener, never once for a session (T53), and about the address
that is dialled, see `gateway.net.dial` (T54). Deny wins over allow, whatever the order; what no
rule allows is denied; addresses of the box itself, other special ones and ports for mail need a
rule that names them (T55, T67). A refusal names the rule.

The words of a rule are in `gateway.policy.targets`, what a key may not do in
`gateway.policy.key_limits`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from typing import TYPE_CHECKING, Final

from gateway.errors import ConfigError, printable
from gateway.policy.addresses import lies_within, unmapped
from gateway.policy.targets import (
    LOCALHOST,
    POINT_TO_POINT,
    Action,
    Finding,
    HostPorts,
    Inner,
    ListenRequest,
    OpenRequest,
    Plain,
    Request,
    Target,
    TunPacketRequest,
    TunRequest,
    UnixRequest,
    parse_target,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gateway.policy.addresses import Address, Network

__all__ = [
    "CHANNEL_ACTIONS",
    "EVERYTHING_BUT_THE_BOX",
    "REQUEST_ACTIONS",
    "Action",
    "Policy",
    "Rule",
    "Subject",
    "Target",
    "Verdict",
    "deny_wins",
    "parse_target",
]

# What a channel or a global request asks for. Every other type is denied: `Policy.decide_other`.
CHANNEL_ACTIONS: Final = {
    "direct-tcpip": Action.OPEN,
    "tun@openssh.com": Action.TUN,
    "direct-streamlocal@openssh.com": Action.UNIX,
}
REQUEST_ACTIONS: Final = {
    "tcpip-forward": Action.LISTEN,
    "streamlocal-forward@openssh.com": Action.UNIX,
}

_TARGETS: Final = {
    Action.OPEN: HostPorts,
    Action.LISTEN: HostPorts,
    Action.TUN: Inner | Plain,
    Action.UNIX: Plain,
}
BUILT_IN: Final = "built-in:"  # the id of what is decided without a rule of the administrator
_FINGERPRINT: Final = re.compile(r"SHA256:[A-Za-z0-9+/]{43}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Subject:
    """Who asks: the user, the fingerprint of the key that signed ("SHA256:…"), the principals of
    its certificate, and the address from which the link comes.
    """

    user_name: str
    groups: frozenset[str]
    fingerprint: str
    principals: frozenset[str]
    address: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided. ``reason`` is a sentence for the user and the log, which names the rule."""

    allowed: bool
    rule_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. It is for whomever it names: by user, group, key or principal, each by itself.

    One that names nobody is for everybody who is logged in. `ConfigError` refuses a rule that could
    never apply, for one that denies would then protect nothing.
    """

    rule_id: str
    allow: bool
    action: Action
    to: tuple[Target, ...]
    users: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    principals: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        where = f"rule {printable(self.rule_id, 80)}"
        if not self.to:
            raise ConfigError(
                "it names no target", where=where, remedy="fill in to, with * for all"
            )
        for target in self.to:
            if not isinstance(target, _TARGETS[self.action]):
                raise ConfigError(
                    f"{printable(target.text, 80)} is no target of {self.action.value}",
                    where=where,
                    remedy="write HOST:PORTS for open and listen, tun, tap or a network for tun, "
                    "a path for unix",
                )
            if self.action is Action.LISTEN and not _can_be_bound(target):
                raise ConfigError(
                    f"{printable(target.text, 80)} names a host, which cannot be listened on",
                    where=where,
                    remedy="write an address, localhost, or * for all addresses",
                )
        for key in self.keys:
            if _FINGERPRINT.fullmatch(key) is None:
                raise ConfigError(
                    f"{printable(key, 80)} is not the fingerprint of a key",
                    where=where,
                    remedy="write SHA256:… as ssh-keygen -l shows it",
                )

    def is_for(self, subject: Subject) -> bool:
        """Say whether this rule is about that user, key or certificate."""
        if not (self.users or self.groups or self.keys or self.principals):
            return True
        return (
            subject.user_name in self.users
            or subject.fingerprint in self.keys
            or not self.groups.isdisjoint(subject.groups)
            or not self.principals.isdisjoint(subject.principals)
        )

    def look_at(self, subject: Subject, request: Request) -> tuple[Finding, Target | None]:
        """Say whether the rule applies, and which target comes closest to the request."""
        if self.action is not request.action:
            return Finding.OTHER_ACTION, None
        if not self.is_for(subject):
            return Finding.OTHER_USERS, None
        closest: tuple[Finding, Target | None] = Finding.OTHER_TARGETS, None
        for target in self.to:
            finding = request.look_at(target, allow=self.allow)
            if finding is Finding.APPLIES:
                return finding, target
            if finding is Finding.NOT_NAMED:
                closest = finding, target
        return closest


def _can_be_bound(target: Target) -> bool:
    return isinstance(target, HostPorts) and (
        target.network is not None or target.name in ("*", LOCALHOST)
    )


EVERYTHING_BUT_THE_BOX: Final = Rule(
    f"{BUILT_IN}everything-but-the-box", True, Action.OPEN, (parse_target("*:*"),)
)
"""What holds where nobody has written a rule: `*` names no special address and no port for mail."""


@dataclass(frozen=True, slots=True)
class Policy:
    """All rules; ``is_own`` says whether an address is this machine's. Without rules all is denied.

    The caller sees to it that rules have different ids.
    """

    rules: tuple[Rule, ...]
    is_own: Callable[[Address], bool]

    def decide_open(
        self, subject: Subject, requested_host: str, port: int, address: Address
    ) -> Verdict:
        """Decide about a connection to ``address``, one of what the requested host stands for."""
        return self.decide(subject, self.open_request(requested_host, port, address))

    def decide_listen(self, subject: Subject, bind_host: str, port: int) -> Verdict:
        """Decide about a listener on an address, "localhost", "" or "*" (RFC 4254 §7.1).

        Port 0 needs a rule for all ports; ask again with the port that the kernel gave.
        """
        return self.decide(subject, ListenRequest.make(bind_host, port))

    def decide_tun(self, subject: Subject, kind: str) -> Verdict:
        """Decide about a device: "tun" (point-to-point, layer 3) or "tap" (ethernet, layer 2).

        Where packets of a layer-3 device may go, `decide_tun_packet` says for each address.
        """
        return self.decide(subject, TunRequest.make(kind))

    def decide_tun_packet(self, subject: Subject, address: Address) -> Verdict:
        """Decide about a destination inside a layer-3 device that `decide_tun` allowed.

        It asks the kernel whether the address is the box's own: remember the verdict for what
        follows to the same address, until the rules change.
        """
        return self.decide(subject, self.tun_packet_request(address))

    def allowed_networks(self, subject: Subject) -> tuple[Network, ...]:
        """Return the networks that rules allow through a layer-3 device: routes for a client.

        None of them is part of another, or denied as a whole. "tun" and "*" name no network.
        """
        if not self.decide_tun(subject, POINT_TO_POINT).allowed:
            return ()
        denied = self._networks(subject, allow=False)
        wanted = [
            network
            for network in self._networks(subject, allow=True)
            if not any(lies_within(network, other) for other in denied)
        ]
        four = [network for network in wanted if isinstance(network, IPv4Network)]
        six = [network for network in wanted if isinstance(network, IPv6Network)]
        return (*collapse_addresses(four), *collapse_addresses(six))

    def _networks(self, subject: Subject, *, allow: bool) -> list[Network]:
        return [
            target.network
            for rule in self.rules
            if rule.allow is allow and rule.action is Action.TUN and rule.is_for(subject)
            for target in rule.to
            if isinstance(target, Inner)
        ]

    def decide_unix(self, subject: Subject, path: str) -> Verdict:
        """Decide about a unix socket, to connect to or to listen on."""
        return self.decide(subject, UnixRequest.make(path))

    @staticmethod
    def decide_other(what: str) -> Verdict:
        """Deny what no action stands for, a session for instance: no rule can allow it (T68)."""
        return _denied(f"{BUILT_IN}unknown", f"there is no {printable(what, 64)} on this server")

    def open_request(self, host: str, port: int, address: Address) -> OpenRequest:
        """Return the request for a connection, with what is special about its address."""
        return OpenRequest.make(host, port, address, self._said_of_own(address))

    def tun_packet_request(self, address: Address) -> TunPacketRequest:
        """Return the request to reach an address, with what is special about it."""
        return TunPacketRequest.make(address, self._said_of_own(address))

    def _said_of_own(self, address: Address) -> str:
        return "the jump box itself" if self.is_own(unmapped(address)) else ""

    def look_at(
        self, subject: Subject, request: Request
    ) -> Iterator[tuple[Rule, Finding, Target | None]]:
        """Look at all rules, those that deny first; the first that applies decides."""
        for allow in (False, True):
            for rule in self.rules:
                if rule.allow is allow:
                    yield rule, *rule.look_at(subject, request)

    def decide(self, subject: Subject, request: Request) -> Verdict:
        """Decide about any request."""
        if request.problem:
            return _denied(f"{BUILT_IN}malformed", request.problem)
        for rule, finding, target in self.look_at(subject, request):
            if finding is Finding.APPLIES and target is not None:
                said = "allowed" if rule.allow else "denied"
                reason = f"{said} by rule {printable(rule.rule_id, 80)}: {target.text}"
                return Verdict(rule.allow, rule.rule_id, reason)
        what, why = request.must_be_named
        if what:
            return _denied(f"{BUILT_IN}{what}", why)
        who = printable(subject.user_name, 64)
        return _denied(f"{BUILT_IN}no-rule", f"no rule allows {who} to {request.shown}")


def deny_wins(*verdicts: Verdict) -> Verdict:
    """Return the first verdict that denies, or else the first: what all of them together say."""
    return next((verdict for verdict in verdicts if not verdict.allowed), verdicts[0])


def _denied(rule_id: str, reason: str) -> Verdict:
    return Verdict(allowed=False, rule_id=rule_id, reason=f"denied: {reason}")
