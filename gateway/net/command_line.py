"""The command line of ``~C``: forwardings of a running session (clientloop.c, process_cmdline)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Protocol

from gateway.errors import GatewayError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PROMPT: Final = "gateway> "
_COMMAND: Final = re.compile(r"(K?)([LRD])\s*(\S.*)")
_HELP: Final = (
    "Commands:",
    "      -L[bind_address:]port:host:hostport    Request local forward",
    "      -R[bind_address:]port:host:hostport    Request remote forward",
    "      -D[bind_address:]port                  Request dynamic forward",
    "      -KL[bind_address:]port                 Cancel local forward",
    "      -KR[bind_address:]port                 Cancel remote forward",
    "      -KD[bind_address:]port                 Cancel dynamic forward",
)
_LOCAL_HELP: Final = "      !args                                  Execute local command"


class Forwards(Protocol):
    """The forwardings of a link. ``kind`` is the letter of ssh(1)'s option: L, R or D."""

    def list(self) -> list[str]:
        """Return a line for each."""

    async def add(self, kind: str, spec: str) -> str:
        """Set one up as its option says; return what to tell. Raises `GatewayError`."""

    async def cancel(self, kind: str, spec: str) -> str:
        """End one; return what to tell. Raises `GatewayError`."""


async def run_line(
    line: str, forwards: Forwards | None, run_locally: Callable[[str], Awaitable[None]] | None
) -> list[str]:
    """Do what a line asks for; return what to tell. Without ``run_locally`` there is no ``!``."""
    command = line.strip()
    if run_locally is not None and command.startswith("!"):
        await run_locally(command[1:])
        return []
    command = command.removeprefix("-")
    if not command:
        return []
    if command[0] in "hH?":
        return [*_HELP, _LOCAL_HELP] if run_locally is not None else list(_HELP)
    return [await _change(command, forwards)]


async def _change(command: str, forwards: Forwards | None) -> str:
    """Add or cancel a forwarding; return what to tell."""
    found = _COMMAND.fullmatch(command)
    if found is None:
        return "Invalid command: help lists those that there are."
    cancels, kind, spec = found.groups()
    if forwards is None:
        return "Forwardings cannot be changed here."
    try:
        return await (forwards.cancel if cancels else forwards.add)(kind, spec)
    except GatewayError as error:
        return str(error)
