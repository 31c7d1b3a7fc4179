"""The server as it is now, told by a `ServerConfig`; goes when `Server` takes one itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.server import Server, ServerOptions
from gateway.ssh.authorized_keys import AuthorizedKeys

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway import events
    from gateway.config.server_config import ServerConfig


class PresentServer:
    """A `Server` whose users and rules are taken for everybody."""

    def __init__(self, config: ServerConfig, report: Callable[[events.Event], None]) -> None:
        self._server = Server(_options(config), report)
        self._server.policy = config.policy

    async def run(self) -> None:
        """Listen and serve until cancelled."""
        await self._server.run()

    def apply(self, config: ServerConfig) -> None:
        """Go on with another configuration."""
        self._server.options = _options(config)
        self._server.policy = config.policy

    async def drain(self, deadline_s: float | None = None) -> None:
        """End at once."""


def _options(config: ServerConfig) -> ServerOptions:
    entries = [entry for user in config.users.values() for entry in user.keys.entries]
    return ServerOptions(
        config.listen,
        config.host_keys,
        AuthorizedKeys.of(entries),
        config.policy.rules,
        dict(config.names),
        config.rekey_limit,
        config.preferences,
    )
