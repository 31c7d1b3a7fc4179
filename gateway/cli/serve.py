"""`gateway serve`: the SSH server of a jump box, from a file or from flags, and its signals."""

from __future__ import annotations

import logging
import os
import signal
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import trio

from gateway.cli.process import hide_memory
from gateway.cli.serve_audit import Trail
from gateway.cli.serve_flags import add_flags, config_from_flags
from gateway.cli.serve_report import Report
from gateway.cli.service_manager import ServiceManager
from gateway.cli.service_user import ServiceUser
from gateway.cli.terminal import EXIT_FAILURE, Parser, run, say, say_error, start_logging
from gateway.errors import ConfigError
from gateway.server import Server, ServerOptions
from gateway.serving.people import ConfiguredPeople

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Awaitable, Callable

    from gateway import events
    from gateway.config.server_config import ServerConfig, TunnelConfig


NOBODY: Final = ServiceManager()


class ConfiguredServer:
    """A `Server` that takes a `ServerConfig`."""

    def __init__(
        self,
        config: ServerConfig,
        report: Callable[[events.Event], None],
        refuses_new: Callable[[], str] = str,
    ) -> None:
        self._server = Server(_options(config), report, refuses_new)

    async def run(self, ready: Callable[[], None]) -> None:
        """See `Running`."""
        await self._server.run(ready)

    def apply(self, config: ServerConfig) -> None:
        """See `Running`."""
        self._server.apply(_options(config))

    def gauges(self) -> dict[str, int]:
        """See `Running`."""
        return self._server.gauges()

    async def drain(self, deadline_s: float | None = None) -> None:
        """See `Running`."""
        await self._server.drain(deadline_s)


def _options(config: ServerConfig) -> ServerOptions:
    return ServerOptions(
        config.listen,
        config.host_keys,
        config.policy,
        ConfiguredPeople(config),
        hosts=dict(config.names),
        rekey_limit=config.rekey_limit,
        preferences=config.preferences,
        limits=config.limits,
        tunnel=config.tunnel,
    )


class Running(Protocol):
    """What signals ask of a server."""

    async def run(self, ready: Callable[[], None]) -> None:
        """Listen, call ``ready``, and serve until cancelled."""

    def apply(self, config: ServerConfig) -> None:
        """Go on with another configuration."""

    def gauges(self) -> dict[str, int]:
        """Return how many links, channels, tasks and the like there are."""

    async def drain(self, deadline_s: float | None = None) -> None:
        """Take no more links and wait so long for the channels to end."""


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="gateway serve",
        description="The SSH server of a jump box: tunnels for the keys you name, and no shell.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-v", dest="verbose", action="count", default=0, help="say more")
    add("-c", dest="config", type=Path, metavar="FILE",
        help="read everything from a gateway.toml, as `gateway init` makes one; SIGHUP reads it "
        "again, SIGTERM lets open channels end, and SIGUSR1 says what there is now")  # fmt: skip
    add("--check", action="store_true",
        help="only read FILE and all that it names, and say what would be done")  # fmt: skip
    flags = add_flags(parser)
    parsed = parser.parse_args(arguments)
    if parsed.config is None:
        if parsed.check:
            parser.error("--check goes with -c FILE only")
    elif any(getattr(parsed, name) is not None for name in flags):
        parser.error("with -c FILE everything else stands in FILE, and no flag goes with it but -v")
    return parsed


def _read_config(path: Path) -> ServerConfig:
    from gateway.config.gateway_toml import read_gateway_toml  # noqa: PLC0415 - pydantic is slow

    return read_gateway_toml(path)


def _read_again(config: ServerConfig, path: Path | None) -> None:
    if path is not None:
        from gateway.config.gateway_toml import reload  # noqa: PLC0415 - as above

        reload(path, config)


def _say_warnings(config: ServerConfig) -> None:
    for warning in config.warnings:
        say(f"warning: {warning}")


def summary(config: ServerConfig) -> list[str]:
    """Return a few lines that say what a server with this configuration does."""
    keys = sum(len(user.keys.entries) for user in config.users.values())
    listen = (f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
              for host, port in config.listen)  # fmt: skip
    return [
        f"listen on {', '.join(listen)}",
        *(f"host key {key.public.algorithm} {key.public.fingerprint}" for key in config.host_keys),
        f"key exchange {', '.join(config.preferences.kex)}",
        f"users: {len(config.users)}, keys: {keys}, authorities: {len(config.authorities)}",
        f"rules: {len(config.policy.rules)}, names: {len(config.names)}",
        f"run as {config.run_as or 'who starts it'}",
        _tunnel_summary(config.tunnel),
        _audit_summary(config),
    ]


def _status(config: ServerConfig) -> str:
    """Return what `systemctl status` shows of a server that is ready."""
    return f"serving; users: {len(config.users)}, rules: {len(config.policy.rules)}"


def _tunnel_summary(tunnel: TunnelConfig | None) -> str:
    if tunnel is None:
        return "no addresses for a VPN"
    pool = " and ".join(map(str, tunnel.pool))
    source = "the server's" if tunnel.masquerade else "their own"
    return f"addresses for a VPN of {pool}, MTU {tunnel.mtu}, going on with {source}"


def _audit_summary(config: ServerConfig) -> str:
    if config.audit is None:
        return "no audit log"
    days = config.audit_keep_days
    return f"audit log in {config.audit}" + (f", kept for {days} days" if days else "")


def _report_to(trail: Trail, report: Report, event: events.Event) -> None:
    trail.report(event)
    report(event)


# ---- signals -------------------------------------------------------------------------------------


async def serve_until_signal(
    server: Running,
    config: ServerConfig,
    path: Path | None,
    trail: Trail | None = None,
    become: Callable[[], None] = lambda: None,
    manager: ServiceManager = NOBODY,
) -> int:
    """Serve; SIGHUP reads ``path`` again, SIGUSR1 says how many links and
    other things there are, SIGTERM drains, and a second one ends at once.

    What happens up to the very end is written into ``trail``. ``become`` changes the user once the
    server listens; what is written before would be another user's. ``manager`` hears how it goes.
    """

    def listening() -> None:
        become()
        manager.ready(_status(config))

    if trail is None:
        serve = partial(server.run, listening)
        return await _serve_until_signal(serve, server, config, path, None, manager)
    reason = "an error"
    async with trio.open_nursery() as nursery:

        def ready() -> None:
            listening()
            nursery.start_soon(trail.run)

        try:
            serve = partial(server.run, ready)
            status = await _serve_until_signal(serve, server, config, path, trail, manager)
            reason = "SIGTERM"
        finally:
            is_cancelled = trio.current_effective_deadline() == -inf
            trail.stop("another signal" if is_cancelled else reason)
    return status


async def _serve_until_signal(
    serve: Callable[[], Awaitable[None]],
    server: Running,
    config: ServerConfig,
    path: Path | None,
    trail: Trail | None,
    manager: ServiceManager,
) -> int:
    numbers = [signal.SIGTERM, signal.SIGUSR1, *([signal.SIGHUP] if path else [])]
    with trio.open_signal_receiver(*numbers) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            nursery.start_soon(manager.keep_alive)
            async for number in signals:
                if number == signal.SIGUSR1:
                    counts = (f"{name} {count}" for name, count in server.gauges().items())
                    say(f"now: {', '.join(counts)}")
                elif number == signal.SIGTERM or path is None:
                    break
                else:
                    manager.reloading()
                    config = _reload(server, config, path, trail)
                    manager.ready(_status(config))
            manager.stopping("waiting for open channels to end")
            if trail is not None:
                trail.ending()
            await _drain(server, config.limits.drain_s, signals)
            nursery.cancel_scope.cancel()
    return 0


def _reload(server: Running, config: ServerConfig, path: Path, trail: Trail | None) -> ServerConfig:
    """Return the configuration that the server has from now on; the old one after an error."""
    from gateway.config.gateway_toml import reload  # noqa: PLC0415 - as above

    try:
        new = reload(path, config)
    except ConfigError as error:
        say_error(error)
        say(f"{path}: not read again, everything stays as it was")
        if trail is not None:
            trail.reloaded(str(error))
        return config
    if trail is not None:
        trail.reloaded()
    server.apply(new)
    _say_warnings(new)
    say(f"{path}: read again")
    return new


async def _drain(server: Running, deadline_s: float, signals: AsyncIterator[int]) -> None:
    say("waiting for open channels to end; another SIGTERM ends them")
    async with trio.open_nursery() as nursery:

        async def end_at_once() -> None:
            async for number in signals:
                if number == signal.SIGTERM:
                    nursery.cancel_scope.cancel()

        nursery.start_soon(end_at_once)
        await server.drain(deadline_s)
        nursery.cancel_scope.cancel()


def run_serve(arguments: list[str]) -> int:
    """Run the command; return its exit status."""
    hide_memory()
    manager = ServiceManager.of(os.environ)
    try:
        parsed = _parse(arguments)
        start_logging((logging.WARNING, logging.INFO, logging.DEBUG)[min(parsed.verbose, 2)])
        config = _read_config(parsed.config) if parsed.config else config_from_flags(parsed)
    except ConfigError as error:
        say_error(error)
        return EXIT_FAILURE
    _say_warnings(config)
    if parsed.check:
        print("\n".join(summary(config)))
        return 0
    for key in config.host_keys:
        say(f"host key {key.public.algorithm} {key.public.fingerprint}")
    try:
        user = ServiceUser(config)
        user.check(config, partial(_read_again, config, parsed.config))
        with user.acting():
            trail = Trail.of(config, parsed.config)
    except ConfigError as error:
        say_error(error)
        return EXIT_FAILURE
    if trail is None:
        server = ConfiguredServer(config, Report())
    else:
        server = ConfiguredServer(config, partial(_report_to, trail, Report()), trail.refuses_new)
    try:
        return run(
            partial(serve_until_signal, server, config, parsed.config, trail, user.become, manager),
            after_signal=0,
        )
    finally:
        if trail is not None:
            with user.acting():  # if the server came to its end before it listened
                trail.log.close()
