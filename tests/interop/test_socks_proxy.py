"""The SOCKS proxy through real servers: a stock sshd and `gateway serve` (issue 2; T54-T62)."""

from __future__ import annotations

import concurrent.futures
import contextlib
import operator
import os
import signal
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from tests.interop.targets import (
    TIMEOUT_S,
    UNKNOWN_NAME,
    BlackHole,
    Target,
    begin_socks,
    content,
    curl,
    need,
    read_all,
    read_exactly,
    reset,
    socks,
    web_page,
)
from tests.support.programs import (
    Endpoint,
    Keys,
    Proxy,
    children_of,
    eventually,
    free_port,
    make_keys,
    open_sockets,
    running_connect,
    running_gateway_serve,
    running_sshd,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = content("page", 1_000_003)
LARGE = content("large", 8_000_009)  # more than a window
SMALL = content("small", 300_007)


def fetch(proxy: Proxy) -> None:
    """Show that the proxy still works."""
    with Target(web_page(PAGE)) as target, socks(proxy.port, "127.0.0.1", target.port) as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert read_all(sock).endswith(PAGE)


# -- curl ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "host"),
    [
        ("--socks5-hostname", "localhost"),
        ("--socks5-hostname", "127.0.0.1"),
        ("--socks5", "127.0.0.1"),
        ("--socks4a", "localhost"),
        ("--socks4", "127.0.0.1"),
    ],
)
def test_curl_fetches_a_page_byte_for_byte(proxy: Proxy, option: str, host: str) -> None:
    with Target(web_page(PAGE)) as target:
        result = curl(option, f"localhost:{proxy.port}", f"http://{host}:{target.port}/")
    assert result.stderr == b""
    assert result.stdout == PAGE


@pytest.mark.parametrize("option", ["--socks5-hostname", "--socks5"])
def test_curl_reaches_an_ipv6_address(proxy: Proxy, option: str) -> None:
    try:
        target = Target(web_page(PAGE), "::1")
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with target:
        result = curl(option, f"localhost:{proxy.port}", f"http://[::1]:{target.port}/")
    assert result.stderr == b""
    assert result.stdout == PAGE


def test_curl_reaches_the_proxy_over_ipv6(proxy: Proxy) -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6 loopback")
    with Target(web_page(PAGE)) as target:
        result = curl("--socks5", f"[::1]:{proxy.port}", f"http://127.0.0.1:{target.port}/")
    assert result.stdout == PAGE


def test_curl_hears_that_a_port_is_closed(proxy: Proxy) -> None:
    result = curl(
        "--socks5-hostname", f"localhost:{proxy.port}", f"http://localhost:{free_port()}/"
    )
    assert result.returncode == 97
    assert b"(5)" in result.stderr


def test_curl_hears_that_a_name_is_unknown(proxy: Proxy) -> None:
    result = curl("--socks5-hostname", f"localhost:{proxy.port}", f"http://{UNKNOWN_NAME}/")
    assert result.returncode == 97
    assert b"(4)" in result.stderr


def test_curl_hears_of_a_closed_port_in_socks4(proxy: Proxy) -> None:
    result = curl("--socks4", f"localhost:{proxy.port}", f"http://127.0.0.1:{free_port()}/")
    assert result.returncode == 97
    assert b"(91)" in result.stderr


@contextlib.contextmanager
def _denying(kind: str, keys: Keys) -> Iterator[Endpoint]:
    if kind == "serve":
        with running_gateway_serve(keys, "-v") as endpoint:  # no rule: all but the box itself
            yield endpoint
        return
    need("sshd")
    with running_sshd(keys, kind) as endpoint:
        yield endpoint


@pytest.mark.parametrize("kind", ["serve", "PermitOpen none", "AllowTcpForwarding no"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_curl_hears_that_a_target_is_denied(kind: str, host: str, tmp_path: Path) -> None:
    with (
        _denying(kind, make_keys(tmp_path / "keys")) as endpoint,
        running_connect(endpoint) as proxy,
        Target(web_page(PAGE)) as target,
    ):
        result = curl(
            "--socks5-hostname", f"localhost:{proxy.port}", f"http://{host}:{target.port}/"
        )
    assert result.returncode == 97
    assert b"(2)" in result.stderr


# -- streams ---------------------------------------------------------------------------------------


def test_early_data_in_one_segment_with_greeting_and_request(proxy: Proxy) -> None:
    def echo_upper(sock: socket.socket) -> None:
        sock.sendall(read_exactly(sock, 5).upper())

    with (
        Target(echo_upper) as target,
        socks(proxy.port, "127.0.0.1", target.port, b"early") as sock,
    ):
        assert read_all(sock) == b"EARLY"


def test_half_close_by_the_client_then_a_large_answer(proxy: Proxy) -> None:
    received = []

    def answer_after_the_end(sock: socket.socket) -> None:
        received.append(read_all(sock))
        sock.sendall(LARGE)

    with Target(answer_after_the_end) as target:
        with socks(proxy.port, "127.0.0.1", target.port) as sock:
            sock.sendall(SMALL)
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == LARGE
        assert received == [SMALL]


def test_half_close_by_the_target_then_a_large_upload(proxy: Proxy) -> None:
    received = []

    def answer_at_once(sock: socket.socket) -> None:
        sock.sendall(SMALL)
        sock.shutdown(socket.SHUT_WR)
        received.append(read_all(sock))

    with Target(answer_at_once) as target, socks(proxy.port, "127.0.0.1", target.port) as sock:
        assert read_all(sock) == SMALL
        sock.sendall(LARGE)
        # leaving the target waits for its thread, so the upload is complete
    assert received == [LARGE]


@pytest.mark.parametrize("first", ["client", "target"])
def test_streams_of_no_bytes(proxy: Proxy, first: str) -> None:
    def empty(sock: socket.socket) -> None:
        if first == "client":
            assert read_all(sock) == b""
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""

    with Target(empty) as target, socks(proxy.port, "127.0.0.1", target.port) as sock:
        if first == "client":
            sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""


def test_both_directions_at_once(proxy: Proxy) -> None:
    received = []

    def talk(sock: socket.socket) -> None:
        sender = threading.Thread(target=_send_and_end, args=(sock, LARGE))
        sender.start()
        received.append(read_all(sock))
        sender.join()

    with Target(talk) as target, socks(proxy.port, "127.0.0.1", target.port) as sock:
        sender = threading.Thread(target=_send_and_end, args=(sock, LARGE[::-1]))
        sender.start()
        assert read_all(sock) == LARGE
        sender.join()
    assert received == [LARGE[::-1]]


def _send_and_end(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def test_300_streams_at_once_each_with_its_own_bytes(proxy: Proxy) -> None:
    count, length = 300, 40_009
    all_here = threading.Barrier(count, timeout=TIMEOUT_S)
    wrong = []

    def swap(sock: socket.socket) -> None:
        number = int.from_bytes(read_exactly(sock, 2), "big")
        all_here.wait()
        sock.sendall(content(("down", number), length))
        if read_all(sock) != content(("up", number), length):
            wrong.append(number)

    def use(number: int) -> bool:
        early = number.to_bytes(2, "big") + content(("up", number), length)
        with socks(proxy.port, "127.0.0.1", target.port, early) as sock:
            sock.shutdown(socket.SHUT_WR)
            return read_all(sock) == content(("down", number), length)

    with Target(swap) as target, concurrent.futures.ThreadPoolExecutor(count) as pool:
        assert list(pool.map(use, range(count))) == [True] * count
    assert wrong == []


def test_a_slow_reader_stops_only_itself(proxy: Proxy) -> None:
    has_stalled = threading.Event()

    def flood(sock: socket.socket) -> None:
        sock.settimeout(0.5)  # that nothing was taken for so long means all buffers are full
        try:
            while True:
                sock.send(LARGE)
        except TimeoutError:
            has_stalled.set()
        except OSError:
            pass

    with Target(flood) as target, socks(proxy.port, "127.0.0.1", target.port):
        assert has_stalled.wait(TIMEOUT_S)
        fetch(proxy)


# -- clients and targets that behave badly ---------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "hint"),
    [
        (b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP"),
        (b"CONNECT a:443 HTTP/1.1\r\n\r\n", "HTTP"),
        (bytes.fromhex("16 03 01 02 00 01 00 01 fc 03 03"), "TLS"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH"),
    ],
)
def test_another_protocol_gets_a_close_and_the_log_a_hint(
    proxy: Proxy, sent: bytes, hint: str
) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), TIMEOUT_S) as sock:
        sock.sendall(sent)
        assert read_all(sock) == b""
    proxy.program.wait_line(f"this is {hint}")
    fetch(proxy)


@pytest.mark.parametrize("length", [0, 1, 2, 4, 10])
@pytest.mark.parametrize("leave", [socket.socket.close, reset])
def test_a_client_that_leaves_in_its_handshake(proxy: Proxy, length: int, leave) -> None:
    sock = socket.create_connection(("127.0.0.1", proxy.port), TIMEOUT_S)
    sock.sendall(b"\x05\x01\x00\x05\x01\x00\x03\x09localhost"[:length])
    leave(sock)
    fetch(proxy)


def test_a_target_that_resets(proxy: Proxy) -> None:
    def break_off(sock: socket.socket) -> None:
        read_exactly(sock, 1)
        reset(sock)

    with (
        Target(break_off) as target,
        socks(proxy.port, "127.0.0.1", target.port, b"x") as sock,
        contextlib.suppress(ConnectionResetError),
    ):
        assert read_all(sock) == b""
    fetch(proxy)


def test_a_client_that_resets_ends_the_targets_connection(proxy: Proxy) -> None:
    ended = threading.Event()

    def read_to_the_end(sock: socket.socket) -> None:
        with contextlib.suppress(ConnectionResetError):
            read_all(sock)
        ended.set()

    with Target(read_to_the_end) as target:
        with socks(proxy.port, "127.0.0.1", target.port, b"x") as sock:
            reset(sock)
        assert ended.wait(TIMEOUT_S)
    fetch(proxy)


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
def test_clients_that_leave_during_the_open_leave_nothing(server: Endpoint, leave) -> None:
    """T62: the far end's answer comes when nobody wants it any more."""
    with running_connect(server) as proxy, BlackHole() as hole:
        fetch(proxy)

        def sockets() -> tuple[int, int]:
            return open_sockets(proxy.program.pid), open_sockets(server.program.pid)

        before = sockets()
        for _ in range(200):
            sock = begin_socks(proxy.port, "127.0.0.1", hole.port, b"early")
            assert read_exactly(sock, 2) == b"\x05\x00"
            leave(sock)
        eventually(lambda: sockets()[1] > before[1], "an open that waits")
        hole.open_up()
        eventually(
            lambda: all(map(operator.le, sockets(), before)), f"as many sockets as before: {before}"
        )
        fetch(proxy)


# -- the link --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sshd", "serve"])
def test_a_lost_link_resets_streams_answers_openings_and_ends_the_program(
    kind: str, tmp_path: Path
) -> None:
    keys = make_keys(tmp_path / "keys")
    if kind == "sshd":
        need("sshd")
    running_server = running_sshd(keys) if kind == "sshd" else running_gateway_serve(keys)
    with (
        running_server as server,
        running_connect(server) as proxy,
        Target(_ignore_resets) as target,
        BlackHole() as hole,
        socks(proxy.port, "127.0.0.1", target.port, b"?") as streaming,
        begin_socks(proxy.port, "127.0.0.1", hole.port) as opening,
    ):
        assert read_exactly(streaming, 1) == b"!"
        assert read_exactly(opening, 2) == b"\x05\x00"
        for pid in (*children_of(server.program.pid), server.program.pid):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(ConnectionResetError):
            streaming.recv(1)
        assert read_exactly(opening, 10)[:2] == b"\x05\x01"
        assert proxy.program.wait() == 255
        said = [line for line in proxy.program.lines if "post-quantum" not in line]
        assert len(said) == 3, said
        assert "connection to 127.0.0.1 port" in proxy.program.lines[-1]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", proxy.port))


def test_killed_clients_leave_nothing_on_the_server(server: Endpoint) -> None:
    """T64."""
    with Target(_ignore_resets) as target:
        before = open_sockets(server.program.pid)
        for _ in range(3):
            with (
                running_connect(server) as proxy,
                socks(proxy.port, "127.0.0.1", target.port, b"?") as sock,
            ):
                assert read_exactly(sock, 1) == b"!"
                proxy.program.signal(signal.SIGKILL)
                proxy.program.wait()
        eventually(
            lambda: open_sockets(server.program.pid) <= before, f"at most {before} sockets again"
        )


def _ignore_resets(sock: socket.socket) -> None:
    read_exactly(sock, 1)
    sock.sendall(b"!")
    with contextlib.suppress(ConnectionResetError):
        read_all(sock)
