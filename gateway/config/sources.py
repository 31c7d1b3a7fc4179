"""Where settings come from: the command line, the files, and which of their lines apply to a host.

The order is ssh's (readconf.c, process_config_line_depth): the command line, the user's file, the
system's file; the first value of a keyword wins. Host and Match open a block that applies or does
not; a file that is included starts in the state of the line that includes it and cannot change it.
"""

from __future__ import annotations

import glob
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeVar

from gateway.config.canonical import system_resolve
from gateway.config.interfaces import local_addresses
from gateway.config.keywords import BY_NAME, Keyword
from gateway.config.lines import matches_list, matches_pattern, split_arguments, split_line
from gateway.config.match import Subject, line_applies, run_in_shell
from gateway.errors import ConfigError, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from ipaddress import IPv4Address, IPv6Address

    from gateway.config.canonical import Resolve

_T = TypeVar("_T")

SYSTEM_DIRECTORY: Final = Path("/etc/ssh")
INCLUDE_DEPTH: Final = 16  # readconf.c, READCONF_MAX_DEPTH
FILE_LIMIT: Final = 1024 * 1024  # our choice; ssh has no limit
JUMP: Final = "proxyjump"
PROXIES: Final = (JUMP, "proxycommand")
ACCUMULATED_LIMIT: Final = 100  # readconf.h, SSH_MAX_IDENTITY_FILES


@dataclass(frozen=True, slots=True)
class Environment:
    """What the reader must know of the machine and of the person.

    The functions are what a configuration may ask of the machine: look a name up, tell its own
    addresses, run a command of Match exec (with the place to name in an error).
    """

    home: Path
    local_user: str
    local_hostname: str
    uid: int
    variables: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    system_directory: Path = SYSTEM_DIRECTORY
    resolve: Resolve = system_resolve
    local_addresses: Callable[[], Iterable[IPv4Address | IPv6Address]] = local_addresses
    execute: Callable[[str, str], bool] = run_in_shell


@dataclass(frozen=True, slots=True)
class Setting:
    """One keyword with its arguments, and the place that every complaint about it names."""

    keyword: Keyword
    arguments: tuple[str, ...]
    where: str
    on_command_line: bool

    def one(self) -> str:
        """Return the only argument."""
        if len(self.arguments) != 1:
            raise self.wrong(
                f"there must be one value, not {len(self.arguments)}",
                "put a value with blanks into quotes, and one keyword on a line",
            )
        if not self.arguments[0]:
            raise self.wrong("the value is empty", "write a value or remove the line")
        return self.arguments[0]

    def wrong(self, problem: str, remedy: str) -> ConfigError:
        """Make the error that names this place; the caller raises it."""
        return ConfigError(problem, where=self.where, remedy=remedy)


class Settings:
    """What applies to one host: the first setting of each slot, or all of those that accumulate."""

    def __init__(self) -> None:
        self._found: dict[str, list[Setting]] = {}

    def add(self, setting: Setting) -> None:
        """Keep it, unless an earlier one wins or says the same."""
        kept = self._found.setdefault(setting.keyword.slot, [])
        if not kept:
            kept.append(setting)
        elif setting.keyword.accumulates and all(
            setting.arguments != old.arguments for old in kept
        ):
            if len(kept) == ACCUMULATED_LIMIT:
                raise setting.wrong(
                    f"there are more than {ACCUMULATED_LIMIT} of them for one host",
                    "remove those that are not needed",
                )
            kept.append(setting)

    def drop(self, slots: Iterable[str]) -> None:
        """Forget everything said about these."""
        for slot in slots:
            self._found.pop(slot, None)

    def all(self, slot: str) -> Sequence[Setting]:
        """Return the settings of a slot, in order."""
        return self._found.get(slot, ())

    def first(self, slot: str) -> Setting | None:
        """Return the one that wins."""
        found = self._found.get(slot)
        return found[0] if found else None

    def proxy(self) -> Setting | None:
        """Return what wins of ProxyJump and ProxyCommand: the first, but for a jump to none.

        That leaves it to a later ProxyCommand, as ``ssh -G`` shows; ssh_config(5) does not say so.
        """
        found = [setting for setting in self if setting.keyword.slot in PROXIES]
        if len(found) > 1 and found[0].keyword.slot == JUMP and found[0].one().lower() == "none":
            del found[0]
        return found[0] if found else None

    def value(self, slot: str, parse: Callable[[Setting], _T], default: _T) -> _T:
        """Parse the one that wins, or return the default."""
        found = self.first(slot)
        return default if found is None else parse(found)

    def __iter__(self) -> Iterator[Setting]:
        for found in self._found.values():
            yield from found


@dataclass(slots=True)
class _File:
    """Where the reader is: one file, and whether the block it is in applies."""

    shown: str
    of_user: bool  # else of the system: other relative Includes, no tilde
    never: bool  # included from a block that does not apply: no line of it can
    depth: int
    active: bool


class Reader:
    """One pass over command line and files, adding what applies to ``settings``.

    ssh makes a second pass if a ``Match final`` was seen or names are canonicalised: there
    ``final`` and ``canonical`` hold, and Host is matched against the resolved name.
    ``wants_final_pass`` asks for it. ``command`` is the remote one of the command line.
    """

    def __init__(
        self,
        alias: str,
        environment: Environment,
        settings: Settings,
        *,
        command: str | None = None,
        final_host: str | None = None,
    ) -> None:
        self.wants_final_pass = False
        self._command = command
        self._alias = alias
        self._host = alias if final_host is None else final_host
        self._final = final_host is not None
        self._environment = environment
        self._settings = settings
        self._openers: dict[str, Callable[[tuple[str, ...], str], bool]] = {
            "host": self._host_line,
            "match": self._match_line,
        }

    def read_command_line(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Take the options of the command line, which come before all files."""
        for name, text in pairs:
            where = f"command line: {printable(name, 60)}"
            if "\0" in text:
                raise ConfigError("there is a NUL character in the value", where=where)
            keyword = self._keyword(name, where)
            if keyword is None:
                continue
            if keyword.slot in ("host", "match", "include"):
                raise ConfigError(
                    "this keyword opens or includes lines of a file and is no option",
                    where=where,
                    remedy="put it into a file and name that with -F",
                )
            self._add(keyword, _arguments(keyword, text, where), where, on_command_line=True)

    def read_file(self, path: Path) -> None:
        """Read a configuration file and what it includes; a missing default file is empty."""
        environment = self._environment
        of_system = path == environment.system_directory / "ssh_config"
        of_user = path == environment.home / ".ssh" / "config"
        file = _File(self._shown(path), not of_system, never=False, depth=0, active=True)
        try:
            content = _read(path, file.shown, environment.uid if of_user else None)
        except FileNotFoundError as exc:
            if of_system or of_user:
                return
            raise ConfigError(
                "there is no such configuration file",
                where=file.shown,
                remedy="check the argument of -F, or write -F none",
            ) from exc
        self._read_lines(content, file)

    def _shown(self, path: Path) -> str:
        home = self._environment.home
        shown = f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
        return printable(shown)

    def _read_lines(self, content: bytes, file: _File) -> None:
        if file.depth > INCLUDE_DEPTH:
            raise ConfigError(
                f"files include each other more than {INCLUDE_DEPTH} deep",
                where=file.shown,
                remedy="look for a file that includes itself",
            )
        for number, line in enumerate(content.split(b"\n"), 1):
            where = f"{file.shown}:{number}"
            parts = split_line(line.decode("utf-8", "surrogateescape"), where)
            if parts is not None:
                self._read_line(*parts, file, f"{where}: {printable(parts[0], 60)}")

    def _read_line(self, name: str, rest: str, file: _File, where: str) -> None:
        keyword = self._keyword(name, where)
        if keyword is None:
            return
        arguments = _arguments(keyword, rest, where)
        if not arguments:
            raise ConfigError(
                "the keyword has no value", where=where, remedy="write a value or remove the line"
            )
        opener = self._openers.get(keyword.slot)
        if opener is not None:
            file.active = not file.never and opener(arguments, where)
        elif keyword.slot == "include":
            for pattern in arguments:
                self._include(pattern, file, where)
        elif file.active:
            self._add(keyword, arguments, where, on_command_line=False)

    def _add(
        self, keyword: Keyword, arguments: tuple[str, ...], where: str, *, on_command_line: bool
    ) -> None:
        if not arguments:
            raise ConfigError("the keyword has no value", where=where, remedy="write a value")
        self._settings.add(Setting(keyword, arguments, where, on_command_line))

    def _keyword(self, name: str, where: str) -> Keyword | None:
        """Look a keyword up; None if it is unknown and IgnoreUnknown says to skip it."""
        keyword = BY_NAME.get(name.lower())
        if keyword is not None:
            return keyword
        ignored = self._settings.first("ignoreunknown")
        if ignored is not None and matches_list(name.lower(), ignored.one().lower()):
            return None
        import difflib  # noqa: PLC0415 - for a misspelt keyword only

        near = difflib.get_close_matches(name.lower(), BY_NAME, 1)
        raise ConfigError(
            "this is no keyword of ssh_config(5)",
            where=where,
            remedy=f"did you mean {BY_NAME[near[0]].name}?"
            if near
            else "remove the line, or name the keyword in IgnoreUnknown before it",
        )

    def _host_line(self, patterns: tuple[str, ...], where: str) -> bool:
        """Host: any pattern that matches, and no negated one (readconf.c, oHost)."""
        applies = False
        for pattern in patterns:
            if not pattern:
                raise ConfigError("a pattern is empty", where=where, remedy="remove the quotes")
            negated = pattern.startswith("!")
            if matches_pattern(self._host, pattern.removeprefix("!")):
                if negated:
                    return False
                applies = True
        return applies

    def _match_line(self, words: tuple[str, ...], where: str) -> bool:
        subject = Subject(
            self._alias, self._host, self._command, self._final, self._environment, self._settings
        )
        applies, wants_final = line_applies(words, where, subject)
        self.wants_final_pass |= wants_final
        return applies

    def _include(self, pattern: str, file: _File, where: str) -> None:
        for path in self._included(pattern, file, where):
            inner = _File(
                self._shown(path),
                file.of_user,
                file.never or not file.active,
                file.depth + 1,
                file.active,
            )
            try:
                content = _read(path, inner.shown, self._environment.uid)
            except FileNotFoundError:
                continue  # gone since the pattern was expanded; so does ssh
            self._read_lines(content, inner)

    def _included(self, pattern: str, file: _File, where: str) -> list[Path]:
        """Return the files of one Include argument; none is fine (readconf.c, oInclude)."""
        environment = self._environment
        if pattern.startswith("~"):
            if not file.of_user or not pattern.startswith("~/"):
                raise ConfigError(
                    f"the path {printable(pattern)} cannot be used here",
                    where=where,
                    remedy="write the whole path; only a user's file may include ~/...",
                )
            whole = str(environment.home) + pattern[1:]
        elif file.of_user:
            whole = str(environment.home / ".ssh" / pattern)
        else:
            whole = str(environment.system_directory / pattern)
        try:
            return [Path(found) for found in sorted(glob.glob(whole))]  # noqa: PTH207 as ssh: hidden files not matched
        except (OSError, ValueError) as exc:
            raise ConfigError(
                f"the path {printable(pattern)} cannot be looked up",
                where=where,
                remedy="write another path",
            ) from exc


def _arguments(keyword: Keyword, text: str, where: str) -> tuple[str, ...]:
    if keyword.raw:
        command = text.strip(" \t\r\n")
        return (command,) if command else ()
    return split_arguments(text, where)


def _read(path: Path, shown: str, owner: int | None) -> bytes:
    """Read a file; with an ``owner``, only a regular one that nobody else but root can write.

    Others could otherwise choose the host, the key file or a command of ours (readconf.c,
    SSHCONF_CHECKPERM). FileNotFoundError is the caller's.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC
    if owner is not None:
        flags |= os.O_NONBLOCK  # a pipe would block before it can be refused
    try:
        descriptor = os.open(path, flags)
        try:
            content = _read_opened(descriptor, shown, owner)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as exc:
        raise ConfigError(
            f"the file cannot be read ({exc.strerror if isinstance(exc, OSError) else exc})",
            where=shown,
            remedy="check that it exists and that you may read it",
        ) from exc
    if len(content) > FILE_LIMIT:
        raise ConfigError(
            "the file is larger than 1 MiB", where=shown, remedy="split it, or check what it is"
        )
    return content


def _read_opened(descriptor: int, shown: str, owner: int | None) -> bytes:
    status = os.fstat(descriptor)
    if stat.S_ISDIR(status.st_mode):
        return b""  # as ssh, which finds no line in it
    if owner is not None:
        _check_owner(status, shown, owner)
    with os.fdopen(descriptor, "rb", closefd=False) as opened:
        return opened.read(FILE_LIMIT + 1)


def _check_owner(status: os.stat_result, shown: str, owner: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError("this is not a regular file", where=shown, remedy="use a regular file")
    if status.st_uid not in (0, owner):
        raise ConfigError(
            "the file belongs to another user, who could decide where you connect",
            where=shown,
            remedy="take it over with chown",
        )
    if status.st_mode & 0o022:
        raise ConfigError(
            "others may write to the file and could decide where you connect",
            where=shown,
            remedy=f"run chmod go-w {shown}",
        )
