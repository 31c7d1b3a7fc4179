"""The command line: one file per command; arguments, exit codes and output, nothing else."""

from __future__ import annotations

import gc
import os
import sys
from typing import Final

from gateway import __version__

USAGE: Final = """\
usage: gateway connect [options] [user@]host [command]   a proxy or a tunnel over an SSH login
       gateway forward HOST list|add|cancel [-L|-R|-D …]   what a running connect forwards
       gateway serve [options]                           the SSH server of a jump box
       gateway audit verify|show|key FOLDER              its audit log
       gateway init DIR                                  a gateway.toml to begin with
       gateway explain [-c FILE] USER open HOST:PORT     may USER do that, and by which rule
       gateway cleanup                                   undo what a killed VPN has left
       gateway --version

`gateway COMMAND --help` lists the options of a command.
"""


def main() -> int:
    """Run the command that the arguments name; return the exit status."""
    _fill_standard_descriptors()
    gc.disable()  # what a start makes stays: nothing to find until `terminal.run`
    arguments = sys.argv[1:]
    command = arguments[0] if arguments else ""
    match command:  # one command, its imports
        case "connect":
            from gateway.cli.connect import run_connect as run_command  # noqa: PLC0415
        case "forward":
            from gateway.cli.forward import run_forward as run_command  # noqa: PLC0415
        case "serve":
            from gateway.cli.serve import run_serve as run_command  # noqa: PLC0415
        case "init":
            from gateway.cli.init import run_init as run_command  # noqa: PLC0415
        case "explain":
            from gateway.cli.explain import run_explain as run_command  # noqa: PLC0415
        case "audit":
            from gateway.cli.audit import run_audit as run_command  # noqa: PLC0415
        case "cleanup":
            from gateway.cli.cleanup import run_cleanup as run_command  # noqa: PLC0415
        case "--version" | "-V":
            print(f"gateway {__version__}")
            return 0
        case "--help" | "-h" | "help":
            print(USAGE, end="")
            return 0
        case _:
            problem = f"there is no command {command!r}" if command else "a command is missing"
            print(f"gateway: {problem}: see gateway --help", file=sys.stderr)
            return 255
    return run_command(arguments[1:])


def _fill_standard_descriptors() -> None:
    """Open /dev/null where standard input, output or error are closed, as ssh(1) does.

    Otherwise the next socket would get such a number, and what is printed would go into it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
