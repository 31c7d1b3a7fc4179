"""`gateway connect`: ssh(1)'s command line, as far as a tunnel needs it."""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import pwd
import socket
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway import events
from gateway.cli.background import run_in_background
from gateway.cli.options import parse_arguments
from gateway.cli.queries import answer
from gateway.cli.terminal import EXIT_FAILURE, Person, run, say, start_logging
from gateway.client import ClientOptions, connect
from gateway.config.dump import dump
from gateway.config.ssh_config import (
    Environment,
    HostConfig,
    LogLevel,
    ReadSettings,
    SessionType,
    default_files,
    read_settings,
    resolve,
)
from gateway.errors import ConfigError, printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable

STANDARD_INPUT: Final = 0

_LEVELS: Final = {
    LogLevel.QUIET: logging.CRITICAL,
    LogLevel.FATAL: logging.CRITICAL,
    LogLevel.ERROR: logging.ERROR,
    LogLevel.INFO: logging.WARNING,
    LogLevel.VERBOSE: logging.INFO,
    LogLevel.DEBUG1: logging.DEBUG,
    LogLevel.DEBUG2: logging.DEBUG,
    LogLevel.DEBUG3: logging.DEBUG,
}


def _environment() -> Environment:
    try:
        home = Path(os.environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir)
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a user id without an entry, as in containers
        home, user = Path(os.environ.get("HOME", "/")), getpass.getuser()
    return Environment(home, user, socket.gethostname(), os.getuid(), dict(os.environ))


def _read_settings(arguments: argparse.Namespace, environment: Environment) -> ReadSettings:
    match arguments.config_file:
        case None:
            files = default_files(environment.home)
        case "none":
            files = ()
        case name:
            files = (Path(name),)
    return read_settings(
        arguments.host,
        files=files,
        command_line=arguments.settings,
        command=arguments.command,
        environment=environment,
    )


def _client_options(arguments: argparse.Namespace, config: HostConfig) -> ClientOptions:
    """Decide whether there is a session, what it runs and where its input comes from."""
    runs_session = config.session_type is not SessionType.NONE
    command = arguments.command
    if command is not None and config.remote_command is not None:
        raise ConfigError(
            "there are two commands, one on the command line and one in RemoteCommand",
            remedy="leave one out, or use -o RemoteCommand=none",
        )
    command = command if command is not None else config.remote_command
    forks = config.fork_after_authentication
    if forks and runs_session and command is None:
        raise ConfigError(
            "-f: there is nothing to do in the background",
            remedy="give a command, or -N for a tunnel only",
        )
    no_input = forks or config.stdin_null
    return ClientOptions(config, runs_session, command, None if no_input else STANDARD_INPUT)


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
            say(f"{purpose} on {address}:{port}")
        case events.LinkOpened(_, peer, user_name):
            logging.getLogger(__name__).info("logged in to %s as %s", peer, user_name)


def _report_nothing(_event: events.Event) -> None:
    pass


def run_connect(arguments: list[str]) -> int:
    """Run the command; return its exit status."""
    try:
        parsed = parse_arguments(arguments)
        if parsed.log_file is not None:
            _log_to(parsed.log_file)
        if parsed.query is not None:
            _print(answer(parsed.query))
            return 0
        environment = _environment()
        read = _read_settings(parsed, environment)
        config = resolve(read, environment)
        if parsed.print_config:
            _print(dump(config, read.settings))
            return 0
        options = _client_options(parsed, config)
    except ConfigError as error:
        say(str(error))
        return EXIT_FAILURE
    start_logging(_LEVELS[config.log_level])
    for warning in [*config.warnings, *(f"{what} is not used" for what in parsed.ignored or [])]:
        logging.getLogger(__name__).warning("%s", warning)
    if not config.fork_after_authentication:
        return _connect(options)

    def work(ready: Callable[[], None]) -> int:
        return _connect(replace(options, ready=ready))

    return run_in_background(work, keep=_kept(options))


def _print(lines: Iterable[str]) -> None:
    """Write lines as they are, also file names that are no UTF-8; nobody has to read them all."""
    sys.stdout.flush()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.buffer.write(b"".join(os.fsencode(line) + b"\n" for line in lines))
        sys.stdout.buffer.flush()


def _connect(options: ClientOptions) -> int:
    quiet = options.config.log_level is LogLevel.QUIET
    report = _report_nothing if quiet else _report
    return run(partial(connect, options, Person(quiet=quiet), report), quiet=quiet)


def _kept(options: ClientOptions) -> tuple[int, ...]:
    """Return what stays open in the background: a command's output, and what -v says."""
    if options.runs_session:
        return (1, 2)
    return (2,) if _LEVELS[options.config.log_level] < logging.WARNING else ()
