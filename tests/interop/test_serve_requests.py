"""What stock ssh asks `gateway serve` for: -R, -L, -W, -J, ControlMaster, sessions, sockets."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.interop.clients import listens
from tests.interop.targets import content, need, read_all
from tests.support.programs import (
    USER,
    Endpoint,
    Keys,
    client_options,
    eventually,
    free_port,
    make_keys,
    running,
    running_sshd,
    sshd_path,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DATA = content("serve requests", 300_001)

pytestmark = pytest.mark.timeout(60)


@contextlib.contextmanager
def running_box(keys: Keys, *rules: str) -> Iterator[Endpoint]:
    """Run a server with rules that no flag has."""
    with running(sys.executable, "-m", "tests.support.serving", str(keys.folder), *rules) as box:
        port = int(box.wait_line(r"listening on 127\.0\.0\.1:(\d+)")[1])
        yield Endpoint(box, port, keys)


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """Who may log in may listen on any port, and reach any target."""
    folder = tmp_path_factory.mktemp("box-keys")
    socket_path = folder / "socket"
    with running_box(make_keys(folder), "listen=*", f"unix={socket_path}") as endpoint:
        yield endpoint


def ssh(server: Endpoint, *arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [need("ssh"), *client_options(server), *arguments], input=data, capture_output=True,
        timeout=30, check=False,
    )  # fmt: skip


def round_trip(port: int) -> None:
    """Send DATA to an echo at a port, and have it back."""
    with socket.create_connection(("127.0.0.1", port), 20) as sock:
        sock.sendall(DATA[:1000])
        received = b""
        while len(received) < 1000:
            received += sock.recv(1000)
        sock.sendall(DATA[1000:])
        sock.shutdown(socket.SHUT_WR)
        assert received + read_all(sock) == DATA


# ---- listeners -----------------------------------------------------------------------------------


def test_remote_forwarding(box: Endpoint, echo_port: int) -> None:
    port = free_port()
    with running(
        need("ssh"), "-v", "-N", "-R", f"{port}:127.0.0.1:{echo_port}", *client_options(box),
        "alice@127.0.0.1",
    ) as program:  # fmt: skip
        program.wait_line("remote forward success")
        round_trip(port)
    eventually(lambda: not listens(port), "the port is free when the client is gone")


def test_remote_forwarding_of_a_free_port(box: Endpoint, echo_port: int) -> None:
    with running(
        need("ssh"), "-N", "-R", f"0:127.0.0.1:{echo_port}", *client_options(box), "alice@127.0.0.1"
    ) as program:
        round_trip(int(program.wait_line(r"Allocated port (\d+) for remote forward")[1]))


def test_the_ports_of_killed_clients_are_free_soon(box: Endpoint) -> None:
    """T64."""
    ports = [free_port() for _ in range(10)]
    for port in ports:
        with running(
            need("ssh"), "-v", "-N", "-R", f"{port}:localhost:1", *client_options(box),
            "alice@127.0.0.1",
        ) as program:  # fmt: skip
            program.wait_line("remote forward success")
            assert listens(port)
            program.signal(signal.SIGKILL)
            program.wait()
    eventually(lambda: not any(map(listens, ports)), "all are free", 2)


def test_remote_forwarding_that_is_refused_says_why(tmp_path: Path) -> None:
    with running_box(make_keys(tmp_path / "keys"), "listen=localhost:4242") as box:
        options = ("-v", "-N", "-o", "ExitOnForwardFailure=yes")
        result = ssh(box, *options, "-R", "4243:localhost:1", "alice@127.0.0.1")
        assert result.returncode == 255
        assert b"remote port forwarding failed for listen port 4243" in result.stderr
        assert b"Remote: denied: no rule does" in result.stderr


def test_forwards_of_a_control_master(box: Endpoint, echo_port: int, tmp_path: Path) -> None:
    """Added and cancelled while it runs; a cancel frees the port at once."""
    path, port = tmp_path / "control", free_port()
    local = free_port()
    mux = ("-S", str(path), "alice@127.0.0.1")
    with running(
        need("ssh"), "-v", "-N", "-M", "-S", str(path), *client_options(box), "alice@127.0.0.1"
    ) as program:
        program.wait_line("Entering interactive session")
        eventually(path.exists, "the master listens")
        remote = ("-R", f"{port}:127.0.0.1:{echo_port}")
        for _ in range(2):
            assert ssh(box, "-O", "forward", *remote, *mux).returncode == 0
            round_trip(port)
            assert ssh(box, "-O", "cancel", *remote, *mux).returncode == 0
            eventually(lambda: not listens(port), "cancelled")
        dynamic = ssh(box, "-O", "forward", "-R", f"0:127.0.0.1:{echo_port}", *mux)
        allocated = int(dynamic.stdout)
        round_trip(allocated)
        assert (
            ssh(box, "-O", "forward", "-L", f"{local}:127.0.0.1:{echo_port}", *mux).returncode == 0
        )
        round_trip(local)
        page = ssh(box, *mux)
        assert (page.returncode, b"  user        alice\n" in page.stdout) == (0, True)
        assert ssh(box, "-O", "exit", *mux).returncode == 0
        program.wait()
    eventually(lambda: not listens(allocated), "the port is free when the client is gone")


# ---- what leads through --------------------------------------------------------------------------


def test_local_forwarding_and_standard_input(box: Endpoint, echo_port: int) -> None:
    port = free_port()
    with running(
        need("ssh"), "-v", "-N", "-L", f"{port}:127.0.0.1:{echo_port}", *client_options(box),
        "alice@127.0.0.1",
    ) as program:  # fmt: skip
        program.wait_line("Entering interactive session")
        round_trip(port)
    result = ssh(box, "-W", f"127.0.0.1:{echo_port}", "alice@127.0.0.1", data=DATA)
    assert (result.returncode, result.stdout == DATA) == (0, True)


def test_a_jump_to_another_sshd(box: Endpoint, tmp_path: Path) -> None:
    if sshd_path() is None:
        pytest.skip("sshd is not installed")
    keys = box.keys
    config = tmp_path / "config"
    config.write_text(f"""\
Host box
    HostName 127.0.0.1
    User alice
    Port {box.port}
Host *
    IdentityFile {keys.user}
    IdentitiesOnly yes
    UserKnownHostsFile {tmp_path / "known_hosts"}
    GlobalKnownHostsFile none
    StrictHostKeyChecking accept-new
""")
    with running_sshd(keys) as inner:
        result = subprocess.run(
            [need("ssh"), "-F", str(config), "-J", "box", "-p", str(inner.port),
             f"{USER}@127.0.0.1", "echo it is $((40 + 2))"],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False,
        )  # fmt: skip
    assert (result.returncode, result.stdout) == (0, b"it is 42\n"), result.stderr


def test_a_socket_that_a_rule_names(box: Endpoint) -> None:
    path, port = box.keys.folder / "socket", free_port()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with running(
            need("ssh"), "-v", "-N", "-L", f"{port}:{path}", *client_options(box), "alice@127.0.0.1"
        ) as program:
            program.wait_line("Entering interactive session")
            with socket.create_connection(("127.0.0.1", port), 20) as sock:
                there, _ = listener.accept()
                with there:
                    sock.sendall(b"ping")
                    assert there.recv(4) == b"ping"
                    there.sendall(b"pong")
                    assert sock.recv(4) == b"pong"


# ---- sessions ------------------------------------------------------------------------------------


def test_a_session_shows_who_you_are(box: Endpoint) -> None:
    fingerprint = subprocess.run(
        [need("ssh-keygen"), "-l", "-f", box.keys.user], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    result = ssh(box, "alice@127.0.0.1")
    assert result.returncode == 0, result.stderr
    page = result.stdout.decode()
    assert re.search(r"(?m)^  user +alice$", page)
    assert re.search(rf"(?m)^  key +{re.escape(fingerprint)}$", page)
    assert re.search(r"(?m)^  groups +staff$", page)
    assert "  open *:* (rule r1)\n" in page
    assert "\r" not in page
    assert b"\r\n  user" in ssh(box, "-tt", "alice@127.0.0.1").stdout


@pytest.mark.parametrize(
    "arguments", [("alice@127.0.0.1", "id"), ("-s", "alice@127.0.0.1", "sftp")]
)
def test_programs_are_refused_with_a_sentence(box: Endpoint, arguments: tuple[str, ...]) -> None:
    result = ssh(box, *arguments)
    assert (result.returncode, result.stdout) == (1, b"")
    assert b"this is a jump box. It runs no programs" in result.stderr


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_host_keys_are_announced_and_proven(tmp_path: Path, kind: str) -> None:
    keys = make_keys(tmp_path / "keys")
    more = keys.folder / "host_key_2"
    subprocess.run([need("ssh-keygen"), "-q", "-t", kind, "-N", "", "-f", more], check=True)
    wanted = [path.with_suffix(".pub").read_text().split()[1] for path in (keys.host, more)]
    with running_box(keys) as box:
        assert ssh(box, "alice@127.0.0.1").returncode == 0  # from then on the first key is trusted
        with running(
            need("ssh"), "-N", "-o", "UpdateHostKeys=yes", *client_options(box), "alice@127.0.0.1"
        ):
            eventually(
                lambda: all(key in keys.known_hosts.read_text() for key in wanted), "both are known"
            )


def test_two_keys_that_are_required_together(tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys")
    second = make_keys(tmp_path / "second")
    with keys.authorized.open("a") as file:
        file.write(second.user.with_suffix(".pub").read_text())
    with running_box(keys, "required=2") as box:
        alone = ssh(box, "alice@127.0.0.1")
        assert alone.returncode == 255
        assert b"Permission denied (publickey)" in alone.stderr
        both = ssh(box, "-v", "-i", str(second.user), "alice@127.0.0.1")
        assert both.returncode == 0, both.stderr
        assert b'Authenticated using "publickey" with partial success' in both.stderr
