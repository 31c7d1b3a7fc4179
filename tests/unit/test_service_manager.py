"""What systemd is told, and the unit file that asks for it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from gateway.cli.service_manager import ServiceManager
from gateway.policy.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Iterator

UNIT = Path(__file__).resolve().parents[2] / "systemd" / "gateway.service"
WATCHDOG_S = 8.0


class Manager:
    """The other side of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.sock.bind(address.replace("@", "\0", 1))

    def heard(self) -> list[dict[str, str]]:
        """What came since the last time, each message as its lines."""
        messages = []
        while True:
            try:
                text = self.sock.recv(4096).decode()
            except BlockingIOError:
                return messages
            messages.append(dict(line.split("=", 1) for line in text.split("\n")))

    def environment(self, **more: str) -> dict[str, str]:
        microseconds = str(int(WATCHDOG_S * 1e6))
        return {"NOTIFY_SOCKET": self.address, "WATCHDOG_USEC": microseconds} | more


@pytest.fixture(params=["a path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    is_path = request.param == "a path"
    manager = Manager(str(tmp_path / "notify") if is_path else f"@gateway-test-{os.getpid()}")
    with manager.sock:
        yield manager


def test_each_state_is_one_message(manager: Manager) -> None:
    environment = manager.environment(PATH="/bin")
    server = ServiceManager.of(environment)
    assert environment == {"PATH": "/bin"}, "what we start would speak for us"
    server.ready("serving")
    assert manager.heard() == [{"READY": "1", "STATUS": "serving"}]
    before = time.monotonic_ns() // 1000
    server.reloading()
    (said,) = manager.heard()
    assert said.pop("RELOADING") == "1"
    assert before <= int(said.pop("MONOTONIC_USEC")) <= time.monotonic_ns() // 1000
    assert not said
    server.stopping("waiting")
    assert manager.heard() == [{"STOPPING": "1", "STATUS": "waiting"}]


async def test_the_watchdog_hears_us_twice_in_its_time(
    manager: Manager, autojump_clock: trio.testing.MockClock
) -> None:
    server = ServiceManager.of(manager.environment(WATCHDOG_PID=str(os.getpid())))
    with trio.move_on_after(4 * WATCHDOG_S - 1):
        await server.keep_alive()
    assert manager.heard() == [{"WATCHDOG": "1"}] * 8


async def test_the_watchdog_hears_nothing_of_a_loop_that_stands_still(manager: Manager) -> None:
    """The message comes from the loop: while a function holds it, there is none."""
    server = ServiceManager(manager.address, watchdog_s=0.002)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.keep_alive)
        with trio.fail_after(30):
            while not manager.heard():
                await trio.sleep(0.001)
        time.sleep(0.1)  # fifty times the watchdog's time
        assert len(manager.heard()) <= 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_USEC": "8000000"},
        {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "8000000", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "@x"},
    ],
)
async def test_without_a_watchdog_of_ours_nothing_is_done(environment: dict[str, str]) -> None:
    with trio.fail_after(30):
        await ServiceManager.of(environment).keep_alive()


def test_nobody_who_listens_is_no_error(tmp_path: Path) -> None:
    ServiceManager().ready("serving")
    ServiceManager(str(tmp_path / "nothing")).ready("serving")
    manager = Manager(str(tmp_path / "gone"))
    manager.sock.close()
    ServiceManager(manager.address).stopping("waiting")


# -- the unit file ---------------------------------------------------------------------------------


def settings() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, value = line.split("=", 1)
            found.setdefault(name, []).append(value)
    return found


def test_the_unit_has_two_capabilities_and_waits_long_enough() -> None:
    unit = settings()
    assert unit["Type"] == ["notify"]
    both = ["CAP_NET_BIND_SERVICE CAP_NET_ADMIN"]
    assert unit["AmbientCapabilities"] == unit["CapabilityBoundingSet"] == both
    assert unit["User"] == ["gateway"]
    assert int(unit["TimeoutStopSec"][0]) > Limits().drain_s
    assert int(unit["WatchdogSec"][0]) > 0


@pytest.mark.parametrize(
    "arguments", [["verify"], ["security", "--offline=true", "--threshold=25", "--no-pager"]]
)
def test_systemd_has_nothing_to_say_about_the_unit(tmp_path: Path, arguments: list[str]) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/usr/local/bin/gateway", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", *arguments, str(unit)],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-300:] + done.stderr
    assert unit.name not in done.stderr
