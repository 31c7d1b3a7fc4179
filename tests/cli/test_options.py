"""Options of ssh(1) on `gateway connect`: what they print, and what they do with a real sshd."""

from __future__ import annotations

import contextlib
import os
import pty
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from gateway.cli.queries import answer
from gateway.errors import ConfigError
from tests.support.programs import (
    GATEWAY,
    client_options,
    free_port,
    make_keys,
    running,
    running_sshd,
    sshd_path,
)

SSH = shutil.which("ssh")
IN_TIME_S = 60.0


def gateway(*arguments, **more):
    return subprocess.run(
        [*GATEWAY, "connect", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=IN_TIME_S,
        check=False,
        **more,
    )


# ---- what only prints ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("cipher", "aes128-gcm@openssh.com"),
        ("cipher-auth", "aes256-gcm@openssh.com"),
        ("kex", "curve25519-sha256"),
        ("KexAlgorithms", "mlkem768x25519-sha256"),
        ("mac", "hmac-sha2-256"),
        ("key", "ssh-ed25519"),
        ("key-plain", "ssh-ed25519"),
        ("key-sig", "ssh-ed25519"),
        ("sig", "ssh-ed25519"),
        ("HostKeyAlgorithms", "ssh-ed25519"),
        ("compression", "none"),
        ("protocol-version", "2"),
        ("help", "key-cert"),
    ],
)
def test_queries(query, name):
    assert name in answer(query)


def test_a_query_needs_no_host():
    assert "aes128-gcm@openssh.com\n" in gateway("-Q", "cipher").stdout
    result = gateway("-Q", "nonsense")
    assert (result.returncode, result.stdout) == (255, "")
    assert "ask for one of cipher, " in result.stderr
    with pytest.raises(ConfigError):
        answer("")


OPTIONS = [
    ["-N"],
    ["-n", "-o", "StdinNull=no"],
    ["-f", "-N"],
    ["-t"],
    ["-t", "-n", "-t"],
    ["-ttt"],
    ["-T", "-t"],
    ["-t", "-T"],
    ["-o", "RequestTTY=yes", "-T"],
    ["-e", "^]"],
    ["-e", "none", "-e", "a"],
    ["-o", "EscapeChar=b"],
    ["-4", "-o", "AddressFamily=inet6"],
    ["-6"],
    ["-b", "127.0.0.1", "-o", "BindAddress=127.0.0.2"],
    ["-o", "BindAddress=127.0.0.2", "-b", "127.0.0.1"],
    ["-B", "lo"],
    ["-c", "aes256-gcm@openssh.com", "-o", "Ciphers=aes128-gcm@openssh.com"],
    ["-m", "hmac-sha2-256"],
    ["-l", "bob", "-o", "User=carol"],
    ["-o", "User=carol", "-l", "bob"],
    ["-o", "Port=3", "-p", "4"],
    ["-p", "4", "-i", "/etc/passwd", "-i", "/etc/group", "-o", "IdentityFile=/d"],
    ["-D", "1080", "-D", "[::1]:1081"],
    ["-q", "-o", "LogLevel=DEBUG3"],
    ["-N", "-o", "RemoteCommand=echo %h"],
    ["-fN", "-D1080", "-p22"],
    ["-c", "aes128-gcm@openssh.com", "-c", "aes256-gcm@openssh.com"],
    ["-46"],
    ["-o", "Port 9", "-i", "/etc/group"],
]
COMPARED = [
    "user", "hostname", "port", "sessiontype", "stdinnull", "forkafterauthentication",
    "requesttty", "escapechar",
    "addressfamily", "bindaddress", "bindinterface", "dynamicforward", "remotecommand",
]  # fmt: skip
IF_GIVEN = {"-c": "ciphers", "-m": "macs", "-i": "identityfile", "-q": "loglevel"}


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
@pytest.mark.interop
@pytest.mark.skipif(SSH is None, reason="there is no ssh")
def test_options_mean_what_they_mean_for_ssh(options):
    theirs = subprocess.run(
        [SSH, "-F", "none", "-G", *options, "dave@host"],
        capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL, timeout=IN_TIME_S,
    ).stdout  # fmt: skip
    ours = gateway("-F", "none", "-G", *options, "dave@host")
    assert ours.returncode == 0
    keywords = COMPARED + [name for letter, name in IF_GIVEN.items() if letter in options]
    for keyword in keywords:
        assert values(ours.stdout, keyword) == values(theirs, keyword), keyword


def test_options_after_the_host_come_second():
    text = gateway("-F", "none", "-G", "bob@host", "-l", "carol", "-p", "7", "-n").stdout
    assert values(text, "user") + values(text, "port") == ["user bob", "port 7"]
    text = gateway("-F", "none", "-G", "ssh://bob@host:9/", "-p", "7").stdout
    assert values(text, "user") + values(text, "port") == ["user bob", "port 9"]


def values(text, keyword):
    return [line for line in text.splitlines() if line.split(" ", 1)[0] == keyword]


def test_tags_and_commands_select_lines(tmp_path):
    file = tmp_path / "config"
    file.write_text("Match tagged work\n Port 7\nMatch command ls*\n User lister\n")
    assert values(gateway("-F", file, "-G", "-P", "work", "host").stdout, "port") == ["port 7"]
    assert values(gateway("-F", file, "-G", "-P", "home", "host").stdout, "port") == ["port 22"]
    listing = gateway("-F", file, "-G", "host", "ls", "-l").stdout
    assert values(listing, "user") == ["user lister"]


def test_names_that_are_no_text_are_printed_as_they_are(tmp_path):
    file = tmp_path / "config"
    file.write_bytes(b"IdentityFile /caf\xe9\n")
    result = subprocess.run(
        [*GATEWAY, "connect", "-F", file, "-G", "host"], capture_output=True, check=True,
        stdin=subprocess.DEVNULL, timeout=IN_TIME_S,
    )  # fmt: skip
    assert b"\nidentityfile /caf\xe9\n" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["-f", "x"], "-f: there is nothing to do in the background: give a command, or -N"),
        (["-o", "RemoteCommand=a", "x", "b"], "there are two commands"),
        (["-s", "x"], "-s: the subsystem is not named"),
        (["-N", "-s", "x"], "-N and -s exclude each other"),
        (["-e", "ab", "x"], "is no escape character"),
        (["-o", "SendEnv=A=1", "x"], "is not the name of a variable"),
        (["-o", "SetEnv=A", "x"], "is no variable with its value"),
        (["-B", "a/b", "x"], "cannot be the name of an interface"),
        (["-b", "$(id)", "x"], "contains the character $"),
        (["-c", "none", "x"], "leaves no cipher"),
        (["-m", "none", "x"], "leaves no MAC"),
        (["-E", "/no/such/folder/log", "-N", "x"], "the log file cannot be opened"),
    ],
)
def test_what_cannot_be(arguments, problem):
    result = gateway("-F", "none", *arguments)
    assert result.returncode == 255
    assert problem in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_an_interface_that_is_none():
    result = gateway("-F", "none", "-N", "-B", "nosuch0", "-p", "1", "127.0.0.1")
    assert result.returncode == 255
    assert "there is no such interface (-B)" in result.stderr


def test_connection_attempts():
    started_s = time.monotonic()
    arguments = ("-N", "-p", str(free_port()), "127.0.0.1")
    result = gateway("-F", "none", "-v", "-o", "ConnectionAttempts=2", *arguments)
    assert result.returncode == 255
    assert result.stderr.count("Connection refused") == 2
    assert time.monotonic() - started_s >= 1.0


# ---- with a server -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sshd(tmp_path_factory):
    if sshd_path() is None or os.getuid() != 0:
        pytest.skip("there is no sshd that root may log in to")
    with running_sshd(make_keys(tmp_path_factory.mktemp("keys"))) as server:
        yield server


@pytest.mark.interop
def test_a_log_file_gets_our_messages_and_not_the_commands(sshd, tmp_path):
    log = tmp_path / "log"
    log.write_text("before\n")
    arguments = ["-v", "-E", str(log), *client_options(sshd), "root@127.0.0.1"]
    result = gateway(*arguments, "echo out; echo err >&2; exit 3")
    assert (result.returncode, result.stdout, result.stderr) == (3, "out\n", "err\n")
    text = log.read_text()
    assert text.startswith("before\ngateway: ")
    assert "logged in" in text


@pytest.mark.interop
def test_ciphers_and_bind_address(sshd):
    arguments = ["-v", "-c", "aes256-gcm@openssh.com", "-b", "127.0.0.2", "-B", "lo"]
    result = gateway(
        *arguments, *client_options(sshd), "root@127.0.0.1", 'echo "${SSH_CONNECTION%% *}"'
    )
    assert (result.returncode, result.stdout) == (0, "127.0.0.2\n")
    assert "aes256-gcm@openssh.com" in result.stderr


@pytest.mark.interop
def test_a_remote_command_of_the_configuration(sshd):
    options = ["-n", "-o", "RemoteCommand=echo 'a  b' # %h"]
    result = gateway(*client_options(sshd), *options, "root@127.0.0.1")
    assert (result.returncode, result.stdout) == (0, "a  b\n")


# ---- the background ------------------------------------------------------------------------------


def listener(port):
    """The process that listens on a port of the loopback, or None."""
    wanted = f"0100007F:{port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {f"socket:[{row[9]}]" for row in rows if row[1] == wanted and row[3] == "0A"}
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if str(descriptor.readlink()) in inodes:
                return int(descriptor.parts[2])
    return None


def until(condition):
    deadline_s = time.monotonic() + IN_TIME_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@contextlib.contextmanager
def ended_afterwards(port):
    """End what listens on a port; it is a process that this test started."""
    try:
        yield
    finally:
        process = listener(port)
        if process is not None:
            os.kill(process, signal.SIGTERM)
            until(lambda: listener(port) is None)


def banner_through(proxy, port):
    """Ask a SOCKS 5 proxy for a port of the loopback; return what its server says first."""
    with socket.create_connection(("127.0.0.1", proxy), IN_TIME_S) as client:
        client.sendall(b"\x05\x01\x00" + b"\x05\x01\x00\x01\x7f\x00\x00\x01" + port.to_bytes(2))
        received = b""
        while b"\n" not in received[12:]:
            data = client.recv(1000)
            assert data, received
            received += data
    return received[12:]


@pytest.mark.interop
def test_a_tunnel_in_the_background(sshd):
    port = free_port()
    with ended_afterwards(port):
        result = gateway("-f", "-N", "-D", str(port), *client_options(sshd), "root@127.0.0.1")
        assert result.returncode == 0, result.stderr
        assert f"SOCKS proxy on localhost:{port}" in result.stderr
        process = listener(port)
        assert process is not None
        assert banner_through(port, sshd.port).startswith(b"SSH-2.0-OpenSSH")
        assert os.getsid(process) == process
        assert {str(Path(f"/proc/{process}/fd/{number}").readlink()) for number in range(3)} == {
            "/dev/null"
        }
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1)


@pytest.mark.interop
@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="there is no ssh-keygen")
def test_the_passphrase_is_asked_on_the_terminal_before(sshd, tmp_path):
    key = tmp_path / "key"
    shutil.copy(sshd.keys.user, key)
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-f", key], check=True)
    options = [str(key) if text == str(sshd.keys.user) else text for text in client_options(sshd)]
    port = free_port()
    command = [*GATEWAY, "connect", "-f", "-N", "-D", str(port), *options, "root@127.0.0.1"]
    with ended_afterwards(port):
        process, terminal = pty.fork()
        if not process:
            os.execv(command[0], command)
        shown = b""
        while b"passphrase" not in shown:
            shown += os.read(terminal, 1000)
        time.sleep(0.2)  # getpass empties the queue of the terminal before it reads
        os.write(terminal, b"secret\n")
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
        os.close(terminal)  # as when the window is closed
        assert banner_through(port, sshd.port).startswith(b"SSH-2.0-OpenSSH")


@pytest.mark.interop
def test_a_command_in_the_background(sshd, tmp_path):
    output = tmp_path / "output"
    with output.open("w") as file:
        status = subprocess.run(
            [*GATEWAY, "connect", *client_options(sshd), "-f", "root@127.0.0.1",
             "cat; echo early; sleep 1; echo late; echo err >&2; exit 5"],
            stdout=file, stderr=subprocess.STDOUT, timeout=IN_TIME_S, check=False,
        ).returncode  # fmt: skip
    assert status == 0
    assert "late" not in output.read_text()
    until(lambda: "early\nlate\nerr\n" in output.read_text())


@pytest.mark.interop
def test_the_background_fails_in_the_foreground(sshd, tmp_path):
    stranger = make_keys(tmp_path / "stranger")
    options = [str(stranger.user) if text == str(sshd.keys.user) else text
               for text in client_options(sshd)]  # fmt: skip
    result = gateway("-f", "-N", "-D", str(free_port()), *options, "root@127.0.0.1")
    assert result.returncode == 255
    assert "refused the login" in result.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = gateway("-f", "-N", "-D", port, *client_options(sshd), "root@127.0.0.1")
    assert result.returncode == 255
    assert port in result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_before_the_login_ends_both(number):
    """The server accepts and says nothing. A terminal sends SIGINT to all, kill to one."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        arguments = ["connect", "-F", "none", "-f", "-N", "-p", str(port), "127.0.0.1"]
        with running(*GATEWAY, *arguments) as program:
            accepted, _ = silent.accept()
            (os.killpg if number == signal.SIGINT else os.kill)(program.pid, number)
            assert program.wait() == 255
            with accepted:  # the child ends as well, and with it the connection
                accepted.settimeout(IN_TIME_S)
                while accepted.recv(1000):
                    pass
