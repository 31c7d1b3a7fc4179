"""A VPN that is killed at any moment leaves nothing behind; `scripts/soak` has more moments."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.support.moments import Moments
from tests.support.vpn import Site, running_site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netns.lab import Lab

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module", params=["serve", "debian", "newest"])
def site(
    request: pytest.FixtureRequest, routed: Lab, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    with running_site(request.param, routed, tmp_path_factory.mktemp("keys")) as site:
        yield site


@pytest.fixture(scope="module")
def moments(site: Site) -> Moments:
    return Moments(site, random.randrange(1 << 32), check_every=5)


@pytest.mark.parametrize("end", ["client", "client and guardian"])
def test_a_client_is_killed(moments: Moments, end: str) -> None:
    moments.run([end] * (3 if moments.site.is_stock else 16))


@pytest.mark.parametrize("site", ["serve"], indirect=True)
def test_a_server_is_killed(moments: Moments) -> None:
    moments.run(["server"] * 2 + ["server and guardian"] * 3 + ["server at its start"])
