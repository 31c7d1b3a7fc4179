"""Every key exchange, cipher and MAC with real peers: a login, bytes both ways, and rekeys."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import subprocess
import threading

import pytest

from gateway.ssh import algorithms
from tests.support.programs import (
    GATEWAY,
    client_options,
    free_port,
    make_keys,
    running,
    running_gateway_serve,
    running_sshd,
    sshd_path,
)

SERVER_KEX = [name for name in algorithms.DEFAULT_KEX if "group-exchange" not in name]
CTR = [name for name in algorithms.DEFAULT_CIPHERS if name.endswith("-ctr")]
SUITES = [(name, None) for name in algorithms.AEAD_CIPHERS] + [
    (cipher, mac) for cipher in CTR for mac in algorithms.DEFAULT_MACS
]
DATA = os.urandom(1_500_000)

pytestmark = pytest.mark.timeout(60)


def kex_options(name):
    return ["-o", f"KexAlgorithms={name}"]


def suite_options(cipher, mac):
    return ["-o", f"Ciphers={cipher}", *(["-o", f"MACs={mac}"] if mac else [])]


def digest(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def sshd(tmp_path_factory):
    if sshd_path() is None:
        pytest.skip("sshd is not installed")
    keys = make_keys(tmp_path_factory.mktemp("sshd"))
    wanted = ",".join(name for name in algorithms.DEFAULT_KEX if "mlkem" not in name)
    macs = ",".join(algorithms.DEFAULT_MACS)
    extra = f"KexAlgorithms {wanted}\nMACs {macs}\nRekeyLimit 300k\n"
    with running_sshd(keys, extra) as server:
        yield server


def through_cat(server, *options):
    """Send DATA through a `cat` at the far end and back."""
    result = subprocess.run(
        [*GATEWAY, "connect", *client_options(server), *options, "-o", "RekeyLimit=300K",
         "root@127.0.0.1", "cat"],
        input=DATA, capture_output=True, check=False, timeout=50,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert digest(result.stdout) == digest(DATA)
    return result.stderr


@pytest.mark.parametrize("kex", [name for name in algorithms.DEFAULT_KEX if "mlkem" not in name])
def test_our_client_with_sshd_kex(sshd, kex):
    errors = through_cat(sshd, *kex_options(kex))
    assert b"post-quantum" in errors


@pytest.mark.parametrize(("cipher", "mac"), SUITES)
def test_our_client_with_sshd_cipher(sshd, cipher, mac):
    through_cat(sshd, *suite_options(cipher, mac))


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    keys = make_keys(tmp_path_factory.mktemp("serve"))
    with running_gateway_serve(
        keys, "--permit-open", "127.0.0.1:*", "--rekey-bytes", "300000",
        "--kex", ",".join(SERVER_KEX), "--ciphers", ",".join(algorithms.DEFAULT_CIPHERS),
        "--macs", ",".join(algorithms.DEFAULT_MACS),
    ) as server:  # fmt: skip
        yield server


@pytest.fixture(scope="module")
def echo_target():
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


def through_forward(command, port):
    """Send DATA to the echo behind a client's local forward and back."""
    with running(*command) as client:
        client.wait_line("Entering interactive session")
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sender = threading.Thread(target=lambda: (sock.sendall(DATA), sock.shutdown(1)))
            sender.start()
            received = bytearray()
            while data := sock.recv(1 << 16):
                received += data
            sender.join()
    assert digest(received) == digest(DATA)


def ssh_forward(server, target, *options):
    port = free_port()
    command = ["ssh", "-v", "-N", "-L", f"{port}:127.0.0.1:{target}", *client_options(server)]
    through_forward([*command, *options, "-o", "RekeyLimit=300K", "alice@127.0.0.1"], port)


@pytest.mark.parametrize("kex", [name for name in SERVER_KEX if "mlkem" not in name])
def test_ssh_with_our_server_kex(serve, echo_target, kex):
    ssh_forward(serve, echo_target, *kex_options(kex))


@pytest.mark.parametrize(("cipher", "mac"), SUITES)
def test_ssh_with_our_server_cipher(serve, echo_target, cipher, mac):
    ssh_forward(serve, echo_target, *suite_options(cipher, mac))
