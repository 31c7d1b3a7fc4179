"""Peers that ask for as much as they can, at a real `gateway serve` with its default limits.

Hazards T12, T14, T31, T39, T42, T44 and T45. Here it is little of each, and what is counted has to
be as before; `scripts/bench floods` has all of it, and looks at the clock.
"""

from __future__ import annotations

import pytest

from bench.programs import ENDS, PORT_LINE
from gateway.ssh.numbers import OpenFailure
from gateway.ssh.transport import Phase
from tests.support.aborts import STEPS, abort
from tests.support.flooded import flooded_box
from tests.support.floods import Until, floods
from tests.support.programs import running

pytestmark = pytest.mark.slow

GROWTH_MB = 64  # of all floods together, at any time
SHORT = {"messages": 5000, "rekeys": 200, "links": 10}  # else blocks of bytes
BLOCKS = 50
ABORTS = 12  # at each step, and in each way


@pytest.fixture(scope="module")
def target():
    with running(*ENDS, "server", "0") as program:
        yield "127.0.0.1", int(program.wait_line(PORT_LINE)[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory, target):
    """A server that is warm: what is loaded for the first who comes is no growth."""
    with flooded_box(tmp_path_factory.mktemp("flooded") / "box", target[1]) as box:
        floods(target)["opens"].run(box.place(), Until(100))
        assert not box.left_over({"links": 0, "channels": 0})
        yield box, box.counted(), box.resident_mb


@pytest.fixture
def box(server):
    """The server, which is looked at when the test is over."""
    box, before, before_mb = server
    yield box
    assert box.left_over(before) == {}
    assert box.peak_mb - before_mb < GROWTH_MB
    assert [line for line in box.program.lines if "internal error" in line] == []


@pytest.mark.parametrize("name", floods(("", 0)))
def test_nothing_stays_of_a_flood(box, target, name):
    flood = floods(target)[name]
    until = Until(SHORT.get(flood.unit, BLOCKS), seconds=60 if "stay" not in name else 1)
    flood.run(box.place(), until)
    assert until.said == until.count
    assert until.unended == 0, "what breaks the protocol ends the link"


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_nothing_stays_of_who_breaks_off(box, target, step):
    """T31: at every step of a login, and after it, with RST and with FIN in turn."""
    came = [
        abort(box.place(), step, target, resets=bool(number % 2)) for number in range(2 * ABORTS)
    ]
    assert all(came)


def test_channels_at_the_limit_go_on(box, target):
    """T45: refused with code 4, and those that are open carry their bytes."""
    with box.place().client() as client:
        client.reach(Phase.CONNECTION)
        first = client.open_tcpip(target)
        refused = [client.open_tcpip(target) for _ in range(700)]
        client.settle_opens()
        assert set(client.refused.values()) == {OpenFailure.RESOURCE_SHORTAGE}
        assert 0 < len(client.refused) < 700
        assert first not in client.refused
        assert set(client.refused) < set(refused)
        assert client.exchange(first, b"echo\n" + b"x" * 64, 64) == b"x" * 64
