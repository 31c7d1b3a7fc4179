"""What session a command line and a configuration ask for (ssh.c, main)."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final

from gateway.config.session import sent_environment
from gateway.config.ssh_config import LogLevel, RequestTTY, SessionType
from gateway.errors import ConfigError
from gateway.net.console import Foreground
from gateway.net.session import SessionPlan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.config.ssh_config import HostConfig

STANDARD_INPUT: Final = 0
LEVELS: Final = {
    LogLevel.QUIET: logging.CRITICAL,
    LogLevel.FATAL: logging.CRITICAL,
    LogLevel.ERROR: logging.ERROR,
    LogLevel.INFO: logging.WARNING,
    LogLevel.VERBOSE: logging.INFO,
    LogLevel.DEBUG1: logging.DEBUG,
    LogLevel.DEBUG2: logging.DEBUG,
    LogLevel.DEBUG3: logging.DEBUG,
}


def session_plan(
    config: HostConfig, command: str | None, variables: Mapping[str, str]
) -> SessionPlan | None:
    """Return what to ask the server for; None for no session. Raises `ConfigError`."""
    if command is not None and config.remote_command is not None:
        raise ConfigError(
            "there are two commands, one on the command line and one in RemoteCommand",
            remedy="leave one out, or use -o RemoteCommand=none",
        )
    if config.session_type is SessionType.NONE:
        return None
    is_subsystem = config.session_type is SessionType.SUBSYSTEM
    if is_subsystem and command is None:
        raise ConfigError(
            "-s: the subsystem is not named", remedy="write its name in the place of a command"
        )
    command = command if command is not None else config.remote_command
    if config.fork_after_authentication and command is None:
        raise ConfigError(
            "-f: there is nothing to do in the background",
            remedy="give a command, or -N for a tunnel only",
        )
    return SessionPlan(
        command,
        is_subsystem=is_subsystem,
        terminal=_term(config, variables) if _wants_terminal(config, command) else None,
        needs_terminal=config.request_tty in (RequestTTY.YES, RequestTTY.FORCE),
        environment=sent_environment(variables, config.send_env, config.set_env),
    )


def _term(config: HostConfig, variables: Mapping[str, str]) -> str:
    return dict(config.set_env).get("TERM") or variables.get("TERM", "")


def _wants_terminal(config: HostConfig, command: str | None) -> bool:
    match config.request_tty:
        case RequestTTY.FORCE:
            return True
        case RequestTTY.NO:
            return False
        case RequestTTY.AUTO if command is not None:
            return False
    if reads_input(config) and os.isatty(STANDARD_INPUT):
        return True
    logging.getLogger(__name__).warning(
        "no terminal is asked for, since standard input is none: -t -t asks all the same"
    )
    return False


def reads_input(config: HostConfig) -> bool:
    """Whether a session gets our input."""
    return not (config.fork_after_authentication or config.stdin_null)


def foreground(config: HostConfig, plan: SessionPlan | None) -> Foreground:
    """Return what the person at the terminal may do; escapes need one on the server."""
    has_terminal = plan is not None and plan.terminal is not None
    return Foreground(
        reads_input=reads_input(config),
        escape=config.escape_char if has_terminal else None,
        has_command_line=config.enable_escape_command_line,
        may_run_locally=config.permit_local_command,
        change_verbosity=_Verbosity(config.log_level).change,
    )


class _Verbosity:
    """The LogLevel, step by step."""

    def __init__(self, level: LogLevel) -> None:
        self._levels = list(LogLevel)
        self._at = self._levels.index(level)

    def change(self, step: int) -> str:
        self._at = min(max(self._at + step, 0), len(self._levels) - 1)
        level = self._levels[self._at]
        logging.getLogger().setLevel(LEVELS[level])
        return level.name
