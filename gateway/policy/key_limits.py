"""What a key, or the certificate it came with, may not do although rules allow it to its user.

An option of ``authorized_keys`` or of a certificate grants nothing: both, and the rules, have to
allow a request (T68; OpenSSH's `restrict` and DisableForwarding each missed tun devices once).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from gateway.policy.rules import Verdict
from gateway.policy.targets import (
    Finding,
    HostPorts,
    ListenRequest,
    OpenRequest,
    TunRequest,
    UnixRequest,
    host_ports,
)

if TYPE_CHECKING:
    from gateway.policy.addresses import Address
    from gateway.policy.targets import Request

KEY: Final = "authorized_keys"
CERTIFICATE: Final = "certificate"
_Pairs = tuple[tuple[str, str], ...]


class KeyOptions(Protocol):
    """What is asked of an `AuthorizedKey`. Hosts and ports may be "*"; None is no limit."""

    @property
    def port_forwarding(self) -> bool: ...  # noqa: D102 - see AuthorizedKey
    @property
    def permit_open(self) -> _Pairs | None: ...  # noqa: D102
    @property
    def permit_listen(self) -> _Pairs | None: ...  # noqa: D102
    @property
    def tunnel(self) -> int | None: ...  # noqa: D102


class CertificateOptions(Protocol):
    """What is asked of a certificate's `UserCertificateOptions`."""

    @property
    def port_forwarding(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """The limits of one key; with several keys in one login, ask each.

    ``forbidden`` is the rule id and the sentence that forbid all forwarding, or None.
    ``tun_unit`` is the only device that may be used; None is no limit.
    """

    forbidden: tuple[str, str] | None = None
    permit_open: tuple[HostPorts, ...] | None = None
    permit_listen: tuple[HostPorts, ...] | None = None
    tun_unit: int | None = None

    def decide_open(self, requested_host: str, port: int, address: Address) -> Verdict:
        """Decide about a connection; a ``permitopen`` names the requested host or its address."""
        request = OpenRequest.make(requested_host, port, address)
        return self._decide(request, self.permit_open, "permitopen")

    def decide_listen(self, bind_host: str, port: int) -> Verdict:
        """Decide about a listener; port 0 needs a ``permitlisten`` for all ports.

        One for 127.0.0.1 or ::1 is one for "localhost" too, which sshd compares as text.
        """
        return self._decide(ListenRequest.make(bind_host, port), self.permit_listen, "permitlisten")

    def decide_tun(self, kind: str, unit: int | None = None) -> Verdict:
        """Decide about a device. ``unit`` is its number; None is any, to be `tun_unit` then."""
        if self.tun_unit is not None and unit not in (None, self.tun_unit):
            return _denied(KEY, f"this key may use tun{self.tun_unit} only")
        return self._decide_unlimited(TunRequest.make(kind))

    def decide_unix(self, path: str) -> Verdict:
        """Decide about a unix socket."""
        return self._decide_unlimited(UnixRequest.make(path))

    def _decide(
        self, request: Request, permitted: tuple[HostPorts, ...] | None, option: str
    ) -> Verdict:
        if request.problem:
            return _denied(KEY, request.problem)
        if self.forbidden is not None:
            return _denied(*self.forbidden)
        if permitted is None:
            return _ALLOWED
        for target in permitted:
            # That a special address is covered is enough: naming it is the business of rules.
            if request.look_at(target, allow=True) is not Finding.OTHER_TARGETS:
                return Verdict(allowed=True, rule_id=KEY, reason=f"{option}={target.text}")
        return _denied(KEY, f"no {option} of this key's line names it, to {request.shown}")

    def _decide_unlimited(self, request: Request) -> Verdict:
        """What reaches everything, or around the limits, needs a key that has none."""
        for permitted, option in (
            (self.permit_open, "permitopen"),
            (self.permit_listen, "permitlisten"),
        ):
            if permitted is not None and self.forbidden is None and not request.problem:
                return _denied(KEY, f"a key with {option} may not {request.shown}")
        return self._decide(request, None, "")


def limits_of(
    key: KeyOptions | None, certificate_options: CertificateOptions | None = None
) -> KeyLimits:
    """Return the limits of a line of authorized_keys and of a certificate; None is no limit."""
    forbidden = None
    if key is not None and not key.port_forwarding:
        forbidden = KEY, "the options of this key in authorized_keys forbid forwarding"
    elif certificate_options is not None and not certificate_options.port_forwarding:
        forbidden = CERTIFICATE, "this certificate has no permit-port-forwarding"
    if key is None:
        return KeyLimits(forbidden)
    return KeyLimits(forbidden, _parsed(key.permit_open), _parsed(key.permit_listen), key.tunnel)


def _parsed(pairs: _Pairs | None) -> tuple[HostPorts, ...] | None:
    if pairs is None:
        return None
    return tuple(host_ports(host, None if port == "*" else int(port)) for host, port in pairs)


_ALLOWED: Final = Verdict(allowed=True, rule_id=KEY, reason="the key's line sets no limit")


def _denied(rule_id: str, reason: str) -> Verdict:
    return Verdict(allowed=False, rule_id=rule_id, reason=f"denied: {reason}")
