"""`gateway connect`: ssh(1)'s command line, as far as a tunnel needs it."""

from __future__ import annotations

import argparse
import getpass
import logging
import os
import pwd
import socket
from functools import partial
from pathlib import Path
from typing import Final

from gateway import events
from gateway.cli.terminal import EXIT_FAILURE, Parser, Person, run, say, start_logging
from gateway.client import ClientOptions, connect
from gateway.config.addresses import parse_destination
from gateway.config.ssh_config import (
    Environment,
    HostConfig,
    LogLevel,
    SessionType,
    default_files,
    parse_option,
    quoted,
    read_host_config,
)
from gateway.errors import ConfigError

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
    "f": "going to the background",
    "s": "subsystems",
    "g": "GatewayPorts on the command line (write -D '*:PORT')",
    "B": "binding to an interface",
    "b": "bind addresses on the command line (write -o BindAddress=ADDRESS)",
    "c": "ciphers on the command line (write -o Ciphers=LIST)",
    "m": "MACs on the command line",
    "E": "log files",
    "G": "printing the configuration",
    "P": "tags",
    "Q": "queries",
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
    add("-N", dest="no_session", action="store_true", help="run no command: only the tunnel")
    add("-D", dest="dynamic", action="append", default=[], metavar="[ADDRESS:]PORT",
        help="SOCKS proxy on this port (repeatable); loopback unless ADDRESS is given")  # fmt: skip
    add("-p", dest="port", metavar="PORT", help="port of the SSH server (22)")
    add("-l", dest="user", metavar="USER", help="user to log in as")
    add("-i", dest="identities", action="append", default=[], metavar="FILE",
        help="private key (repeatable)")  # fmt: skip
    add("-o", dest="settings", action="append", default=[], metavar="KEY=VALUE",
        help="a setting as in ssh_config(5)")  # fmt: skip
    add("-F", dest="config_file", metavar="FILE",
        help="read only this configuration file; none reads no file")  # fmt: skip
    add("-v", dest="verbose", action="count", default=0, help="say more (twice: still more)")
    add("-q", dest="quiet", action="store_true", help="say nothing but fatal errors")
    add("-4", dest="family", action="store_const", const="inet", help="IPv4 only")
    add("-6", dest="family", action="store_const", const="inet6", help="IPv6 only")
    add("-n", dest="no_input", action="store_true", help="the command gets no input")
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
    before.add_argument("rest", nargs=argparse.REMAINDER)
    namespace = before.parse_args(arguments)
    if namespace.rest[:1] == ["--"]:
        del namespace.rest[0]
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
    settings = [parse_option(text) for text in arguments.settings]
    port = arguments.port or (str(destination.port) if destination.port else None)
    user = arguments.user or destination.user
    settings += [("Port", port)] if port else []
    settings += [("User", quoted(user))] if user else []
    settings += [("AddressFamily", arguments.family)] if arguments.family else []
    settings += [("IdentityFile", quoted(file)) for file in arguments.identities]
    settings += [("DynamicForward", spec) for spec in arguments.dynamic]
    if arguments.quiet:
        settings.append(("LogLevel", "QUIET"))
    elif arguments.verbose:
        settings.append(("LogLevel", "DEBUG" if arguments.verbose > 1 else "VERBOSE"))
    return destination.host, settings


def _read_config(arguments: argparse.Namespace) -> HostConfig:
    environment = _environment()
    host, settings = _command_line(arguments)
    match arguments.config_file:
        case None:
            files = default_files(environment.home)
        case "none":
            files = ()
        case name:
            files = (Path(name),)
    return read_host_config(host, files=files, command_line=settings, environment=environment)


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
        config = _read_config(parsed)
    except ConfigError as error:
        say(str(error))
        return EXIT_FAILURE
    start_logging(_LEVELS[config.log_level])
    quiet = config.log_level is LogLevel.QUIET
    for warning in [*config.warnings, *(f"{what} is not used" for what in parsed.ignored or [])]:
        logging.getLogger(__name__).warning("%s", warning)
    runs_session = not parsed.no_session and config.session_type is not SessionType.NONE
    options = ClientOptions(
        config, runs_session, parsed.command, None if parsed.no_input else STANDARD_INPUT
    )
    report = _report_nothing if quiet else _report
    return run(partial(connect, options, Person(quiet=quiet), report), quiet=quiet)
