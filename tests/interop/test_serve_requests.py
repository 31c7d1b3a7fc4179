"""What stock ssh of both ages asks `gateway serve -c` for, and what it is refused.

-R, -L, -W, -J, ControlMaster, sessions, sockets, host keys, keepalives.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.interop.clients import count, listens
from tests.interop.targets import content, read_all
from tests.support.programs import (
    Endpoint,
    OpenSSH,
    Program,
    client_options,
    eventually,
    free_port,
    make_keys,
    running,
    running_box,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

DATA = content("serve requests", 300_001)
ALICE = "alice@127.0.0.1"

# Whom the key is let in as, and what that one may do.
PEOPLE = """\
[users.alice]
groups = ["staff"]
authorized_keys = "authorized_keys"
[[rules]]
id = "targets"
allow = "open"
to = ["127.0.0.1:*"]
groups = ["staff"]
"""
LISTENS = """\
[[rules]]
allow = "listen"
to = ["localhost:*"]
users = ["alice"]
"""
SOCKET = """\
[[rules]]
allow = "unix"
to = ["{path}"]
"""

debian_only = pytest.mark.parametrize("openssh", ["debian"], indirect=True)


@dataclass(frozen=True)
class Box:
    """A server of ours and an ssh that logs in there."""

    openssh: OpenSSH
    server: Endpoint

    @property
    def folder(self) -> Path:
        """For files that both see."""
        return self.server.keys.folder

    def command(self, *arguments: str) -> list[str]:
        options = client_options(self.openssh.endpoint(self.server))
        return self.openssh.command("ssh", *options, *arguments)

    def ssh(
        self, *arguments: str, data: bytes = b"", **environment: str
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.command(*arguments), input=data, capture_output=True, timeout=30, check=False,
            env={**os.environ, **environment},
        )  # fmt: skip

    def running(self, *arguments: str) -> AbstractContextManager[Program]:
        """Run `ssh -v -N`."""
        return running(*self.command("-v", "-N", *arguments, ALICE))


@pytest.fixture(scope="module")
def box(openssh: OpenSSH) -> Iterator[Box]:
    """Staff may reach any port of this machine, and alice may listen on any."""
    keys = make_keys(openssh.folder / "box")
    path = keys.folder / "socket"
    with running_box(keys, PEOPLE + LISTENS + SOCKET.format(path=path)) as server:
        yield Box(openssh, server)


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


def test_remote_forwarding(box: Box, echo_port: int) -> None:
    port = free_port()
    with box.running("-R", f"{port}:127.0.0.1:{echo_port}") as program:
        program.wait_line("remote forward success")
        round_trip(port)
    eventually(lambda: not listens(port), "the port is free when the client is gone")


def test_remote_forwarding_of_a_free_port(box: Box, echo_port: int) -> None:
    with box.running("-R", f"0:127.0.0.1:{echo_port}") as program:
        round_trip(int(program.wait_line(r"Allocated port (\d+) for remote forward")[1]))


@debian_only
def test_the_ports_of_killed_clients_are_free_soon(box: Box) -> None:
    """T64."""
    ports = [free_port() for _ in range(10)]
    for port in ports:
        with box.running("-R", f"{port}:localhost:1") as program:
            program.wait_line("remote forward success")
            assert listens(port)
            program.signal(signal.SIGKILL)
            program.wait()
    eventually(lambda: not any(map(listens, ports)), "all are free", 2)


def test_remote_forwarding_that_no_rule_allows_says_why(box: Box) -> None:
    options = ("-v", "-N", "-o", "ExitOnForwardFailure=yes")
    result = box.ssh(*options, "-R", "*:4243:localhost:1", ALICE)
    assert result.returncode == 255
    assert b"remote port forwarding failed for listen port 4243" in result.stderr
    assert b"Remote: denied: no rule allows alice to listen" in result.stderr


def test_a_client_that_answers_keeps_its_port(box: Box, echo_port: int) -> None:
    port = free_port()
    forward = ("-R", f"{port}:127.0.0.1:{echo_port}")
    with box.running(*forward) as first:
        first.wait_line("remote forward success")
        second = box.ssh("-v", "-N", "-o", "ExitOnForwardFailure=yes", *forward, ALICE)
        assert second.returncode == 255
        assert f"failed for listen port {port}".encode() in second.stderr
        assert b"an older connection of yours, which lives" in second.stderr
        round_trip(port)
        assert not first.ended


def test_a_client_that_does_not_answer_loses_its_port_to_the_next(box: Box, echo_port: int) -> None:
    port = free_port()
    forward = ("-R", f"{port}:127.0.0.1:{echo_port}")
    with box.running(*forward) as first:
        first.wait_line("remote forward success")
        first.signal(signal.SIGSTOP)
        with box.running(*forward, "-o", "ExitOnForwardFailure=yes") as second:
            second.wait_line("remote forward success")
            round_trip(port)
            first.signal(signal.SIGCONT)
            round_trip(port)
            assert not second.ended


def test_a_control_master_has_sessions_and_forwards(box: Box, echo_port: int) -> None:
    """Added and cancelled while it runs, all on one link; a cancel frees the port at once."""
    control = str(box.openssh.inside(box.folder / "control"))
    port, local, link = free_port(), free_port(), r"gateway: link \d+: alice from"
    log = box.server.program
    first_line = len(log.lines)
    mux = ("-S", control, ALICE)

    def asks(what: str, *forward: str) -> bytes:
        done = box.ssh("-O", what, *forward, *mux)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with box.running("-M", "-S", control) as program:
        program.wait_line("Entering interactive session")
        eventually((box.folder / "control").exists, "the master listens")
        log.wait_line(link, first=first_line)
        remote = ("-R", f"{port}:127.0.0.1:{echo_port}")
        for _ in range(2):
            asks("forward", *remote)
            round_trip(port)
            asks("cancel", *remote)
            eventually(lambda: not listens(port), "cancelled")
        allocated = int(asks("forward", "-R", f"0:127.0.0.1:{echo_port}"))
        round_trip(allocated)
        asks("forward", "-L", f"{local}:127.0.0.1:{echo_port}")
        with socket.create_connection(("127.0.0.1", local), 20) as sock:
            sock.sendall(b"while there are sessions")
            for _ in range(2):
                page = box.ssh(*mux)
                assert (page.returncode, b"  user        alice\n" in page.stdout) == (0, True)
            assert box.ssh("-W", f"127.0.0.1:{echo_port}", *mux, data=DATA).stdout == DATA
            assert sock.recv(100) == b"while there are sessions"
        round_trip(local)
        asks("exit")
        program.wait()
    eventually(lambda: not listens(allocated), "the port is free when the client is gone")
    assert sum(bool(re.search(link, line)) for line in log.lines[first_line:]) == 1


# ---- what leads through --------------------------------------------------------------------------


def test_local_forwarding_and_standard_input(box: Box, echo_port: int) -> None:
    port = free_port()
    with box.running("-L", f"{port}:127.0.0.1:{echo_port}") as program:
        program.wait_line("Entering interactive session")
        round_trip(port)
    result = box.ssh("-W", f"127.0.0.1:{echo_port}", ALICE, data=DATA)
    assert (result.returncode, result.stdout == DATA) == (0, True)


def test_a_socket_that_a_rule_names(box: Box) -> None:
    path, port = box.folder / "socket", free_port()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with box.running("-L", f"{port}:{path}") as program:
            program.wait_line("Entering interactive session")
            with socket.create_connection(("127.0.0.1", port), 20) as sock:
                there, _ = listener.accept()
                with there:
                    sock.sendall(b"ping")
                    assert there.recv(4) == b"ping"
                    there.sendall(b"pong")
                    assert sock.recv(4) == b"pong"


def test_a_socket_listens_where_a_rule_names_it(box: Box, echo_port: int) -> None:
    path = box.folder / "socket"
    path.unlink(missing_ok=True)
    with box.running("-R", f"{path}:127.0.0.1:{echo_port}") as program:
        program.wait_line("remote forward success")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(str(path))
            sock.sendall(DATA)
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == DATA
    eventually(lambda: not path.exists(), "the socket is gone when the client is")
    refused = box.ssh(
        "-v", "-N", "-o", "ExitOnForwardFailure=yes", "-R", f"{path}2:127.0.0.1:1", ALICE
    )
    assert refused.returncode == 255
    assert b"Remote: denied: no rule allows alice to use the socket" in refused.stderr


# ---- sessions ------------------------------------------------------------------------------------


def test_a_session_shows_who_you_are(box: Box) -> None:
    fingerprint = box.openssh.keygen("-l", "-f", box.server.keys.user).split()[1]
    result = box.ssh(ALICE)
    assert result.returncode == 0, result.stderr
    page = result.stdout.decode()
    assert re.search(r"(?m)^  user +alice$", page)
    assert re.search(rf"(?m)^  key +{re.escape(fingerprint)}$", page)
    assert re.search(r"(?m)^  groups +staff$", page)
    assert "  open 127.0.0.1:* (rule targets)\n" in page
    assert "\r" not in page
    assert b"\r\n  user" in box.ssh("-tt", ALICE).stdout


@pytest.mark.parametrize("arguments", [(ALICE, "id"), ("-s", ALICE, "sftp")])
def test_programs_are_refused_with_a_sentence(box: Box, arguments: tuple[str, ...]) -> None:
    result = box.ssh(*arguments)
    assert (result.returncode, result.stdout) == (1, b"")
    assert b"this is a jump box. It runs no programs" in result.stderr


def test_no_agent_is_forwarded(box: Box) -> None:
    """Nobody waits for the answer to this request: the reason comes by itself."""
    path = box.folder / "agent"
    command = box.openssh.command("ssh-agent", "-D", "-a", str(box.openssh.inside(path)))
    with running(*command):
        eventually(path.exists, "the agent listens")
        result = box.ssh("-v", "-A", ALICE, SSH_AUTH_SOCK=str(box.openssh.inside(path)))
    assert (result.returncode, b"  user        alice\n" in result.stdout) == (0, True)
    assert b"Remote: denied: this is a jump box, which forwards no agent" in result.stderr


def test_no_x11_is_forwarded(box: Box) -> None:
    result = box.ssh("-v", "-Y", ALICE, DISPLAY="127.0.0.1:9")
    assert (result.returncode, b"  user        alice\n" in result.stdout) == (0, True)
    assert b"X11 forwarding request failed" in result.stderr
    assert b"Remote: denied: this is a jump box, which forwards no X11" in result.stderr


# ---- the link ------------------------------------------------------------------------------------


def test_keepalives_are_answered(box: Box) -> None:
    """One that is not would end ssh."""
    options = ("-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=1")
    with box.running("-vvv", *options) as program:
        program.wait_line("Entering interactive session")
        eventually(lambda: count(program, "receive packet: type 81") >= 2, "two answers")
        assert count(program, "send packet: type 80") >= 2


@pytest.mark.parametrize("openssh", ["newest"], indirect=True)
def test_the_newest_reads_that_pings_are_answered(box: Box) -> None:
    """It sends them only among the keys that are typed into a session, and ours end at once."""
    assert b"kex_ext_info_check_ver: ping@openssh.com=<0>" in box.ssh("-v", ALICE).stderr


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_host_keys_are_announced_and_proven(openssh: OpenSSH, kind: str) -> None:
    keys = make_keys(Path(tempfile.mkdtemp(dir=openssh.folder)))
    more = keys.folder / "host_key_2"
    openssh.keygen("-q", "-t", kind, "-N", "", "-f", more)
    wanted = [path.with_suffix(".pub").read_text().split()[1] for path in (keys.host, more)]
    with running_box(keys, PEOPLE) as server:
        box = Box(openssh, server)
        assert box.ssh(ALICE).returncode == 0  # from then on the first key is trusted
        with box.running("-o", "UpdateHostKeys=yes"):
            eventually(
                lambda: all(key in keys.known_hosts.read_text() for key in wanted), "both are known"
            )


def test_two_keys_that_are_required_together(openssh: OpenSSH) -> None:
    keys = make_keys(Path(tempfile.mkdtemp(dir=openssh.folder)))
    second = make_keys(Path(tempfile.mkdtemp(dir=openssh.folder)))
    with keys.authorized.open("a") as file:
        file.write(second.user.with_suffix(".pub").read_text())
    with running_box(
        keys, PEOPLE.replace('staff"]\n', 'staff"]\nrequired_keys = 2\n', 1)
    ) as server:
        box = Box(openssh, server)
        alone = box.ssh(ALICE)
        assert alone.returncode == 255
        assert b"Permission denied (publickey)" in alone.stderr
        both = box.ssh("-v", "-i", str(openssh.inside(second.user)), ALICE)
        assert both.returncode == 0, both.stderr
        assert re.search(b"Authenticated using .publickey. with partial success", both.stderr)
