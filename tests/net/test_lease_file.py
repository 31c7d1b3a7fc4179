"""The file of leases: whole, damaged, missing, not writable; and when it is written."""

from __future__ import annotations

import json
import logging
from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from gateway.config.server_config import TunnelConfig
from gateway.serving.leases import WRITE_DELAY_S, Leases

if TYPE_CHECKING:
    from pathlib import Path


def make(path: Path | None) -> Leases:
    leases = Leases(TunnelConfig((ip_network("10.213.0.0/29"),), leases=path))
    leases.load()
    return leases


def address(leases: Leases, user: str, session: object) -> str:
    return str(leases.lease(user, session).client_addresses[0].ip)


async def run_until_idle(leases: Leases, nursery: trio.Nursery) -> None:
    nursery.start_soon(leases.run)
    await trio.testing.wait_all_tasks_blocked()


async def test_it_is_written_a_while_later_and_at_the_end(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    path = tmp_path / "leases.json"
    leases = make(path)
    async with trio.open_nursery() as nursery:
        await run_until_idle(leases, nursery)
        assert address(leases, "alice", 1) == "10.213.0.2"
        assert address(leases, "b\u00f6b", 2) == "10.213.0.3"
        assert not path.exists()
        before = trio.current_time()
        while not path.exists():
            await trio.sleep(WRITE_DELAY_S / 5)
        assert trio.current_time() - before >= WRITE_DELAY_S
        assert json.loads(path.read_text()) == {
            "assignments": [["alice", 0, 2], ["b\u00f6b", 0, 3]]
        }
        assert path.stat().st_mode & 0o777 == 0o600
        leases.release(2)
        leases.release(1)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert [path.name for path in tmp_path.iterdir()] == ["leases.json"]
    assert json.loads(path.read_text())["assignments"][0] == ["b\u00f6b", 0, 3], (
        "the first to leave"
    )
    again = make(path)
    assert address(again, "b\u00f6b", 7) == "10.213.0.3"
    assert address(again, "carol", 8) == "10.213.0.4"
    assert address(again, "alice", 9) == "10.213.0.2"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b"\xff\0", b'{"assignments": [["a", 0]]}', b"[" * 100_000, b"1",
     b'{"assignments": {"a": 2}}', b" " * (5 << 20)],
)  # fmt: skip
async def test_a_damaged_file_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    path = tmp_path / "leases.json"
    path.write_bytes(content)
    leases = make(path)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "leases.json: users may get other addresses than before: " in record.getMessage()
    assert address(leases, "alice", 1) == "10.213.0.2"
    async with trio.open_nursery() as nursery:
        await run_until_idle(leases, nursery)
        nursery.cancel_scope.cancel()
    assert json.loads(path.read_text()) == {"assignments": [["alice", 0, 2]]}


async def test_others_may_not_write_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "leases.json"
    path.write_text('{"assignments": [["alice", 0, 5]]}')
    path.chmod(0o666)
    assert address(make(path), "alice", 1) == "10.213.0.2"
    assert "others may write the file of leases" in caplog.text


@pytest.mark.parametrize("name", ["missing/leases.json", "a\0b", "x" * 300])
async def test_a_file_that_cannot_be_written_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    leases = make(tmp_path / name)
    assert address(leases, "alice", 1) == "10.213.0.2"
    async with trio.open_nursery() as nursery:
        await run_until_idle(leases, nursery)
        nursery.cancel_scope.cancel()
    assert "the addresses of users are not remembered: " in caplog.text


async def test_without_a_file_nothing_is_kept() -> None:
    leases = make(None)
    address(leases, "alice", 1)
    await leases.run()  # returns at once
