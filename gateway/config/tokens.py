"""The table of TOKENS in ssh_config(5) for one host, and what of it a shell may see."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gateway.config.addresses import parse_jumps
from gateway.config.lines import expand_tokens
from gateway.errors import ConfigError, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.config.sources import Environment, Settings

# What a shell takes for more than a character. A backslash is fine: nothing after it is here.
_SHELL_CHARACTERS: Final = frozenset("'\"`$;&<>|(){}[]*?!#~^")


def make_tokens(
    environment: Environment,
    *,
    alias: str,
    host_name: str,
    port: str,
    user: str,
    host_key_alias: str,
    jump_host: str = "",
) -> dict[str, str]:
    """Return what each letter stands for, as far as it is known before the connection is made.

    %f %H %I %K and %t are about a key that was received and belong to KnownHostsCommand, which is
    not run; %T belongs to `LocalCommand`.
    """
    tokens = {
        "d": str(environment.home),
        "h": host_name,
        "i": str(environment.uid),
        "j": jump_host,  # the last one, as ProxyJump has it
        "k": host_key_alias,
        "L": environment.local_hostname.partition(".")[0],
        "l": environment.local_hostname,
        "n": alias,
        "p": port,
        "r": user,
        "u": environment.local_user,
    }
    hashed = "".join(tokens[letter] for letter in "lhprj").encode("utf-8", "surrogateescape")
    return tokens | {"C": hashlib.sha1(hashed, usedforsecurity=False).hexdigest()}


def jump_host(settings: Settings) -> str:
    """Return what %j stands for; nothing if that itself is to be made of tokens."""
    setting = settings.proxy()
    if setting is None or setting.keyword.raw:
        return ""
    if "%" in setting.one() and not setting.on_command_line:
        return ""
    hops = parse_jumps(setting.one(), where=setting.where)
    return hops[-1].host if hops else ""


class ShellTokens(dict[str, str]):
    """Tokens for a command: a value is checked when it is used (CVE-2023-51385 and successors)."""

    def __init__(self, tokens: Mapping[str, str], where: str) -> None:
        super().__init__(tokens)
        self._where = where

    def __getitem__(self, letter: str) -> str:
        value = super().__getitem__(letter)
        special = any(
            character in _SHELL_CHARACTERS or character == " " or not character.isprintable()
            for character in value
        )
        if special or value.startswith("-") or value.endswith("\\"):
            raise ConfigError(
                f"%{letter} is {printable(value)} here, which would mean something else to a shell",
                where=self._where,
                remedy="use another name for it, or take the token out of the command",
            )
        return value


@dataclass(frozen=True, slots=True)
class LocalCommand:
    """A command for the user's shell, as it was written: it may name the device of the tunnel."""

    text: str
    tokens: Mapping[str, str]
    where: str

    def __post_init__(self) -> None:
        """Refuse a value that is not safe before anything is connected."""
        self.expanded(None)

    def expanded(self, device: str | None) -> str:
        """Put the values in; %T is the device, NONE without one. Raises `ConfigError`."""
        tokens = {**self.tokens, "T": device or "NONE"}
        return expand_tokens(self.text, ShellTokens(tokens, self.where), self.where)
