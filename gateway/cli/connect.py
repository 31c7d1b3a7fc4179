"""`gateway connect`: ssh(1)'s command line."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from gateway import events
from gateway.cli.background import run_in_background
from gateway.cli.environment import read_environment
from gateway.cli.options import parse_arguments
from gateway.cli.process import hide_memory
from gateway.cli.queries import answer
from gateway.cli.session import LEVELS, foreground, session_plan
from gateway.cli.terminal import EXIT_FAILURE, Person, run, say, start_logging
from gateway.client import ClientOptions, connect
from gateway.config.control_path import control_path, find_controls
from gateway.config.dump import dump
from gateway.config.forwards import stdio_forward
from gateway.config.route import hops_to
from gateway.config.ssh_config import (
    Environment,
    HostConfig,
    LogLevel,
    ReadSettings,
    default_files,
    read_settings,
    resolve,
)
from gateway.errors import ConfigError, printable
from gateway.forward.control import is_dead

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from gateway.socks.upstream import UpstreamProxy


def _read_settings(arguments: argparse.Namespace, environment: Environment) -> ReadSettings:
    return read_settings(
        arguments.host,
        files=default_files(environment.home, arguments.config_file),
        command_line=arguments.settings,
        command=arguments.command,
        defaults=arguments.defaults,
        environment=environment,
    )


def _client_options(
    arguments: argparse.Namespace, config: HostConfig, environment: Environment
) -> ClientOptions:
    plan = session_plan(config, arguments.command, environment.variables)
    stdio = arguments.stdio_forward
    return ClientOptions(
        config,
        plan,
        foreground(config, plan),
        vpn=arguments.vpn_options,
        stdio_forward=None if stdio is None else stdio_forward(stdio, environment),
    )


def _proxies(
    arguments: argparse.Namespace, config: HostConfig, hops: Sequence[HostConfig]
) -> tuple[UpstreamProxy, ...]:
    """Return what --via names. Who makes the first connection by a command leaves nothing to it."""
    proxies: tuple[UpstreamProxy, ...] = arguments.proxies
    first = hops[0] if hops else config
    if proxies and first.proxy_command is not None:
        raise ConfigError(
            f"there is a ProxyCommand for {printable(first.alias)} too, and both would make the "
            "first connection",
            where="--via",
            remedy="leave one of them out; -o ProxyCommand=none does for the host itself",
        )
    return proxies


def _log_to(name: str) -> None:
    """Append messages of ours to a file from now on; a command's errors stay where they are."""
    try:
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the log file cannot be opened ({error})",
            where=f"-E {printable(name)}",
            remedy="name a file in a folder that you may write",
        ) from error
    sys.stderr = os.fdopen(
        descriptor, "w", encoding="utf-8", buffering=1, errors="backslashreplace"
    )


def _report(event: events.Event) -> None:
    match event:
        case events.ListenerOpened(purpose, address, port):
            say(f"{purpose} on {address}:{port}" if port else f"{purpose} on {address}")
        case events.RemoteListenerOpened(purpose, address):
            say(f"{purpose} on {address} of the server")
        case events.RemotePortAllocated(port, target):  # as ssh says it, for who reads it there
            print(f"Allocated port {port} for remote forward to {target}", file=sys.stderr)
        case events.VpnPlanned(commands):
            print("\n".join(commands))
        case events.TunnelOpened(device):
            say(f"tunnel through {device}")
        case events.LinkOpened(_, peer, user_name):
            logging.getLogger(__name__).info("logged in to %s as %s", peer, user_name)


def _report_nothing(_event: events.Event) -> None:
    pass


def run_connect(arguments: list[str]) -> int:
    """Run the command; return its exit status."""
    hide_memory()
    try:
        parsed = parse_arguments(arguments)
        if parsed.log_file is not None:
            _log_to(parsed.log_file)
        if parsed.query is not None:
            _print(answer(parsed.query))
            return 0
        environment = read_environment()
        read = _read_settings(parsed, environment)
        config = resolve(read, environment)
        if parsed.print_config:
            _print(dump(config, read.settings))
            return 0
        files = default_files(environment.home, parsed.config_file)
        hops = hops_to(config, files=files, environment=environment)
        proxies = _proxies(parsed, config, hops)
        start_logging(LEVELS[config.log_level])
        options = replace(_client_options(parsed, config, environment), hops=hops, proxies=proxies)
    except ConfigError as error:
        say(str(error))
        return EXIT_FAILURE
    warnings = dict.fromkeys(line for host in (*hops, config) for line in host.warnings)
    for warning in [*warnings, *(f"{what} is not used" for what in parsed.ignored or [])]:
        logging.getLogger(__name__).warning("%s", warning)
    if not config.fork_after_authentication:
        return _connect(options, environment)

    def work(ready: Callable[[], None]) -> int:
        return _connect(replace(options, ready=ready), environment)

    return run_in_background(work, keep=_kept(options))


def _print(lines: Iterable[str]) -> None:
    """Write lines as they are, also file names that are no UTF-8; nobody has to read them all."""
    sys.stdout.flush()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.buffer.write(b"".join(os.fsencode(line) + b"\n" for line in lines))
        sys.stdout.buffer.flush()


def _control_path(config: HostConfig, environment: Environment) -> Path | None:
    """Say where to listen for `gateway forward`, and clear away what killed ones have left."""
    if not config.has_control_socket:
        return None
    try:
        for path in find_controls(config, environment):
            if is_dead(path):
                path.unlink(missing_ok=True)
        return control_path(config, environment, os.getpid())
    except (ConfigError, OSError) as error:
        logging.getLogger(__name__).info("there is no control socket: %s", error)
        return None


def _connect(options: ClientOptions, environment: Environment) -> int:
    quiet = options.config.log_level is LogLevel.QUIET
    person = Person(quiet=quiet)
    options = replace(
        options,
        control_path=_control_path(options.config, environment),
        foreground=replace(options.foreground, take_terminal=person.session),
    )
    report = _report_nothing if quiet else _report
    return run(partial(connect, options, person, report), quiet=quiet)


def _kept(options: ClientOptions) -> tuple[int, ...]:
    """Return what stays open in the background: a command's output, and what -v says."""
    if options.session is not None:
        return (1, 2)
    return (2,) if LEVELS[options.config.log_level] < logging.WARNING else ()
