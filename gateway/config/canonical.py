"""The name that a host has in the end: CanonicalizeHostname and its rules (ssh.c).

Look-ups go through a function, so that the rules can be tested without a resolver. Whatever it
answers comes from the network and is checked as a host name before anything else sees it.
"""

from __future__ import annotations

import enum
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gateway.config.addresses import check_real_host
from gateway.config.lines import matches_list
from gateway.errors import ConfigError, printable

if TYPE_CHECKING:
    from collections.abc import Callable

    Resolve = Callable[[str, int], str | None]

_ADDRESS_CHARACTERS: Final = frozenset("0123456789.")


class CanonicalizeHostname(enum.Enum):
    """Whether to look for the host in the CanonicalDomains; ALWAYS also behind a proxy."""

    NO = "no"
    YES = "yes"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class Rules:
    """What the configuration says about names. A permitted CNAME is two pattern lists."""

    mode: CanonicalizeHostname = CanonicalizeHostname.NO
    domains: tuple[str, ...] = ()
    fallback_local: bool = True
    max_dots: int = 1
    permitted_cnames: tuple[tuple[str, str], ...] = ()
    family: int = socket.AF_UNSPEC
    through_proxy: bool = False

    @property
    def apply(self) -> bool:
        """Whether names are looked up at all: a proxy's names are the proxy's to find."""
        always = self.mode is CanonicalizeHostname.ALWAYS
        return always or (self.mode is CanonicalizeHostname.YES and not self.through_proxy)


def canonical_host(host: str, rules: Rules, resolve: Resolve, where: str) -> str:
    """Return the canonical form of a name or an address. Raises `ConfigError`.

    ``resolve`` takes a name and an address family and returns the name that the resolver calls
    canonical, or None if the name does not exist.
    """
    if looks_like_address(host):
        return _canonical_address(host)
    if not rules.apply:
        return host
    if host.endswith(".") or host.count(".") <= rules.max_dots:
        found = _found_in_domains(host, rules, resolve, where)
        if found is not None:
            return found
        if not rules.fallback_local:
            raise ConfigError(
                f"there is no host {printable(host)} in {_shown(rules.domains)}",
                where=where,
                remedy="write the full name, or set CanonicalizeFallbackLocal yes",
            )
    if not rules.permitted_cnames:
        return host
    cname = resolve(host, rules.family)
    if cname is None:
        if rules.through_proxy:
            return host
        raise ConfigError(
            f"the host {printable(host)} cannot be found, so CanonicalizePermittedCNAMEs cannot be "
            "followed",
            where=where,
            remedy="check the name and your DNS",
        )
    return _followed(host, cname, rules, where)


def _shown(domains: tuple[str, ...]) -> str:
    return f"the CanonicalDomains {', '.join(domains)}" if domains else "the DNS"


def _found_in_domains(host: str, rules: Rules, resolve: Resolve, where: str) -> str | None:
    candidates = [host] if host.endswith(".") else [f"{host}.{name}." for name in rules.domains]
    for candidate in candidates:
        cname = resolve(candidate, rules.family)
        if cname is not None:
            return _followed(candidate.rstrip("."), cname, rules, where)
    return None


def _followed(host: str, cname: str, rules: Rules, where: str) -> str:
    """Return what a name is an alias of, if that may be followed (check_follow_cname)."""
    cname = cname.lower().rstrip(".")
    for sources, targets in rules.permitted_cnames:
        if cname and matches_list(host, sources) and matches_list(cname, targets):
            return check_real_host(cname, where=where)
    return host


def looks_like_address(host: str) -> bool:
    """Say whether a name is written with the characters of an address alone, as ssh decides it."""
    return ":" in host or not set(host) - _ADDRESS_CHARACTERS


def _canonical_address(host: str) -> str:
    """Return the usual spelling of an address, or the text itself (resolve_addr)."""
    try:
        found = socket.getaddrinfo(
            host, 22, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        )
        return socket.getnameinfo(found[0][4], socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]
    except (OSError, UnicodeError):
        return host


def system_resolve(name: str, family: int) -> str | None:
    """Ask the system's resolver for the canonical name; None if there is no such host."""
    try:
        found = socket.getaddrinfo(
            name, 22, family, socket.SOCK_STREAM, flags=socket.AI_CANONNAME | socket.AI_NUMERICSERV
        )
    except (OSError, UnicodeError):
        return None
    return found[0][3] if found else ""
