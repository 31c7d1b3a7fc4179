"""The audit log of `gateway serve`: opened before the server listens, closed after it has ended."""

from __future__ import annotations

import hashlib
import os
import time
from typing import TYPE_CHECKING, Final, Self

import trio

from gateway import __version__
from gateway.audit.writer import AuditOptions, open_log
from gateway.cli.terminal import say
from gateway.serving.evidence import Evidence, Facts

if TYPE_CHECKING:
    from pathlib import Path

    from gateway import events
    from gateway.config.server_config import ServerConfig

CANNOT_BE_WRITTEN: Final = "the audit log cannot be written"


class Trail:
    """The log of one run of the server."""

    def __init__(self, config: ServerConfig, folder: Path, path: Path | None) -> None:
        """Open it. Raises `ConfigError`. ``path`` is the configuration's file."""
        host_keys = tuple(key.public.fingerprint for key in config.host_keys)
        self._path = path
        self._connections = 0
        self._began_s = time.monotonic()
        self._scope = trio.CancelScope(shield=True)  # the records of the end are written as well
        self.log = open_log(folder, AuditOptions(keep_days=config.audit_keep_days))
        self.evidence = Evidence(
            self.log, Facts(__version__, os.getpid(), host_keys, self._config_sha256())
        )
        if self.log.initial_key_is_here:
            say(
                f"warning: the initial key of the audit log is on this machine: take it to another "
                f"with `gateway audit key {folder}`"
            )

    @classmethod
    def of(cls, config: ServerConfig, path: Path | None) -> Self | None:
        """Return the log that a configuration asks for, if any. Raises `ConfigError`."""
        return None if config.audit is None else cls(config, config.audit, path)

    def _config_sha256(self) -> str:
        try:
            return hashlib.sha256(self._path.read_bytes()).hexdigest() if self._path else ""
        except OSError:
            return ""

    def report(self, event: events.Event) -> None:
        """Write what is to be written about an event."""
        self.evidence.report(event)

    def refuses_new(self) -> str:
        """See `Shared.refuses_new`."""
        return "" if self.log.accepts_new else CANNOT_BE_WRITTEN

    def reloaded(self, problem: str = "") -> None:
        """The configuration was read again."""
        self.evidence.reloaded(self._config_sha256(), problem)

    async def run(self) -> None:
        """Write, until `stop`."""
        with self._scope:
            await self.log.run()

    def ending(self) -> None:
        """The server begins to end."""
        self._connections = self.evidence.connections

    def stop(self, reason: str) -> None:
        """The server has ended; `run` writes what is left and returns."""
        self.evidence.stopped(reason, time.monotonic() - self._began_s, self._connections)
        self._scope.cancel()
