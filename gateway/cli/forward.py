"""`gateway forward`: the forwardings of a running `gateway connect`, through its control socket."""

from __future__ import annotations

import argparse
from pathlib import Path

from gateway.cli.environment import read_environment
from gateway.cli.terminal import EXIT_FAILURE, Parser, say
from gateway.config.addresses import parse_destination
from gateway.config.control_path import find_controls
from gateway.config.lines import parse_option, quoted
from gateway.config.ssh_config import default_files, read_host_config
from gateway.errors import ConfigError, GatewayError, printable
from gateway.forward.control import Shown, ask, is_dead


class _Kept(argparse.Action):
    """A forwarding, kept with its option in their order."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 - argparse's signature
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        namespace.forwards.append(((option_string or "-?")[1], str(values)))


def _parser() -> Parser:
    parser = Parser(
        prog="gateway forward",
        usage="gateway forward [-p PORT] [-l USER] [-F FILE] [-o KEY=VALUE] HOST|--socket PATH\n"
        "                       list | add FORWARD... | cancel FORWARD...",
        description="Lists, adds and cancels forwardings of a running gateway connect. A FORWARD is"
        " -L, -R or -D as with connect; to cancel one, its [ADDRESS:]PORT or path will do.",
        allow_abbrev=False,
    )
    parser.set_defaults(forwards=[])
    add = parser.add_argument
    add("--socket", metavar="PATH", type=Path, help="the control socket; connect -v tells it")
    add("-F", dest="config_file", metavar="FILE", help="as with connect")
    add("-p", dest="port", metavar="PORT", help="as with connect")
    add("-l", dest="user", metavar="USER", help="as with connect")
    add("-o", dest="options", action="append", default=[], metavar="KEY=VALUE",
        help="as with connect")  # fmt: skip
    for letter in "LRD":
        add(f"-{letter}", action=_Kept, metavar="FORWARD", help="as with connect (repeatable)")
    add("words", nargs="*", help=argparse.SUPPRESS)
    return parser


def run_forward(arguments: list[str]) -> int:
    """Run the command; return its exit status."""
    try:
        parser = _parser()
        parsed = parser.parse_intermixed_args(arguments)
        host, what = _host_and_verb(parser, parsed)
        path = parsed.socket or _find(host, parsed)
        if what == "list":
            _show(ask(path, {"do": "list"}))
        for kind, forward in parsed.forwards:
            for added in ask(path, {"do": what, "kind": kind, "forward": forward}):
                if added.chosen:
                    print(added.port)  # as ssh -O forward
    except GatewayError as error:
        say(str(error))
        return EXIT_FAILURE
    return 0


def _host_and_verb(parser: Parser, parsed: argparse.Namespace) -> tuple[str, str]:
    match parsed.words:
        case [verb] if parsed.socket is not None:
            host = ""
        case [host, verb] if parsed.socket is None:
            pass
        case _:
            parser.error("write a host or --socket PATH, and then list, add or cancel")
    if verb not in ("list", "add", "cancel"):
        parser.error(f"{printable(verb, 40)} is neither list, add nor cancel")
    if (verb == "list") == bool(parsed.forwards):
        parser.error(
            "list takes no forwarding" if parsed.forwards else f"{verb} needs a -L, -R or -D"
        )
    return host, verb


def _find(host: str, parsed: argparse.Namespace) -> Path:
    """Find the one process that has this host. Raises `ConfigError`."""
    environment = read_environment()
    destination = parse_destination(host)
    settings = [parse_option(option) for option in parsed.options]
    if parsed.port or destination.port:
        settings.append(("Port", quoted(str(parsed.port or destination.port))))
    if user := parsed.user or destination.user:
        settings.append(("User", quoted(user)))
    config = read_host_config(
        destination.host,
        files=default_files(environment.home, parsed.config_file),
        command_line=settings,
        environment=environment,
    )
    found = [path for path in find_controls(config, environment) if not is_dead(path)]
    shown = f"{config.user}@{config.host_name} port {config.port}"
    if not found:
        raise ConfigError(
            f"no gateway connect to {shown} is running",
            remedy="start one, or write user and port as it was given them",
        )
    if len(found) > 1:
        raise ConfigError(
            f"{len(found)} of them are connected to {shown}",
            remedy=f"choose one: {' or '.join(f'--socket {path}' for path in found)}",
        )
    return found[0]


def _show(forwards: list[Shown]) -> None:
    for found in forwards:
        print(f"{found.forward} (port {found.port})" if found.chosen else found.forward)
