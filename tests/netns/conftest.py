"""The labs as fixtures; where there can be none, the tests say why and skip.

`two_hosts` is new for every test. The others are a module's: a test leaves them as it found them.
"""

from __future__ import annotations

import functools
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from gateway.tun.journal import FOLDER_VARIABLE
from netns.lab import Lab, why_no_lines, why_unusable
from netns.topologies import NATED, ROUTED, SITES, SLOW, TWO_HOSTS
from tests.interop.targets import need
from tests.support.programs import OpenSSH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netns.topologies import Topology


@pytest.fixture(scope="session", autouse=True)
def own_journals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let other gateways of this machine, those of other tests too, reserve no table of ours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER_VARIABLE, str(tmp_path_factory.mktemp("run")))
        yield


why_not = {False: functools.cache(why_unusable), True: functools.cache(why_no_lines)}
"""By whether a topology has a line."""


@contextmanager
def lab_or_skip(topology: Topology) -> Iterator[Lab]:
    if reason := why_not[any(cable.line for cable in topology.cables)]():
        pytest.skip(f"no network-namespace lab: {reason}")
    with Lab(topology) as lab:
        yield lab


@pytest.fixture
def two_hosts() -> Iterator[Lab]:
    with lab_or_skip(TWO_HOSTS) as lab:
        yield lab


@pytest.fixture(scope="module")
def routed() -> Iterator[Lab]:
    with lab_or_skip(ROUTED) as lab:
        yield lab


@pytest.fixture(scope="module")
def nated() -> Iterator[Lab]:
    with lab_or_skip(NATED) as lab:
        yield lab


@pytest.fixture(scope="module")
def slow() -> Iterator[Lab]:
    with lab_or_skip(SLOW) as lab:
        yield lab


@pytest.fixture(scope="module")
def sites() -> Iterator[Lab]:
    with lab_or_skip(SITES) as lab:
        yield lab


@pytest.fixture(scope="module", params=["debian", "newest"])
def openssh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OpenSSH:
    """The machine's OpenSSH and the newest, both with this machine's files, devices and shell."""
    if request.param == "newest":
        peers = request.getfixturevalue("peers")
        return OpenSSH(tmp_path_factory.mktemp("openssh"), peers, chroots=False)
    need("sshd")
    return OpenSSH(tmp_path_factory.mktemp("openssh"))
