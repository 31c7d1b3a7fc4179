"""Why a user may do something, or not: the rules in the order in which they are asked.

What `gateway explain` prints. It decides nothing itself: it shows what `Policy.look_at` saw.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from gateway.errors import ConfigError, printable
from gateway.policy.rules import BUILT_IN, Policy, Rule, Subject, Verdict, deny_wins
from gateway.policy.targets import (
    Action,
    Finding,
    ListenRequest,
    OpenRequest,
    Request,
    Target,
    TunRequest,
    UnixRequest,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.policy.addresses import Address

_HOST_PORT: Final = re.compile(r"(?:\[([^\[\]]*)\]|([^\[\]:]*)):([0-9]{1,5})", re.ASCII)
_FORMS: Final = (
    "write open HOST:PORT, listen ADDRESS:PORT, tun tun, tun tap, tun ADDRESS, or "
    "unix /run/x.sock, and an IPv6 address in brackets"
)
_WHERE: Final = "explain"


@dataclass(frozen=True, slots=True)
class Explanation:
    """The verdict, which names the deciding rule, and a line for each step on the way to it."""

    verdict: Verdict
    lines: tuple[str, ...]


def requested_host(text: str) -> str:
    """Return the host of "open HOST:PORT", which is to be resolved, or "" for anything else.

    `ConfigError` says what is wrong with the text.
    """
    action, rest = _split(text)
    return _host_and_port(rest)[0] if action is Action.OPEN else ""


def explain(
    policy: Policy,
    groups: Mapping[str, frozenset[str]],
    user_name: str,
    text: str,
    *,
    addresses: Sequence[Address] = (),
    fingerprint: str = "",
    principals: frozenset[str] = frozenset(),
) -> Explanation:
    """Explain what rules say about a user's wish: "open db.internal:5432", "tun tun" and so on.

    ``groups`` has every known user. ``addresses`` are those of a name that is to be opened; as when
    dialling, all of them have to be allowed. What the options of a key limit is not looked at.
    `ConfigError` says what is wrong with the text.
    """
    requests = _requests(policy, text, addresses)
    shown_user = printable(user_name, 64)
    if user_name not in groups:
        reason = f"denied: there is no user {shown_user}"
        verdict = Verdict(allowed=False, rule_id=f"{BUILT_IN}unknown-user", reason=reason)
        return Explanation(verdict, (reason,))
    subject = Subject(user_name, groups[user_name], fingerprint, principals, "")
    member_of = ", ".join(sorted(groups[user_name])) or "none"
    verdicts: list[Verdict] = []
    lines: list[str] = []
    for request in requests:
        at = f" at {request.address}" if isinstance(request, OpenRequest) else ""
        groups_shown = printable(member_of, 200)
        lines.append(f"may {shown_user} (groups: {groups_shown}) {request.shown}{at}?")
        lines += _steps(policy, subject, request)
        verdicts.append(policy.decide(subject, request))
        lines.append(verdicts[-1].reason)
    return Explanation(deny_wins(*verdicts), tuple(lines))


def _steps(policy: Policy, subject: Subject, request: Request) -> list[str]:
    """Return a line for each rule, up to the one that decides."""
    lines: list[str] = []
    if request.problem:
        return lines
    for rule, finding, target in policy.look_at(subject, request):
        lines.append(f"  rule {printable(rule.rule_id, 80)}: {_why(rule, finding, target)}")
        if finding is Finding.APPLIES:
            break
    return lines


def _why(rule: Rule, finding: Finding, target: Target | None) -> str:
    does = "allows" if rule.allow else "denies"
    if finding is Finding.OTHER_ACTION:
        return f"about {rule.action.value} only"
    if finding is Finding.OTHER_USERS:
        kinds = (
            ("users", rule.users),
            ("groups", rule.groups),
            ("keys", rule.keys),
            ("principals", rule.principals),
        )
        named = "; ".join(f"{kind} {', '.join(sorted(names))}" for kind, names in kinds if names)
        return f"for others: {printable(named)}"
    if finding is Finding.OTHER_TARGETS or target is None:
        targets = printable(", ".join(target.text for target in rule.to))
        return f"{does} something else: {targets}"
    if finding is Finding.NOT_NAMED:
        return f"{target.text} covers this, but does not name it"
    return f"{target.text} {does} this"


def _requests(policy: Policy, text: str, addresses: Sequence[Address]) -> list[Request]:
    action, rest = _split(text)
    if action is Action.TUN:
        return [_tun_request(policy, rest)]
    if action is Action.UNIX:
        return [UnixRequest.make(rest)]
    host, port = _host_and_port(rest)
    if action is Action.LISTEN:
        return [ListenRequest.make(host, port)]
    if not addresses:
        try:
            addresses = (ip_address(host),)
        except ValueError:
            raise ConfigError(
                f"{printable(host, 80)} has no address here",
                where=_WHERE,
                remedy="name a host that this machine can resolve, or an address",
            ) from None
    return [policy.open_request(host, port, address) for address in addresses]


def _tun_request(policy: Policy, text: str) -> Request:
    try:
        address = ip_address(text)
    except ValueError:
        return TunRequest.make(text)
    return policy.tun_packet_request(address)


def _split(text: str) -> tuple[Action, str]:
    word, _, rest = text.strip(" ").partition(" ")
    try:
        return Action(word), rest.strip(" ")
    except ValueError:
        problem = f"{printable(text, 80) or 'an empty text'} is nothing that a user may ask for"
        raise ConfigError(problem, where=_WHERE, remedy=_FORMS) from None


def _host_and_port(text: str) -> tuple[str, int]:
    found = _HOST_PORT.fullmatch(text)
    if found is None:
        problem = f"{printable(text, 80) or 'an empty text'} is not of the form HOST:PORT"
        raise ConfigError(problem, where=_WHERE, remedy=_FORMS)
    return found[2] if found[1] is None else found[1], int(found[3])
