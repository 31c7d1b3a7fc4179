"""UpdateHostKeys: keep the user's known_hosts files as the server's own list of its host keys says.

After the login of a server whose key was trusted already, keys that it offers and proves are
recorded, and keys that it shows no longer are removed (ssh_config(5); clientloop.c,
update_known_hosts). What may be touched is decided by `KnownHosts.plan_update`.
"""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.config.fields import UpdateHostKeys
from gateway.config.files import read_if_exists
from gateway.config.trust import recorded_as
from gateway.errors import ConfigError
from gateway.ssh.known_hosts import (
    HostKeyUpdate,
    KnownHosts,
    edit_lines,
    format_line,
    host_name,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.config.ssh_config import HostConfig
    from gateway.config.trust import Person
    from gateway.ssh.keys import PublicKey

log = logging.getLogger(__name__)


class HostKeyUpdater:
    """One host's keys in the user's known_hosts files."""

    def __init__(self, config: HostConfig, person: Person) -> None:
        self._config = config
        self._person = person
        self._host, self._port = recorded_as(config)
        self._name = host_name(self._host, self._port)

    @property
    def is_wanted(self) -> bool:
        """Whether there is anything that may be written."""
        mode = self._config.update_host_keys
        if mode is UpdateHostKeys.ASK and self._config.batch_mode:
            return False
        return mode is not UpdateHostKeys.NO and bool(self._config.known_hosts_files)

    def plan(self, offered: Sequence[PublicKey]) -> HostKeyUpdate:
        """Compare the server's keys, as far as HostKeyAlgorithms has them, with the files."""
        allowed = set(self._config.host_key_algorithms)
        keys = [key for key in offered if allowed.intersection(key.signature_algorithms)]
        files = [
            (str(path), text)
            for path in self._config.known_hosts_files
            if (text := read_if_exists(path, "UserKnownHostsFile")) is not None
        ]
        return KnownHosts.parse(files).plan_update(self._host, self._port, keys)

    async def apply(self, update: HostKeyUpdate) -> None:
        """Change the files; new keys, which the server has proved, come into the first of them.

        Where the person is to be asked and cannot be, nothing is changed.
        """
        changes = [f"added {key.algorithm} {key.fingerprint}" for key in update.new]
        changes += [
            f"removed {entry.algorithm} {entry.fingerprint}, which the server has no longer"
            for entry in update.deprecated
        ]
        if self._config.update_host_keys is UpdateHostKeys.ASK:
            question = f"Host keys of {self._name}: {', '.join(changes)}. Record that (yes/no)? "
            answer = await self._person.ask(question)
            if answer is None:
                log.info(
                    "the host keys of %s are not updated: UpdateHostKeys is ask, and there is no "
                    "terminal, or a session has it",
                    self._name,
                )
            if answer is None or answer.strip().lower() != "yes":
                return
        first, *others = self._config.known_hosts_files
        try:
            self._edit(first, update, update.new)
            for path in others:
                self._edit(path, update, ())
        except (OSError, ConfigError) as error:
            self._person.say(f"warning: the host keys of {self._name} are not updated: {error}")
            return
        for change in changes:
            self._person.say(f"known_hosts, {self._name}: {change}")

    def _edit(self, path: Path, update: HostKeyUpdate, add: Sequence[PublicKey]) -> None:
        """Change a file as it is now: others may have written to it in the meantime."""
        text = read_if_exists(path, "UserKnownHostsFile") or b""
        known = KnownHosts.parse([(str(path), text)])
        deprecated = {entry.blob for entry in update.deprecated}
        remove = known.lines_to_remove(self._host, self._port, deprecated)
        hashed = self._config.hash_known_hosts
        missing = [
            format_line(self._host, self._port, key, hashed=hashed)
            for key in add
            if not known.lines_to_remove(self._host, self._port, {key.blob})
        ]
        if remove or missing:
            replace_file(path, edit_lines(text, remove, missing))


def replace_file(path: Path, text: bytes) -> None:
    """Replace a file's content at once, and keep what was there as FILE.old, as ssh does."""
    path = path.resolve()
    mode = 0o600
    if path.exists():
        if not path.is_file():
            raise ConfigError("it is not a regular file", where=str(path))
        mode = path.stat().st_mode & 0o777
        backup = path.with_name(path.name + ".old")
        backup.unlink(missing_ok=True)
        backup.hardlink_to(path)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
