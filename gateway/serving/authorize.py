"""Who is logged in, and the one place where anything is asked of the policy.

An answer is never kept: `authorize` is called for every channel and every listener, so what a new
configuration forbids is forbidden at once. The lines of authorized_keys that let a user in forbid
on their own, each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Protocol

from gateway.policy.permit import OpenPolicy, PermissionDenied
from gateway.ssh.certificates import Certificate, CertificateError

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

    from gateway.ssh.authorized_keys import AuthorizedKey, AuthorizedKeys
    from gateway.ssh.keys import PublicKey

    Address = IPv4Address | IPv6Address


class Action(Enum):
    """What a link may ask for."""

    OPEN = "open"
    LISTEN = "listen"
    UNIX = "unix"


@dataclass(frozen=True, slots=True)
class Subject:
    """Who asks. ``fingerprint`` is the key's that signed last; ``address`` where it comes from."""

    user_name: str
    groups: frozenset[str]
    fingerprint: str
    principals: frozenset[str]
    address: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """``reason`` is a sentence that names the rule; it is shown to the user and logged."""

    allowed: bool
    rule_id: str
    reason: str


class Decides(Protocol):
    """A policy."""

    def decide_open(
        self, subject: Subject, requested_host: str, port: int, address: Address
    ) -> Verdict:
        """May this address be connected to, which this host was resolved to?"""

    def decide_listen(self, subject: Subject, bind_host: str, port: int) -> Verdict:
        """May a port be listened on? ``bind_host`` and ``port`` (0: any) are what was asked for."""

    def decide_unix(self, subject: Subject, path: str) -> Verdict:
        """May this socket be connected to?"""

    def describe(self, subject: Subject) -> list[str]:
        """Return what this subject may do, a line for each rule that applies."""


class PermitOpen:
    """The policy of ``--permit-open``: the same for everybody, and nothing but opening."""

    def __init__(self, policy: OpenPolicy) -> None:
        self._policy = policy

    def decide_open(
        self, _subject: Subject, requested_host: str, port: int, address: Address
    ) -> Verdict:
        """See `Decides`."""
        try:
            rule = self._policy.check(requested_host, port, address)
        except PermissionDenied as error:
            return Verdict(False, "", str(error))
        return Verdict(True, rule, rule)

    def decide_listen(self, _subject: Subject, _bind_host: str, _port: int) -> Verdict:
        """See `Decides`."""
        return Verdict(False, "", "denied: no rule says that anybody may listen here")

    def decide_unix(self, _subject: Subject, _path: str) -> Verdict:
        """See `Decides`."""
        return Verdict(False, "", "denied: no rule names a socket")

    def describe(self, _subject: Subject) -> list[str]:
        """See `Decides`."""
        rules = [f"open {rule}" for rule in self._policy.rules]
        return rules or ["open everything but this box itself"]


@dataclass(frozen=True, slots=True)
class Grant:
    """A key that may log a user in: how far, and until when (seconds since 1970).

    ``required_keys``: so many different keys of the user must sign.
    """

    line: AuthorizedKey
    port_forwarding: bool
    groups: frozenset[str] = frozenset()
    principals: frozenset[str] = frozenset()
    required_keys: int = 1
    expires_s: float = inf


class People(Protocol):
    """Who may log in. Asked for every offer of a key, and again after each reload."""

    def admit(self, user_name: str, key: PublicKey, address: str, now_s: float) -> Grant | None:
        """Return what a key is good for; None if it is nobody's. Changes nothing.

        ``now_s`` is seconds since 1970. `CertificateError` says why a certificate is not good.
        """


@dataclass(frozen=True, slots=True)
class AnyName:
    """The people of ``--authorized-keys``: any user name is taken, the key decides."""

    keys: AuthorizedKeys

    def admit(self, user_name: str, key: PublicKey, address: str, now_s: float) -> Grant | None:
        """See `People`. What line and certificate forbid is forbidden, each by itself."""
        if not isinstance(key, Certificate):
            line = self.keys.find(key)
            return None if line is None else Grant(line, line.port_forwarding)
        line, options = self.keys.find_authority(key, user_name, now_s)
        if not options.allows_address(address):
            raise CertificateError("it may not be used from this address")
        if options.force_command is not None or options.verification_required:
            raise CertificateError("it demands what this server cannot do")
        return Grant(
            line,
            line.port_forwarding and options.port_forwarding,
            principals=frozenset(key.principals),
            expires_s=key.valid_before,
        )


@dataclass(frozen=True, slots=True)
class Login:
    """Who is logged in on a link, with which keys and certificates, and what those are good for."""

    subject: Subject
    keys: tuple[PublicKey, ...]
    grants: tuple[Grant, ...]

    @property
    def expires_s(self) -> float:
        """When the first certificate expires: seconds since 1970."""
        return min(grant.expires_s for grant in self.grants)

    @property
    def identity(self) -> tuple[str, str]:
        """What makes two links those of the same user with the same key."""
        return self.subject.user_name, self.subject.fingerprint


def authorize(
    policy: Decides,
    login: Login,
    action: Action,
    host: str,
    port: int = 0,
    address: Address | None = None,
) -> Verdict:
    """Decide about one request; for a socket, ``host`` is its path."""
    for grant in login.grants:
        if problem := _forbids(grant, action, host, port, address):
            return Verdict(False, "authorized_keys", f"denied: {problem}")
    match action:
        case Action.OPEN:
            assert address is not None  # noqa: S101 - for the type checker
            return policy.decide_open(login.subject, host, port, address)
        case Action.LISTEN:
            return policy.decide_listen(login.subject, host, port)
        case Action.UNIX:
            return policy.decide_unix(login.subject, host)


def _forbids(grant: Grant, action: Action, host: str, port: int, address: Address | None) -> str:
    """Say what a key's own line or certificate has against a request."""
    if not grant.port_forwarding:
        return "authorized_keys forbids forwarding for this key"
    if grant.line.permit_open is None or action is Action.LISTEN:
        return ""
    wanted = [(host.lower(), port), (str(address), port)]
    if action is Action.UNIX or not any(_names(entry, wanted) for entry in grant.line.permit_open):
        return "permitopen in authorized_keys does not name it"
    return ""


def _names(entry: tuple[str, str], wanted: list[tuple[str, int]]) -> bool:
    """Say whether a ``permitopen`` of authorized_keys names one of the wanted targets."""
    host, port = entry
    return any(
        host.lower() in ("*", name) and port in ("*", str(number)) for name, number in wanted
    )
