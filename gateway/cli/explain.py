"""`gateway explain`: what the rules of a gateway.toml say about one request, without a login."""

from __future__ import annotations

from pathlib import Path

from gateway.cli.terminal import EXIT_FAILURE, Parser, say_error
from gateway.config.gateway_toml import read_gateway_toml
from gateway.errors import ConfigError
from gateway.policy.explain import explain


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
        help="the request: open HOST:PORT, listen HOST:PORT, tun KIND or unix PATH")  # fmt: skip
    try:
        parsed = parser.parse_args(arguments)
        config = read_gateway_toml(parsed.config)
        lines = explain(config.policy, config.groups_by_user, parsed.user, parsed.words)
    except ConfigError as error:
        say_error(error)
        return EXIT_FAILURE
    print("\n".join(lines))
    return 0
