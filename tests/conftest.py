"""What tests of several folders share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.support.programs import OpenSSH, newest_peers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NEWEST = "newest peer:"

# What an example takes says more about what else the machine does than about us.
settings.register_profile(
    "ours", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ours")


@pytest.fixture(scope="session")
def peers() -> Path:
    """The newest OpenSSH, Dropbear and PuTTY, in a folder to chroot into."""
    try:
        folder = newest_peers()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    for program in ("ssh", "dbclient", "plink"):
        print(NEWEST, OpenSSH(folder, folder).version(program))  # noqa: T201 - for the summary
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the newest peers that were met."""
    reports = [report for group in terminalreporter.stats.values() for report in group]
    said = "".join(text for report in reports for _, text in getattr(report, "sections", ()))
    for line in sorted({line for line in said.splitlines() if line.startswith(NEWEST)}):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session", autouse=True)
def own_runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have control sockets in a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        yield


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a full kernel unless it is asked for; a container's may be any."""
    if "full_kernel" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("full_kernel")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not item.get_closest_marker("full_kernel")]


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name long bytes by their parameter: random ones would give every run other names."""
    return argname if isinstance(val, bytes) and len(val) > 16 else None
