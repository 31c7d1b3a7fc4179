"""The servers of these tests, one of each kind for the whole session, and proxies through them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.programs import (
    Endpoint,
    Keys,
    Proxy,
    make_keys,
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
