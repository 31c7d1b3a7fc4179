"""ssh(1)'s options on `gateway connect`: what each is called, and the keyword that it stands for.

Most options are another spelling of a keyword of ssh_config(5). They are collected in their order,
since it decides which of two wins, and read with everything else by `gateway.config`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Final

from gateway.cli.terminal import Parser
from gateway.cli.vpn_options import add_vpn_options, vpn_options
from gateway.config.addresses import parse_destination
from gateway.config.proxies import parse_proxies
from gateway.config.sources import PROXIES
from gateway.config.ssh_config import parse_option, quoted


@dataclass(frozen=True, slots=True)
class Option:
    """An option that stands for a keyword, with an argument or for one ``value``.

    The first one given wins, also against -o; one that ``overrides`` wins wherever it stands, the
    last of them at that (ssh.c, main). Given ``again``, its value is another.
    """

    keyword: str
    help: str
    metavar: str | None = None
    value: str = ""
    overrides: bool = False
    again: str = ""


_OPTIONS: Final = {
    "N": Option("SessionType", "run no command: only the tunnel", value="none", overrides=True),
    "D": Option("DynamicForward", "SOCKS proxy on this port (repeatable); loopback unless "
                "ADDRESS is given", "[ADDRESS:]PORT"),
    "L": Option("LocalForward", "let clients of this machine reach what the server does "
                "(repeatable)", "[ADDRESS:]PORT:HOST:PORT"),
    "R": Option("RemoteForward", "let clients of the server reach what this machine does; with a "
                "port alone, a SOCKS proxy for them (repeatable)", "[ADDRESS:]PORT[:HOST:PORT]"),
    "S": Option("ControlPath", "name of the control socket, to which .gateway is added; none for "
                "no socket", "PATH", overrides=True),
    "g": Option("GatewayPorts", "let others connect to what -L and -D listen on", value="yes",
                overrides=True),
    "p": Option("Port", "port of the SSH server (22)", "PORT"),
    "l": Option("User", "user to log in as", "USER"),
    "i": Option("IdentityFile", "private key (repeatable)", "FILE"),
    "c": Option("Ciphers", "ciphers, best first", "LIST", overrides=True),
    "m": Option("MACs", "message authentication codes, best first", "LIST", overrides=True),
    "b": Option("BindAddress", "connect from this address", "ADDRESS", overrides=True),
    "B": Option("BindInterface", "connect through this interface", "INTERFACE", overrides=True),
    "J": Option("ProxyJump", "go through these hosts, in this order", "[USER@]HOST[:PORT][,...]"),
    "P": Option("Tag", "select lines with Match tagged", "TAG"),
    "w": Option("TunnelDevice", "open a tun device on both sides", "LOCAL[:REMOTE]",
                overrides=True),
    "f": Option("ForkAfterAuthentication", "go to the background once everything is up",
                value="yes", overrides=True),
    "n": Option("StdinNull", "the command gets no input", value="yes", overrides=True),
    "t": Option("RequestTTY", "ask for a terminal (twice: also if there is none here)",
                value="yes", overrides=True, again="force"),
    "T": Option("RequestTTY", "ask for no terminal", value="no", overrides=True),
    "s": Option("SessionType", "the command is the name of a subsystem", value="subsystem",
                overrides=True),
    "e": Option("EscapeChar", "escape character of a session with a terminal (~)", "CHARACTER",
                overrides=True),
    "4": Option("AddressFamily", "IPv4 only", value="inet", overrides=True),
    "6": Option("AddressFamily", "IPv6 only", value="inet6", overrides=True),
}  # fmt: skip
# What they mean besides: -f means -n, -N means -T, and -w a Tunnel of the usual kind if nothing
# says which.
_ALSO: Final = {
    "N": _OPTIONS["T"],
    "f": _OPTIONS["n"],
    "w": Option("Tunnel", "", value="point-to-point"),
}
# What -W means besides: it overrides what else would be opened, or is what is not set otherwise.
_STDIO_OVERRIDES: Final = (("SessionType", "none"), ("RequestTTY", "no"))
_STDIO_DEFAULTS: Final = (("ClearAllForwardings", "yes"), ("ExitOnForwardFailure", "yes"))
# Options about what there is not: accepted, in silence if they turn it off.
_WITHOUT_EFFECT: Final = ("a", "k", "x")
_IGNORED: Final = {
    "A": "agent forwarding",
    "C": "compression",
    "K": "GSSAPI",
    "X": "X11 forwarding",
    "Y": "X11 forwarding",
}
# Options whose absence would change what happens: refused until they work.
_NOT_YET: Final = {
    "M": "connection sharing",
    "O": "connection sharing",
    "I": "PKCS#11",
}


def _parser() -> Parser:
    parser = Parser(
        prog="gateway connect",
        usage="gateway connect [options] [user@]host|ssh://[user@]host[:port] [command ...]",
        description="Logs in with SSH: for a proxy, forwardings, a VPN, a command or a shell. "
        "Takes the options and files of ssh(1).",
        allow_abbrev=False,
        add_help=False,
    )
    parser.set_defaults(settings=[], overriding=[], defaults=())
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
    add("-W", dest="stdio_forward", metavar="HOST:PORT", action=_Once,
        help="join standard input and output to what the server reaches there")  # fmt: skip
    add("--via", action="append", metavar="URL",
        help="go through this proxy (repeatable, in this order, before -J): socks5h://, socks4a:// "
        "or http://[USER[:PASSWORD]@]HOST[:PORT]; socks5:// looks names up on this machine; @FILE "
        "takes URLs from a file, so that no password is on the command line")  # fmt: skip
    add_vpn_options(parser)
    for letter in _WITHOUT_EFFECT:
        add(f"-{letter}", dest="without_effect", action="store_true", help=argparse.SUPPRESS)
    for letter, what in _IGNORED.items():
        add(f"-{letter}", dest="ignored", action="append_const", const=f"-{letter}: {what}",
            help=argparse.SUPPRESS)  # fmt: skip
    for letter in _NOT_YET:
        add(f"-{letter}", dest="not_yet", action=_Refuse, nargs="?", help=argparse.SUPPRESS)
    add("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


class _Keep(argparse.Action):
    """An option that is a setting: its keyword and text go to the others, in order."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        letter = (option_string or "-?")[1]
        if letter == "J" and any(name.lower() in PROXIES for name, _ in namespace.settings):
            parser.error(
                "-J stands behind another -J, a ProxyJump or a ProxyCommand, which would win: "
                "leave one, and write all hops into it, with commas between them"
            )
        if letter == "o":
            namespace.settings.append(parse_option(str(values)))
            return
        for option in (_OPTIONS[letter], _ALSO.get(letter)):
            if option is None:
                continue
            value = quoted(str(values)) if option.metavar else option.value
            if option.overrides:
                value = _beside_earlier(option, value, parser, namespace)
                namespace.overriding.insert(0, (option.keyword, value))
            else:
                namespace.settings.append((option.keyword, value))


def _beside_earlier(
    option: Option, value: str, parser: argparse.ArgumentParser, namespace: argparse.Namespace
) -> str:
    """Return what an option means after those that were given before."""
    earlier = next((old for name, old in namespace.overriding if name == option.keyword), value)
    if option.keyword == "SessionType" and earlier != value:
        parser.error("-N and -s exclude each other")
    seen = (option.keyword, value) in namespace.overriding
    return option.again if option.again and seen and earlier == value else value


class _Once(argparse.Action):
    """An option that may be given once (ssh.c, main)."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string} is given twice")
        setattr(namespace, self.dest, values)


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

    The result has ``host``, ``command``, ``vpn_options`` and ``settings``, strongest first; with -Q
    there may be no host. A VPN without a command is -N. Raises `ConfigError`.
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
    namespace.proxies = parse_proxies(namespace.via or ())
    namespace.vpn_options = vpn_options(namespace)
    if namespace.vpn_options is not None and namespace.command is None:
        namespace.settings.append(("SessionType", "none"))
    _imply_stdio(namespace)
    namespace.settings[:0] = [*namespace.overriding, *_log_level(namespace)]
    return namespace


def _imply_stdio(namespace: argparse.Namespace) -> None:
    if namespace.stdio_forward is not None:
        namespace.overriding[:0] = _STDIO_OVERRIDES
        namespace.defaults = _STDIO_DEFAULTS


def _log_level(namespace: argparse.Namespace) -> list[tuple[str, str]]:
    if namespace.quiet:
        return [("LogLevel", "QUIET")]
    if namespace.verbose:
        return [("LogLevel", "DEBUG" if namespace.verbose > 1 else "VERBOSE")]
    return []
