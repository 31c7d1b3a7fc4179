"""`gateway connect` with forwardings, to a stock sshd and to `gateway serve`."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.interop.targets import content, need, read_all, read_exactly
from tests.support.programs import (
    GATEWAY,
    USER,
    Endpoint,
    Program,
    client_options,
    make_keys,
    running,
    running_box,
    running_sshd,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA = content("forwards", 300_001)
HERE = "127.0.0.1"
WHO = f"{USER}@{HERE}"

# What sshd lets everybody do who is let in.
CONFIG = """\
[users.{user}]
authorized_keys = "authorized_keys"
[[rules]]
allow = "open"
to = ["127.0.0.1:*", "localhost:*", "[::1]:*"]
[[rules]]
allow = "listen"
to = ["*:*"]
[[rules]]
allow = "unix"
to = ["{folder}/*"]
"""


@dataclass(frozen=True)
class Far:
    """A server, and a folder that client and server see, with a short name: it is for sockets."""

    server: Endpoint
    folder: Path

    def command(self, *arguments: str) -> list[str]:
        """Return what runs `gateway connect -v -N`."""
        options = ("-v", "-N", *client_options(self.server))
        return [*GATEWAY, "connect", *options, *arguments, WHO]

    @contextlib.contextmanager
    def connected(self, *arguments: str) -> Iterator[Program]:
        """Run it until everything is up."""
        with running(*self.command(*arguments)) as program:
            program.wait_line(r"everything is up")
            yield program


@contextlib.contextmanager
def running_far(kind: str, extra: str = "GatewayPorts clientspecified") -> Iterator[Far]:
    """Run sshd, or serve with rules for as much; ``extra`` are lines for sshd."""
    with tempfile.TemporaryDirectory(prefix="far.") as name:
        folder = Path(name)
        keys = make_keys(folder / "keys")
        if kind == "sshd":
            need("sshd")
            context = running_sshd(keys, extra)
        else:
            context = running_box(keys, CONFIG.format(user=USER, folder=folder))
        with context as server:
            yield Far(server, folder)


def dialled(end: int | Path) -> socket.socket:
    """Connect to a port of this machine, or a socket."""
    if isinstance(end, int):
        return socket.create_connection((HERE, end), 20)
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(str(end))
    return sock


def round_trip(sock: socket.socket, data: bytes = DATA) -> None:
    """Send data to an echo, and have all of it back."""
    with sock:
        sock.sendall(data[:1000])
        received = read_exactly(sock, 1000)
        sock.sendall(data[1000:])
        sock.shutdown(socket.SHUT_WR)
        received += read_all(sock)
    assert len(received) == len(data)
    assert received == data


def bound(port: int) -> set[str]:
    """Return the addresses on which somebody listens at a port: the kernel's tables tell."""
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            address, _, number = local.rpartition(":")
            if state == "0A" and int(number, 16) == port:
                words = struct.unpack(f">{len(address) // 8}I", bytes.fromhex(address))
                packed = struct.pack(f"={len(words)}I", *words)
                found.add(str(ipaddress.ip_address(packed)))
    return found


@contextlib.contextmanager
def busy_port() -> Iterator[int]:
    """Hold a port on both loopbacks."""
    with socket.socket() as first, socket.socket(socket.AF_INET6) as second:
        first.bind((HERE, 0))
        first.listen()
        port = int(first.getsockname()[1])
        second.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        second.bind(("::1", port))
        second.listen()
        yield port
