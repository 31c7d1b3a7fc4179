"""`gateway cleanup`: undo what a gateway that was killed has left in this machine's network."""

from __future__ import annotations

import os

from gateway.cli.terminal import EXIT_FAILURE, Parser, say
from gateway.errors import ConfigError, NetworkSetupError
from gateway.tun.journal import Process
from gateway.tun.keeper import Keeper


def run_cleanup(arguments: list[str]) -> int:
    """Run the command; return its exit status."""
    parser = Parser(
        prog="gateway cleanup",
        description="Undo what a gateway that was killed has left in this machine's network:"
        " addresses, routes, rules, forwarding. What still runs is left alone.",
        allow_abbrev=False,
    )
    try:
        parser.parse_args(arguments)
        keeper = Keeper(Process.of(os.getpid()))
        report = keeper.clean_up()
        keeper.close()
    except (ConfigError, NetworkSetupError) as error:
        say(str(error))
        return EXIT_FAILURE
    for line in report.undone:
        print(f"undone: {line}")
    for line in report.failed:
        say(f"this could not be undone: {line}")
    if not report.undone and not report.failed:
        print("nothing was left behind")
    return EXIT_FAILURE if report.failed else 0
