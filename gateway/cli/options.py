"""ssh(1)'s options on `gateway connect`: what each is called, and the keyword that it stands for.

Most options are another spelling of a keyword of ssh_config(5). They are collected in their order,
since it decides which of two wins, and read with everything else by `gateway.config`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Final

from gateway.cli.terminal import Parser
from gateway.config.addresses import parse_destination
from gateway.config.ssh_config import parse_option, quoted


@dataclass(frozen=True, slots=True)
class Option:
    """An option that stands for a keyword, with an argument or for one ``value``.

    The first one given wins, also against -o; one that ``overrides`` wins wherever it stands, the
    last of them at that (ssh.c, main).
    """

    keyword: str
    help: str
    metavar: str | None = None
    value: str = ""
    overrides: bool = False


_OPTIONS: Final = {
    "N": Option("SessionType", "run no command: only the tunnel", value="none", overrides=True),
    "D": Option("DynamicForward", "SOCKS proxy on this port (repeatable); loopback unless "
                "ADDRESS is given", "[ADDRESS:]PORT"),
    "p": Option("Port", "port of the SSH server (22)", "PORT"),
    "l": Option("User", "user to log in as", "USER"),
    "i": Option("IdentityFile", "private key (repeatable)", "FILE"),
    "c": Option("Ciphers", "ciphers, best first", "LIST", overrides=True),
    "m": Option("MACs", "message authentication codes, best first", "LIST", overrides=True),
    "b": Option("BindAddress", "connect from this address", "ADDRESS", overrides=True),
    "B": Option("BindInterface", "connect through this interface", "INTERFACE", overrides=True),
    "P": Option("Tag", "select lines with Match tagged", "TAG"),
    "f": Option("ForkAfterAuthentication", "go to the background once everything is up",
                value="yes", overrides=True),
    "n": Option("StdinNull", "the command gets no input", value="yes", overrides=True),
    "4": Option("AddressFamily", "IPv4 only", value="inet", overrides=True),
    "6": Option("AddressFamily", "IPv6 only", value="inet6", overrides=True),
}  # fmt: skip
# -f means -n too.
_ALSO: Final = {"f": "n"}
# Options that a tunnel does not need: accepted, the first group in silence.
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
    "s": "subsystems",
    "g": "GatewayPorts on the command line (write -D '*:PORT')",
    "I": "PKCS#11",
}


def _parser() -> Parser:
    parser = Parser(
        prog="gateway connect",
        usage="gateway connect [options] [user@]host|ssh://[user@]host[:port] [command ...]",
        description="Turns an SSH login into a proxy. Takes the options and files of ssh(1).",
        allow_abbrev=False,
        add_help=False,
    )
    parser.set_defaults(settings=[], overriding=[])
    add = parser.add_argument
    add("--help", action="help", help="show this text")
    for letter, option in _OPTIONS.items():
        add(f"-{letter}", dest="settings", action=_Keep, nargs=None if option.metavar else 0,
            metavar=option.metavar, help=option.help)  # fmt: skip
    add("-o", dest="settings", action=_Keep, metavar="KEY=VALUE",
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
    for letter in _WITHOUT_EFFECT:
        add(f"-{letter}", dest="without_effect", action="store_true", help=argparse.SUPPRESS)
    for letter, what in _IGNORED.items():
        add(f"-{letter}", dest="ignored", action="append_const", const=f"-{letter}: {what}",
            help=argparse.SUPPRESS)  # fmt: skip
    add("-e", dest="escape", help=argparse.SUPPRESS)
    for letter in _NOT_YET:
        add(f"-{letter}", dest="not_yet", action=_Refuse, nargs="?", help=argparse.SUPPRESS)
    add("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


class _Keep(argparse.Action):
    """An option that is a setting: its keyword and text go to the others, in order."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 - argparse's signature
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        letter = (option_string or "-?")[1]
        if letter == "o":
            namespace.settings.append(parse_option(str(values)))
            return
        for name in (letter, _ALSO.get(letter)):
            if name is not None:
                option = _OPTIONS[name]
                setting = (option.keyword, quoted(str(values)) if option.metavar else option.value)
                if option.overrides:
                    namespace.overriding.insert(0, setting)
                else:
                    namespace.settings.append(setting)


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

    The result has ``host``, ``command`` and ``settings``, strongest first; with -Q there may be no
    host. Raises `ConfigError`.
    """
    parser = _parser()
    namespace = parser.parse_args(arguments)
    namespace.host = namespace.command = None
    if namespace.rest[:1] == ["--"]:
        del namespace.rest[0]
    if namespace.query is not None:
        return namespace
    if not namespace.rest:
        parser.error("the host is missing")
    destination, rest = parse_destination(namespace.rest[0]), namespace.rest[1:]
    namespace.host = destination.host
    if destination.port is not None:
        namespace.settings.append(("Port", str(destination.port)))
    if destination.user is not None:
        namespace.settings.append(("User", quoted(destination.user)))
    while rest and rest[0].startswith("-") and rest[0] != "--":
        parser.parse_args(rest, namespace)
        if len(namespace.rest) >= len(rest):
            break
        rest = namespace.rest
    if rest[:1] == ["--"]:
        rest = rest[1:]
    namespace.command = " ".join(rest) if rest else None
    namespace.settings[:0] = [*namespace.overriding, *_log_level(namespace)]
    return namespace


def _log_level(namespace: argparse.Namespace) -> list[tuple[str, str]]:
    if namespace.quiet:
        return [("LogLevel", "QUIET")]
    if namespace.verbose:
        return [("LogLevel", "DEBUG" if namespace.verbose > 1 else "VERBOSE")]
    return []
