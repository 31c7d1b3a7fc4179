"""The user of this machine as whom a server goes on when root has started it."""

from __future__ import annotations

import pwd

from gateway.errors import ConfigError, printable


def find_ordinary_user(name: str, *, where: str = "") -> pwd.struct_passwd:
    """Return the entry of passwd(5). Raises `ConfigError`."""
    try:
        found = pwd.getpwnam(name)
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"this machine has no user {printable(name, 80)}",
            where=where,
            remedy="make one with: useradd --system --shell /usr/sbin/nologin NAME",
        ) from error
    if found.pw_uid == 0:
        raise ConfigError(
            f"{found.pw_name} has all rights", where=where, remedy="name an ordinary user"
        )
    return found
