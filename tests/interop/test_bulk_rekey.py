"""A gigabyte each way at once, byte for byte, while both sides rekey every 256 KB (issue 2)."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from tests.interop.clients import last_keys
from tests.interop.targets import Target, content, need, socks
from tests.support.programs import (
    make_keys,
    running_connect,
    running_gateway_serve,
    running_ssh_proxy,
    running_sshd,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.programs import Endpoint

BLOCK_LENGTH = 1_000_003  # no multiple of anything that is on the way
GIGABYTE = 1000  # in blocks
PERMIT = ("--permit-open", "127.0.0.1:*")

pytestmark = [pytest.mark.slow, pytest.mark.alone]


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


def _exchange(proxy_port: int, blocks: int) -> None:
    up, down = content("bulk up", BLOCK_LENGTH), content("bulk down", BLOCK_LENGTH)
    received = []

    def exchange(sock: socket.socket, outgoing: bytes, incoming: bytes) -> None:
        sender = threading.Thread(target=_send, args=(sock, outgoing, blocks))
        sender.start()
        try:
            received.append(_receive(sock, incoming))
        finally:
            sender.join()

    with (
        Target(lambda sock: exchange(sock, down, up)) as target,
        socks(proxy_port, "127.0.0.1", target.port) as sock,
    ):
        exchange(sock, up, down)
    assert received == [blocks * BLOCK_LENGTH] * 2


@contextlib.contextmanager
def _rekeying_server(kind: str, folder: Path) -> Iterator[Endpoint]:
    keys = make_keys(folder / "keys")
    if kind == "serve":
        options = ("-v", "-v", *PERMIT, "--rekey-bytes", "262144")
        with running_gateway_serve(keys, *options) as endpoint:
            yield endpoint
        return
    need("sshd")
    with running_sshd(keys, "RekeyLimit 256k") as endpoint:
        yield endpoint


@pytest.mark.parametrize("kind", ["sshd", "serve"])
def test_a_gigabyte_each_way_while_both_sides_rekey(kind: str, tmp_path: Path) -> None:
    with (
        _rekeying_server(kind, tmp_path) as server,
        running_connect(server, "-v", "-v", "-o", "RekeyLimit=256K") as proxy,
    ):
        _exchange(proxy.port, GIGABYTE)
        said = "\n".join(proxy.program.lines)
    # Less often than every 256 KB: what is on its way when an exchange begins still counts.
    assert last_keys(said) > GIGABYTE // 2


def test_stock_ssh_through_serve_while_both_sides_rekey(tmp_path: Path) -> None:
    need("ssh")
    with (
        _rekeying_server("serve", tmp_path) as server,
        running_ssh_proxy(server, "-o", "RekeyLimit=256K") as port,
    ):
        _exchange(port, GIGABYTE // 10)  # a whole one takes this client 40 s
        said = "\n".join(server.program.lines)
    assert last_keys(said) > GIGABYTE // 20
