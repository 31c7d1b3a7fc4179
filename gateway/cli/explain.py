"""`gateway explain`: what the rules of a gateway.toml say about one request, without a login."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from gateway.cli.terminal import EXIT_FAILURE, Parser, say_error
from gateway.config.gateway_toml import read_gateway_toml
from gateway.errors import ConfigError
from gateway.net.dial import NameResolutionError, resolve
from gateway.policy.explain import explain, requested_host

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.policy.addresses import Address


def _addresses(host: str, names: Mapping[str, str]) -> list[Address]:
    """Return what a host stands for, as the server would find it; nothing if nobody knows it."""
    if not host:
        return []
    try:
        return [found.ip for found in trio.run(partial(resolve, host, 0, hosts=names))]
    except NameResolutionError:
        return []


def run_explain(arguments: list[str]) -> int:
    """Run the command; return its exit status."""
    parser = Parser(
        prog="gateway explain",
        description="Say what a user may do, and which rule decides.",
        epilog="for example: gateway explain alice open db.internal:5432",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-c", dest="config", type=Path, default=Path("gateway.toml"), metavar="FILE",
        help="the configuration (default: gateway.toml)")  # fmt: skip
    add("user", metavar="USER", help="a user name of the configuration")
    add("words", nargs="+", metavar="WORD",
        help="the request: open or listen HOST:PORT, tun KIND or ADDRESS, unix PATH")  # fmt: skip
    try:
        parsed = parser.parse_args(arguments)
        config = read_gateway_toml(parsed.config)
        text = " ".join(parsed.words)
        addresses = _addresses(requested_host(text), config.names)
        explained = explain(
            config.policy, config.groups_by_user, parsed.user, text, addresses=addresses
        )
    except ConfigError as error:
        say_error(error)
        return EXIT_FAILURE
    print("\n".join(explained.lines))
    return 0
