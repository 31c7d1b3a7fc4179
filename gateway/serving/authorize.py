"""Who is logged in, and the one place where anything is asked of the policy.

An answer is never kept: `authorize` is called for every channel and every listener, so what a new
configuration forbids is forbidden at once. The lines of authorized_keys that let a user in forbid
on their own, each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Protocol

from gateway.policy.key_limits import KeyLimits, limits_of
from gateway.policy.rules import Action, Policy, Subject, Verdict, deny_wins
from gateway.ssh.certificates import CertificateError

if TYPE_CHECKING:
    from gateway.policy.addresses import Address, Network
    from gateway.policy.rules import Rule
    from gateway.ssh.authorized_keys import AuthorizedKey
    from gateway.ssh.certificates import Certificate, UserCertificateOptions
    from gateway.ssh.keys import PublicKey


class Decides(Protocol):
    """What is asked of a `Policy`."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        """All rules, to be shown."""

    def decide_open(
        self, subject: Subject, requested_host: str, port: int, address: Address
    ) -> Verdict:
        """May this address be connected to, which this host was resolved to?"""

    def decide_listen(self, subject: Subject, bind_host: str, port: int) -> Verdict:
        """May a port be listened on? ``bind_host`` and ``port`` (0: any) are what was asked for."""

    def decide_unix(self, subject: Subject, path: str) -> Verdict:
        """May this socket be connected to?"""

    def decide_tun(self, subject: Subject, kind: str) -> Verdict:
        """May a device of this kind be opened, "tun" or "tap"?"""

    def decide_tun_packet(self, subject: Subject, address: Address) -> Verdict:
        """May packets of a "tun" go to this address?"""

    def allowed_networks(self, subject: Subject) -> tuple[Network, ...]:
        """Which networks are worth a route through a "tun"?"""


@dataclass(frozen=True, slots=True)
class Grant:
    """A key that may log a user in: how far, and until when (seconds since 1970).

    ``required_keys``: so many different keys of the user must sign.
    """

    limits: KeyLimits
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


def key_grant(line: AuthorizedKey) -> Grant:
    """Return what the key of a line is good for."""
    return Grant(limits_of(line), expires_s=_end(line))


def certificate_grant(
    certificate: Certificate, line: AuthorizedKey, options: UserCertificateOptions, address: str
) -> Grant:
    """Return what a certificate is good for that the CA of a line has signed.

    `CertificateError` says why for nothing.
    """
    if not options.allows_address(address):
        raise CertificateError("it may not be used from this address")
    if options.force_command is not None or options.verification_required:
        raise CertificateError("it demands what this server cannot do")
    return Grant(
        limits_of(line, options),
        principals=frozenset(certificate.principals),
        expires_s=min(certificate.valid_before, _end(line)),
    )


def _end(line: AuthorizedKey) -> float:
    return inf if line.expires_s is None else line.expires_s


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
    limits = [grant.limits for grant in login.grants]
    subject = login.subject
    if action is Action.OPEN and address is not None:
        return deny_wins(
            policy.decide_open(subject, host, port, address),
            *(key.decide_open(host, port, address) for key in limits),
        )
    if action is Action.LISTEN:
        return deny_wins(
            policy.decide_listen(subject, host, port),
            *(key.decide_listen(host, port) for key in limits),
        )
    if action is Action.UNIX:
        return deny_wins(
            policy.decide_unix(subject, host), *(key.decide_unix(host) for key in limits)
        )
    return Policy.decide_other(action.value)


def authorize_device(
    policy: Decides, login: Login, kind: str, unit: int | None
) -> tuple[Verdict, int | None]:
    """Decide about a device of a kind, and say which number it gets; None is any.

    A key that may use one device only gets that one when it asks for any.
    """
    limits = [grant.limits for grant in login.grants]
    for key in limits:
        if unit is None:
            unit = key.tun_unit
    verdict = deny_wins(
        policy.decide_tun(login.subject, kind), *(key.decide_tun(kind, unit) for key in limits)
    )
    return verdict, unit
