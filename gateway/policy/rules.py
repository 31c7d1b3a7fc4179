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


def parse_target(text: str) -> str:
    """Read "host:ports"; `ConfigError` says what is wrong."""
    if re.fullmatch(r"(\[[0-9A-Fa-f:.]+\](/\d+)?|[^\s:\[\],]+):(\*|\d{1,5}(-\d{1,5})?)", text):
        return text
    raise ConfigError(
        f"{printable(text, 80)} is not HOST:PORT", remedy="write HOST:PORT, HOST:A-B or HOST:*"
    )


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; nobody named at all means everybody who is logged in."""

    rule_id: str
    allow: bool
    action: Action
    to: tuple[str, ...]
    users: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    principals: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Policy:
    """All rules."""

    rules: tuple[Rule, ...]
    is_own: Callable[[IPv4Address | IPv6Address], bool]
