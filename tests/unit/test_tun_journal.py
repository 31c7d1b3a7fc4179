"""The journal of a guardian as a file: what a crash may leave of it, and whose it is."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from gateway.errors import NetworkSetupError
from gateway.tun import journal as journal_module
from gateway.tun.journal import Header, Journal, Place, Process, locked, read_journals
from gateway.tun.steps import FIRST_TABLE, Address, Link, Switch

if TYPE_CHECKING:
    from pathlib import Path

ME = Process.of(os.getpid())
STEPS = (Link("tun0", 1400), Address("tun0", "10.8.0.2/32"), Switch("ipv4"))


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    made = Journal.create(tmp_path, ME, set())
    for step in STEPS:
        made.will_make(1, step, {"index": 7})
    return made


def test_every_cut_of_the_last_line_leaves_the_lines_before(journal: Journal) -> None:
    whole = journal.path.read_bytes()
    last = len(whole.rstrip().rpartition(b"\n")[2])
    for cut in range(1, last + 1):
        journal.path.write_bytes(whole.rstrip()[:-cut])
        read = Journal.read(journal.path)
        assert [record.step for record in read.records.values()] == list(STEPS[:2])
        # and what is written after the cut is read
        read.is_undone(read.records[2])
        assert list(Journal.read(journal.path).records) == [1]


def test_numbers_go_on_where_they_were(journal: Journal) -> None:
    read = Journal.read(journal.path)
    read.will_write(read.records[3], [("net/ipv4/ip_forward", "0")])
    assert read.will_make(2, STEPS[0], {}).number == 4
    again = Journal.read(journal.path)
    assert again.records == read.records
    assert again.records[3].writes == [("net/ipv4/ip_forward", "0")]


def test_a_journal_of_months_stays_small(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "SURPLUS_LINES", 20)
    journal.will_write(journal.records[3], [("net/ipv4/ip_forward", "0")])
    for plan in range(2, 100):
        journal.is_undone(journal.will_make(plan, STEPS[1], {}))
        assert len(journal.path.read_text().split()) < 1000
        assert Journal.read(journal.path).records == journal.records
    assert [record.step for record in journal.records.values()] == list(STEPS)


def test_no_table_is_given_twice(tmp_path: Path, journal: Journal) -> None:
    assert journal.header.table == FIRST_TABLE
    journal.path.rename(tmp_path / "1-1.journal")  # another guardian's
    assert Journal.create(tmp_path, ME, {FIRST_TABLE + 1}).header.table == FIRST_TABLE + 2


def test_what_is_no_journal_is_not_read(tmp_path: Path) -> None:
    for number, text in enumerate(
        ("", "{}\n", '{"journal": 2}\n', '{"journal": 1}\n', "[1]\n", "\0\xff\n")
    ):
        (tmp_path / f"{number}-1.journal").write_text(text)
    assert read_journals(tmp_path) == []


def test_a_process_is_known_by_its_start() -> None:
    child = subprocess.Popen(["sleep", "100"])
    process = Process.of(child.pid)
    assert process.is_running()
    assert not dataclasses.replace(process, start=process.start - 1).is_running()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not process.is_running()  # dead, though its parent has not looked yet
    child.wait()
    assert not process.is_running()


def test_who_finishes_the_job() -> None:
    gone = Process(ME.pid, ME.start - 1)
    stranger = Process(os.getppid(), Process.of(os.getppid()).start)
    place = Place.here()
    assert Header(gone, gone, place, 1).is_abandoned(ME)
    assert Header(gone, ME, place, 1).is_abandoned(ME)  # its parent starts another guardian
    assert not Header(gone, stranger, place, 1).is_abandoned(ME)
    assert not Header(ME, gone, place, 1).is_abandoned(stranger)


def test_one_at_a_time(tmp_path: Path) -> None:
    refused = pytest.raises(NetworkSetupError, match="another gateway has been changing")
    with locked(tmp_path), refused, locked(tmp_path, 0.05):
        pytest.fail("two at a time")
    with locked(tmp_path, 0):
        pass


def test_a_place_that_is_gone() -> None:
    here = Place.here()
    assert not here.is_gone(here)
    for change, gone in (
        ({"boot": "another"}, True),
        ({"pids": 1}, False),  # from here nobody can tell
        ({"network": 1}, True),
        ({"cookie": here.cookie + 1}, True),
    ):
        assert dataclasses.replace(here, **change).is_gone(here) == gone
