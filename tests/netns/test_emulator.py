"""The line between two hosts: its arithmetic on a clock of the test's, then between real hosts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from netns.emulator import Line, Way
from netns.lab import Lab, ip, why_no_lines
from netns.state import difference
from netns.topologies import SLOW, TWO_HOSTS, with_line
from tests.support.programs import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netns.lab import Host

HEADER = bytes.fromhex("020000000001 020000000002 0800")
TO_ALL = b"\xff" * 6 + HEADER[6:]
ARP_REPLY = HEADER[:12] + b"\x08\x06"
NEIGHBOUR_SOLICITATION = HEADER[:12] + b"\x86\xdd" + bytes(6) + b"\x3a" + bytes(33) + b"\x87"


def frame(number: int, size: int = 1000, header: bytes = HEADER) -> bytes:
    return (header + number.to_bytes(4, "big")).ljust(size, b".")


def number_of(data: bytes) -> int:
    return int.from_bytes(data[14:18], "big")


def send(way: Way, count: int, interval_s: float = 0.0) -> list[int]:
    """The numbers of those that arrive, in their order."""
    for number in range(count):
        way.take(frame(number), number * interval_s)
    return [number_of(data) for data in way.arrived(1e9)]


# ---- one direction -------------------------------------------------------------------------------


def test_a_frame_arrives_after_its_turn_and_the_delay() -> None:
    way = Way(Line(rate_mbit=8, delay_ms=10), "there")  # 1000 bytes take 1 ms
    way.take(frame(1), 5.0)
    way.take(frame(2), 5.0)
    way.take(frame(3, 500), 5.1)
    expected = [5.011, 5.012, 5.1105]
    for number, when_s in enumerate(expected, 1):
        assert way.next_s() == pytest.approx(when_s)
        assert list(way.arrived(when_s - 1e-6)) == []
        assert [number_of(data) for data in way.arrived(when_s + 1e-6)] == [number]
    assert way.next_s() == float("inf")


def test_a_line_without_a_rate_is_always_free() -> None:
    way = Way(Line(delay_ms=10, buffer_bytes=1000), "there")
    assert send(way, 500) == list(range(500))
    way.take(frame(1), 7.0)
    assert way.next_s() == pytest.approx(7.01)


def test_what_finds_the_buffer_full_is_dropped_and_what_has_left_makes_room() -> None:
    way = Way(Line(rate_mbit=8, delay_ms=1000, buffer_bytes=3500), "there")
    for number in range(5):
        way.take(frame(number), 0.0)
    way.take(frame(5), 0.0005)  # nothing has left
    way.take(frame(6), 0.0015)  # the first has, and is under way
    assert [number_of(data) for data in way.arrived(1e9)] == [0, 1, 2, 6]


def test_the_share_that_was_asked_for_is_lost() -> None:
    arrived = send(Way(Line(loss=0.1), "there"), 10_000, 0.001)
    assert 0.09 < 1 - len(arrived) / 10_000 < 0.11
    assert arrived == sorted(arrived)


def test_the_share_that_was_asked_for_is_overtaken() -> None:
    arrived = send(Way(Line(delay_ms=20, reorder=0.1, late_ms=5), "there"), 10_000, 0.001)
    assert len(arrived) == 10_000
    latest, late = -1, []
    for number in arrived:
        if number < latest:
            late.append(latest - number)
        latest = max(latest, number)
    assert 0.09 < len(late) / 10_000 < 0.11
    assert max(late) <= 5


def test_luck_is_the_seeds() -> None:
    def with_seed(seed: int, name: str = "there") -> list[int]:
        return send(Way(Line(loss=0.2, reorder=0.1, seed=seed), name), 200, 0.001)

    assert with_seed(1) == with_seed(1)
    assert with_seed(1) != with_seed(2)
    assert with_seed(1) != with_seed(1, "back")


@pytest.mark.parametrize("header", [TO_ALL, ARP_REPLY, NEIGHBOUR_SOLICITATION])
def test_hosts_always_find_each_other(header: bytes) -> None:
    way, same = (Way(Line(loss=0.5), "there") for _ in range(2))
    for number in range(200):
        way.take(frame(number, 100, header), number)
        way.take(frame(number), number)
    arrived = list(way.arrived(1e9))
    assert sum(data.startswith(header) for data in arrived) == 200
    others = [number_of(data) for data in arrived if not data.startswith(header)]
    assert others == send(same, 200, 1.0)  # which are lost is not a matter of theirs


# ---- between hosts -------------------------------------------------------------------------------


BY = [False, pytest.param(True, marks=pytest.mark.full_kernel)]


@pytest.fixture(params=BY, ids=["emulator", "netem"])
def by_netem(request: pytest.FixtureRequest) -> bool:
    """Which of the two the line is; netem where the kernel has it."""
    if reason := why_no_lines():
        pytest.skip(reason)
    return bool(request.param)


@pytest.mark.netns
@pytest.mark.alone
def test_a_slow_line_is_as_long_and_lossy_as_it_was_asked_to_be(by_netem: bool) -> None:
    with Lab(SLOW, by_netem=by_netem) as lab:
        check_a_slow_line(lab["client"], lab["server"])


def check_a_slow_line(client: Host, server: Host) -> None:
    for address in (server.ipv4(), server.ipv6()):
        pings = client.ping(address, 300, size=100, interval_s=0.003, timeout_s=0.3)
        assert min(pings.times_ms) >= 40
        assert sorted(pings.times_ms)[150] == pytest.approx(42, abs=2)
        assert 1 <= pings.lost <= 12  # of 600 frames one in 200
        assert 1 <= pings.overtaken <= 12
        assert pings.errors == {}
    assert client.ping(server.ipv4(), size=1472, dont_fragment=True, timeout_s=2).errors == {}


@pytest.fixture
def lined(by_netem: bool) -> Iterator[Lab]:
    """Client and server with nothing but a line between them, which is always free."""
    with Lab(with_line(TWO_HOSTS, "client", "server", Line()), by_netem=by_netem) as lab:
        yield lab


@pytest.mark.netns
@pytest.mark.alone
def test_a_burst_waits_in_the_buffer_and_what_does_not_fit_is_lost(lined: Lab) -> None:
    lined.carry("client", "server", Line(rate_mbit=2, delay_ms=10, buffer_bytes=72_000))
    client, address = lined["client"], lined["server"].ipv4()
    assert client.ping(address).received  # they have found each other
    pings = client.ping(address, 100, size=1400, interval_s=0, timeout_s=0.6)
    # 49 frames of 1442 bytes wait, of 5.8 ms each; those that leave while we send make some room.
    assert 49 <= pings.received <= 60
    assert 20 + 48 * 5.8 <= max(pings.times_ms) <= 20 + 60 * 5.8


@pytest.mark.netns
def test_bytes_arrive_over_a_line_that_loses_and_reorders(lined: Lab) -> None:
    client, server = lined["client"], lined["server"]
    server.start_echo()
    lined.carry("client", "server", Line(delay_ms=1, loss=0.005, reorder=0.01, late_ms=2))
    for address in (server.ipv4(), server.ipv6()):
        client.echo("tcp", address, 1_000_000)
    lined.carry("client", "server", Line())
    for address in (server.ipv4(), server.ipv6()):
        client.echo("udp", address, 65_000)  # in fragments of a full MTU


@pytest.mark.netns
def test_a_line_can_be_cut_and_joined_again(lined: Lab) -> None:
    client, server = lined["client"], lined["server"]
    before = client.snapshot()
    lined.cut("client", "server")
    show_link = ("-n", client.namespace, "link", "show", "eth0")
    eventually(lambda: "NO-CARRIER" in ip(*show_link), "no carrier")
    assert client.ping(server.ipv4(), timeout_s=0.1).received == 0
    lined.carry("client", "server", Line())
    for address in (server.ipv4(), server.ipv6()):
        assert client.ping(address).received == 1
    assert difference(before, client.snapshot()) == ""


@pytest.mark.netns
@pytest.mark.parametrize("by_netem", [False], ids=["emulator"], indirect=True)
def test_the_line_of_a_killed_maker_goes_with_its_lab(lined: Lab) -> None:
    """What carries the packets is in one of the hosts, where it is found and ended."""
    pids = ip("netns", "pids", lined["server"].namespace).split()
    assert len(pids) == 1
    assert Path(f"/proc/{pids[0]}/cmdline").read_bytes().split(b"\0")[2].endswith(b"emulator.py")
