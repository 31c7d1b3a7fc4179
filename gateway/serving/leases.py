"""The pool of one server, and the file in which its assignments outlive a restart.

The file is a copy: what is wrong with it costs users their old addresses, and is a warning. It is
written a while after something changed, in a thread, and at the end.
"""

from __future__ import annotations

import json
import logging
import os
from typing import TYPE_CHECKING, Final

import trio

from gateway.config.checked_files import FILE_LIMIT, UNCHANGED, read_checked_file
from gateway.errors import ConfigError
from gateway.policy.leases import Pool

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.config.server_config import TunnelConfig
    from gateway.policy.leases import Lease

log = logging.getLogger(__name__)

WRITE_DELAY_S: Final = 5.0  # what changes meanwhile is written together
_KEY: Final = "assignments"  # each is [user name, which of that user's, slot]


class Leases:
    """Who has which address of a server; see `Pool` for what lasts."""

    def __init__(self, config: TunnelConfig) -> None:
        self.pool = Pool(config.pool)
        self._path = config.leases
        self._changed = trio.Event()  # since it was last written
        self._is_changed = False  # since the start

    def load(self) -> None:
        """Take the assignments of the file, before anything is lent."""
        if self._path is not None:
            _load(self._path, self.pool)

    def lease(self, user_name: str, session: object) -> Lease:
        """Lend an address; see `Pool.lease`. Raises `NoLease`."""
        lease = self.pool.lease(user_name, session)
        self._note_change()
        return lease

    def release(self, session: object) -> None:
        """A session is over; see `Pool.release`."""
        self.pool.release(session)
        self._note_change()

    def _note_change(self) -> None:
        self._is_changed = True
        self._changed.set()

    async def run(self) -> None:
        """Keep the file up to date until cancelled."""
        path = self._path
        if path is None:
            return
        try:
            while True:
                await self._changed.wait()
                await trio.sleep(WRITE_DELAY_S)
                self._changed = trio.Event()
                await trio.to_thread.run_sync(_save, path, self.pool.export())
        finally:
            if self._is_changed:  # also if it was cancelled on the way to the thread
                _save(path, self.pool.export())


def _load(path: Path, pool: Pool) -> None:
    try:
        if not path.exists():
            return
        content = read_checked_file(path, UNCHANGED, FILE_LIMIT, "the file of leases")
        document = json.loads(content)
        pool.restore(document.get(_KEY) if isinstance(document, dict) else None)
    except (OSError, ConfigError, ValueError, RecursionError) as error:
        log.warning("%s: users may get other addresses than before: %s", path, error)


def _save(path: Path, assignments: list[list[str | int]]) -> None:
    """Write the whole file beside its place, then put it there."""
    lines = ",\n".join(json.dumps(assignment) for assignment in assignments)
    partial = path.with_name(f"{path.name}.new")
    try:
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f'{{"{_KEY}": [\n{lines}\n]}}\n')
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, ValueError) as error:
        log.warning("%s: the addresses of users are not remembered: %s", path, error)
