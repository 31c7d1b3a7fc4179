"""Listening: what a bind address means, and what is said when it cannot be had."""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_address

import pytest
import trio

from gateway.errors import NetworkSetupError
from gateway.net import listen, poller
from gateway.net.listen import (
    addresses_to_bind,
    describe,
    is_own_address,
    open_listeners,
    open_listeners_by_name,
    serve,
)

INET, INET6 = socket.AF_INET, socket.AF_INET6


def _has_ipv6() -> bool:
    try:
        with socket.socket(INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6 loopback")


@pytest.mark.parametrize(
    ("host", "meant"),
    [
        (None, {"127.0.0.1", "::1"}),
        ("localhost", {"127.0.0.1", "::1"}),
        ("", {"0.0.0.0", "::"}),
        ("*", {"0.0.0.0", "::"}),
        ("127.0.0.1", {"127.0.0.1"}),
        ("::1", {"::1"}),
        ("0.0.0.0", {"0.0.0.0"}),
        ("192.0.2.1", {"192.0.2.1"}),
    ],
)
def test_what_a_bind_address_means(host: str | None, meant: set[str]) -> None:
    assert {address for _, address in addresses_to_bind(host)} == meant


def close(listeners: list[socket.socket]) -> None:
    for listener in listeners:
        listener.close()


@needs_ipv6
@pytest.mark.parametrize("host", [None, "*"])
def test_both_families_get_the_same_free_port(host: str | None) -> None:
    listeners = open_listeners(host, 0)
    try:
        assert [listener.family for listener in listeners] == [INET, INET6]
        assert len({listener.getsockname()[1] for listener in listeners}) == 1
        for address in ("127.0.0.1", "::1"):
            socket.create_connection((address, listeners[0].getsockname()[1])).close()
    finally:
        close(listeners)


def test_a_port_in_use_is_an_error_and_leaves_nothing_open() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(NetworkSetupError) as raised:
            open_listeners("127.0.0.1", port)
    assert str(raised.value) == (
        f"cannot listen on 127.0.0.1 port {port}: "
        "another program uses this port: end it, or choose another port"
    )


@needs_ipv6
def test_a_port_in_use_in_one_family_closes_the_other() -> None:
    with socket.socket(INET6) as other:
        other.bind(("::1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(NetworkSetupError, match=f"::1 port {port}: another program"):
            open_listeners(None, port)
    with socket.socket() as free_again:
        free_again.bind(("127.0.0.1", port))


@pytest.mark.parametrize("missing", [INET, INET6])
@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_one_family_may_be_missing(
    monkeypatch: pytest.MonkeyPatch, missing: int, number: int
) -> None:
    real = listen._listen

    def without(family: int, address: str, port: int) -> socket.socket:
        if family == missing:
            raise OSError(number, "missing")
        return real(family, address, port)

    monkeypatch.setattr(listen, "_listen", without)
    if missing == INET and not _has_ipv6():
        pytest.skip("this machine has no IPv6 loopback")
    listeners = open_listeners(None, 0)
    assert [listener.family for listener in listeners] == [INET6 if missing == INET else INET]
    close(listeners)


def test_an_address_of_another_machine() -> None:
    with pytest.raises(NetworkSetupError, match=r"192\.0\.2\.1 port 0: .* has no such address"):
        open_listeners("192.0.2.1", 0)


def test_a_privileged_port(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> socket.socket:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(listen, "_listen", refuse)
    with pytest.raises(NetworkSetupError, match="only root may use ports below 1024: choose"):
        open_listeners(None, 80)


async def test_a_name_that_is_no_address() -> None:
    said = r"^cannot listen on no-such-name\.invalid: .*: use an address of this machine$"
    with pytest.raises(NetworkSetupError, match=said):
        await open_listeners_by_name("no-such-name.invalid", 0)


async def test_a_name_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only who can wait has it looked up."""
    asked: list[int] = []

    def look_up(*_: object, flags: int, **__: object) -> list[tuple[object, ...]]:
        asked.append(flags)
        raise socket.gaierror(socket.EAI_NONAME, "no address")

    async def look_up_by_name(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(trio.socket, "getaddrinfo", look_up_by_name)
    with pytest.raises(NetworkSetupError, match=r"cannot listen on name\.example: .*no address"):
        open_listeners("name.example", 0)
    assert asked
    assert all(flags & socket.AI_NUMERICHOST for flags in asked)
    (listener,) = await open_listeners_by_name("name.example", 0)
    assert listener.getsockname()[0] == "127.0.0.1"
    listener.close()


async def test_a_closed_listener_ends_its_accept_loop() -> None:
    (listener,) = open_listeners("127.0.0.1", 0)
    accepted = []

    def welcome(sock: socket.socket, address: tuple[str, int]) -> None:
        delays = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
        accepted.append((sock.getblocking(), delays, address == sock.getpeername()))
        sock.close()
        poller.close(listener)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, listener, welcome)
            with socket.create_connection(listener.getsockname()):
                await trio.testing.wait_all_tasks_blocked()
    assert accepted == [(False, False, True)]


async def test_an_accept_loop_that_was_cancelled_accepts_nobody() -> None:
    (listener,) = open_listeners("127.0.0.1", 0)
    accepted: list[object] = []

    def welcome(sock: socket.socket, _address: object) -> None:
        accepted.append(sock)

    with listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, listener, welcome)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        with socket.create_connection(listener.getsockname()):
            await trio.sleep(0.01)
    assert not accepted


async def test_clients_that_wait_together_are_all_accepted() -> None:
    (listener,) = open_listeners("127.0.0.1", 0)
    accepted: list[socket.socket] = []
    clients = [socket.create_connection(listener.getsockname()) for _ in range(20)]
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, listener, lambda sock, _: accepted.append(sock))
            while len(accepted) < len(clients):
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
    close([listener, *clients, *accepted])


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
async def test_running_out_of_descriptors_is_a_pause(
    number: int, autojump_clock: trio.testing.MockClock
) -> None:
    real = socket.socket()

    class Exhausted:
        calls = 0
        fileno = real.fileno

        def accept(self) -> tuple[socket.socket, str]:
            self.calls += 1
            raise OSError(number if self.calls < 4 else errno.EBADF, "")

    exhausted = Exhausted()
    started_s = trio.current_time()
    with real:
        await serve(exhausted, lambda *_: None)  # type: ignore[arg-type]
    assert exhausted.calls == 4
    assert trio.current_time() - started_s == pytest.approx(3 * listen.EXHAUSTED_PAUSE_S)


def test_own_addresses() -> None:
    for address in ("127.0.0.1", "127.1.2.3", "0.0.0.0"):
        assert is_own_address(ip_address(address))
    for address in ("192.0.2.1", "2001:db8::1"):
        assert not is_own_address(ip_address(address))


@pytest.mark.parametrize(
    ("sockaddr", "text"),
    [
        (("192.0.2.1", 22), "192.0.2.1 port 22"),
        (("::1", 22, 0, 0), "::1 port 22"),
        ("", "unix socket"),
        ("/run/x", "/run/x"),
        (b"\0\x1b]0;x\x07", "\\x00\\x1b]0;x\\x07"),  # an abstract name, which clients choose
        (b"", "unix socket"),
    ],
)
def test_how_an_address_is_described(sockaddr: object, text: str) -> None:
    assert describe(sockaddr) == text
