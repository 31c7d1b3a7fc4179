"""The newest OpenSSH as peer: post-quantum key exchange, and its strict rules while keys change.

Since 10.4 OpenSSH disconnects when anything but key exchange comes between our KEXINIT and our
NEWKEYS; two-way load with a rekey every 256 KB is what would show it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from tests.support.programs import (
    SSHD_CONFIG,
    Endpoint,
    Keys,
    client_options,
    free_port,
    make_keys,
    running,
    running_gateway_serve,
    running_proxy,
)

ROOT = Path(__file__).parent.parent.parent
BLOCK = os.urandom(1 << 20)
BLOCKS = 50

pytestmark = [pytest.mark.interop, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def peers():
    made = subprocess.run(
        [ROOT / "scripts" / "newest-peers"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if made.returncode == 3:
        pytest.skip(made.stderr.strip())
    assert made.returncode == 0, made.stderr
    folder = Path(made.stdout.strip())
    version = subprocess.run(
        ["chroot", folder, "/usr/bin/ssh", "-V"], capture_output=True, text=True, check=True
    )
    print("newest peer:", version.stderr.strip())  # noqa: T201 - with -rA it names what was met
    return folder


@pytest.fixture
def keys(peers):
    folder = peers / f"keys.{os.getpid()}"
    yield make_keys(folder)
    shutil.rmtree(folder)


def inside(keys):
    """The same keys as a program in the chroot sees them."""
    return Keys(Path("/") / keys.folder.name)


@pytest.fixture
def echo_port():
    """A target that sends everything back and ends when its peer has ended."""

    def echo(client):
        with client, contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                client.sendall(data)
            client.shutdown(socket.SHUT_WR)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=echo, args=(client,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


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


def test_our_client_with_the_newest_sshd(peers, keys, echo_port):
    port = free_port()
    config = SSHD_CONFIG.format(port=port, keys=inside(keys), extra="RekeyLimit 256k")
    (keys.folder / "sshd_config").write_text(config)
    command = ["/usr/sbin/sshd", "-D", "-e", "-f", f"/{keys.folder.name}/sshd_config"]
    with running("chroot", str(peers), *command) as program:
        program.wait_line("Server listening")
        server = Endpoint(program, port, keys)
        with running_proxy(server, "-o", "RekeyLimit=256K") as proxy:
            assert two_way_load(proxy, echo_port) == expected()


def test_the_newest_client_with_our_server(peers, keys, echo_port):
    with running_gateway_serve(
        keys, "--permit-open", "127.0.0.1:*", "--rekey-bytes", "262144"
    ) as server:
        proxy = free_port()
        seen_inside = Endpoint(server.program, server.port, inside(keys))
        command = ["/usr/bin/ssh", "-v", "-N", "-D", str(proxy), *client_options(seen_inside)]
        with running(
            "chroot", str(peers), *command, "-o", "RekeyLimit=256K", "alice@127.0.0.1"
        ) as program:
            program.wait_line("Entering interactive session")
            program.wait_line("kex: algorithm: mlkem768x25519-sha256")
            assert two_way_load(proxy, echo_port) == expected()
