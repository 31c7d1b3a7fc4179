"""`gateway connect`: ssh(1)'s command line, as far as a tunnel needs it."""

from __future__ import annotations

import argparse
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
from gateway.cli.queries import answer
from gateway.cli.terminal import EXIT_FAILURE, Parser, Person, run, say, start_logging
from gateway.client import ClientOptions, connect
from gateway.config.addresses import parse_destination
from gateway.config.dump import dump
from gateway.config.ssh_config import (
    Environment,
    HostConfig,
    LogLevel,
    ReadSettings,
    SessionType,
    default_files,
    parse_option,
    quoted,
    read_settings,
    resolve,
)
from gateway.errors import ConfigError, printable

if TYPE_CHECKING:
    from collections.abc import Callable

STANDARD_INPUT: Final = 0

# ssh(1)'s options that a tunnel does not need: accepted, the first group in silence.
_WITHOUT_EFFECT: Final = ("a", "k", "x", "T")
_IGNORED: Final = {
    "A": "agent forwarding",
    "C": "compression",
    "K": "GSSAPI",
    "X": "X11 forwarding",
    "Y": "X11 forwarding",
    "t": "a terminal",
}
# Options that stand for a keyword: the first and the last of these tables win against -o, the
# second does not (ssh.c).
_OVERRIDING: Final = {
    "c": ("Ciphers", "LIST", "ciphers, best first"),
    "m": ("MACs", "LIST", "message authentication codes, best first"),
    "b": ("BindAddress", "ADDRESS", "connect from this address"),
    "B": ("BindInterface", "INTERFACE", "connect through this interface"),
}
_VALUES: Final = {
    "l": ("User", "USER", "user to log in as"),
    "P": ("Tag", "TAG", "select lines with Match tagged"),
}
_SWITCHES: Final = {
    "N": ("SessionType", "none", "run no command: only the tunnel"),
    "n": ("StdinNull", "yes", "the command gets no input"),
    "f": ("ForkAfterAuthentication", "yes", "go to the background once everything is up"),
    "4": ("AddressFamily", "inet", "IPv4 only"),
    "6": ("AddressFamily", "inet6", "IPv6 only"),
}
# Options whose absence would change what happens: refused until they work.
_NOT_YET: Final = {
    "L": "local forwarding",
    "R": "remote forwarding",
    "W": "stdio forwarding",
    "J": "jump hosts",
    "w": "tun devices",
    "M": "connection sharing",
    "S": "connection sharing",
    "O": "connection sharing",
    "s": "subsystems",
    "g": "GatewayPorts on the command line (write -D '*:PORT')",
    "I": "PKCS#11",
}
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


def _options() -> Parser:
    parser = Parser(
        prog="gateway connect",
        usage="gateway connect [options] [user@]host|ssh://[user@]host[:port] [command ...]",
        description="Turns an SSH login into a proxy. Takes the options and files of ssh(1).",
        allow_abbrev=False,
        add_help=False,
    )
    add = parser.add_argument
    add("--help", action="help", help="show this text")
    add("-D", dest="dynamic", action="append", default=[], metavar="[ADDRESS:]PORT",
        help="SOCKS proxy on this port (repeatable); loopback unless ADDRESS is given")  # fmt: skip
    add("-p", dest="port", metavar="PORT", help="port of the SSH server (22)")
    add("-i", dest="identities", action="append", default=[], metavar="FILE",
        help="private key (repeatable)")  # fmt: skip
    add("-o", dest="settings", action="append", default=[], metavar="KEY=VALUE",
        help="a setting as in ssh_config(5)")  # fmt: skip
    add("-F", dest="config_file", metavar="FILE",
        help="read only this configuration file; none reads no file")  # fmt: skip
    add("-v", dest="verbose", action="count", default=0, help="say more (twice: still more)")
    add("-q", dest="quiet", action="store_true", help="say nothing but fatal errors")
    add("-E", dest="log_file", metavar="FILE", help="append messages to this file")
    add("-G", dest="print_config", action="store_true",
        help="print the configuration for the host, and end")  # fmt: skip
    add("-Q", dest="query", metavar="LIST",
        help="print a list of supported algorithms (-Q help names the lists), and end")  # fmt: skip
    for letter, (_, metavar, text) in {**_OVERRIDING, **_VALUES}.items():
        add(f"-{letter}", metavar=metavar, help=text)
    for letter, (_, _, text) in _SWITCHES.items():
        add(f"-{letter}", action="store_true", help=text)
    for letter in _WITHOUT_EFFECT:
        add(f"-{letter}", dest="without_effect", action="store_true", help=argparse.SUPPRESS)
    for letter, what in _IGNORED.items():
        add(f"-{letter}", dest="ignored", action="append_const", const=f"-{letter}: {what}",
            help=argparse.SUPPRESS)  # fmt: skip
    add("-e", dest="escape", help=argparse.SUPPRESS)
    for letter in _NOT_YET:
        add(f"-{letter}", dest="not_yet", action=_Refuse, nargs="?", help=argparse.SUPPRESS)
    return parser


class _Refuse(argparse.Action):
    """An option of ssh(1) that does not work yet."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,  # noqa: ARG002 - argparse's signature
        values: object,  # noqa: ARG002
        option_string: str | None = None,
    ) -> None:
        letter = (option_string or "-?")[1]
        parser.error(f"-{letter}: {_NOT_YET[letter]} does not work yet")


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Parse as ssh(1): options may stand before and after the host, up to the command's first word.

    Raises `ConfigError`.
    """
    parser = _options()
    before = _options()
    before.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    namespace = before.parse_args(arguments)
    if namespace.rest[:1] == ["--"]:
        del namespace.rest[0]
    if namespace.query is not None:
        return namespace
    if not namespace.rest:
        parser.error("the host is missing")
    namespace.destination, rest = namespace.rest[0], namespace.rest[1:]
    while rest and rest[0].startswith("-") and rest[0] != "--":
        before.parse_args(rest, namespace)
        if len(namespace.rest) >= len(rest):
            break
        rest = namespace.rest
    if rest[:1] == ["--"]:
        rest = rest[1:]
    namespace.command = " ".join(rest) if rest else None
    return namespace


def _environment() -> Environment:
    try:
        home = Path(os.environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir)
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a user id without an entry, as in containers
        home, user = Path(os.environ.get("HOME", "/")), getpass.getuser()
    return Environment(home, user, socket.gethostname(), os.getuid(), dict(os.environ))


def _command_line(arguments: argparse.Namespace) -> tuple[str, list[tuple[str, str]]]:
    """Return the host and the settings that the command line makes, strongest first."""
    destination = parse_destination(arguments.destination)
    given = vars(arguments)
    settings = _given(given, _OVERRIDING)
    settings += [
        (keyword, value) for letter, (keyword, value, _) in _SWITCHES.items() if given[letter]
    ]
    if arguments.quiet:
        settings.append(("LogLevel", "QUIET"))
    elif arguments.verbose:
        settings.append(("LogLevel", "DEBUG" if arguments.verbose > 1 else "VERBOSE"))
    settings += [parse_option(text) for text in arguments.settings]
    port = arguments.port or (str(destination.port) if destination.port else None)
    settings += [("Port", port)] if port else []
    settings += _given(given, _VALUES)
    settings += [("User", quoted(destination.user))] if destination.user else []
    settings += [("IdentityFile", quoted(file)) for file in arguments.identities]
    settings += [("DynamicForward", spec) for spec in arguments.dynamic]
    return destination.host, settings


def _given(
    given: dict[str, str | None], table: dict[str, tuple[str, str, str]]
) -> list[tuple[str, str]]:
    return [
        (keyword, quoted(value))
        for letter, (keyword, _, _) in table.items()
        if (value := given[letter]) is not None
    ]


def _read_settings(arguments: argparse.Namespace, environment: Environment) -> ReadSettings:
    host, settings = _command_line(arguments)
    match arguments.config_file:
        case None:
            files = default_files(environment.home)
        case "none":
            files = ()
        case name:
            files = (Path(name),)
    return read_settings(
        host,
        files=files,
        command_line=settings,
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
    sys.stderr = os.fdopen(descriptor, "w", encoding="utf-8", buffering=1, errors="replace")


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
            print(*answer(parsed.query), sep="\n")
            return 0
        environment = _environment()
        read = _read_settings(parsed, environment)
        config = resolve(read, environment)
        if parsed.print_config:
            print(*dump(config, read.settings), sep="\n")
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


def _connect(options: ClientOptions) -> int:
    quiet = options.config.log_level is LogLevel.QUIET
    report = _report_nothing if quiet else _report
    return run(partial(connect, options, Person(), report), quiet=quiet)


def _kept(options: ClientOptions) -> tuple[int, ...]:
    """Return what stays open in the background: a command's output, and what -v says."""
    if options.runs_session:
        return (1, 2)
    return (2,) if _LEVELS[options.config.log_level] < logging.WARNING else ()
