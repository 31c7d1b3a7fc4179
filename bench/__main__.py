"""`scripts/bench COMMAND`: how fast we are, always next to ssh in the same run.

Absolute figures mean little, ratios do: `rounds.py` says how they are taken, `programs.py` starts
what is measured, `ends.py` measures, and each command has a file with its measures and its bars.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import signal
import sys
from pathlib import Path

from bench import echo, floods, forward, many, path, serve, socks, tun
from bench.programs import fail
from bench.rounds import Command, execute
from tests.support.programs import sshd_path

COMMANDS = (
    socks.COMMAND, forward.COMMAND, path.COMMAND, echo.COMMAND, many.COMMAND, serve.COMMAND,
    tun.COMMAND, floods.COMMAND,
)  # fmt: skip


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def add_command(parser: argparse.ArgumentParser, command: Command) -> None:
    parser.set_defaults(command=command)
    parser.add_argument(
        "--rounds",
        type=positive,
        metavar="N",
        help=f"default: {command.rounds}, fewer if they take over {command.budget_s:.0f} s",
    )
    for option in command.options:
        parser.add_argument(
            f"--{option.name}",
            type=positive,
            default=option.default,
            metavar=option.unit,
            help=f"{option.what}; default: {option.default}",
        )
    parser.add_argument("--json", action="store_true", help="print every figure as JSON")
    parser.add_argument("--check", action="store_true", help="fail if a bar is missed")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="only cases named so, and their peers"
    )
    parser.add_argument(
        "--part",
        action="append",
        default=[],
        choices=[part.name for part in command.parts],
        help="measure only this (repeatable)",
    )
    parser.add_argument(
        "--tree",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="measure the gateway of another working tree too, in the same rounds",
    )


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        add_command(commands.add_parser(command.name, help=command.what), command)
    options = parser.parse_args()
    if sshd_path() is None or shutil.which("ssh") is None:
        fail("ssh and sshd are needed as peers: apt-get install openssh-client openssh-server")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # so that every program is ended
    return execute(options.command, options)


if __name__ == "__main__":
    sys.exit(main())
