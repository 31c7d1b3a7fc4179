"""The chain that makes a change of the log visible: hashes, checkpoints, and a key that moves on.

**Scheme.** Line *n* holds ``prev``, the SHA-256 of the exact bytes of line *n-1* with its line
feed (64 zeros in the first line). A checkpoint line ends in ``"mac"``: HMAC-SHA-256, under the key
of its epoch, of all its bytes before that field. Through ``prev`` it covers every byte before it.
Then the key moves on, K(i+1) = HMAC-SHA-256(K(i), "next"), and K(i) is forgotten: it is in memory
until the checkpoint is made and in ``audit.key`` until the checkpoint is on the disk (`writer`).
K(0) verifies everything and is kept elsewhere. This is what syslog-sign and systemd's FssKey call
forward security (Bellare and Yee, 1997).

**What `verify` with K(0) proves.** Up to the last checkpoint, the lines are those that were
written, in their order, none more and none fewer. A change of any byte breaks a hash; hashes that
were computed again break the MAC of the next checkpoint; checkpoints that were left out leave a gap
in the epochs; and when the *end* was left out, ``audit.key`` tells how many checkpoints there were
(``sealed``): whoever has only K(j) cannot make an older key for it.

**What it does not prove.** (1) After the last checkpoint, whoever may write the folder may cut or
invent lines; `Report.unsealed` counts them. (2) After somebody took the machine at epoch *j*, what
is sealed from *j* on is theirs to choose; that the records before are true remains proved. (3) Who
has K(0) or an old K(i), from the box before it was taken off or from a backup, can write everything
after. (4) A whole folder put back to an older state together with its ``audit.key`` is consistent:
compare the number of checkpoints with one that was noted elsewhere (``sealed``).

**Retirement.** Old files may be removed when the first line of the file after them says so: it has
stood there, under its seal, for the days that it names (`records.is_over`). Before the writer
removes them it writes a ``log.retired`` and seals it; a log that does not begin with its first file
is good only with such a record, sealed and not too early. So nobody without the key can pass off a
beginning that he cut as retired, and a shorter time in the configuration holds for no file that was
begun before. Who took the machine at epoch *j* (2) can leave nothing from before *j*, invent a past
and let it have been retired: compare the oldest time that `verify` tells, or note a checkpoint.

Nothing here opens a file or looks at a clock.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from gateway.audit.records import (
    LogCheckpoint,
    LogFile,
    LogRetired,
    Record,
    decode,
    encode,
    is_over,
    seconds_of,
)
from gateway.errors import GatewayError, printable

if TYPE_CHECKING:
    from collections.abc import Iterable

STOP: Final = "stop"  # why a checkpoint was made: the run is over
GENESIS: Final = "0" * 64
KEY_BYTES: Final = 32
MAXIMUM_EPOCH: Final = 50_000_000  # a century of checkpoints each minute, or a minute of hashing
MAXIMUM_LINE: Final = 1 << 20  # bytes; ours are far shorter
_KEY_LABEL: Final = "gateway-audit-key-1"
_MAC_FIELD: Final = b',"mac":"'
_MAC_END: Final = b'"}\n'
_MAC_BYTES: Final = len(_MAC_FIELD) + 64 + len(_MAC_END)


class BadLine(GatewayError):
    """A line of the log is not what was written, or not where."""


def digest(line: bytes) -> str:
    """Return the SHA-256 of a line, in hexadecimal."""
    return hashlib.sha256(line).hexdigest()


@dataclass(frozen=True, slots=True)
class SealKey:
    """The key of one epoch: it makes one checkpoint."""

    epoch: int
    secret: bytes = field(repr=False)

    def mac(self, text: bytes) -> str:
        """Return the MAC of a checkpoint line's beginning."""
        return hmac.digest(self.secret, b"checkpoint\0" + text, "sha256").hex()

    def next(self) -> SealKey:
        """Return the key of the next epoch; there is no way back."""
        return SealKey(self.epoch + 1, hmac.digest(self.secret, b"next", "sha256"))

    def at(self, epoch: int) -> SealKey:
        """Return the key of a later epoch. Raises ValueError for an earlier or absurd one."""
        if not self.epoch <= epoch <= MAXIMUM_EPOCH:
            raise ValueError(f"this key begins at checkpoint {self.epoch}, not {epoch}")
        key = self
        while key.epoch < epoch:
            key = key.next()
        return key

    def __str__(self) -> str:
        return f"{_KEY_LABEL} {self.epoch} {self.secret.hex()}"

    @classmethod
    def parse(cls, text: str) -> SealKey:
        """Read what ``str`` makes. Raises ValueError."""
        words = text.split()
        if len(words) != 3 or words[0] != _KEY_LABEL or not words[1].isdecimal():
            raise ValueError(f"this is not a key of the form {_KEY_LABEL} NUMBER HEX")
        secret = bytes.fromhex(words[2])
        if len(secret) != KEY_BYTES:
            raise ValueError(f"the key has {len(secret)} bytes, not {KEY_BYTES}")
        return cls(int(words[1]), secret)


@dataclass(slots=True)
class Chain:
    """The writing end: where the next line goes and what it must continue."""

    key: SealKey
    seq: int = 0
    prev: str = GENESIS

    def add(self, record: Record, wall_ns: int, monotonic_ns: int) -> bytes:
        """Return the line of a record, with its line feed; times as in `records.encode`."""
        return self._link(encode(record, self.seq, wall_ns, monotonic_ns, self.prev) + b"\n")

    def seal(self, reason: str, wall_ns: int, monotonic_ns: int) -> bytes:
        """Return a checkpoint line for everything before it, and move the key on."""
        record = LogCheckpoint(self.key.epoch, reason)
        text = encode(record, self.seq, wall_ns, monotonic_ns, self.prev)[:-1]
        mac = self.key.mac(text).encode()
        self.key = self.key.next()
        return self._link(text + _MAC_FIELD + mac + _MAC_END)

    def _link(self, line: bytes) -> bytes:
        self.prev = digest(line)
        self.seq += 1
        return line


class Walk:
    """The reading end: takes line after line and raises `BadLine` at the first wrong one.

    The first line may begin any file but the first one; ``archived``: that one too. MACs of
    epochs before that of ``key`` cannot be verified and are not: `verify` asks for an older key.
    ``retired`` is the last file of which a sealed record says that it was, ``retired_at`` when.
    """

    def __init__(self, key: SealKey, *, archived: bool = False) -> None:
        self.key = key
        self.seq = 0
        self.prev = GENESIS
        self.epoch = 0
        self.number = 0
        self.unsealed = 0
        self.first = 1  # number of the first file that is here
        self.first_time = ""
        self.last_time = ""
        self.last_mac = ""
        self.is_closed = True  # by a clean stop, or there was no run yet
        self.retired, self.retired_at = 0, ""
        self._is_new = True
        self._archived = archived
        self._headers: dict[int, dict[str, object]] = {}  # first lines by number of their file
        self._not_sealed: list[tuple[int, str]] = []  # what `retired` and ``retired_at`` will be

    def take(self, line: bytes, *, begins_file: bool) -> None:
        """Check one line with its line feed."""
        if not line.endswith(b"\n"):
            raise BadLine("the line is incomplete: a crash, or somebody cut the file")
        if len(line) > MAXIMUM_LINE:
            raise BadLine(f"the line has {len(line)} bytes")
        try:
            fields = decode(line)
        except ValueError as error:
            raise BadLine(str(error)) from None
        if self._is_new:
            self._begin(fields)
        if begins_file or fields["kind"] == LogFile.kind:
            self._take_file(fields, begins_file=begins_file)
        if fields["prev"] != self.prev:
            raise BadLine(
                "the hash of the line before does not fit: that line was edited, or lines were "
                "removed, inserted or moved here"
            )
        if fields["seq"] != self.seq:
            raise BadLine(f"the record is number {fields['seq']}, not {self.seq}")
        self.unsealed += 1
        self.is_closed = False
        if fields["kind"] == LogCheckpoint.kind:
            self._take_checkpoint(fields, line)
        elif fields["kind"] == LogRetired.kind:
            self._take_retired(fields)
        self.prev = digest(line)
        self.seq += 1
        self.last_time = str(fields["time"])

    def _begin(self, fields: dict[str, object]) -> None:
        """Take the place in the chain from the first line that is here."""
        self._is_new = False
        self.first_time = str(fields["time"])
        number, epoch = fields.get("number"), fields.get("epoch")
        if type(number) is not int or type(epoch) is not int:
            raise BadLine("a file of the log must begin with a log.file record")
        if number <= 1 and not self._archived:
            return
        self.seq, self.prev = int(str(fields["seq"])), str(fields["prev"])
        self.first, self.number, self.epoch = number, number - 1, epoch
        if epoch > self.key.epoch:
            try:
                self.key = self.key.at(epoch)
            except ValueError as error:
                raise BadLine(str(error)) from None

    def _take_file(self, fields: dict[str, object], *, begins_file: bool) -> None:
        if not begins_file or fields["kind"] != LogFile.kind:
            raise BadLine("a log.file record begins a file, and is nowhere else")
        if fields.get("number") != self.number + 1:
            raise BadLine(
                f"this is file {printable(str(fields.get('number')), 20)} of the log, and not "
                f"file {self.number + 1}, which is missing"
            )
        self._check_epoch(fields.get("epoch"))
        self.number += 1
        self._headers[self.number] = fields

    def _take_retired(self, fields: dict[str, object]) -> None:
        through = fields.get("through")
        if type(through) is int and through < self.first - 1:
            return  # and more was retired since
        header = self._headers.get(through + 1) if type(through) is int else None
        wanted = ("first_seq", "seq"), ("first_prev", "prev"), ("keep_days", "keep_days")
        if header is None or any(fields.get(name) != header.get(of) for name, of in wanted):
            raise BadLine("files were retired that this log does not have")
        try:
            is_due = is_over(header, seconds_of(fields["time"]))
        except ValueError:
            is_due = False
        if not is_due:
            raise BadLine(f"files up to {through} were retired that had to be kept longer")
        self._not_sealed.append((int(str(through)), str(fields["time"])))

    def _take_checkpoint(self, fields: dict[str, object], line: bytes) -> None:
        self._check_epoch(fields.get("epoch"))
        if self.epoch == self.key.epoch:
            text, mac = line[:-_MAC_BYTES], line[-_MAC_BYTES:]
            wanted = _MAC_FIELD + self.key.mac(text).encode() + _MAC_END
            if not hmac.compare_digest(wanted, mac):
                raise BadLine(
                    f"the checkpoint is not from the holder of the key: the {self.unsealed - 1} "
                    "lines before it were written again, or the key is of another log"
                )
            self.key = self.key.next()
            self.retired, self.retired_at = max(
                [(self.retired, self.retired_at), *self._not_sealed]
            )
        self._not_sealed.clear()
        self.epoch += 1
        self.unsealed = 0
        self.is_closed = fields.get("reason") == STOP
        self.last_mac = str(fields.get("mac", ""))

    def _check_epoch(self, epoch: object) -> None:
        if epoch != self.epoch:
            raise BadLine(
                f"checkpoint {self.epoch} is expected and the log goes on at "
                f"{printable(str(epoch), 20)}: what was sealed between was removed"
            )


@dataclass(slots=True)
class Report:
    """What `verify` found. ``problem`` is empty if everything is as it was written.

    ``file`` and ``line`` (from 1) say where the first bad line is; ``unsealed`` are the lines after
    the last checkpoint, which only the hashes protect; ``checkpoints`` counts from the beginning.
    ``first`` is the number of the first file, ``first_time`` the time of its first line; those
    before it were retired at ``retired_at``, or archived.
    """

    problem: str = ""
    file: str = ""
    line: int = 0
    files: int = 0
    lines: int = 0
    unsealed: int = 0
    checkpoints: int = 0
    last_mac: str = ""
    first: int = 1
    first_time: str = ""
    retired_at: str = ""

    @property
    def ok(self) -> bool:
        """Nothing wrong was found."""
        return not self.problem


def verify(
    files: Iterable[tuple[str, Iterable[bytes]]],
    key: SealKey,
    *,
    sealed: int = 0,
    archived: bool = False,
) -> Report:
    """Check a whole log: names and lines of its files, in order, with the initial ``key``.

    ``sealed``: so many checkpoints there must be at least, from ``audit.key`` or a note.
    ``archived``: the oldest files are elsewhere; begin with the first one that is here.
    """
    report = Report()
    walk = Walk(key, archived=archived)
    first_name = ""
    for name, lines in files:
        first_name = first_name or name
        report.files += 1
        report.file, report.line = name, 0
        for line in lines:
            report.line += 1
            report.problem = _take(walk, line, begins_file=report.line == 1)
            if report.problem:
                return report
            report.lines += 1
        if not report.line:
            report.problem = "the file is empty"
            return report
    report.checkpoints, report.unsealed, report.last_mac = walk.epoch, walk.unsealed, walk.last_mac
    report.first, report.first_time, report.retired_at = (
        walk.first,
        walk.first_time,
        walk.retired_at,
    )
    if not first_name:
        report.problem = "there is no file of the log"
    elif not archived and walk.retired < walk.first - 1:
        report.file, report.line = first_name, 1
        report.problem = (
            f"this is file {walk.first} of the log, and not file 1, which is missing, and no "
            "sealed record says that what is missing was retired"
        )
    elif walk.epoch < sealed:
        report.problem = (
            f"the end of the log was cut off: {sealed} checkpoints were made and {walk.epoch} "
            "are left"
        )
    return report


def _take(walk: Walk, line: bytes, *, begins_file: bool) -> str:
    """Say what is wrong with a line, or ""."""
    try:
        walk.take(line, begins_file=begins_file)
    except BadLine as error:
        return str(error)
    if walk.epoch < walk.key.epoch:
        return f"the key begins at checkpoint {walk.key.epoch}: the initial key is needed"
    return ""
