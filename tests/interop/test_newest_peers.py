"""The newest OpenSSH as peer: post-quantum key exchange, and its strict rules while keys change.

Since 10.4 OpenSSH disconnects when anything but key exchange comes between our KEXINIT and our
NEWKEYS; two-way load with a rekey every 256 KB is what would show it.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading

import pytest

from tests.interop.clients import last_keys
from tests.support.programs import (
    client_options,
    free_port,
    make_keys,
    running,
    running_connect,
    running_gateway_serve,
    running_sshd,
)

BLOCK = os.urandom(1 << 20)
BLOCKS = 50

pytestmark = [pytest.mark.interop]


def two_way_load(proxy_port, target_port):
    """Send BLOCKS and get them back at the same time; return what came as one digest."""
    with socket.create_connection(("127.0.0.1", proxy_port)) as sock:
        sock.sendall(b"\5\1\0\5\1\0\1\x7f\0\0\1" + target_port.to_bytes(2, "big"))
        assert sock.recv(12, socket.MSG_WAITALL)[3] == 0

        def send():
            for _ in range(BLOCKS):
                sock.sendall(BLOCK)
            sock.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        digest = hashlib.sha256()
        while data := sock.recv(1 << 18):
            digest.update(data)
        sender.join()
    return digest.digest()


def expected():
    digest = hashlib.sha256()
    for _ in range(BLOCKS):
        digest.update(BLOCK)
    return digest.digest()


@pytest.mark.parametrize("openssh", ["newest"], indirect=True)
def test_our_client_with_the_newest_sshd(openssh, echo_port):
    keys = make_keys(openssh.folder / "client")
    with (
        running_sshd(keys, "RekeyLimit 256k", openssh) as server,
        running_connect(server, "-v", "-v", "-o", "RekeyLimit=256K") as proxy,
    ):
        assert two_way_load(proxy.port, echo_port) == expected()
        assert last_keys("\n".join(proxy.program.lines)) > BLOCKS // 2


@pytest.mark.parametrize("openssh", ["newest"], indirect=True)
def test_the_newest_client_with_our_server(openssh, echo_port):
    keys = make_keys(openssh.folder / "server")
    with running_gateway_serve(
        keys, "-v", "-v", "--permit-open", "127.0.0.1:*", "--rekey-bytes", "262144"
    ) as server:
        proxy = free_port()
        options = ["-v", "-N", "-D", str(proxy), *client_options(openssh.endpoint(server))]
        with running(
            *openssh.command("ssh", *options), "-o", "RekeyLimit=256K", "alice@127.0.0.1"
        ) as program:
            program.wait_line("Entering interactive session")
            program.wait_line("kex: algorithm: mlkem768x25519-sha256")
            assert two_way_load(proxy, echo_port) == expected()
            assert last_keys("\n".join(server.program.lines)) > BLOCKS // 2
