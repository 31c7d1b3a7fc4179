"""Clients that do not log in hold on to `gateway serve`, and others log in all the same: T30, T59.

From addresses that are not the loopback's, whose limits are those that everybody gets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway.policy.limits import Limits
from tests.support.held import Siege, held_box, log_in_from, source

if TYPE_CHECKING:
    from pathlib import Path

    from netns.lab import Lab

pytestmark = [pytest.mark.netns, pytest.mark.alone]

HOLDERS = 200  # silent ones, and as many slow ones
LOGINS = 5
BAR_S = 2.0
TRIES = 3  # of all of it, on a machine that has other things to do


@pytest.mark.parametrize("sources", [1, 2 * HOLDERS], ids=["one-source", "many-sources"])
def test_a_login_beside_those_who_hold_on(two_hosts: Lab, tmp_path: Path, sources: int) -> None:
    took_s: list[float] = []
    with held_box(two_hosts, tmp_path / "box") as box:
        for _ in range(TRIES):
            with Siege(two_hosts, box, HOLDERS, sources=sources) as siege:
                assert siege.stands.wait(60)
                assert 0 < box.gauges()["startups"] <= Limits().startups_full
                took_s = [
                    log_in_from(two_hosts, box, source(1000 + number)) for number in range(LOGINS)
                ]
            if max(took_s) < BAR_S:
                break
        assert box.left_over({"links": 0, "startups": 0}) == {}
    assert max(took_s) < BAR_S
