"""A command of the user's own, run in the user's shell (LocalCommand; readconf.c, ssh_local_cmd).

What stands in it was written by the user; values from outside were checked when they were put in
(`gateway.config.tokens`).
"""

from __future__ import annotations

import logging
import os
from typing import Final

import trio

from gateway.errors import printable

log = logging.getLogger(__name__)

SHELL_REMEDY: Final = "set the variable SHELL to a shell"


def user_shell() -> str:
    """Return the shell that commands are for (ssh_config(5), LocalCommand)."""
    return os.environ.get("SHELL") or "/bin/sh"


def shell_problem(shell: str, error: Exception) -> str:
    """Say why it does not start."""
    return f"the shell {printable(shell)} cannot be run ({getattr(error, 'strerror', error)})"


async def run_locally(command: str) -> None:
    """Run it with our input, output and errors, and wait for its end, whatever its status."""
    shell = user_shell()
    try:
        await trio.run_process([shell, "-c", command], stdin=None, check=False)
    except (OSError, ValueError) as error:
        log.warning("%s: %s", shell_problem(shell, error), SHELL_REMEDY)
