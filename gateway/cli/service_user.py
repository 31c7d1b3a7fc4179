"""The ordinary user as whom `gateway serve` goes on when root has started it.

Root reads the configuration and the host keys, binds the addresses to listen on and starts the
guardian, which stays root's. Then, before anybody is accepted, the process becomes that user for
good, with CAP_NET_BIND_SERVICE only if a rule lets clients listen on a port below 1024, and with
CAP_NET_ADMIN only if a rule lets them have a device. What it needs later it needs as that user; so
that is tried as that user at the start, not found out at a SIGHUP months later.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

import gateway
from gateway.cli.process import (
    CAP_NET_ADMIN,
    CAP_NET_BIND_SERVICE,
    become,
    gain_nothing_by_programs,
)
from gateway.config.ordinary_user import find_ordinary_user
from gateway.errors import ConfigError
from gateway.policy.targets import Action, HostPorts
from gateway.serving.places import PRIVILEGED_PORTS
from gateway.tun.device import NODE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gateway.config.server_config import ServerConfig
    from gateway.policy.rules import Policy

# Modules are still imported later: ours, those of others, and Python's own.
_PROGRAM: Final = [Path(str(module.__file__)).parent for module in (gateway, trio, os)]


class ServiceUser:
    """Whom a configuration names, until ``become``; nobody if that is who we are already."""

    def __init__(self, config: ServerConfig) -> None:
        """Look the user up. Raises `ConfigError`."""
        self._name = ""
        self._keep = capabilities_needed(config.policy)
        if config.run_as is None:
            return
        found = find_ordinary_user(config.run_as)
        if found.pw_uid == os.geteuid():
            return
        if os.geteuid() != 0:
            raise ConfigError(
                f"only root can go on as {found.pw_name}",
                remedy=f"start the server as root, or as {found.pw_name}",
            )
        self._name, self._uid, self._gid = found.pw_name, found.pw_uid, found.pw_gid
        gain_nothing_by_programs()  # now, while there is one thread: the others inherit it

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        """Act as that user in this block, while nothing else runs. Raises `ConfigError`."""
        if not self._name:
            yield
            return
        groups, gid = os.getgroups(), os.getegid()
        try:
            os.initgroups(self._name, self._gid)
            os.setegid(self._gid)
            os.seteuid(self._uid)
        except OSError as error:
            raise self._cannot(error) from error
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(gid)
            os.setgroups(groups)

    def check(self, config: ServerConfig, read_again: Callable[[], object]) -> None:
        """Raise `ConfigError` where that user could not do what will be needed.

        ``read_again`` reads the configuration as SIGHUP does.
        """
        if not self._name:
            return
        leases = config.tunnel.leases if config.tunnel else None
        with self.acting():
            for folder in _PROGRAM:
                if not _may(folder, os.R_OK | os.X_OK):
                    raise self._may_not("read this program", folder, "install it where all may")
            if leases is not None and not _may(leases.parent, os.W_OK | os.X_OK):
                remedy = "name one in a folder of that user's own"
                raise self._may_not("write the file of leases", leases, remedy)
            if CAP_NET_ADMIN in self._keep and NODE.exists() and not _may(NODE, os.R_OK | os.W_OK):
                raise self._may_not(
                    "open devices", NODE, f"chmod 666 {NODE}, as most systems have it"
                )
            try:
                read_again()
            except ConfigError as error:
                raise ConfigError(
                    f"{error}\nat SIGHUP {self._name} has to read all of it but the host keys: "
                    "let root own the files, and that user's group read them (chmod 640)"
                ) from error

    def become(self) -> None:
        """Be that user from now on, and nobody else again. Raises `ConfigError`."""
        if not self._name:
            return
        try:
            become(self._name, self._uid, self._gid, self._keep)
        except OSError as error:
            raise self._cannot(error) from error
        self._name = ""

    def _may_not(self, what: str, path: Path, remedy: str) -> ConfigError:
        return ConfigError(f"{self._name} may not {what}", where=str(path), remedy=remedy)

    def _cannot(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"cannot go on as {self._name}: {error.strerror}",
            remedy="root needs CAP_SETUID, CAP_SETGID and CAP_SETPCAP for that",
        )


def _may(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=True)


def capabilities_needed(policy: Policy) -> frozenset[int]:
    """Return what clients can make the server need when it listens already.

    A port below 1024 is listened on for them only by a rule of its own: not by one for all ports.
    """
    needed = set()
    for rule in policy.rules:
        if not rule.allow:
            continue
        if rule.action is Action.TUN:
            needed.add(CAP_NET_ADMIN)
        if rule.action is Action.LISTEN and any(
            isinstance(target, HostPorts) and 0 < target.first < PRIVILEGED_PORTS
            for target in rule.to
        ):
            needed.add(CAP_NET_BIND_SERVICE)
    return frozenset(needed)
