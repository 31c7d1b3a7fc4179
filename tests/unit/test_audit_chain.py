"""Every way to change a log is found, with or without the hashes computed again."""

from __future__ import annotations

import dataclasses
import hmac
import json
import re
from io import BytesIO
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.audit.chain import GENESIS, MAXIMUM_EPOCH, Chain, Report, SealKey, digest, verify
from gateway.audit.records import ListenerAdd, LogFile, LogRetired

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = SealKey(0, b"k" * 32)
Files = list[list[bytes]]
RECORDS = 5  # between checkpoints, twice in each of the files


def make_files(count: int = 3) -> tuple[Files, Chain]:
    """Lines of files: the header, records, a checkpoint, records, a checkpoint at its end."""
    chain = Chain(KEY)
    files: Files = []
    for number in range(1, count + 1):
        lines = [chain.add(LogFile(number, f"f{number - 1}", chain.key.epoch), 0, 0)]
        for reason in ("count", "rotation"):
            lines += [add(chain, port) for port in range(RECORDS)]
            lines.append(chain.seal(reason, 0, 0))
        files.append(lines)
    return files, chain


def add(chain: Chain, port: int) -> bytes:
    return chain.add(ListenerAdd(1, "alice", "127.0.0.1", port, "web ports"), 10**18 + port, 77_000)


def check(files: Files, key: SealKey = KEY, sealed: int = 6, *, archived: bool = False) -> Report:
    named = [(f"f{number}", lines) for number, lines in enumerate(files, 1)]
    return verify(named, key, sealed=sealed, archived=archived)


def flat(files: Files) -> list[tuple[int, int]]:
    return [(file, line) for file, lines in enumerate(files) for line in range(len(lines))]


FILES, CHAIN = make_files()
PLACES = flat(FILES)


def copy() -> Files:
    return [list(lines) for lines in FILES]


def rebuilt(lines: list[bytes], seq: int, prev: str) -> list[bytes]:
    """Compute all numbers and hashes again, as who has no key can; MACs stay what they are."""
    made = []
    for line in lines:
        fields = json.loads(line)
        fields["seq"], fields["prev"] = seq, prev
        made.append(json.dumps(fields, separators=(",", ":")).encode() + b"\n")
        seq, prev = seq + 1, digest(made[-1])
    return made


def rebuilt_files(files: Files) -> Files:
    made = rebuilt([line for lines in files for line in lines], 0, GENESIS)
    return [[made.pop(0) for _ in lines] for lines in files]


def test_an_untouched_log_is_good_and_is_counted() -> None:
    report = check(copy())
    assert report.ok, report
    assert (report.files, report.lines, report.checkpoints, report.unsealed) == (3, 39, 6, 0)
    assert report.last_mac == json.loads(FILES[-1][-1])["mac"]
    more = copy()
    more[-1].append(add(dataclasses.replace(CHAIN), 9))
    assert (check(more).ok, check(more).unsealed) == (True, 1)
    assert rebuilt_files(copy()) == FILES  # so that the attacks below are what they say


@pytest.mark.parametrize("place", range(len(FILES[0])))
def test_each_byte_of_each_kind_of_line(place: int) -> None:
    """Every byte of every line of a file: header, record, checkpoint with its MAC, line feed."""
    for index in range(len(FILES[0][place])):
        for change in (0x01, 0x20):
            files = copy()
            line = bytearray(files[0][place])
            line[index] ^= change
            files[0][place] = bytes(line)
            # What was one line may be two for who reads the file.
            files[0] = BytesIO(b"".join(files[0])).readlines()
            report = check(files)
            assert not report.ok, (index, line)
            found = (report.file, report.line)
            assert found in {(f"f{file + 1}", line + 1) for file, line in PLACES[place : place + 2]}


@pytest.mark.parametrize("place", range(len(PLACES)))
def test_a_line_that_is_missing_or_twice_or_moved_or_cut(place: int) -> None:
    file, line = PLACES[place]
    is_last = place == len(PLACES) - 1
    for attack, change in ATTACKS.items():
        files = copy()
        change(files[file], line)
        report = check(files)
        assert not report.ok, attack
        if attack != "remove" or not is_last:
            assert report.file in {f"f{file + 1}", f"f{file + 2}"}, attack


def cut(lines: list[bytes], line: int) -> None:
    lines[line] = lines[line][: len(lines[line]) // 2]


def swap(lines: list[bytes], line: int) -> None:
    other = line - 1 if line else 1
    lines[line], lines[other] = lines[other], lines[line]


ATTACKS: dict[str, Callable[[list[bytes], int], object]] = {
    "remove": lambda lines, line: lines.pop(line),
    "twice": lambda lines, line: lines.insert(line, lines[line]),
    "cut": cut,
    "cut without its end": lambda lines, line: lines.__setitem__(line, lines[line][:-1]),
    "swap": swap,
    "empty line": lambda lines, line: lines.insert(line, b"\n"),
    "another log's line": lambda lines, line: lines.insert(line, add(Chain(KEY, 3, "0" * 64), 1)),
}


@pytest.mark.parametrize("place", range(1, len(PLACES)))
def test_the_end_is_missing(place: int) -> None:
    """Cut before any line, also at a checkpoint and at a file's end; nothing else is touched."""
    file, line = PLACES[place]
    files = [*copy()[:file], FILES[file][:line]] if line else copy()[:file]
    report = check(files)
    assert not report.ok
    assert "the end of the log was cut off: 6 checkpoints were made" in report.problem


@pytest.mark.parametrize("file", range(3))
def test_a_file_is_missing_or_empty_or_comes_twice(file: int) -> None:
    for files in (
        copy()[:file] + copy()[file + 1 :],
        [*copy()[:file], [], *copy()[file + 1 :]],
        [*copy()[: file + 1], *copy()[file:]],
    ):
        assert not check(files).ok
        assert not check(rebuilt_files(files)).ok
    if file < 2:
        missing = check(copy()[:file] + copy()[file + 1 :]).problem
        assert f"not file {file + 1}, which is missing" in missing


def test_no_file_at_all() -> None:
    assert check([]).problem == "there is no file of the log"
    assert check([], sealed=0).problem


@pytest.mark.parametrize("place", range(len(PLACES)))
def test_everything_from_a_line_on_written_again_without_the_key(place: int) -> None:
    """The hashes fit again; the next checkpoint does not, or is missing."""
    file, line = PLACES[place]
    files = copy()
    fields = json.loads(files[file][line])
    fields["time"] = "2020-01-01T00:00:00.000000Z"
    files[file][line] = json.dumps(fields, separators=(",", ":")).encode() + b"\n"
    report = check(rebuilt_files(files))
    assert "checkpoint is not from the holder of the key" in report.problem
    assert report.file == f"f{file + 1}"
    assert report.line == (7 if line < 7 else 13)  # the checkpoint after the edited line

    files = copy()
    del files[file][line]
    report = check(rebuilt_files(files))
    assert not report.ok


def test_checkpoints_left_out_with_hashes_computed_again() -> None:
    for epochs in ({5}, {0}, {2, 3}, set(range(6))):
        files = [[line for line in lines if not has_epoch(line, epochs)] for lines in copy()]
        assert not check(rebuilt_files(files)).ok, epochs


def has_epoch(line: bytes, epochs: set[int]) -> bool:
    fields = json.loads(line)
    return fields["kind"] == "log.checkpoint" and fields["epoch"] in epochs


def test_who_has_the_newest_key_cannot_write_what_was_before() -> None:
    """The key of epoch 4 on the machine, all lines written again from epoch 2 on."""
    stolen = KEY.at(4)
    chain = Chain(stolen, 19, digest(FILES[1][5]))
    forged = [add(chain, 1), chain.seal("count", 0, 0)]
    renumbered = [re.sub(rb'"epoch":4', b'"epoch":2', forged[1])]
    assert "goes on at 4" in check([FILES[0], FILES[1][:6] + forged], sealed=4).problem
    assert (
        "not from the holder" in check([FILES[0], FILES[1][:6] + forged[:1] + renumbered]).problem
    )
    assert stolen.at(5) == KEY.at(5)
    with pytest.raises(ValueError, match="begins at checkpoint 4"):
        stolen.at(3)
    with pytest.raises(ValueError, match="begins at checkpoint 4"):
        stolen.at(MAXIMUM_EPOCH + 1)


def test_lines_after_the_last_checkpoint_that_do_not_follow_each_other() -> None:
    """Whoever computes hashes without the key still has to keep to the form."""
    for line, problem in (
        (add(Chain(KEY, 40, CHAIN.prev), 1), "is number 40, not 39"),
        (Chain(KEY, 39, CHAIN.prev).add(LogFile(4, "f3", 6), 0, 0), "begins a file"),
    ):
        files = copy()
        files[-1].append(line)
        assert problem in check(files).problem
    assert "must begin with a log.file" in check([[add(Chain(KEY), 1)]]).problem


def test_the_wrong_key_and_a_later_key() -> None:
    assert "another log" in check(copy(), SealKey(0, b"x" * 32)).problem
    assert "the initial key is needed" in check(copy(), KEY.at(1)).problem


def test_oldest_files_archived_elsewhere() -> None:
    rest = copy()[1:]
    assert not check(rest).ok
    report = check(rest, archived=True)
    assert report.ok, report
    assert report.checkpoints == 6
    assert check(rest, KEY.at(2), archived=True).ok
    assert not check(rest, KEY.at(3), archived=True).ok
    rest[0][3] = rest[0][3].replace(b"alice", b"mallo")
    assert not check(rest, archived=True).ok
    chain = Chain(SealKey(10**9, b"x" * 32))
    absurd = [[chain.add(LogFile(1, "", 10**9), 0, 0)]]
    assert "not 1000000000" in check(absurd, archived=True).problem
    assert not check([[add(Chain(KEY), 1)]], archived=True).ok


# ---- files that were retired ---------------------------------------------------------------------

DAY_NS = 86_400 * 10**9


def retiring_log(*, keep_days: int, at_day: int) -> tuple[Files, Chain]:
    """Four files, one a day, and on a later day a fifth that says that 1 and 2 are retired."""
    chain = Chain(KEY)
    files: Files = []
    for number, day in enumerate((0, 1, 2, 3, at_day), 1):
        header = chain.add(LogFile(number, "", chain.key.epoch, keep_days), day * DAY_NS, 0)
        files.append([header, add(chain, number)])
        if number < 5:
            files[-1].append(chain.seal("rotation", 0, 0))
    third = json.loads(files[2][0])
    record = LogRetired(2, third["seq"], third["prev"], keep_days)
    files[-1] += [chain.add(record, at_day * DAY_NS, 0), chain.seal("retirement", 0, 0)]
    return files, chain


@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_beginning_that_was_retired_is_good_and_said(left: int) -> None:
    """All files are there still, or one, as a crash leaves them, or none."""
    files, _ = retiring_log(keep_days=30, at_day=32)
    report = check(files[left:], sealed=5)
    assert report.ok, report
    assert (report.first, report.checkpoints) == (left + 1, 5)
    assert (report.first_time[:10], report.retired_at[:10]) == (
        f"1970-01-0{left + 1}",
        "1970-02-02",
    )


def test_more_was_cut_than_was_retired() -> None:
    files, _ = retiring_log(keep_days=30, at_day=32)
    for cut_at in (3, 4):
        report = check(files[cut_at:], sealed=5)
        assert "no sealed record says that what is missing was retired" in report.problem
        assert (report.file, report.line) == ("f1", 1)
    files[4].pop(2)
    assert not check(rebuilt_files(files)[2:], sealed=4).ok, "the record is missing"
    assert not check([files[0], *files[2:]], sealed=5).ok, "one from the middle"


@pytest.mark.parametrize(("keep_days", "at_day"), [(30, 31), (0, 4000), (-1, 4000)])
def test_files_that_had_to_be_kept_longer(keep_days: int, at_day: int) -> None:
    """What counts is the line that was sealed when the next file began."""
    files, _ = retiring_log(keep_days=keep_days, at_day=at_day)
    for first in (0, 2):
        report = check(files[first:], sealed=5)
        assert report.problem == "files up to 2 were retired that had to be kept longer"
        assert (report.file, report.line) == (f"f{5 - first}", 3)


def test_a_retirement_that_nobody_with_the_key_wrote() -> None:
    """At the end, where only hashes protect; and about other lines than those that are here."""
    files, chain = retiring_log(keep_days=1, at_day=32)
    fourth = json.loads(files[3][0])
    good = LogRetired(3, fourth["seq"], fourth["prev"], 1)
    invented = chain.add(good, 33 * DAY_NS, 0)
    report = check([*files[3:4], [*files[4], invented]], sealed=5)
    assert "no sealed record says" in report.problem
    assert check([*files[3:4], [*files[4], invented, chain.seal("count", 0, 0)]], sealed=6).ok
    for change in ({"first_seq": 1}, {"first_prev": "0" * 64}, {"keep_days": 2}, {"through": 9}):
        wrong = dataclasses.replace(good, **change)
        line = dataclasses.replace(chain).add(wrong, 99 * DAY_NS, 0)
        changed = [*files[2:4], [*files[4], invented, line]]
        assert not check(changed, sealed=5).ok, change


def test_an_older_retirement_in_what_is_left() -> None:
    files, chain = retiring_log(keep_days=1, at_day=32)
    header = chain.add(LogFile(6, "", chain.key.epoch, 1), 40 * DAY_NS, 0)
    fifth = json.loads(files[4][0])
    record = LogRetired(4, fifth["seq"], fifth["prev"], 1)
    files.append([header, chain.add(record, 41 * DAY_NS, 0), chain.seal("retirement", 0, 0)])
    report = check(files[4:], sealed=6)
    assert (report.ok, report.first, report.retired_at[:10]) == (True, 5, "1970-02-11")


def test_the_key_moves_on_by_a_one_way_function() -> None:
    """Known answers, from the scheme's text."""
    second = hmac.new(b"k" * 32, b"next", "sha256").digest()
    assert KEY.next() == SealKey(1, second)
    assert KEY.mac(b"text") == hmac.new(b"k" * 32, b"checkpoint\0text", "sha256").hexdigest()
    line = FILES[0][6]
    text, mac = line[:-75], json.loads(line)["mac"]
    assert line == text + b',"mac":"' + mac.encode() + b'"}\n'
    assert mac == hmac.new(b"k" * 32, b"checkpoint\0" + text, "sha256").hexdigest()


def test_a_key_as_text() -> None:
    assert SealKey.parse(f"{KEY.at(7)}\n") == KEY.at(7)
    assert "6b6b" not in repr(KEY)
    for text in (
        "",
        "x",
        f"gateway-audit-key-1 0 {'6b' * 31}",
        "gateway-audit-key-1 -1 6b",
        "a b c",
    ):
        with pytest.raises(ValueError, match=r"key|hex"):
            SealKey.parse(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.fixed_dictionaries(
    {
        "v": st.just(1),
        "seq": st.just(0) | JSON,
        "time": st.just("") | JSON,
        "prev": st.just(GENESIS) | JSON,
        "kind": st.sampled_from(["log.file", "log.checkpoint", "log.retired", "x"]) | JSON,
    },
    optional={
        "epoch": st.just(0) | JSON,
        "number": st.sampled_from([1, 2]) | JSON,
        "mac": JSON,
        "through": st.sampled_from([0, 1]) | JSON,
        "keep_days": st.just(1) | JSON,
    },
)


@given(
    st.lists(
        FIELDS.map(lambda fields: json.dumps(fields).encode() + b"\n") | st.binary(), min_size=1
    ),
    st.booleans(),
)
def test_whatever_is_in_a_file_is_reported_and_nothing_is_raised(
    lines: list[bytes], archived: bool
) -> None:
    report = check([lines], sealed=1, archived=archived)
    assert not report.ok
    assert report.problem.isprintable()
