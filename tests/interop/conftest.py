"""The servers of these tests, one of each kind for the whole session, and proxies through them."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.interop.far import Far, running_far
from tests.interop.targets import Target, echo, need
from tests.support.programs import (
    Endpoint,
    Keys,
    OpenSSH,
    Proxy,
    make_keys,
    running_connect,
    running_gateway_serve,
    running_sshd,
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
    need("sshd")
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


@pytest.fixture(scope="module", params=SERVERS)
def far(request: pytest.FixtureRequest) -> Iterator[Far]:
    """Either server, one that lets its clients forward everything."""
    with running_far(request.param) as found:
        yield found


@pytest.fixture(scope="session")
def echo_port() -> Iterator[int]:
    """The port of a target that sends everything back and ends when its peer has ended."""
    with Target(echo) as target:
        yield target.port


# -- both ages of OpenSSH --------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["debian", "newest"])
def openssh(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OpenSSH]:
    """The machine's OpenSSH and the newest, each with a folder for a module's files."""
    if request.param == "debian":
        need("sshd")
        yield OpenSSH(tmp_path_factory.mktemp("openssh"))
        return
    root = request.getfixturevalue("peers")
    folder = Path(tempfile.mkdtemp(dir=root, prefix="keys."))
    yield OpenSSH(folder, root)
    shutil.rmtree(folder)
