"""`gateway audit`: verify, show, and the key. Exit status: 0 good, 1 a finding, 2 not possible."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway.audit.chain import GENESIS, MAXIMUM_LINE, Report, SealKey, verify
from gateway.audit.records import decode, rfc3339
from gateway.audit.store import INITIAL_KEY_FILE, KEY_FILE, log_files, read_key
from gateway.cli.terminal import Parser, say
from gateway.errors import ConfigError, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXIT_GOOD: Final = 0
EXIT_FINDING: Final = 1  # verify: the log is not as it was written; show: lines are no records
EXIT_IMPOSSIBLE: Final = 2  # wrong arguments, no folder, no key

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_ENVELOPE: Final = frozenset({"v", "seq", "time", "mono_us", "prev", "kind", "mac"})
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_WRITTEN_NOW_S: Final = 0.2  # a running server needs far less to finish a line
_EPILOG: Final = "exit status: 0 good, 1 a finding, 2 not possible (arguments, files, no key)"


def _parser() -> Parser:
    parser = Parser(
        prog="gateway audit",
        description="The audit log of a jump box: was it changed, and what does it say?",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        found = commands.add_parser(
            name, help=text, description=text, epilog=_EPILOG, allow_abbrev=False
        )
        found.add_argument("folder", type=Path, metavar="FOLDER")
        return found

    add = command("verify", "say whether the log is as it was written").add_argument
    add("--key", type=Path, metavar="FILE",
        help="the initial key, as `gateway audit key` printed it; default "
        f"FOLDER/{INITIAL_KEY_FILE}")  # fmt: skip
    add("--checkpoints", type=int, default=-1, metavar="N",
        help=f"so many checkpoints there must be at least: for a copy without {KEY_FILE}, or "
        "against a folder that was put back to an older state")  # fmt: skip
    add("--archived", action="store_true", help="the oldest files are kept elsewhere")
    add = command("show", "print the records, one a line").add_argument
    add("--user", metavar="USER", help="only records about this user")
    add("--since", type=_time, metavar="TIME",
        help="only records from 2026-01-31T12:00 (UTC unless it says otherwise) or from 90s, 15m, "
        "1h or 2d ago")  # fmt: skip
    add("--json", action="store_true", help="the lines as they were written")
    command("key", "print the initial key, which verifies everything, and remove it from here")
    return parser


def _time(text: str) -> str:
    """Return a time as the log writes it, so that texts compare. Raises ArgumentTypeError."""
    try:
        if match := re.fullmatch(r"(\d{1,9})([smhd])", text):
            found = datetime.now(UTC) - timedelta(**{_UNITS[match[2]]: int(match[1])})
        else:
            found = datetime.fromisoformat(text)
            found = found if found.tzinfo else found.replace(tzinfo=UTC)
        return rfc3339((found - _EPOCH) // timedelta(microseconds=1) * 1000)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{printable(text, 40)} is neither a time like 2026-01-31T12:00 nor 15m, 1h or 2d"
        ) from None


def _files(folder: Path) -> list[Path]:
    files = log_files(folder)
    if not files:
        raise ConfigError(
            "there is no audit log in this folder",
            where=str(folder),
            remedy="name the one of `audit` in gateway.toml",
        )
    return files


# ---- verify --------------------------------------------------------------------------------------


def _verify(arguments: argparse.Namespace) -> int:
    folder: Path = arguments.folder
    key = _initial_key(folder, arguments.key)
    # The state of the key first: a server that is running only adds.
    problem, sealed = _sealed(folder / KEY_FILE, key, arguments.checkpoints)
    files = [(path.name, _lines(path)) for path in _files(folder)]
    report = verify(files, key, sealed=sealed, archived=arguments.archived)
    if report.ok and problem:
        report = Report(problem, KEY_FILE)
    if not report.ok:
        place = f", line {report.line}" if report.line else ""
        print(f"BAD: {report.file}{place}: {report.problem}")
        return EXIT_FINDING
    if report.first > 1:
        how = f"were retired on {report.retired_at[:10]}, kept as long as the log said"
        if arguments.archived:
            how = "are kept elsewhere, as --archived says"
        print(f"files 1 to {report.first - 1} {how}; what is here begins {report.first_time}")
    print(
        f"good: {report.lines} lines in {report.files} files, {report.checkpoints} checkpoints, "
        f"the last {report.last_mac[:16] or 'none'}; {report.unsealed} lines are not sealed yet"
    )
    return EXIT_GOOD


def _initial_key(folder: Path, path: Path | None) -> SealKey:
    path = path or folder / INITIAL_KEY_FILE
    try:
        return read_key(path)
    except FileNotFoundError:
        raise ConfigError(
            "the initial key of the log is not here",
            where=str(path),
            remedy="name the file into which `gateway audit key` printed it, with --key FILE",
        ) from None


def _sealed(path: Path, initial: SealKey, at_least: int) -> tuple[str, int]:
    """Return what is wrong with the current key, and how many checkpoints there must be."""
    try:
        current = read_key(path)
    except FileNotFoundError:
        if at_least >= 0:
            return "", at_least
        problem = "it is missing, so the end of the log may be cut off: say how many checkpoints "
        return problem + "there must be, with --checkpoints N", 0
    try:
        is_ours = initial.at(current.epoch) == current
    except ValueError as error:
        return str(error), 0
    return "" if is_ours else "it was replaced, or --key is of another log", max(
        at_least, current.epoch
    )


# ---- show ----------------------------------------------------------------------------------------


def _show(arguments: argparse.Namespace) -> int:
    status = EXIT_GOOD
    for path in _files(arguments.folder):
        for number, line in enumerate(_lines(path), 1):
            try:
                fields = decode(line)
            except ValueError as error:
                say(f"{path.name}, line {number}: {error}")
                status = EXIT_FINDING
                continue
            if arguments.user is not None and fields.get("user") != arguments.user:
                continue
            if str(fields["time"]) >= (arguments.since or ""):
                print(line.decode("ascii", "replace").rstrip() if arguments.json else _text(fields))
    return status


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while line := file.readline(MAXIMUM_LINE + 1):
            if not line.endswith(b"\n"):
                time.sleep(_WRITTEN_NOW_S)
                line += file.readline(MAXIMUM_LINE + 1)
            yield line


def _text(fields: dict[str, object]) -> str:
    """Return one readable line: time, kind, and what is not empty."""
    words = [str(fields["time"]), f"{fields['kind']!s:15}"]
    for name, value in fields.items():
        if name in _ENVELOPE or value in ("", [], GENESIS):
            continue
        words.append(f"{printable(name, 40)}={_shown(value)}")
    return printable(" ".join(words), 20_000)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(map(_shown, value))
    text = printable(str(value), 2000)
    return f'"{text}"' if " " in text or '"' in text else text


# ---- key -----------------------------------------------------------------------------------------


def _key(arguments: argparse.Namespace) -> int:
    path = arguments.folder / INITIAL_KEY_FILE
    try:
        key = read_key(path)
    except FileNotFoundError:
        raise ConfigError(
            "the initial key was taken already, or there is no log yet",
            where=str(path),
            remedy="it is shown once; for a new log run the server first",
        ) from None
    print(key, flush=True)
    path.unlink()
    say(f"{path} is removed: keep what was printed on another machine, for `verify --key`")
    return EXIT_GOOD


_COMMANDS: Final[dict[str, Callable[[argparse.Namespace], int]]] = {
    "verify": _verify,
    "show": _show,
    "key": _key,
}


def run_audit(arguments: list[str]) -> int:
    """Run the command; return its exit status."""
    try:
        parsed = _parser().parse_args(arguments)
        return _COMMANDS[parsed.command](parsed)
    except ConfigError as error:
        say(str(error))
    except OSError as error:
        if error.filename is None:  # standard output: what is left in its buffer goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # `| head` is no trouble
            say(f"{error.filename or 'standard output'}: {error.strerror}")
    return EXIT_IMPOSSIBLE
