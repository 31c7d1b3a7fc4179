"""Dialling: addresses raced, checked before they are dialled, and names that hold nobody up."""

from __future__ import annotations

import errno
import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest
import trio

from gateway.net import dial as dial_module
from gateway.net.dial import (
    ATTEMPT_DELAY_S,
    LOOKUP_TIMEOUT_S,
    Address,
    DialError,
    DialOptions,
    NameResolutionError,
    dial,
    resolve,
)
from tests.interop.targets import BlackHole

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME, PORT = "name.test", 80
REAL_GETADDRINFO = socket.getaddrinfo


class Resolver:
    """Stands for getaddrinfo; every look-up of a name takes the next answer."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.calls = 0

    def __call__(self, host: str, port: int, family=0, type=0, proto=0, flags=0):  # noqa: A002
        if flags & socket.AI_NUMERICHOST:
            return REAL_GETADDRINFO(host, port, family, type, proto, flags)
        self.calls += 1
        return [
            (_family(address), type, 6, "", (address, port))
            for address in self.answers.pop(0)
            if family in (0, _family(address))
        ]


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Network:
    """Stands for ``_attempt``: per address, seconds until it connects or fails with an errno."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[float, int]] = {}
        self.dialled: list[tuple[float, str]] = []
        self.cancelled: list[str] = []
        self.sockets: list[socket.socket] = []
        self.started_s = 0.0

    async def attempt(self, address: Address, _options: DialOptions) -> socket.socket:
        ip = address.sockaddr[0]
        self.dialled.append((round(trio.current_time() - self.started_s, 3), ip))
        delay_s, number = self.answers[ip]
        try:
            await trio.sleep(delay_s)
        except trio.Cancelled:
            self.cancelled.append(ip)
            raise
        if number:
            raise OSError(number, os.strerror(number))
        sock = socket.socket()
        self.sockets.append(sock)
        return sock


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    made = Network()
    monkeypatch.setattr(dial_module, "_attempt", made.attempt)

    async def resolved(host: str, port: int, **_: object) -> list[Address]:
        made.started_s = trio.current_time()
        return [Address(_family(ip), (ip, port)) for ip in made.answers]

    monkeypatch.setattr(dial_module, "resolve", resolved)
    yield made
    for sock in made.sockets:
        sock.close()


FIRST, SECOND, THIRD = "192.0.2.1", "2001:db8::2", "192.0.2.3"
NEVER = float("inf")


async def test_the_second_address_wins_when_the_first_is_a_black_hole(
    autojump_clock: object, network: Network
) -> None:
    network.answers = {FIRST: (NEVER, 0), SECOND: (0.02, 0), THIRD: (0, 0)}
    started_s = trio.current_time()
    sock = await dial(NAME, PORT)
    assert trio.current_time() - started_s == pytest.approx(ATTEMPT_DELAY_S + 0.02)
    assert network.sockets == [sock]
    assert network.dialled == [(0, FIRST), (ATTEMPT_DELAY_S, SECOND)]
    assert network.cancelled == [FIRST]


async def test_the_second_address_need_not_wait_when_the_first_fails(
    autojump_clock: object, network: Network
) -> None:
    network.answers = {FIRST: (0.01, errno.ENETUNREACH), SECOND: (0.01, 0)}
    await dial(NAME, PORT)
    assert network.dialled == [(0, FIRST), (0.01, SECOND)]


async def test_a_slow_first_address_may_still_win(autojump_clock: object, network: Network) -> None:
    network.answers = {FIRST: (0.3, 0), SECOND: (5, 0)}
    await dial(NAME, PORT)
    assert network.cancelled == [SECOND]


async def test_only_one_socket_is_left_when_two_connect_at_once(
    autojump_clock: object, network: Network
) -> None:
    network.answers = {FIRST: (2 * ATTEMPT_DELAY_S, 0), SECOND: (ATTEMPT_DELAY_S, 0)}
    sock = await dial(NAME, PORT)
    assert [other for other in network.sockets if other.fileno() >= 0] == [sock]


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ([errno.ENETUNREACH, errno.ECONNREFUSED], errno.ECONNREFUSED),
        ([errno.ECONNREFUSED, errno.ENETUNREACH], errno.ECONNREFUSED),
        ([errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ETIMEDOUT], errno.ETIMEDOUT),
        ([errno.ENETUNREACH, errno.EHOSTUNREACH], errno.EHOSTUNREACH),
        ([errno.EINVAL, errno.ENETUNREACH], errno.ENETUNREACH),
        ([errno.EINVAL], errno.EINVAL),
    ],
)
async def test_the_most_telling_error_is_reported(
    autojump_clock: object, network: Network, numbers: list[int], told: int
) -> None:
    network.answers = {f"192.0.2.{i}": (0.01, number) for i, number in enumerate(numbers)}
    with pytest.raises(DialError) as raised:
        await dial(NAME, PORT)
    assert (raised.value.error_number, raised.value.text) == (told, os.strerror(told))
    assert str(raised.value) == f"{NAME} port {PORT}: {os.strerror(told)}"


async def test_all_attempts_end_with_the_timeout(autojump_clock: object, network: Network) -> None:
    network.answers = {FIRST: (NEVER, 0), SECOND: (NEVER, 0)}
    with pytest.raises(DialError, match="Connection timed out") as raised:
        await dial(NAME, PORT, DialOptions(timeout_s=3))
    assert raised.value.error_number == errno.ETIMEDOUT
    assert sorted(network.cancelled) == [FIRST, SECOND]


async def test_a_winner_whose_caller_was_cancelled_is_closed(
    autojump_clock: object, network: Network
) -> None:
    network.answers = {FIRST: (1, 0), SECOND: (NEVER, 0)}
    with trio.move_on_after(1):
        sock = await dial(NAME, PORT)
        sock.close()
    assert all(sock.fileno() < 0 for sock in network.sockets)


async def test_a_winner_at_the_moment_of_the_cancellation_is_closed(
    monkeypatch: pytest.MonkeyPatch, network: Network
) -> None:
    network.answers = {FIRST: (0, 0), SECOND: (0, 0)}
    made = []

    async def attempt(_address: Address, _options: DialOptions) -> socket.socket:
        made.append(socket.socket())
        scope.cancel()
        return made[0]

    monkeypatch.setattr(dial_module, "_attempt", attempt)
    with trio.CancelScope() as scope, pytest.raises(trio.Cancelled):
        await dial(NAME, PORT)
    assert [sock.fileno() for sock in made] == [-1]


# -- the address that is dialled is the one that was checked (T54) ---------------------------------


async def test_every_address_is_checked_before_any_is_dialled(
    autojump_clock: object, network: Network
) -> None:
    network.answers = {FIRST: (0, 0), SECOND: (0, 0), THIRD: (0, 0)}
    checked = []

    def permit(ip) -> None:
        assert network.dialled == []
        checked.append(str(ip))
        if str(ip) == THIRD:
            raise PermissionError

    with pytest.raises(PermissionError):
        await dial(NAME, PORT, permit=permit)
    assert checked == [FIRST, SECOND, THIRD]
    assert network.dialled == []


async def test_a_name_that_resolves_differently_a_moment_later_gains_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolver = Resolver(["192.0.2.1"], ["127.0.0.1"])
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    network = Network()
    network.answers = {"192.0.2.1": (0, 0), "127.0.0.1": (0, 0)}
    monkeypatch.setattr(dial_module, "_attempt", network.attempt)
    checked: list[str] = []
    (await dial(NAME, PORT, permit=lambda ip: checked.append(str(ip)))).close()
    assert checked == ["192.0.2.1"]
    assert [ip for _, ip in network.dialled] == checked
    assert resolver.calls == 1


# -- names -----------------------------------------------------------------------------------------


async def test_the_families_take_turns_and_there_is_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many = [f"2001:db8::{i}" for i in range(1, 20)]
    monkeypatch.setattr(socket, "getaddrinfo", Resolver([*many, "192.0.2.1", "192.0.2.2"]))
    found = [address.sockaddr[0] for address in await resolve(NAME, PORT)]
    assert found[:5] == [many[0], "192.0.2.1", many[1], "192.0.2.2", many[2]]
    assert len(found) == dial_module.MAXIMUM_ADDRESSES


async def test_the_table_of_hosts_goes_before_dns(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    for name in ("Private.test", "private.test."):
        found = await resolve(name, PORT, hosts={"private.test": "192.0.2.5"})
        assert [address.sockaddr for address in found] == [("192.0.2.5", PORT)]
    assert resolver.calls == 0


@pytest.mark.parametrize("letter", ["a", "\u00fc"])
async def test_what_is_too_long_for_a_name_costs_nothing(
    letter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T49: IDNA takes seconds with as long a text as a packet holds, in getaddrinfo too."""
    resolver = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    with pytest.raises(NameResolutionError, match="too long for a name") as caught:
        await resolve(f"{letter}." * 85_000, PORT)
    assert resolver.calls == 0
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["a" * 300, "a..b", "\udcff", "a\0b", "xn--\x80", "." * 300, ""])
async def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(NameResolutionError):
        await resolve(name, PORT)


class StuckResolver(Resolver):
    """Holds every look-up of a name until ``release`` is set."""

    def __init__(self) -> None:
        super().__init__(*([["192.0.2.9"]] * 200))
        self.release = threading.Event()

    def __call__(self, host: str, port: int, family=0, type=0, proto=0, flags=0):  # noqa: A002
        if not flags & socket.AI_NUMERICHOST and host.startswith("stuck"):
            self.release.wait(30)
        return super().__call__(host, port, family, type, proto, flags)


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[StuckResolver]:
    resolver = StuckResolver()
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    yield resolver
    resolver.release.set()


async def test_a_stuck_name_holds_up_nobody_else(stuck: StuckResolver) -> None:
    async with trio.open_nursery() as nursery:
        for i in range(40):
            nursery.start_soon(resolve, f"stuck{i}.test", PORT)
        with trio.fail_after(30):
            assert await resolve("quick.test", PORT)  # a name, in a thread of its own
            assert await resolve("192.0.2.1", PORT)  # an address, without a thread
            await trio.to_thread.run_sync(int)  # trio's own threads are not used up
        nursery.cancel_scope.cancel()


async def test_a_look_up_that_is_cancelled_is_left_behind(stuck: StuckResolver) -> None:
    with trio.fail_after(30), trio.move_on_after(0.01) as scope:
        await resolve("stuck.test", PORT)
    assert scope.cancelled_caught


async def test_a_look_up_that_takes_too_long(
    stuck: StuckResolver, autojump_clock: trio.testing.MockClock
) -> None:
    started_s = trio.current_time()
    with pytest.raises(NameResolutionError, match="Temporary failure in name resolution"):
        await resolve("stuck.test", PORT)
    assert trio.current_time() - started_s == pytest.approx(LOOKUP_TIMEOUT_S)


# -- real sockets ----------------------------------------------------------------------------------


async def test_a_closed_port_and_an_open_one() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        with pytest.raises(DialError, match="Connection refused"):
            await dial("127.0.0.1", port)
        listener.listen()
        with await dial("127.0.0.1", port, DialOptions(bind_address="127.0.0.2")) as sock:
            assert not sock.getblocking()
            assert not sock.get_inheritable()
            assert sock.getsockname()[0] == "127.0.0.2"


async def test_a_real_black_hole_costs_one_attempt_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    with BlackHole() as hole, socket.socket() as listener:
        listener.bind(("127.0.0.2", hole.port))
        listener.listen()
        monkeypatch.setattr(socket, "getaddrinfo", Resolver(["127.0.0.1", "127.0.0.2"]))
        started_s = trio.current_time()
        with await dial(NAME, hole.port) as sock:
            assert sock.getpeername()[0] == "127.0.0.2"
        assert ATTEMPT_DELAY_S <= trio.current_time() - started_s < ATTEMPT_DELAY_S + 0.5
