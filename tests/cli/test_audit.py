"""`gateway audit`: what it prints, what it finds, and its exit status."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from gateway.audit.chain import SealKey
from gateway.audit.records import Auth, AuthResult, ListenerAdd
from gateway.audit.store import INITIAL_KEY_FILE, KEY_FILE, Store, file_name, log_files
from gateway.audit.writer import AuditLog, AuditOptions, open_log
from gateway.cli.audit import run_audit
from tests.support.programs import GATEWAY

if TYPE_CHECKING:
    from pathlib import Path

    Capture = pytest.CaptureFixture[str]

HOUR_NS = 3600 * 10**9
START = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
HOSTILE = 'al\x1b[2Jice\n"\x7f\u202e'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A log of four records, an hour between each."""
    now_ns = int(START.timestamp()) * 10**9
    log = AuditLog(Store(tmp_path / "audit"), wall_ns=lambda: now_ns)
    for number, user in enumerate(("alice", "bob", "alice", HOSTILE)):
        log.write(ListenerAdd(1, user, "127.0.0.1", 8000 + number, "web ports"))
        now_ns += HOUR_NS
    log.close()
    return tmp_path / "audit"


def run(*arguments: object) -> int:
    return run_audit([str(argument) for argument in arguments])


def shown(capsys: Capture, *arguments: object) -> list[str]:
    assert run("show", *arguments) == 0
    return capsys.readouterr().out.splitlines()


# ---- verify --------------------------------------------------------------------------------------


def test_a_good_log(folder: Path, capsys: Capture) -> None:
    assert run("verify", folder) == 0
    out = capsys.readouterr().out
    assert out.startswith("good: 6 lines in 1 files, 1 checkpoints, the last ")
    assert out.endswith("; 0 lines are not sealed yet\n")


def test_an_edited_log(folder: Path, capsys: Capture) -> None:
    path = folder / file_name(1)
    path.write_bytes(path.read_bytes().replace(b'"bob"', b'"eve"'))
    assert run("verify", folder) == 1
    assert capsys.readouterr().out.startswith(f"BAD: {file_name(1)}, line 4: the hash of the line")


def test_a_log_cut_at_its_end(folder: Path, capsys: Capture) -> None:
    path = folder / file_name(1)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))
    assert run("verify", folder) == 1
    assert "the end of the log was cut off: 1 checkpoints" in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:-1])
    assert run("verify", folder) == 1
    assert "the line is incomplete" in capsys.readouterr().out


def test_a_copy_without_the_current_key_needs_a_number(folder: Path, capsys: Capture) -> None:
    (folder / KEY_FILE).unlink()
    assert run("verify", folder) == 1
    assert f"BAD: {KEY_FILE}: it is missing" in capsys.readouterr().out
    assert run("verify", folder, "--checkpoints", 1) == 0
    assert run("verify", folder, "--checkpoints", 2) == 1


def test_a_current_key_that_was_replaced(folder: Path, capsys: Capture) -> None:
    (folder / KEY_FILE).write_text(str(SealKey(0, b"x" * 32)))
    assert run("verify", folder) == 1
    assert f"BAD: {KEY_FILE}: it was replaced" in capsys.readouterr().out


def test_a_running_server_can_be_verified(tmp_path: Path) -> None:
    log = open_log(tmp_path / "audit")
    log.write(ListenerAdd(1, "alice", "::1", 1, ""))
    log.flush()
    assert run("verify", tmp_path / "audit") == 0
    log.close()


def test_archived(folder: Path, capsys: Capture) -> None:
    log = open_log(folder)  # years later in this test: a new day, a new file
    log.write(ListenerAdd(1, "alice", "::1", 1, ""))
    log.close()
    assert run("verify", folder) == 0
    (folder / file_name(1)).unlink()
    assert run("verify", folder) == 1
    assert run("verify", folder, "--archived") == 0


def test_a_beginning_that_was_retired(tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "audit"
    began_ns = int(START.timestamp()) * 10**9
    for day in (0, 1, 40):
        now_ns = began_ns + day * 24 * HOUR_NS
        log = AuditLog(Store(folder), AuditOptions(keep_days=30), wall_ns=lambda now=now_ns: now)
        log.write(ListenerAdd(1, "alice", "::1", day, ""))
        log.close()
    assert [path.name for path in log_files(folder)] == [file_name(2), file_name(3)]
    assert run("verify", folder) == 0
    assert capsys.readouterr().out.startswith(
        "files 1 to 1 were retired on 2026-03-12, kept as long as the log said; "
        "what is here begins 2026-02-01T12:00:00.000000Z\ngood: "
    )
    assert run("verify", folder, "--archived") == 0
    assert "files 1 to 1 are kept elsewhere" in capsys.readouterr().out
    (folder / file_name(2)).unlink()
    assert run("verify", folder) == 1
    out = capsys.readouterr().out
    assert out.startswith(f"BAD: {file_name(3)}, line 1: this is file 3 of the log, and not file 1")


# ---- the key -------------------------------------------------------------------------------------


def test_the_key_is_printed_once_and_verifies(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert run("key", folder) == 0
    kept = tmp_path / "kept"
    kept.write_text(capsys.readouterr().out)
    assert not (folder / INITIAL_KEY_FILE).exists()
    assert run("key", folder) == 2
    assert "taken already" in capsys.readouterr().err
    assert run("verify", folder) == 2
    assert "--key FILE" in capsys.readouterr().err
    assert run("verify", folder, "--key", kept) == 0
    open_log(folder).close()
    assert run("verify", folder, "--key", kept) == 0
    assert not (folder / INITIAL_KEY_FILE).exists()
    kept.write_text("nonsense")
    assert run("verify", folder, "--key", kept) == 2


def test_the_key_stays_if_it_could_not_be_printed(folder: Path) -> None:
    result = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" >/dev/full', "sh", *GATEWAY, "audit", "key", str(folder)],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (
        2,
        "gateway: standard output: No space left on device\n",
    )
    assert (folder / INITIAL_KEY_FILE).exists()


# ---- show ----------------------------------------------------------------------------------------


def test_records_are_readable_lines(folder: Path, capsys: Capture) -> None:
    lines = shown(capsys, folder)
    assert len(lines) == 6
    assert lines[1] == (
        "2026-01-31T12:00:00.000000Z listener.add    conn_id=1 user=alice bind=127.0.0.1 "
        'port=8000 rule="web ports"'
    )
    assert all(line.isprintable() for line in lines)
    assert "al\\x1b[2Jice\\n" in lines[4]


def test_filters(folder: Path, capsys: Capture) -> None:
    assert [line.split("port=")[1][:4] for line in shown(capsys, folder, "--user", "alice")] == [
        "8000",
        "8002",
    ]
    for since, count in (
        ("2026-01-31T14:00", 3),
        ("2026-01-31T14:00:00.000001Z", 2),
        ("2026-01-31T15:00+01:00", 3),
        ("2026-01-31", 6),
        ("1h", 0),
        ("30000d", 6),
    ):
        assert len(shown(capsys, folder, "--since", since)) == count, since


def test_json_is_the_line_as_it_was_written(folder: Path, capsys: Capture) -> None:
    assert run("show", folder, "--json") == 0
    out = capsys.readouterr().out
    assert out.encode() == (folder / file_name(1)).read_bytes()
    assert json.loads(out.splitlines()[4])["user"] == HOSTILE


def test_what_is_no_record_is_reported_and_the_rest_shown(folder: Path, capsys: Capture) -> None:
    with (folder / file_name(1)).open("ab") as file:
        file.write(b"\x1b[2J nonsense\n")
    assert run("show", folder) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 6
    assert captured.err == f"gateway: {file_name(1)}, line 7: this is not JSON\n"


# ---- wrong use -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "COMMAND"),
        (["nonsense"], "nonsense"),
        (["verify"], "FOLDER"),
        (["verify", "/nonexistent"], "initial key of the log is not here"),
        (["show", "/nonexistent"], "/nonexistent: No such file"),
        (["show", "/"], "there is no audit log in this folder"),
        (["show", "/", "--since", "yesterday"], "yesterday is neither a time"),
        (["show", "/", "--since", "999999999d"], "neither a time"),
        (["key", "/nonexistent"], "taken already, or there is no log"),
    ],
)
def test_wrong_use_is_one_sentence_and_status_2(
    arguments: list[str], problem: str, capsys: Capture
) -> None:
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert problem in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out


def test_the_program_and_a_reader_that_leaves(folder: Path) -> None:
    log = open_log(folder)
    for number in range(800):
        log.write(Auth(number, "192.0.2.1", "alice", "publickey", AuthResult.ACCEPTED, 1))
    log.close()
    with subprocess.Popen(
        [*GATEWAY, "audit", "show", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert b"log.file" in process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 2
