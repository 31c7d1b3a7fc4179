"""Who may do what (stub of the shared definition; the policy part replaces this file)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from gateway.errors import ConfigError, printable

if TYPE_CHECKING:
    from collections.abc import Callable
    from ipaddress import IPv4Address, IPv6Address


class Action(Enum):
    """What a rule is about."""

    OPEN = "open"
    LISTEN = "listen"
    TUN = "tun"
    UNIX = "unix"


@dataclass(frozen=True, slots=True)
class Target:
    """One entry of a rule's ``to``."""

    text: str


_HOST_PORTS = re.compile(r"(\[[0-9A-Fa-f:.]+(/\d+)?\]|[^\s:\[\],]+):(\*|\d{1,5}(-\d{1,5})?)")


def parse_target(text: str, action: Action = Action.OPEN, *, where: str = "") -> Target:
    """Read one entry of ``to``; `ConfigError` says what is wrong."""
    forms = {Action.TUN: ("tun, tap or *", r"tun|tap|\*"), Action.UNIX: ("a path", r"/.+|\*")}
    wanted, pattern = forms.get(action, ("HOST:PORT, HOST:A-B or HOST:*", _HOST_PORTS.pattern))
    if re.fullmatch(pattern, text):
        return Target(text)
    raise ConfigError(
        f"{printable(text, 80)} is not {wanted}", where=where, remedy=f"write {wanted}"
    )


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; nobody named at all means everybody who is logged in."""

    rule_id: str
    allow: bool
    action: Action
    to: tuple[Target, ...]
    users: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    principals: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Policy:
    """All rules."""

    rules: tuple[Rule, ...]
    is_own: Callable[[IPv4Address | IPv6Address], bool]
