"""The folder of an audit log: its lock, its numbered files, its keys, and how a start goes on.

Everything here may block on the disk. OSError leaves `Store.write`, `sync` and `begin_file`, which
`writer` expects; what is wrong at the start is a `ConfigError`.

The order on the disk: a line, its fdatasync, the moved-on key, and only then the next file. So
after a crash the key may be behind the log, never before it, and only the last file can be
incomplete.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gateway.audit.chain import KEY_BYTES, MAXIMUM_LINE, BadLine, Chain, SealKey, Walk, digest
from gateway.audit.records import DAY_S, LogRecovered, LogRetired, decode, is_over, seconds_of
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

NOT_ENDED: Final = "the run before did not end by itself: its last records may be missing"
CLOCK_MARGIN_S: Final = 60.0  # by which a clock may be set back while files are retired
KEY_FILE: Final = "audit.key"
INITIAL_KEY_FILE: Final = "audit.initial"
_FILE_NAME: Final = re.compile(r"audit-(\d{6,})\.jsonl")
_WITH_TAIL: Final = re.compile(_FILE_NAME.pattern + r"(?:\.tail-\d+)?")


def file_name(number: int) -> str:
    """Return the name of the file with this number, from 1."""
    return f"audit-{number:06d}.jsonl"


def log_files(folder: Path) -> list[Path]:
    """Return the files of a log, oldest first. Raises OSError."""
    found = [path for path in folder.iterdir() if _FILE_NAME.fullmatch(path.name)]
    return sorted(found, key=_number)


def read_key(path: Path) -> SealKey:
    """Read a key file. Raises `ConfigError`, and FileNotFoundError if there is none."""
    try:
        return SealKey.parse(path.read_text("ascii"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(
            f"the key of the audit log cannot be read: {error.strerror}",
            where=str(path),
            remedy="run as the user who owns it",
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"the key of the audit log cannot be used: {error}",
            where=str(path),
            remedy="keep this folder as evidence and name another one for a new log",
        ) from error


@dataclass(frozen=True, slots=True)
class Resumed:
    """Where a start goes on: the chain, the last file's number, and what was wrong there.

    ``size`` is that of the last file; 0: nothing more may be written to it. ``last_time`` is the
    wall time of its last record, ``unsealed`` the number of lines after the last checkpoint.
    """

    chain: Chain
    number: int
    size: int
    unsealed: int
    last_time: str
    problems: tuple[LogRecovered, ...] = ()


class Store:
    """The open folder of one writer."""

    def __init__(self, folder: Path) -> None:
        """Open and lock the folder, and make it and its keys if missing. Raises `ConfigError`."""
        self.folder = folder
        self._file = -1
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            self._check_and_lock()
            self.saved_key = self._load_or_make_key()
        except OSError as error:
            os.close(self._folder)
            raise self._unusable(error) from error
        except ConfigError:
            os.close(self._folder)
            raise

    def _unusable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"the audit log cannot be written: {error.strerror}",
            where=str(self.folder),
            remedy="name a folder that only this server writes, on a disk with room",
        )

    def _check_and_lock(self) -> None:
        status = os.fstat(self._folder)
        if status.st_mode & 0o077 or status.st_uid != os.geteuid():
            raise ConfigError(
                "others may enter the folder of the audit log",
                where=str(self.folder),
                remedy=f"make it yours alone: chmod 700 {self.folder}",
            )
        try:
            fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                "another server writes this audit log",
                where=str(self.folder),
                remedy="end it, or name another folder",
            ) from error

    def _load_or_make_key(self) -> SealKey:
        with contextlib.suppress(FileNotFoundError):
            return read_key(self.folder / KEY_FILE)
        if log_files(self.folder):
            raise ConfigError(
                "the key of the audit log is missing, and there is a log",
                where=str(self.folder / KEY_FILE),
                remedy="keep this folder as evidence and name another one for a new log",
            )
        key = SealKey(0, os.urandom(KEY_BYTES))
        self._replace(INITIAL_KEY_FILE, key)
        self._replace(KEY_FILE, key)
        return key

    def _replace(self, name: str, key: SealKey) -> None:
        """Put a key in the place of another, whole or not at all, whatever happens."""
        path, new = self.folder / name, self.folder / f"{name}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(new, flags, 0o600), "wb") as file:
            file.write(f"{key}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
        os.fsync(self._folder)

    def save_key(self, key: SealKey) -> None:
        """Forget the key on the disk for a later one; the lines it sealed must be synced."""
        self._replace(KEY_FILE, key)
        self.saved_key = key

    # -- writing -----------------------------------------------------------------------------------

    def write(self, data: bytes) -> int:
        """Append to the open file; return how many bytes were taken."""
        return os.write(self._file, data)

    def sync(self) -> None:
        """Wait until all that was written is on the disk."""
        if self._file >= 0:
            os.fdatasync(self._file)

    def begin_file(self, number: int) -> None:
        """Open the next file in the place of the current one, which must be synced."""
        path = self.folder / file_name(number)
        opened = self._open(path, os.O_CREAT)
        if os.fstat(opened).st_size:
            os.close(opened)
            raise OSError(errno.EEXIST, "a file of the log is there already", str(path))
        try:
            os.fsync(self._folder)
        except OSError:
            os.close(opened)
            raise
        self._close_file()
        self._file = opened

    def continue_file(self, number: int) -> None:
        """Open a file that a former run wrote."""
        self._file = self._open(self.folder / file_name(number))

    @staticmethod
    def _open(path: Path, more: int = 0) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(path, flags | more, 0o600)

    def _close_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def close(self) -> None:
        """Close everything; the lock goes with the folder."""
        self._close_file()
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    # -- retirement --------------------------------------------------------------------------------

    def find_retired(self, keep_days: int, now_ns: int) -> LogRetired | None:
        """Find the files that have been kept for ``keep_days``, and for what the log promises.

        With 0 there are none. Raises OSError.
        """
        if not keep_days:
            return None
        at_s = now_ns / 1e9 - CLOCK_MARGIN_S
        for path in reversed(log_files(self.folder)[1:]):
            try:
                header = _first_line(path)
                age_s = at_s - seconds_of(header["time"])
                is_due = age_s >= keep_days * DAY_S and is_over(header, at_s)
            except (OSError, ValueError):
                continue  # `chain.verify` will say what is wrong with it
            if is_due:
                seq, promised = int(str(header["seq"])), int(str(header["keep_days"]))
                return LogRetired(_number(path) - 1, seq, str(header["prev"]), promised)
        return None

    def retire(self, through: int) -> None:
        """Remove the files up to this number, oldest first; the record of it must be synced."""
        for path in sorted(self.folder.iterdir()):
            match = _WITH_TAIL.fullmatch(path.name)
            if match and int(match[1]) <= through:
                try:
                    path.unlink()
                except OSError as error:  # tried again with the next file of the log
                    log.warning("audit log: %s cannot be removed: %s", path, error.strerror)
        os.fsync(self._folder)

    # -- a start -----------------------------------------------------------------------------------

    def resume(self) -> Resumed:
        """Find the end of the log. Raises `ConfigError`.

        What is wrong is reported and never repaired: the bad lines stay where they are, and the
        chain goes on in a new file, so `chain.verify` still stops at them.
        """
        try:
            return self._resume()
        except OSError as error:
            raise self._unusable(error) from error

    def _resume(self) -> Resumed:
        files = log_files(self.folder)
        aside = self._put_aside_incomplete_line(files[-1]) if files else None
        problems = [aside] if aside else []
        if files and not files[-1].stat().st_size:
            files.pop().unlink()  # a file whose first line was not written completely
        number = _number(files[-1]) if files else 0
        walk, wrong = self._walk(files[-1:])
        key = self.saved_key
        chain = Chain(walk.key, walk.seq, walk.prev)
        if not wrong and walk.epoch < key.epoch:
            name = files[-1].name if files else ""
            lost = f"{key.epoch} checkpoints were made and {walk.epoch} are left: it was cut"
            wrong = LogRecovered(name, lost)
        if not problems and not wrong and not walk.is_closed:
            problems.append(LogRecovered(files[-1].name, NOT_ENDED))
        if wrong:
            problems.append(wrong)
            chain = Chain(max(key, walk.key, key=lambda one: one.epoch), *_end_of(files, chain))
        size = _sync(files[-1]) if files else 0
        if chain.key != key:  # a crash was between a checkpoint and its key
            self.save_key(chain.key)
        return Resumed(
            chain, number, 0 if wrong else size, walk.unsealed, walk.last_time, tuple(problems)
        )

    def _walk(self, files: list[Path]) -> tuple[Walk, LogRecovered | None]:
        """Check the last file: it begins with the saved key or an older one."""
        walk = Walk(self.saved_key, archived=True)
        for path in files:
            with path.open("rb") as file:
                for index, line in enumerate(file):
                    try:
                        walk.take(line, begins_file=index == 0)
                    except BadLine as error:
                        return walk, LogRecovered(path.name, f"line {index + 1}: {error}")
        return walk, None

    def _put_aside_incomplete_line(self, path: Path) -> LogRecovered | None:
        data = path.read_bytes()
        end = data.rfind(b"\n") + 1
        tail = data[end:]
        if not tail:
            return None
        kept = path.with_name(f"{path.name}.tail-{end}")
        with os.fdopen(self._open(kept, os.O_CREAT), "wb") as file:
            file.write(tail)
            file.flush()
            os.fsync(file.fileno())
        with os.fdopen(self._open(path), "wb") as file:
            os.ftruncate(file.fileno(), end)
            os.fsync(file.fileno())
        problem = "the last line was incomplete, as a crash leaves it"
        sha256 = hashlib.sha256(tail).hexdigest()
        return LogRecovered(path.name, problem, len(tail), sha256, kept.name)


def _sync(path: Path) -> int:
    """Bring to the disk what a former run wrote; return the size."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def _first_line(path: Path) -> dict[str, object]:
    """Return the header of a file. Raises OSError and ValueError."""
    with path.open("rb") as file:
        return decode(file.readline(MAXIMUM_LINE))


def _number(path: Path) -> int:
    match = _FILE_NAME.fullmatch(path.name)
    return int(match[1]) if match else 0


def _end_of(files: list[Path], chain: Chain) -> tuple[int, str]:
    """Return number and hash to go on with after a log that is not as it was written."""
    last = b""
    if files:
        with files[-1].open("rb") as file:
            for last in file:  # noqa: B007 - the last one is wanted
                pass
    if not last:
        return chain.seq, chain.prev
    try:
        seq = decode(last)["seq"]
    except ValueError:
        seq = 0
    return max(int(str(seq)) + 1, chain.seq), digest(last)
