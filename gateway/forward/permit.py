"""Where clients of the far side's SOCKS proxy may go (ssh_config(5), PermitRemoteOpen)."""

from __future__ import annotations

from typing import Final

Permitted = tuple[tuple[str | None, int | None], ...] | None
"""Hosts and ports, each None for any; no entry permits nothing, and None instead everything."""

ANY_TARGET: Final[Permitted] = None


def is_permitted(permitted: Permitted, host: str, port: int) -> bool:
    """Say whether a target is one of these: names are compared as they are, nothing is looked up.

    The case of a name does not matter to a resolver, so it does not here.
    """
    if permitted is None:
        return True
    return any(
        (name is None or name.lower() == host.lower()) and number in (None, port)
        for name, number in permitted
    )
