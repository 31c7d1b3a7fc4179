"""What the proxies are asked to reach, and a SOCKS client that shows every byte of an answer."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import shutil
import socket
import struct
import subprocess
import threading
from typing import TYPE_CHECKING, Self

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TIMEOUT_S = 60.0
SYSTEM_PROGRAMS = ":/usr/sbin:/usr/local/sbin"  # not everybody has them in PATH
UNKNOWN_NAME = "no-such-name.invalid"
GREETING, METHOD_CHOSEN = b"\x05\x01\x00", b"\x05\x00"
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def need(program: str) -> str:
    """Return where a program is, or skip the test."""
    path = shutil.which(program, path=os.environ.get("PATH", "") + SYSTEM_PROGRAMS)
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


@functools.cache
def content(seed: object, length: int) -> bytes:
    """Return bytes that no other seed gives."""
    return random.Random(str(seed)).randbytes(length)


def read_all(sock: socket.socket) -> bytes:
    """Read to the end of the peer's data."""
    pieces = []
    while piece := sock.recv(1 << 18):
        pieces.append(piece)
    return b"".join(pieces)


def read_exactly(sock: socket.socket, length: int) -> bytes:
    """Read so many bytes."""
    data = bytearray()
    while len(data) < length:
        piece = sock.recv(length - len(data))
        if not piece:
            raise AssertionError(f"the peer closed after {bytes(data)!r}")
        data += piece
    return bytes(data)


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    sock.close()


class Target:
    """A TCP server that runs a function for each connection, in a thread of its own.

    What the functions raised is raised again when the target is left.
    """

    def __init__(
        self,
        handler: Callable[[socket.socket], object],
        host: str = "127.0.0.1",
        backlog: int = 512,
    ) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._handler = handler
        self._errors: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        self._was_reached = threading.Event()
        self._listener = socket.socket(family)
        self._listener.bind((host, 0))
        self._listener.listen(backlog)
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, daemon=True)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._handle, args=(sock,), daemon=True)
            self._threads.append(thread)
            self._was_reached.set()
            thread.start()

    def wait_for_connection(self) -> None:
        """Return when somebody has connected."""
        assert self._was_reached.wait(TIMEOUT_S)

    def _handle(self, sock: socket.socket) -> None:
        sock.settimeout(TIMEOUT_S)
        try:
            with sock:
                self._handler(sock)
        except BaseException as error:  # noqa: BLE001 - shown in __exit__
            self._errors.append(error)

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._listener.close()
        self._acceptor.join(TIMEOUT_S)
        for thread in self._threads:
            thread.join(TIMEOUT_S)
        if self._errors and kind is None:
            raise self._errors[0]


def echo(sock: socket.socket) -> None:
    """Send everything back, and end when the peer has ended."""
    with contextlib.suppress(OSError):
        while data := sock.recv(1 << 16):
            sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)


def web_page(body: bytes) -> Callable[[socket.socket], None]:
    """Answer any request with a body."""

    def answer(sock: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            piece = sock.recv(4096)
            if not piece:
                return
            request += piece
        sock.sendall(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        sock.sendall(body)

    return answer


class BlackHole:
    """An address of which a connection attempt gets no answer, until ``open_up``."""

    def __init__(self) -> None:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0)
        self.port: int = self._listener.getsockname()[1]
        self._fillers: list[socket.socket] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        # Linux drops SYN when the backlog is full, so the last of these stays unanswered.
        while True:
            filler = socket.socket()
            filler.settimeout(0.3)
            self._fillers.append(filler)
            try:
                filler.connect(("127.0.0.1", self.port))
            except TimeoutError:
                return self

    def open_up(self) -> None:
        """From now on accept and close: attempts that still wait succeed when SYN is repeated."""
        self._listener.listen(512)
        self._acceptor.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._listener.accept()[0].close()

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        if self._acceptor.is_alive():
            self._acceptor.join(TIMEOUT_S)
        for sock in (*self._fillers, self._listener):
            sock.close()


def request5(host: str, port: int) -> bytes:
    """Return a SOCKS5 CONNECT request with a name."""
    name = host.encode()
    return b"\x05\x01\x00\x03" + bytes((len(name),)) + name + port.to_bytes(2, "big")


def begin_socks(proxy_port: int, host: str, port: int, early_data: bytes = b"") -> socket.socket:
    """Send greeting, request and more in one segment; the answers are still to be read."""
    sock = socket.create_connection(("127.0.0.1", proxy_port), TIMEOUT_S)
    sock.sendall(GREETING + request5(host, port) + early_data)
    return sock


def read_reply(sock: socket.socket) -> int:
    """Read the proxy's two answers; return the reply code."""
    answer = read_exactly(sock, 12)
    assert answer[:3] == METHOD_CHOSEN + b"\x05", answer
    return answer[3]


@contextlib.contextmanager
def socks(
    proxy_port: int, host: str, port: int, early_data: bytes = b""
) -> Iterator[socket.socket]:
    """Connect through a proxy."""
    with begin_socks(proxy_port, host, port, early_data) as sock:
        assert read_reply(sock) == 0
        yield sock


def curl(*arguments: str, output: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run curl; the body is standard output."""
    return subprocess.run(
        [need("curl"), "-q", "-sS", "-g", "--noproxy", "", "--max-time", "20", *arguments],
        capture_output=True,
        timeout=TIMEOUT_S * 2,
        check=False,
    )
