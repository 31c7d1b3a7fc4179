"""The servers of these tests, one of each kind for the whole session, and proxies through them."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.interop.targets import Target, echo
from tests.support.programs import (
    Endpoint,
    Keys,
    OpenSSH,
    Proxy,
    make_keys,
    newest_peers,
    running_connect,
    running_gateway_serve,
    running_sshd,
    sshd_path,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVERS = ("sshd", "serve")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/interop/" in item.nodeid:
            item.add_marker(pytest.mark.interop)


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="session")
def sshd(keys: Keys) -> Iterator[Endpoint]:
    if sshd_path() is None:
        pytest.skip("sshd is not installed")
    with running_sshd(keys) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    with running_gateway_serve(make_keys(tmp_path_factory.mktemp("serve-keys"))) as endpoint:
        yield endpoint


@pytest.fixture(scope="session", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Endpoint:
    """Either server."""
    endpoint = request.getfixturevalue(request.param)
    assert isinstance(endpoint, Endpoint)
    return endpoint


@pytest.fixture(scope="session")
def proxy(server: Endpoint) -> Iterator[Proxy]:
    """`gateway connect -N -D` to either server."""
    with running_connect(server) as running:
        yield running


@pytest.fixture(scope="session")
def echo_port() -> Iterator[int]:
    """The port of a target that sends everything back and ends when its peer has ended."""
    with Target(echo) as target:
        yield target.port


# -- both ages of OpenSSH --------------------------------------------------------------------------


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


@pytest.fixture(scope="module", params=["debian", "newest"])
def openssh(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OpenSSH]:
    """The machine's OpenSSH and the newest, each with a folder for a module's files."""
    if request.param == "debian":
        if sshd_path() is None:
            pytest.skip("sshd is not installed")
        yield OpenSSH(tmp_path_factory.mktemp("openssh"))
        return
    root = request.getfixturevalue("peers")
    folder = Path(tempfile.mkdtemp(dir=root, prefix="keys."))
    yield OpenSSH(folder, root)
    shutil.rmtree(folder)
