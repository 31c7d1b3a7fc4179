"""Bytes both ways at once through a SOCKS proxy, each compared, while the keys change.

On both sides data waits whenever it can, so every key exchange meets packets that are on their way.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.interop.clients import listens
from tests.interop.targets import Target, content, socks
from tests.support.programs import (
    client_options,
    eventually,
    free_port,
    make_keys,
    running,
    running_connect,
    running_gateway_serve,
    running_sshd,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from tests.support.programs import Endpoint, Keys, OpenSSH, Program

BLOCK_LENGTH: Final = 1_000_003  # no multiple of anything that is on the way
GIGABYTE: Final = 1000  # in blocks
REKEY_LIMIT: Final = 256 * 1024


def _send(sock: socket.socket, block: bytes, blocks: int) -> None:
    for _ in range(blocks):
        sock.sendall(block)
    sock.shutdown(socket.SHUT_WR)


def _receive(sock: socket.socket, block: bytes) -> int:
    """Read to the end, comparing with the block over and over; return the number of bytes."""
    twice = block + block
    buffer = bytearray(len(block))
    total = 0
    while count := sock.recv_into(buffer):
        at = total % len(block)
        assert buffer[:count] == twice[at : at + count], f"another byte after {total}"
        total += count
    return total


def exchange(proxy_port: int, blocks: int) -> None:
    """Send so many blocks each way at once; fail unless every byte arrives as it was sent."""
    up, down = content("bulk up", BLOCK_LENGTH), content("bulk down", BLOCK_LENGTH)
    received = []

    def use(sock: socket.socket, outgoing: bytes, incoming: bytes) -> None:
        sender = threading.Thread(target=_send, args=(sock, outgoing, blocks))
        sender.start()
        try:
            received.append(_receive(sock, incoming))
        finally:
            sender.join()

    with (
        Target(lambda sock: use(sock, down, up)) as target,
        socks(proxy_port, "127.0.0.1", target.port) as sock,
    ):
        use(sock, up, down)
    assert received == [blocks * BLOCK_LENGTH] * 2


# ---- a proxy of ours at one end, or at both ------------------------------------------------------

# Each yields the proxy's port, the program of ours that counts key exchanges, and the peer. A limit
# is in bytes (RekeyLimit), options are those that ssh and `gateway connect` share, for the client.


def _keys(openssh: OpenSSH) -> Keys:
    return make_keys(Path(tempfile.mkdtemp(dir=openssh.folder, prefix="bulk.")))


@contextlib.contextmanager
def our_client(
    openssh: OpenSSH,
    *options: str,
    ours: int = REKEY_LIMIT,
    theirs: int = REKEY_LIMIT,
    log_level: str = "VERBOSE",
) -> Iterator[tuple[int, Program, Program]]:
    """`gateway connect -D` to an sshd."""
    with (
        running_sshd(_keys(openssh), f"RekeyLimit {theirs}", openssh, log_level) as server,
        running_connect(server, "-v", "-v", "-o", f"RekeyLimit={ours}", *options) as proxy,
    ):
        yield proxy.port, proxy.program, server.program


@contextlib.contextmanager
def our_server(
    openssh: OpenSSH,
    *options: str,
    ours: int = REKEY_LIMIT,
    theirs: int = REKEY_LIMIT,
    log_level: str = "VERBOSE",
) -> Iterator[tuple[int, Program, Program]]:
    """`ssh -D` to `gateway serve`."""
    port = free_port()
    with _serve(openssh, ours) as server:
        known = ("-N", "-D", f"127.0.0.1:{port}", *client_options(openssh.endpoint(server)))
        chosen = ("-o", f"RekeyLimit={theirs}", "-o", f"LogLevel={log_level}", *options)
        with running(*openssh.command("ssh", *known, *chosen, "alice@127.0.0.1")) as program:
            eventually(lambda: listens(port) or program.ended, "ssh listens", 30)
            assert not program.ended, program.lines
            yield port, server.program, program


@contextlib.contextmanager
def both_ours(openssh: OpenSSH) -> Iterator[tuple[int, Program, Program]]:
    """`gateway connect -D` to `gateway serve`."""
    with (
        _serve(openssh, REKEY_LIMIT) as server,
        running_connect(server, "-v", "-v", "-o", f"RekeyLimit={REKEY_LIMIT}") as proxy,
    ):
        yield proxy.port, proxy.program, server.program


def _serve(openssh: OpenSSH, limit: int) -> AbstractContextManager[Endpoint]:
    options = ("-v", "-v", "--permit-open", "127.0.0.1:*", "--rekey-bytes", str(limit))
    return running_gateway_serve(_keys(openssh), *options)
