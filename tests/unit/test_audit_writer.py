"""The writer: restarts, full disks, rotation, kill -9, and what a record costs."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.audit.chain import Report, SealKey, verify
from gateway.audit.records import (
    Auth,
    AuthResult,
    ChannelClass,
    ChannelOpen,
    ListenerAdd,
    PolicyDecision,
    Record,
    decode,
)
from gateway.audit.store import (
    INITIAL_KEY_FILE,
    KEY_FILE,
    NOT_ENDED,
    Store,
    file_name,
    log_files,
    read_key,
)
from gateway.audit.writer import (
    PERIOD_S,
    REPEATS,
    AuditLog,
    AuditOptions,
    State,
    open_log,
)
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DAY_NS = 86_400 * 10**9
NOON_NS = 20_000 * DAY_NS + DAY_NS // 2
SMALL = AuditOptions(file_bytes=4000, buffer_bytes=8000, checkpoint_records=10)


def record(number: int) -> ListenerAdd:
    return ListenerAdd(1, "alice", "127.0.0.1", number, "web ports")


def refused(number: int) -> Auth:
    return Auth(number, f"10.{number}.0.1", "root", "password", AuthResult.REFUSED, 1)


def records_of(folder: Path) -> list[dict[str, Any]]:
    return [decode(line) for path in log_files(folder) for line in path.read_bytes().splitlines()]


def numbers(folder: Path) -> list[int]:
    return [fields["port"] for fields in records_of(folder) if fields["kind"] == "listener.add"]


def of_kind(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [fields for fields in records_of(folder) if fields["kind"] == kind]


def check(folder: Path, **more: Any) -> Report:
    sealed = read_key(folder / KEY_FILE).epoch
    with ExitStack() as stack:
        files = [(path.name, stack.enter_context(path.open("rb"))) for path in log_files(folder)]
        return verify(files, read_key(folder / INITIAL_KEY_FILE), sealed=sealed, **more)


class FullDisk(Store):
    """A store whose disk has ``room`` bytes left, and whose syncs can fail."""

    room = 1 << 60
    sync_error = 0
    syncs = 0

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = min(len(data), self.room)
        self.room -= taken
        return super().write(data[:taken])

    def sync(self) -> None:
        self.syncs += 1
        if self.sync_error:
            raise OSError(self.sync_error, os.strerror(self.sync_error))
        super().sync()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def opened(folder: Path) -> Iterator[Callable[..., AuditLog]]:
    with ExitStack() as stack:

        def make(options: AuditOptions = SMALL, **more: Any) -> AuditLog:
            log = AuditLog(FullDisk(folder), options, **more)
            stack.callback(log.close)
            return log

        yield make


def disk(log: AuditLog) -> FullDisk:
    assert isinstance(log._store, FullDisk)
    return log._store


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ---- files, restarts -----------------------------------------------------------------------------


def test_files_are_ours_alone_and_one_server_writes_them(folder: Path) -> None:
    log = open_log(folder)
    assert mode(folder) == 0o700
    assert {path.name: mode(path) for path in folder.iterdir()} == {
        file_name(1): 0o600,
        KEY_FILE: 0o600,
        INITIAL_KEY_FILE: 0o600,
    }
    with pytest.raises(ConfigError, match="another server writes this audit log"):
        open_log(folder)
    log.close()
    open_log(folder).close()
    folder.chmod(0o750)
    with pytest.raises(ConfigError, match="chmod 700"):
        open_log(folder)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        open_log(tmp_path / "file" / "audit")


def test_a_clean_stop_seals_everything_and_a_start_goes_on(folder: Path) -> None:
    for start in range(3):
        log = open_log(folder)
        assert log.write(record(start))
        log.close()
        assert not log.write(record(99))
        assert (check(folder).ok, check(folder).unsealed) == (True, 0)
    assert numbers(folder) == [0, 1, 2]
    assert len(log_files(folder)) == 1
    assert read_key(folder / KEY_FILE).epoch == check(folder).checkpoints == 3
    assert read_key(folder / KEY_FILE) == read_key(folder / INITIAL_KEY_FILE).at(3)


def crash(log: AuditLog, written: int | None = None) -> None:
    """End a log as kill -9 does, with its last flush cut short after so many bytes."""
    if written is not None:
        disk(log).room = written
    log.flush()
    log._store.close()
    log.state = State.CLOSED


@pytest.mark.parametrize("cut", [1, 40, 300, 301, 400])
def test_an_incomplete_last_line_is_kept_aside(
    folder: Path, opened: Callable[..., AuditLog], cut: int
) -> None:
    log = opened()
    log.write(record(0))
    log.flush()
    log.write(record(1))
    log.write(record(2))
    crash(log, written=cut)
    assert "incomplete" in check(folder).problem
    data = (folder / file_name(1)).read_bytes()
    tail = data[data.rfind(b"\n") + 1 :]

    log = opened()
    log.write(record(3))
    log.close()
    assert check(folder).ok, check(folder)
    (recovered,) = of_kind(folder, "log.recovered")
    assert (folder / recovered["kept_as"]).read_bytes() == tail
    assert (recovered["bytes"], recovered["file"]) == (len(tail), file_name(1))
    assert numbers(folder) in ([0, 3], [0, 1, 3])


def test_a_first_line_that_was_not_finished(folder: Path, opened: Callable[..., AuditLog]) -> None:
    opened().close()
    (folder / file_name(2)).write_bytes(b'{"v":1,"se')
    log = opened()
    log.write(record(1))
    log.close()
    assert check(folder).ok, check(folder)
    assert of_kind(folder, "log.recovered")[0]["bytes"] == 10


def test_the_key_behind_the_log_after_a_crash_catches_up(
    folder: Path, opened: Callable[..., AuditLog]
) -> None:
    log = opened()
    for number in range(35):
        log.write(record(number))
        log.flush()
        settle(log)
    old_key = (folder / KEY_FILE).read_bytes()
    for number in range(35, 75):
        log.write(record(number))
    crash(log)
    settled_epoch = SealKey.parse(old_key.decode()).epoch
    assert check(folder).checkpoints > settled_epoch
    assert (folder / KEY_FILE).read_bytes() == old_key

    log = opened(wall_ns=lambda: NOON_NS)  # another day, another file
    assert read_key(folder / KEY_FILE).epoch == check(folder).checkpoints
    crash(log)
    opened().close()
    assert check(folder).ok, check(folder)
    assert read_key(folder / KEY_FILE).epoch == check(folder).checkpoints


def test_what_a_crash_left_unsealed_is_sealed_later(
    folder: Path, opened: Callable[..., AuditLog]
) -> None:
    log = opened()
    log.write(record(1))
    crash(log)
    assert check(folder).unsealed == 2
    opened().close()
    assert (check(folder).ok, check(folder).unsealed) == (True, 0)
    (recovered,) = of_kind(folder, "log.recovered")
    assert (recovered["file"], recovered["problem"]) == (file_name(1), NOT_ENDED)
    opened().close()
    assert len(of_kind(folder, "log.recovered")) == 1, "a clean stop needs no word"


def settle(log: AuditLog) -> None:
    plan = log._plan()
    log._settled(plan, plan.settle(log._store))
    log.flush()


def test_a_log_that_was_cut_while_the_server_was_down(
    folder: Path, opened: Callable[..., AuditLog]
) -> None:
    log = opened()
    for number in range(9):
        log.write(record(number))
    log.close()
    path = folder / file_name(1)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:4]))
    log = opened()
    log.write(record(9))
    log.close()
    (recovered,) = of_kind(folder, "log.recovered")
    assert recovered["problem"] == "1 checkpoints were made and 0 are left: it was cut"
    report = check(folder)
    assert (report.file, report.line) == (file_name(2), 1)
    assert "goes on at 1" in report.problem
    path.unlink()
    assert check(folder, archived=True).ok


def test_a_log_that_was_edited_while_the_server_was_down(
    folder: Path, opened: Callable[..., AuditLog]
) -> None:
    log = opened()
    for number in range(5):
        log.write(record(number))
    log.close()
    path = folder / file_name(1)
    edited = path.read_bytes().replace(b'"alice"', b'"mallo"', 1)
    path.write_bytes(edited)
    log = opened()
    assert log.accepts_new
    log.close()
    assert path.read_bytes() == edited  # evidence stays as it is
    assert "line 3: the hash" in of_kind(folder, "log.recovered")[0]["problem"]
    assert (check(folder).file, check(folder).line) == (file_name(1), 3)


def test_all_files_removed_or_the_key(folder: Path, opened: Callable[..., AuditLog]) -> None:
    opened().close()
    (folder / file_name(1)).unlink()
    opened().close()
    assert "goes on at 1" in check(folder).problem
    for name, problem in ((KEY_FILE, "is missing, and there is a log"),):
        (folder / name).unlink()
        with pytest.raises(ConfigError, match=problem):
            opened()
    (folder / KEY_FILE).write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        opened()


# ---- rotation ------------------------------------------------------------------------------------


def test_files_change_by_size_and_the_chain_goes_on(
    folder: Path, opened: Callable[..., AuditLog]
) -> None:
    log = opened()
    for number in range(100):
        assert log.write(record(number))
        log.flush()
        settle(log)
    log.close()
    files = log_files(folder)
    assert [path.name for path in files] == [file_name(n) for n in range(1, len(files) + 1)]
    assert len(files) == 7
    assert all(path.stat().st_size < SMALL.file_bytes + 1500 for path in files)
    assert numbers(folder) == list(range(100))
    assert check(folder).ok
    log = opened()
    log.write(record(100))
    log.close()
    assert numbers(folder) == list(range(101))
    assert check(folder).ok
    files[3].unlink()
    assert check(folder).file == file_name(5)


def test_close_writes_what_waits_for_several_files(
    folder: Path, opened: Callable[..., AuditLog]
) -> None:
    log = opened(AuditOptions(file_bytes=2000))
    for number in range(100):
        log.write(record(number))
    log.close()
    assert len(log_files(folder)) > 10
    assert numbers(folder) == list(range(100))
    assert check(folder).ok


def test_a_new_utc_day_is_a_new_file_also_over_a_restart(
    folder: Path, opened: Callable[..., AuditLog]
) -> None:
    now_ns = NOON_NS
    log = opened(wall_ns=lambda: now_ns)
    log.write(record(1))
    now_ns += DAY_NS // 2
    log.write(record(2))
    log.close()
    log = opened(wall_ns=lambda: now_ns)
    log.write(record(3))
    log.close()
    now_ns += DAY_NS
    opened(wall_ns=lambda: now_ns).close()
    assert check(folder).ok, check(folder)
    assert [len(path.read_bytes().splitlines()) for path in log_files(folder)] == [3, 5, 2]


def test_nothing_is_in_the_next_file_before_the_last_one_is_synced(
    folder: Path, opened: Callable[..., AuditLog]
) -> None:
    log = opened(AuditOptions(file_bytes=1000))
    for number in range(10):
        log.write(record(number))
    log.flush()
    assert [path.name for path in log_files(folder)] == [file_name(1)]
    syncs, epoch = disk(log).syncs, read_key(folder / KEY_FILE).epoch
    settle(log)
    assert [path.name for path in log_files(folder)] == [file_name(1), file_name(2)]
    assert disk(log).syncs == syncs + 1
    assert read_key(folder / KEY_FILE).epoch == epoch + 1


# ---- a disk that is full or broken ---------------------------------------------------------------


def test_a_full_disk_denies_new_and_keeps_room_for_users(
    folder: Path, opened: Callable[..., AuditLog]
) -> None:
    now_ns = NOON_NS
    log = opened(AuditOptions(buffer_bytes=8000), monotonic_ns=lambda: now_ns)
    disk(log).room = 100
    assert log.write(record(0))
    assert log.accepts_new
    log.flush()
    assert (log.accepts_new, log.state) == (False, State.DENY_NEW)
    taken = [log.write(refused(number)) for number in range(100)]
    assert 3 <= sum(taken) <= 8  # a quarter of 8 000 bytes, and one line more
    assert log.write(record(1))  # strangers left room
    users = [log.write(record(number)) for number in range(2, 100)]
    assert 15 <= sum(users) <= 30
    assert users == sorted(users, reverse=True)  # full stays full
    assert log._appended - log._written < 8000 + 500
    log.flush()
    assert not log.accepts_new

    now_ns += 12 * 10**9
    disk(log).room = 1 << 60
    log.flush()
    assert log.accepts_new
    log.close()
    assert check(folder).ok, check(folder)
    assert numbers(folder) == list(range(2 + sum(users)))
    (dropped,) = of_kind(folder, "log.dropped")
    assert dropped["pre_auth_records"] == 100 - sum(taken)
    assert dropped["other_records"] == 98 - sum(users)
    (failed,) = of_kind(folder, "log.failed")
    assert (failed["error"], failed["duration_s"]) == (os.strerror(errno.ENOSPC), 12.0)


def test_a_full_buffer_denies_new_though_the_disk_is_well(
    folder: Path, opened: Callable[..., AuditLog]
) -> None:
    log = opened()
    while log.write(record(1)):
        assert log.accepts_new
    assert not log.accepts_new
    log.close()
    assert check(folder).ok
    assert of_kind(folder, "log.failed")[0]["error"] == "the buffer is full"


def test_strangers_alone_do_not_deny_new(folder: Path, opened: Callable[..., AuditLog]) -> None:
    log = opened()
    while log.write(refused(len(log._tallies[True]))):
        pass
    assert log.accepts_new
    assert log.write(record(1))
    log.close()
    assert of_kind(folder, "log.dropped")[0]["pre_auth_records"] == 1


def test_a_disk_that_is_full_at_the_start_or_for_ever(
    folder: Path, opened: Callable[..., AuditLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened()
    disk(log).room = 0
    log.write(record(1))
    log.close()  # does not raise
    monkeypatch.setattr(FullDisk, "room", 0)
    with pytest.raises(ConfigError, match="No space left"):
        opened(wall_ns=lambda: NOON_NS)


def test_a_real_limit_of_the_kernel(folder: Path) -> None:
    """RLIMIT_FSIZE in a child: a short write, then EFBIG; lifted, everything is there."""
    code = f"""
import resource, sys
from pathlib import Path
from gateway.audit.writer import open_log
from gateway.audit.records import ListenerAdd
log = open_log(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, {resource.RLIM_INFINITY}))
for number in range(30):
    log.write(ListenerAdd(1, "alice", "::1", number, ""))
    log.flush()
assert not log.accepts_new
assert (Path(sys.argv[1]) / "audit-000001.jsonl").stat().st_size == 3000
resource.setrlimit(resource.RLIMIT_FSIZE, ({resource.RLIM_INFINITY}, {resource.RLIM_INFINITY}))
log.flush()
assert log.accepts_new
log.close()
"""
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, timeout=30)
    assert numbers(folder) == list(range(30))
    assert check(folder).ok
    assert of_kind(folder, "log.failed")[0]["error"] == os.strerror(errno.EFBIG)


class HungDisk(Store):
    """A store whose disk does not answer while ``hung`` is set: in write or in sync."""

    hung = ""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.answers = threading.Event()

    def _wait(self, call: str) -> None:
        if self.hung == call:
            assert self.answers.wait(10)

    def write(self, data: bytes) -> int:
        self._wait("write")
        return super().write(data)

    def sync(self) -> None:
        self._wait("sync")
        super().sync()


@pytest.mark.parametrize("call", ["write", "sync"])
async def test_a_disk_that_hangs_denies_new_and_recovers_by_itself(
    folder: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real threads. The server goes on meanwhile, and what came meanwhile is not lost."""
    monkeypatch.setattr("gateway.audit.writer.HANG_S", 0.2)
    monkeypatch.setattr("gateway.audit.writer.RETRY_S", 0.05)
    store = HungDisk(folder)
    log = AuditLog(store, AuditOptions(sync_s=0.0))

    async def until(accepts_new: bool) -> None:
        with trio.fail_after(30):
            while log.accepts_new is not accepts_new:
                await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        log.write(record(0))
        await trio.sleep(0.15)
        store.hung = call
        for number in range(1, 5):
            log.write(record(number))
            await trio.sleep(0.03)
        assert log.accepts_new
        await until(False)
        log.write(record(5))
        await trio.sleep(0.3)
        assert not log.accepts_new, "nothing but the disk ends it"
        store.hung = ""
        store.answers.set()
        await until(True)
        nursery.cancel_scope.cancel()
    assert numbers(folder) == list(range(6))
    (failed,) = of_kind(folder, "log.failed")
    assert "has not answered" in failed["error"]
    assert failed["duration_s"] > 0.25
    assert check(folder).ok, check(folder)


# ---- retirement ----------------------------------------------------------------------------------


def kept(days: int) -> AuditOptions:
    return AuditOptions(keep_days=days)


def files_of(folder: Path) -> list[int]:
    return [int(path.name[6:12]) for path in log_files(folder)]


def run_on(
    folder: Path, opened: Callable[..., AuditLog], day: float, options: AuditOptions
) -> AuditLog:
    """Run the server for a moment of a day."""
    log = opened(options, wall_ns=lambda: NOON_NS + int(day * DAY_NS))
    log.write(record(int(day)))
    log.close()
    return log


def test_files_are_retired_at_a_start_when_their_time_is_over(
    folder: Path, opened: Callable[..., AuditLog]
) -> None:
    for day in range(5):
        run_on(folder, opened, day, kept(10))
    (folder / f"{file_name(1)}.tail-77").write_bytes(b"x")
    (folder / "notes").write_bytes(b"x")
    run_on(folder, opened, 11, kept(10))
    assert files_of(folder) == [1, 2, 3, 4, 5, 6], "the second file began 10 days ago to the second"
    run_on(folder, opened, 13.01, kept(10))
    assert files_of(folder) == [4, 5, 6, 7]
    assert not (folder / f"{file_name(1)}.tail-77").exists()
    assert (folder / "notes").exists()
    report = check(folder)
    assert report.ok, report
    assert (report.first, report.unsealed) == (4, 0)
    run_on(folder, opened, 30, kept(10))
    assert (files_of(folder), check(folder).ok) == ([7, 8], True)
    assert numbers(folder) == [13, 30]
    (folder / file_name(7)).unlink()
    assert "no sealed record says" in check(folder).problem


def test_a_shorter_time_holds_for_what_is_written_from_then_on(
    folder: Path, opened: Callable[..., AuditLog]
) -> None:
    run_on(folder, opened, 0, AuditOptions())
    run_on(folder, opened, 1, kept(100))
    run_on(folder, opened, 50, kept(1))
    assert files_of(folder) == [1, 2, 3], "the second file promises 100 days"
    run_on(folder, opened, 52, kept(1))
    assert files_of(folder) == [3, 4]
    run_on(folder, opened, 60, kept(30))
    assert files_of(folder) == [3, 4, 5], "a longer time holds at once"
    run_on(folder, opened, 1000, AuditOptions())
    assert files_of(folder) == [3, 4, 5, 6]
    assert check(folder).ok, check(folder)


def test_files_are_retired_with_each_new_file_after_the_record_of_it_is_synced(
    folder: Path, opened: Callable[..., AuditLog]
) -> None:
    for day in range(3):
        run_on(folder, opened, day, kept(10))
    now_ns = NOON_NS + 3 * DAY_NS + DAY_NS // 4
    log = opened(kept(10), wall_ns=lambda: now_ns)
    now_ns += 9 * DAY_NS
    log.write(record(12))
    log.flush()
    disk(log).room = 0
    settle(log)
    assert files_of(folder) == [1, 2, 3, 4, 5]
    assert of_kind(folder, "log.retired") == []
    settle(log)
    assert files_of(folder) == [1, 2, 3, 4, 5], "nobody can read yet that they are retired"
    disk(log).room = 1 << 60
    log.flush()
    (retired,) = of_kind(folder, "log.retired")
    assert (retired["through"], retired["keep_days"]) == (2, 10)
    syncs = disk(log).syncs
    settle(log)
    assert files_of(folder) == [3, 4, 5]
    assert disk(log).syncs == syncs + 1
    crash(log)
    assert check(folder).ok, check(folder)


def test_a_crash_before_the_files_are_removed(
    folder: Path, opened: Callable[..., AuditLog]
) -> None:
    for day in range(3):
        run_on(folder, opened, day, kept(10))
    crash(opened(kept(10), wall_ns=lambda: NOON_NS + 12 * DAY_NS + DAY_NS // 4))
    assert len(of_kind(folder, "log.retired")) == 1
    (folder / file_name(1)).unlink()  # or in the middle of it
    assert files_of(folder) == [2, 3, 4]
    assert check(folder).ok, check(folder)
    run_on(folder, opened, 12.3, kept(10))
    assert files_of(folder) == [3, 4]
    assert check(folder).ok, check(folder)


def test_a_file_that_cannot_be_read_is_not_the_reason_to_retire_others(
    folder: Path, opened: Callable[..., AuditLog]
) -> None:
    for day in range(4):
        run_on(folder, opened, day, kept(10))
    for number, data in ((2, b"\0" * 100), (3, b'{"v":1}\n')):
        (folder / file_name(number)).write_bytes(data)
    run_on(folder, opened, 12.5, kept(10))
    assert files_of(folder) == [1, 2, 3, 4, 5]
    assert not check(folder).ok


# ---- counted, not written ------------------------------------------------------------------------


def test_repeats_and_noise_are_counted(folder: Path, opened: Callable[..., AuditLog]) -> None:
    log = opened(AuditOptions())
    denied = PolicyDecision(7, "alice", "db", "open", "alice", "10.0.0.1:80", allowed=False)
    for _ in range(100_000):
        assert log.write(denied)
    for number in range(50):
        assert log.write(refused(1))
        log.noise(f"192.0.2.{number}", "no version")
    log.close()
    assert len(of_kind(folder, "policy.decision")) == REPEATS
    assert len(of_kind(folder, "auth")) == REPEATS
    decisions, logins = of_kind(folder, "log.repeated")
    assert (decisions["of"], decisions["source"], decisions["reason"], decisions["count"]) == (
        "policy.decision", "connection 7", "db", 100_000 - REPEATS,
    )  # fmt: skip
    assert (logins["source"], logins["count"]) == ("10.1.0.0/24", 50 - REPEATS)
    (noise,) = of_kind(folder, "noise")
    assert (noise["source"], noise["count"]) == ("192.0.2.0/24", 50)


def test_strangers_cannot_hide_what_users_do(folder: Path, opened: Callable[..., AuditLog]) -> None:
    log = opened(AuditOptions(buffer_bytes=64 << 20))
    for number in range(3000):
        log.noise(f"10.{number // 256}.{number % 256}.1", "no version")
        log.write(PolicyDecision(number, "alice", "db", "open", "alice", "x:1", allowed=False))
        if number == 1000:
            log.count_out()
    log.close()
    assert len(of_kind(folder, "policy.decision")) == 1001 + 1024 + REPEATS
    (repeated,) = of_kind(folder, "log.repeated")
    assert (repeated["source"], repeated["count"]) == ("others", 1999 - 1024 - REPEATS)
    assert len(of_kind(folder, "noise")) == 1001 + 1025
    assert check(folder).ok


# ---- the tasks, in virtual time ------------------------------------------------------------------


@pytest.fixture
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run_sync(function: Callable[[], object], *, limiter: object) -> object:
        await trio.lowlevel.checkpoint()
        return function()

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)


@pytest.mark.usefixtures("_no_threads")
async def test_the_tasks_write_sync_seal_and_count_in_time(
    folder: Path, opened: Callable[..., AuditLog], mock_clock: MockClock
) -> None:
    log = opened(AuditOptions(checkpoint_records=1000))

    async def after(seconds: float) -> None:
        await wait_all_tasks_blocked()  # whoever has to sleep began to
        mock_clock.jump(seconds)
        await wait_all_tasks_blocked()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        await after(2.0)
        log.write(record(1))
        await wait_all_tasks_blocked()
        assert numbers(folder) == [1]  # at the end of this turn
        log.write(record(2))
        await wait_all_tasks_blocked()
        assert numbers(folder) == [1]
        await after(0.1)
        assert numbers(folder) == [1, 2]
        assert log._synced < log._written
        await after(1.0)
        assert log._synced == log._written
        syncs = disk(log).syncs
        await after(30.0)
        assert disk(log).syncs == syncs  # an idle log costs nothing
        log.noise("192.0.2.1", "no version")
        await after(30.0)
        assert [fields["reason"] for fields in of_kind(folder, "log.checkpoint")] == ["time"]
        await after(PERIOD_S - 29.0)
        await after(1.0)
        assert len(of_kind(folder, "noise")) == 1
        assert read_key(folder / KEY_FILE).epoch == 1
        nursery.cancel_scope.cancel()
    assert log.state is State.CLOSED
    assert [fields["reason"] for fields in of_kind(folder, "log.checkpoint")] == ["time", "stop"]
    assert check(folder).ok


@pytest.mark.usefixtures("_no_threads")
async def test_a_sync_that_fails_denies_new_until_one_succeeds(
    folder: Path, opened: Callable[..., AuditLog], mock_clock: MockClock
) -> None:
    log = opened(AuditOptions())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        await wait_all_tasks_blocked()
        disk(log).sync_error = errno.EIO
        log.write(record(1))
        for quarter in range(20):
            mock_clock.jump(0.25)
            await wait_all_tasks_blocked()
            assert quarter < 4 or not log.accepts_new, quarter
        disk(log).sync_error = 0
        for _ in range(3):
            mock_clock.jump(1.0)
            await wait_all_tasks_blocked()
        assert log.accepts_new
        nursery.cancel_scope.cancel()
    assert of_kind(folder, "log.failed")[0]["error"] == os.strerror(errno.EIO)
    assert check(folder).ok


async def test_files_change_in_the_thread_while_records_come(folder: Path) -> None:
    """Real threads and a real clock, small files: nothing is lost, doubled or out of order."""
    log = AuditLog(Store(folder), AuditOptions(file_bytes=3000, sync_s=0.0, checkpoint_records=7))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        for number in range(400):
            assert log.write(record(number))
            await trio.sleep(0.0005)
        nursery.cancel_scope.cancel()
    assert numbers(folder) == list(range(400))
    assert check(folder).ok
    assert len(log_files(folder)) > 20


# ---- kill -9 -------------------------------------------------------------------------------------

WRITES_FOR_EVER = """
import os, sys, time, trio
from pathlib import Path
from gateway.audit.writer import open_log
from gateway.audit.records import ListenerAdd
async def main():
    log = open_log(Path(sys.argv[1]))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        number = 0
        while True:
            log.write(ListenerAdd(1, "alice", "::1", number, ""))
            os.write(1, b"%d %d\\n" % (number, time.monotonic_ns()))
            number += 1
            await trio.sleep(0.001)
trio.run(main)
"""


@pytest.mark.parametrize("kill_after", [1, 500, 1777])
def test_kill_9_loses_at_most_the_stated_interval(folder: Path, kill_after: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITES_FOR_EVER, str(folder)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(kill_after)]
        process.send_signal(signal.SIGKILL)
        said += process.stdout.read().splitlines(keepends=True)
    at_ns = dict(tuple(map(int, line.split())) for line in said if line.endswith(b"\n"))
    log = open_log(folder)  # a start repairs what it has to
    log.close()
    assert check(folder).ok, check(folder)
    kept = numbers(folder)
    assert kept == list(range(len(kept)))
    lost = [at_ns[number] for number in at_ns if number >= len(kept)]
    last_ns = max(at_ns.values())
    # 0.1 s is what the writer states, by the child's own clock; as much again for a busy machine.
    assert all(last_ns - written_ns < 0.2e9 for written_ns in lost)


# ---- cost ----------------------------------------------------------------------------------------


def test_what_a_record_costs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = AuditLog(Store(folder), AuditOptions(buffer_bytes=64 << 20))
    opened = ChannelOpen(
        7, 3, "alice", ChannelClass.DIRECT_TCPIP, "db.internal:5432", "10.0.0.5:5432",
        "127.0.0.1:40000", 0.00123, "db",
    )  # fmt: skip
    many: list[Record] = [opened] * 5000
    started_s = time.process_time()
    for one in many:
        log.write(one)
    written_s = time.process_time() - started_s
    started_s = time.process_time()
    log.flush()
    flushed_s = time.process_time() - started_s
    log.close()
    each_us = written_s / len(many) * 1e6
    with capsys.disabled():
        sys.stdout.write(
            f"\na record: {each_us:.1f} us in write(), "
            f"{flushed_s / len(many) * 1e6:.1f} us in the kernel; 1 000 a second take "
            f"{(written_s + flushed_s) / len(many) * 1e5:.1f} % of a core\n"
        )
    assert each_us < 50
    assert check(folder).ok
