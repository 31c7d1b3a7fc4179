"""What tests of several folders share."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.programs import newest_peers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def peers() -> Path:
    """The newest OpenSSH, in a folder to chroot into."""
    try:
        folder = newest_peers()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    version = subprocess.run(
        ["chroot", folder, "/usr/bin/ssh", "-V"], capture_output=True, text=True, check=True
    )
    print("newest peer:", version.stderr.strip())  # noqa: T201 - with -rA it names what was met
    return folder


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
