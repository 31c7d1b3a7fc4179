"""The writer: `AuditLog.write` for the server's one thread, `AuditLog.run` for the disk.

`write` gives a record its place in the chain and appends its line to a buffer: no system call, no
await. `run` writes the buffer to the file at the end of the event loop's turn, then at most every
``FLUSH_INTERVAL_S``; fdatasync, the key and new and retired files come at most every ``sync_s``.
Both happen in threads: a disk that hangs does not stop the server.

**Loss.** kill -9: what was not written, so 0.1 s and as much as one write takes, and during the
change to the next file as much as one fdatasync takes. Power cut: ``sync_s`` and the fdatasync
under way more. A clean stop: nothing.

**A log that cannot be written** (full disk, EIO, quota): the state is `State.DENY_NEW` from the
first failed write or sync, or one that takes longer than ``HANG_S``, or the first record of a user
that found no room, until everything is written again, which is tried every ``RETRY_S``. Strangers'
records may fill a quarter of the buffer. What found no room is counted; ``log.dropped`` and
``log.failed`` say so afterwards. (After EIO from fdatasync the kernel may have dropped pages; then
`chain.verify` shows the gap.)

**Retirement** (``keep_days``): looked for at the start and with each new file. The record is
written, sealed and synced before the files that it names are removed; see `chain`. `close` waits
for the disk, however long that takes.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from gateway.audit.chain import STOP
from gateway.audit.records import (
    DAY_S,
    LogDropped,
    LogFailed,
    LogFile,
    LogRepeated,
    LogRetired,
    Noise,
    Record,
    Tally,
    rfc3339,
    source_prefix,
)
from gateway.audit.store import INITIAL_KEY_FILE, Store, file_name
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gateway.audit.chain import SealKey

log = logging.getLogger(__name__)

FLUSH_INTERVAL_S: Final = 0.1
RETRY_S: Final = 1.0  # after a write or sync that failed
HANG_S: Final = 5.0  # for a write or sync; one that takes longer counts as failed meanwhile
PERIOD_S: Final = 60.0  # of ``noise`` and ``log.repeated``
REPEATS: Final = 20  # records of one kind, source and reason in a period; more are counted
PRE_AUTH_SHARE: Final = 4  # strangers' records may fill one part in so many of the buffer
_DAY_NS: Final = DAY_S * 1_000_000_000

_Done = TypeVar("_Done")


class State(Enum):
    """What the log can do now."""

    WRITING = "writing"
    DENY_NEW = "deny_new"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class AuditOptions:
    """How the log is written; bytes, seconds, numbers of records. ``keep_days`` 0 is for ever."""

    file_bytes: int = 16 << 20
    buffer_bytes: int = 1 << 20
    checkpoint_records: int = 1000
    checkpoint_s: float = 60.0
    sync_s: float = 1.0
    keep_days: int = 0


class _Signal:
    """Something is to be done; waiting for it takes it back."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
        self._event = trio.Event()


@dataclass(frozen=True, slots=True)
class _Settlement:
    """What a thread does for the disk: ``written`` bytes synced, then the newest key whose
    checkpoint is among them, then the files up to ``retired`` removed (0: none), then the next file
    (0: none) if the open one is over.
    """

    written: int
    key: SealKey | None
    retired: int
    next_number: int
    keep_days: int
    now_ns: int

    def settle(self, store: Store) -> LogRetired | None:
        """Do it; with a new file, say which ones have been kept long enough. Raises OSError."""
        store.sync()
        if self.key is not None:
            store.save_key(self.key)
        if self.retired:
            store.retire(self.retired)
        if self.next_number:
            store.begin_file(self.next_number)
            return store.find_retired(self.keep_days, self.now_ns)
        return None


class AuditLog:
    """One audit log, open for writing."""

    def __init__(
        self,
        store: Store,
        options: AuditOptions | None = None,
        *,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Take up the log where it ended. Raises `ConfigError` if it cannot be written."""
        self.options = options or AuditOptions()
        self.state = State.WRITING
        self._store = store
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        # By Record.pre_auth, so that strangers cannot fill the table of users.
        self._tallies = {False: Tally(), True: Tally()}
        self._dropped = {True: 0, False: 0}  # by Record.pre_auth too
        self._failure = ""
        self._failed_at_ns = 0
        # Lines by file: the first buffer is for the open file, each other one for a next file.
        self._buffers: deque[bytearray] = deque([bytearray()])
        self._appended = self._written = self._synced = 0  # bytes in this run
        self._is_unsynced = False  # the last try to sync, or to begin a file, failed
        self._moved_keys: deque[tuple[int, SealKey]] = deque()  # by ``_appended`` after their line
        self._retiring = (0, 0)  # ``_appended`` after the record of it, and the last such file
        self._to_write, self._to_sync = _Signal(), _Signal()
        self._to_seal, self._to_count = _Signal(), _Signal()
        self._to_seal.set()  # perhaps a former run left something
        self._limiter = trio.CapacityLimiter(2)  # threads that nobody else uses up

        resumed = store.resume()
        self._chain = resumed.chain
        self._since_checkpoint = resumed.unsealed
        self._number = self._open_number = resumed.number
        now_ns = wall_ns()
        self._day = now_ns // _DAY_NS
        self._size = resumed.size if resumed.last_time[:10] == rfc3339(now_ns)[:10] else 0
        self._begin()
        for problem in resumed.problems:
            log.warning("audit log: %s: %s", problem.file, problem.problem)
            self._append(problem)
        self.flush()
        if self._failure:
            raise ConfigError(
                f"the audit log cannot be written: {self._failure}",
                where=str(store.folder),
                remedy="make room, or name a folder on another disk",
            )

    def _begin(self) -> None:
        """Open the last file if it has today's records, or else a new one."""
        try:
            if self._size:
                self._store.continue_file(self._number)
            else:
                self._number += 1
                self._store.begin_file(self._number)
                self._append_header()
            self._retire(self._store.find_retired(self.options.keep_days, self._wall_ns()))
        except OSError as error:
            self._fail(error)
        self._open_number = self._number

    @property
    def accepts_new(self) -> bool:
        """Whether new logins and channels may begin: what they do can be written."""
        return self.state is State.WRITING

    @property
    def initial_key_is_here(self) -> bool:
        """Whether the key that verifies (and forges) everything is still on this machine."""
        return (self._store.folder / INITIAL_KEY_FILE).exists()

    # -- records -----------------------------------------------------------------------------------

    def write(self, record: Record) -> bool:
        """Take a record; return whether it found room, or was counted with others like it."""
        if self.state is State.CLOSED:
            return False
        key = record.repeat_key
        if key is not None and self._count(key, pre_auth=record.pre_auth) > REPEATS:
            return True
        if self._has_room(pre_auth=record.pre_auth):
            self._append(record)
            return True
        self._dropped[record.pre_auth] += 1
        if not record.pre_auth:
            self._deny("the buffer is full")
        return False

    def noise(self, source: str, reason: str) -> None:
        """Count what a stranger did; ``source`` is an address, ``reason`` our own words."""
        self._count((Noise.kind, source_prefix(source), reason), pre_auth=True)

    def _count(self, key: tuple[str, str, str], *, pre_auth: bool) -> int:
        self._to_count.set()
        return self._tallies[pre_auth].add(key)

    def _has_room(self, *, pre_auth: bool) -> bool:
        buffered = self._appended - self._written
        return buffered < self.options.buffer_bytes // (PRE_AUTH_SHARE if pre_auth else 1)

    def _append(self, record: Record) -> None:
        wall_ns = self._wall_ns()
        if self._size >= self.options.file_bytes or wall_ns // _DAY_NS != self._day:
            self._next_file(wall_ns // _DAY_NS)
        self._put(self._chain.add(record, wall_ns, self._monotonic_ns()))
        self._since_checkpoint += 1
        if self._since_checkpoint >= self.options.checkpoint_records:
            self.seal("count")
        else:
            self._to_seal.set()

    def _put(self, line: bytes) -> None:
        self._buffers[-1] += line
        self._appended += len(line)
        self._size += len(line)
        self._to_write.set()

    def seal(self, reason: str) -> None:
        """Write a checkpoint, if there is anything to seal since the last one."""
        if not self._since_checkpoint:
            return
        self._put(self._chain.seal(reason, self._wall_ns(), self._monotonic_ns()))
        self._since_checkpoint = 0
        self._moved_keys.append((self._appended, self._chain.key))

    def _next_file(self, day: int) -> None:
        self._day = day
        self.seal("rotation")
        self._buffers.append(bytearray())
        self._number += 1
        self._size = 0
        self._append_header()

    def _append_header(self) -> None:
        previous = file_name(self._number - 1) if self._number > 1 else ""
        header = LogFile(self._number, previous, self._chain.key.epoch, self.options.keep_days)
        self._put(self._chain.add(header, self._wall_ns(), self._monotonic_ns()))
        self._since_checkpoint += 1

    def _retire(self, found: LogRetired | None) -> None:
        """Say which files have been kept long enough; they are removed once that is synced."""
        if found is not None and self.state is not State.CLOSED:
            self._append(found)
            self.seal("retirement")
            self._retiring = self._appended, found.through

    def count_out(self) -> None:
        """Write what was counted in the period that is over."""
        for pre_auth, tally in self._tallies.items():
            for (kind, source, reason), count in tally.take().items():
                if kind == Noise.kind:
                    self.write(Noise(source, reason, count))
                elif count > REPEATS:
                    more = count - REPEATS
                    self.write(LogRepeated(kind, source, reason, more, by_strangers=pre_auth))

    # -- the file ----------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write the lines of the open file to it, here and now. Never raises; see `state`."""
        try:
            while self._buffers[0]:
                self._wrote(self._store.write(bytes(self._buffers[0])))
        except OSError as error:
            self._fail(error)
        else:
            self._flushed()

    async def _flush(self) -> None:
        """Do the same in a thread, with the lines that are there now."""
        rest = len(self._buffers[0])
        while rest:
            before, data = self._written, bytes(self._buffers[0][:rest])
            await self._on_disk(partial(self._store.write, data), self._wrote, self._fail)
            if self._written == before:
                return
            rest -= self._written - before
        self._flushed()

    def _wrote(self, count: int) -> None:
        del self._buffers[0][:count]
        self._written += count

    def _flushed(self) -> None:
        if self._appended == self._written and not self._is_unsynced:
            self._recover()
        if self._written > self._synced or len(self._buffers) > 1:
            self._to_sync.set()

    def _plan(self) -> _Settlement:
        key = None
        for offset, moved in self._moved_keys:
            if offset <= self._written:
                key = moved
        said_at, retired = self._retiring
        is_over = len(self._buffers) > 1 and not self._buffers[0]
        return _Settlement(
            self._written,
            key,
            retired if said_at <= self._written else 0,
            self._open_number + 1 if is_over else 0,
            self.options.keep_days,
            self._wall_ns(),
        )

    def _settled(self, done: _Settlement, found: LogRetired | None) -> None:
        self._synced = done.written
        while self._moved_keys and self._moved_keys[0][0] <= done.written:
            self._moved_keys.popleft()
        if done.retired:
            self._retiring = 0, 0
        if done.next_number:
            self._open_number = done.next_number
            self._buffers.popleft()
        if done.next_number or self._is_unsynced:
            self._is_unsynced = False
            self._to_write.set()
        self._retire(found)

    def _not_settled(self, error: OSError) -> None:
        self._is_unsynced = True
        self._to_sync.set()
        self._fail(error)

    def _fail(self, error: OSError) -> None:
        self._deny(error.strerror or type(error).__name__)

    def _deny(self, problem: str) -> None:
        if not self._failure:
            self._failure, self._failed_at_ns = problem, self._monotonic_ns()
            log.error("audit log: %s: no new logins and channels until it can be written", problem)
        if self.state is not State.CLOSED:
            self.state = State.DENY_NEW
        self._to_write.set()

    def _recover(self) -> None:
        """Everything is written: say what was not for a time."""
        if self._failure:
            duration_s = (self._monotonic_ns() - self._failed_at_ns) / 1e9
            self._append(LogFailed(self._failure, duration_s))
            log.warning("audit log: it is written again after %.1f s", duration_s)
            self._failure = ""
            if self.state is State.DENY_NEW:
                self.state = State.WRITING
        if any(self._dropped.values()):
            self._append(LogDropped(self._dropped[True], self._dropped[False]))
            self._dropped = {True: 0, False: 0}

    # -- tasks -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write until cancelled, then `close`. Cancel it after everything that writes records."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_flushing)
                nursery.start_soon(self._keep_syncing)
                nursery.start_soon(self._keep_sealing)
                nursery.start_soon(self._keep_counting)
        finally:
            self.close()

    async def _keep_flushing(self) -> None:
        while True:
            await self._to_write.wait()
            await self._flush()
            await trio.sleep(RETRY_S if self._failure else FLUSH_INTERVAL_S)

    async def _keep_syncing(self) -> None:
        while True:
            await self._to_sync.wait()
            plan = self._plan()
            await self._on_disk(
                partial(plan.settle, self._store),
                partial(self._settled, plan),
                self._not_settled,
            )
            await trio.sleep(RETRY_S if self._is_unsynced else self.options.sync_s)

    async def _on_disk(
        self,
        work: Callable[[], _Done],
        done: Callable[[_Done], object],
        failed: Callable[[OSError], object],
    ) -> None:
        """Call ``work`` in a thread, and ``done`` or ``failed`` before this can be cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._deny_if_it_hangs)
            try:
                result = await trio.to_thread.run_sync(work, limiter=self._limiter)
            except OSError as error:
                failed(error)
            else:
                done(result)
            nursery.cancel_scope.cancel()

    async def _deny_if_it_hangs(self) -> None:
        await trio.sleep(HANG_S)
        self._is_unsynced = True  # so that only a sync that succeeds ends it
        self._deny(f"the disk has not answered for {HANG_S:.0f} s")

    async def _keep_sealing(self) -> None:
        while True:
            await self._to_seal.wait()
            await trio.sleep(self.options.checkpoint_s)
            self.seal("time")

    async def _keep_counting(self) -> None:
        while True:
            await self._to_count.wait()
            await trio.sleep(PERIOD_S)
            self.count_out()

    def close(self) -> None:
        """Seal, write and sync everything, and let the folder go. Never raises."""
        if self.state is State.CLOSED:
            return
        self.count_out()
        self.flush()  # so that what follows a failure is sealed too
        self.seal(STOP)
        self.state = State.CLOSED
        while True:
            self.flush()
            plan = self._plan()
            try:
                found = plan.settle(self._store)
            except OSError as error:
                self._not_settled(error)
                break
            self._settled(plan, found)
            if not plan.next_number:
                break
        if lost := self._appended - self._written:
            log.error("audit log: %d bytes could not be written: %s", lost, self._failure)
        self._store.close()


def open_log(folder: Path, options: AuditOptions | None = None) -> AuditLog:
    """Open the log in a folder, made if missing. Raises `ConfigError`."""
    store = Store(folder)
    with contextlib.ExitStack() as stack:
        stack.callback(store.close)
        audit_log = AuditLog(store, options)
        stack.pop_all()
    return audit_log
