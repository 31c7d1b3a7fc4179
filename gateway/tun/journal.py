"""The journal of a guardian: what it changed, in a file that outlives it.

Theory of operation: one file per guardian in a folder that all of this machine's gateways share,
one JSON object per line, and a line is in the kernel before the change that it announces is made.
So whoever reads it after a crash knows of every change that may have happened, and `undo` of a
change that did not happen changes nothing. A cut last line announced nothing. Nothing is synced
to the disk: what a power cut loses, it loses together with the network's state.

    {"journal": 1, "guardian": [pid, start], "parent": [pid, start], "pids": …, "network": …, …}
    {"make": 1, "plan": 1, "step": {…}, "before": {…}}    about to be made; what undoing needs
    {"unmake": 1, "writes": [[path, value], …]}           undoing it has begun (switches only)
    {"gone": 1}                                           it is undone

A journal is *abandoned* when its guardian is gone and its parent too; then whoever comes first
finishes the job, under the folder's lock. Processes are named by pid and start time; the journal
counts only in the same boot, pid namespace and network namespace. One whose network namespace is
gone has nothing left to undo and is removed. A file has its name only once it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import stat
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gateway.errors import NetworkSetupError
from gateway.tun.steps import FIRST_TABLE, TABLES, Step, from_json, to_json

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER: Final = Path("/run/gateway")
FOLDER_VARIABLE: Final = "GATEWAY_RUN_DIR"  # another folder: that of a service that is not root
SUFFIX: Final = ".journal"
FORMAT: Final = 1
LOCK_POLL_S: Final = 0.02
# A journal with this many lines more than it needs is written anew: a server makes and unmakes a
# plan for each of its clients, for months.
SURPLUS_LINES: Final = 2000

SO_NETNS_COOKIE: Final = 71  # <asm-generic/socket.h>, since Linux 5.14


# ---- who and where -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Process:
    """A process, told from a later one with the same pid by when it started (clock ticks)."""

    pid: int
    start: int

    @classmethod
    def of(cls, pid: int) -> Process:
        """Return the process that has this pid now; start 0 if none has."""
        try:
            text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except OSError:
            return cls(pid, 0)
        fields = text.rpartition(")")[2].split()  # what precedes may contain anything: its name
        is_dead = fields[0] in "ZX"  # only its parent has not looked yet
        return cls(pid, 0 if is_dead else int(fields[19]))

    def is_running(self) -> bool:
        """Say whether it still runs."""
        return self.start != 0 and Process.of(self.pid) == self


@dataclass(frozen=True)
class Place:
    """Where a journal counts: this boot, these pids, this network.

    The inode of a network namespace may be used again when it is gone, its cookie never is (0
    where the kernel has none).
    """

    boot: str
    pids: int
    network: int
    cookie: int

    @classmethod
    def here(cls) -> Place:
        """Return where this process is."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            try:
                cookie = any_socket.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
            except OSError:
                cookie = b""
        return cls(
            Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            Path("/proc/self/ns/pid").stat().st_ino,
            Path("/proc/self/ns/net").stat().st_ino,
            int.from_bytes(cookie, "little"),
        )

    def is_gone(self, here: Place) -> bool:
        """Say whether nothing of this place is left, as far as can be seen from ``here``.

        In another pid namespace one sees nothing.
        """
        if self.boot != here.boot:
            return True
        if self.pids != here.pids:
            return False
        if self.network == here.network:
            return self.cookie != here.cookie
        return self.network not in _networks()


def _networks() -> set[int]:
    """Return the network namespaces that a process is in, or a mount keeps."""
    found: set[int] = set()
    seen_mounts = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile, or is a zombie
            found.add((process / "ns/net").stat().st_ino)
            mounts = (process / "ns/mnt").stat().st_ino
            if mounts not in seen_mounts:
                seen_mounts.add(mounts)
                text = (process / "mountinfo").read_text(errors="replace")
                found |= {int(number) for number in re.findall(r" net:\[(\d+)\] ", text)}
    return found


# ---- one journal ---------------------------------------------------------------------------------


@dataclass
class Record:
    """A step that was or may have been made: what undoing needs, and how far that came."""

    number: int
    plan: int
    step: Step
    before: dict[str, Any]
    writes: list[tuple[str, str]] | None = None


@dataclass(frozen=True)
class Header:
    """The first line: whose journal it is, where it counts, and which table is reserved for it."""

    guardian: Process
    parent: Process
    place: Place
    table: int

    def is_abandoned(self, parent: Process) -> bool:
        """Say whether nobody will finish the job but us, whose parent is ``parent``.

        A parent whose guardian was killed starts another to clean up after it.
        """
        if self.guardian.is_running():
            return False
        return self.parent == parent or not self.parent.is_running()


@dataclass
class Journal:
    """A journal: in memory what the file says, with what is still to be undone."""

    path: Path
    header: Header
    records: dict[int, Record] = field(default_factory=dict)
    _last: int = 0
    _lines: int = 0

    # -- writing: only by the guardian whose it is, or under the lock once it is abandoned

    @classmethod
    def create(cls, folder: Path, parent: Process, taken: set[int]) -> Journal:
        """Begin a journal with a table number that is in no other journal and not in ``taken``.

        Only under the folder's lock.
        """
        mine = Process.of(os.getpid())
        table = free_table(taken | {journal.header.table for journal in read_journals(folder)})
        header = Header(mine, parent, Place.here(), table)
        journal = cls(folder / f"{mine.pid}-{mine.start}{SUFFIX}", header)
        journal._write_anew()
        return journal

    def will_make(self, plan: int, step: Step, before: dict[str, Any]) -> Record:
        """Announce a step; after this it may be made. Raises OSError."""
        self._last += 1
        record = Record(self._last, plan, step, before)
        self._append(_make_line(record))
        self.records[record.number] = record
        return record

    def will_write(self, record: Record, writes: list[tuple[str, str]]) -> None:
        """Announce that a switch is being undone by these writes, one after the other.

        Where the disk is full they are made all the same.
        """
        record.writes = writes
        with contextlib.suppress(OSError):
            self._append({"unmake": record.number, "writes": writes})

    def is_undone(self, record: Record) -> None:
        """Note that a step is no more; where the disk is full, undoing it again changes nothing."""
        del self.records[record.number]
        with contextlib.suppress(OSError):
            if self._lines > SURPLUS_LINES + 2 * len(self.records):
                self._write_anew()
            else:
                self._append({"gone": record.number})

    def remove(self) -> None:
        """Remove the file: everything is undone."""
        self.path.unlink(missing_ok=True)

    def _write_anew(self) -> None:
        lines: list[dict[str, Any]] = [{"journal": FORMAT, **_header_json(self.header)}]
        for record in self.records.values():
            lines.append(_make_line(record))
            if record.writes is not None:
                lines.append({"unmake": record.number, "writes": record.writes})
        beginning = self.path.with_name(f".{self.path.name}")
        beginning.unlink(missing_ok=True)
        beginning.touch(mode=0o600)
        beginning.write_text("".join(json.dumps(line) + "\n" for line in lines))
        beginning.rename(self.path)
        self._lines = len(lines)

    def _append(self, line: dict[str, Any]) -> None:
        self._lines += 1
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            # A line that a crash cut short stays alone: the next one begins after a line break.
            text = f"\n{json.dumps(line)}\n".encode()
            if os.write(descriptor, text) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)

    # -- reading

    @classmethod
    def read(cls, path: Path) -> Journal | None:
        """Return what a file says; None where it is no journal of ours, or of another format."""
        lines = list(_objects(path))
        if not lines or lines[0].get("journal") != FORMAT:
            return None
        try:
            journal = cls(path, _header_from_json(lines[0]))
            for line in lines[1:]:
                journal._replay(line)
        except (KeyError, TypeError, ValueError):
            return None
        return journal

    def _replay(self, line: dict[str, Any]) -> None:
        if "make" in line:
            self._last = line["make"]
            self.records[self._last] = Record(
                self._last, line["plan"], from_json(line["step"]), line["before"]
            )
        elif "unmake" in line:
            writes = [(path, value) for path, value in line["writes"]]
            self.records[line["unmake"]].writes = writes
        elif "gone" in line:
            self.records.pop(line["gone"], None)


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return  # removed meanwhile
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # cut
            parsed = json.loads(line)
            if isinstance(parsed, dict):
                yield parsed


def _make_line(record: Record) -> dict[str, Any]:
    step = to_json(record.step)
    return {"make": record.number, "plan": record.plan, "step": step, "before": record.before}


def _header_json(header: Header) -> dict[str, Any]:
    return {
        "guardian": [header.guardian.pid, header.guardian.start],
        "parent": [header.parent.pid, header.parent.start],
        "table": header.table,
        **asdict(header.place),
    }


def _header_from_json(line: dict[str, Any]) -> Header:
    place = Place(line["boot"], line["pids"], line["network"], line["cookie"])
    return Header(Process(*line["guardian"]), Process(*line["parent"]), place, line["table"])


def free_table(taken: set[int]) -> int:
    """Return the first routing table of ours that is not in use."""
    for table in range(FIRST_TABLE, FIRST_TABLE + TABLES):
        if table not in taken:
            return table
    raise NetworkSetupError(
        f"all routing tables from {FIRST_TABLE} to {FIRST_TABLE + TABLES - 1} are in use:"
        " end other gateways, or see what `ip rule` lists"
    )


# ---- the folder ----------------------------------------------------------------------------------


def open_folder() -> Path:
    """Return the folder of the journals, made if missing. Raises `NetworkSetupError`."""
    folder = Path(os.environ.get(FOLDER_VARIABLE, FOLDER))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise NetworkSetupError(
            f"{folder} cannot be made: {error.strerror}; what is changed must be noted there,"
            " so nothing is changed"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise NetworkSetupError(
            f"{folder} could be changed by others: it must be a folder of root's with mode 0700"
        )
    return folder


def read_journals(folder: Path) -> list[Journal]:
    """Return all journals of a folder, whatever place they are about."""
    found = (Journal.read(path) for path in sorted(folder.glob(f"[0-9]*{SUFFIX}")))
    return [journal for journal in found if journal is not None]


@contextlib.contextmanager
def locked(folder: Path, timeout_s: float | None = None) -> Iterator[int]:
    """Hold the folder's lock: one process works on the network at a time. Gives its descriptor.

    A child that inherits the descriptor keeps the lock until it has ended too. Raises
    `NetworkSetupError` after ``timeout_s``; None waits for ever.
    """
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    try:
        while not _try_lock(descriptor):
            if deadline is not None and time.monotonic() > deadline:
                raise NetworkSetupError(
                    f"another gateway has been changing the network for {timeout_s:.0f} s:"
                    f" see who holds {folder / 'lock'}"
                )
            time.sleep(LOCK_POLL_S)
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
