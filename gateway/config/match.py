"""Match lines: their criteria, and whether all of them hold (readconf.c, match_cfg_line)."""

from __future__ import annotations

import ipaddress
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gateway.config.lines import expand_tokens, matches_list
from gateway.config.tokens import ShellTokens, jump_host, make_tokens
from gateway.errors import ConfigError, printable
from gateway.net.local_command import SHELL_REMEDY, shell_problem, user_shell

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gateway.config.sources import Environment, Settings

# What our ssh_config(5) is that of: a Match version hides what an older ssh would not understand.
OPENSSH_VERSION: Final = "OpenSSH_10.5"
_SESSION_TYPES: Final = ("none", "subsystem")


@dataclass(frozen=True, slots=True)
class Subject:
    """What a Match line is asked about; ``final`` in the second pass over the files."""

    alias: str
    host: str
    command: str | None
    final: bool
    environment: Environment
    settings: Settings

    def word(self, slot: str, default: str) -> str:
        """Return what a keyword with one value says so far."""
        setting = self.settings.first(slot)
        return default if setting is None else setting.one()

    def target_host(self) -> str:
        """Return the name of the server, as far as it is known."""
        setting = self.settings.first("hostname")
        if self.final or setting is None:
            return self.host
        return expand_tokens(setting.one(), {"h": self.alias}, setting.where)


@dataclass(frozen=True, slots=True)
class Criterion:
    """One part of a Match line; ``value`` is None where it takes none."""

    name: str
    negated: bool
    value: str | None


def line_applies(words: Sequence[str], where: str, subject: Subject) -> tuple[bool, bool]:
    """Say whether a Match line applies, and whether it asks for the second pass.

    A negated ``final`` does not, as in OpenSSH 10.6; until 9.2 at least it did.
    """
    criteria = _parse(words, where)
    result = True
    wants_final = False
    for criterion in criteria:
        wants_final |= criterion.name == "final" and not criterion.negated
        if result:
            holds = _TESTS[criterion.name](subject, criterion.value or "", where)
            result = holds != criterion.negated
    return result, wants_final


def _parse(words: Sequence[str], where: str) -> list[Criterion]:
    criteria: list[Criterion] = []
    remaining = list(words)
    while remaining:
        word, equals, given = remaining.pop(0).partition("=")
        negated = word.startswith("!")
        name = word.removeprefix("!").lower()
        value: str | None = given if equals else None
        if name not in _TESTS:
            raise ConfigError(
                f"{printable(word, 60) or 'an empty text'} is no criterion of Match",
                where=where,
                remedy=f"write one of {', '.join(CRITERIA_NAMES)}",
            )
        if name in _ALONE:
            if equals:
                raise ConfigError(
                    f"the criterion {name} takes no value", where=where, remedy="write it alone"
                )
        elif value is None and remaining:
            value = remaining.pop(0)
        if name not in _ALONE and (value is None or (not value and name not in _MAY_BE_EMPTY)):
            raise ConfigError(
                f"the criterion {name} has no pattern", where=where, remedy="write one after it"
            )
        criteria.append(Criterion(name, negated, value))
    _check_all(criteria, where)
    return criteria


def _check_all(criteria: list[Criterion], where: str) -> None:
    names = [criterion.name for criterion in criteria]
    if "all" not in names:
        return
    if names.index("all") != len(names) - 1 or set(names) - _ALONE:
        raise ConfigError(
            "all cannot be combined with other criteria",
            where=where,
            remedy="write Match all, or Match final all",
        )


def _host(subject: Subject, patterns: str, _where: str) -> bool:
    return matches_list(subject.target_host().lower(), patterns.lower())


def _original_host(subject: Subject, patterns: str, _where: str) -> bool:
    return matches_list(subject.alias.lower(), patterns.lower())


def _user(subject: Subject, patterns: str, _where: str) -> bool:
    return matches_list(subject.word("user", subject.environment.local_user), patterns)


def _local_user(subject: Subject, patterns: str, _where: str) -> bool:
    return matches_list(subject.environment.local_user, patterns)


def _unset_or_matches(value: str, patterns: str) -> bool:
    """Match what may be unset: only an empty pattern says so, a star does not."""
    return matches_list(value, patterns) if value else not patterns


def _tagged(subject: Subject, patterns: str, _where: str) -> bool:
    return _unset_or_matches(subject.word("tag", ""), patterns)


def _command(subject: Subject, patterns: str, _where: str) -> bool:
    return _unset_or_matches(subject.command or "", patterns)


def _version(_subject: Subject, patterns: str, _where: str) -> bool:
    return matches_list(OPENSSH_VERSION, patterns)


def _session_type(subject: Subject, patterns: str, _where: str) -> bool:
    kind = subject.word("sessiontype", "").lower()
    if kind not in _SESSION_TYPES:
        kind = "exec" if subject.command else "shell"
    return matches_list(kind, patterns)


def _local_network(subject: Subject, patterns: str, where: str) -> bool:
    networks = [_network(text, where) for text in patterns.split(",")]
    addresses = subject.environment.local_addresses()
    return any(address in network for address in addresses for network in networks)


def _network(text: str, where: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as exc:
        raise ConfigError(
            f"{printable(text, 60) or 'an empty text'} is not a network",
            where=where,
            remedy="write ADDRESS/BITS with zeros after the network's bits, as in 10.0.0.0/8",
        ) from exc


def _exec(subject: Subject, command: str, where: str) -> bool:
    """Run a command in the user's shell, once no value in it can mean anything to the shell."""
    environment = subject.environment
    host = subject.target_host()
    tokens = make_tokens(
        environment,
        alias=subject.alias,
        host_name=host,
        port=subject.word("port", "22"),
        user=subject.word("user", environment.local_user),
        host_key_alias=subject.word("hostkeyalias", host),
        jump_host=jump_host(subject.settings),
    )
    expanded = expand_tokens(command, ShellTokens(tokens, where), where)
    return environment.execute(expanded, where)


def run_in_shell(command: str, where: str) -> bool:
    """Run a command of the configuration in the user's shell, silently; say whether it succeeded.

    As ssh does: standard error stays (readconf.c, execute_in_shell).
    """
    shell = user_shell()
    try:
        status = subprocess.run(  # noqa: S603 - what the user wrote, its values checked
            [shell, "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            check=False,
        ).returncode
    except OSError as exc:
        raise ConfigError(shell_problem(shell, exc), where=where, remedy=SHELL_REMEDY) from exc
    if status < 0:
        raise ConfigError(
            f"the command {printable(command, 60)} was ended by signal {-status}",
            where=where,
            remedy="run it by hand to see why",
        )
    return status == 0


_ALONE: Final = frozenset(("all", "canonical", "final"))
_MAY_BE_EMPTY: Final = frozenset(("tagged", "command"))
_TESTS: Final[Mapping[str, Callable[[Subject, str, str], bool]]] = {
    "all": lambda _subject, _value, _where: True,
    "canonical": lambda subject, _value, _where: subject.final,
    "final": lambda subject, _value, _where: subject.final,
    "exec": _exec,
    "localnetwork": _local_network,
    "host": _host,
    "originalhost": _original_host,
    "tagged": _tagged,
    "command": _command,
    "user": _user,
    "localuser": _local_user,
    "version": _version,
    "sessiontype": _session_type,
}
CRITERIA_NAMES: Final = tuple(_TESTS)
