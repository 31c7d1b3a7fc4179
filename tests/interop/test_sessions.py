"""Sessions without a terminal, beside ssh: status, streams, subsystems, the environment.

Both are asked the same of the same sshd, Debian's and the newest.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.interop.sides import CONNECT, HOST, SSH, command, running_for_sessions
from tests.interop.targets import content
from tests.support.programs import (
    USER,
    eventually,
    free_port,
    make_keys,
    running,
    running_sshd,
)

IN_TIME_S = 60.0
LARGE = content("sessions", 6_000_000)
SERVER_OPTIONS = """\
Subsystem sftp internal-sftp
Subsystem count wc -c
AcceptEnv A_* B_* TERM
"""


@pytest.fixture(scope="module")
def server(openssh):
    with running_for_sessions(openssh, SERVER_OPTIONS) as endpoint:
        yield endpoint


def run(program, server, *arguments, data=b"", **environment):
    """Run a client to its end."""
    return subprocess.run(
        command(program, server, *arguments),
        input=data, capture_output=True, timeout=IN_TIME_S, check=False,
        env={**os.environ, **environment}, start_new_session=True,
    )  # fmt: skip


def both(server, *arguments, data=b"", **environment):
    """What ssh does and what we do: status and output."""
    with ThreadPoolExecutor() as at_once:
        ask = partial(run, data=data, **environment)
        results = list(
            at_once.map(lambda program: ask(program, server, *arguments), (SSH, CONNECT))
        )
    theirs, ours = ((result.returncode, result.stdout) for result in results)
    assert b"Traceback" not in results[1].stderr
    assert ours == theirs, results
    return results[1]


# ---- the status ----------------------------------------------------------------------------------

COMMANDS = {
    "success": ["true"],
    "failure": ["exit 3"],
    "255": ["exit 255"],
    "more than a byte": ["exit 258"],
    "not found": ["no-such-command"],
    "a child's signal": ["sh -c 'kill -TERM $$'; exit $?"],
    **{name: [f"kill -{name} $$"] for name in ("HUP", "INT", "TERM", "KILL", "SEGV", "PIPE")},
    "output, then a signal": ["echo out; echo err >&2; kill -ABRT $$"],
    "a signal in a terminal": ["-t", "-t", "echo out; kill -TERM $$"],
    "failure in a terminal": ["-t", "-t", "echo out; exit 9"],
    "a subsystem": ["-s", "count"],
    "an unknown subsystem": ["-s", "nothing-of-that-name"],
    "the shell": ["-T"],
    "no terminal here": ["-t", "tty"],
    "without input": ["-n", "cat"],
    "null input": ["-o", "StdinNull=yes", "wc -c"],
    "a configured command": ["-o", "RemoteCommand=exit 9"],
    "a configured subsystem": ["-o", "SessionType=subsystem", "-o", "RemoteCommand=count"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_status_is_what_ssh_makes_of_it(server, name):
    *options, last = COMMANDS[name]
    words = [*options, HOST, last] if last != "-T" else [*options, "-T", HOST]
    if last.startswith("RemoteCommand="):
        words = [*options, last, HOST]
    both(server, *words, data=b"exit 6\n")


def test_a_terminal_that_the_server_refuses(openssh):
    keys = make_keys(openssh.folder / "no-tty-keys")
    with running_sshd(keys, "PermitTTY no\n", replace(openssh, chroots=False)) as server:
        result = both(server, "-t", "-t", HOST, "echo never")
        assert result.returncode == 255
        assert b"gives no terminal" in result.stderr


def test_errors_are_kept_apart(server):
    results = [
        run(program, server, HOST, "echo out; echo err >&2; exit 4") for program in (SSH, CONNECT)
    ]
    assert [(r.returncode, r.stdout, r.stderr) for r in results] == [(4, b"out\n", b"err\n")] * 2


# ---- what is given -------------------------------------------------------------------------------

ENVIRONMENTS = {
    "nothing by itself": [],
    "a name": ["-o", "SendEnv=A_ONE"],
    "patterns": ["-o", "SendEnv=A_* ?_TWO"],
    "taken back": ["-o", "SendEnv=A_* B_*", "-o", "SendEnv=-A_T*"],
    "set": ["-o", "SetEnv=A_ONE=x 'A_NEW=a  b=c' A_ONE=y"],
    "set and sent": ["-o", "SetEnv=A_ONE=set", "-o", "SendEnv=A_*"],
    "the first line sets": ["-o", "SetEnv=A_ONE=1", "-o", "SetEnv=A_NEW=2"],
    "not text": ["-o", "SendEnv=B_RAW"],
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_only_what_is_named_is_sent(server, name):
    ours = {"A_ONE": "1", "A_TWO": "zwei", "B_TWO": "", "B_RAW": os.fsdecode(b"caf\xe9")}
    result = both(server, *ENVIRONMENTS[name], HOST, "env | grep '^[AB]_' | sort", **ours)
    assert (result.stdout == b"") == (name == "nothing by itself")


def test_the_sftp_subsystem_speaks(server):
    with subprocess.Popen(
        command(CONNECT, server, "-s", HOST, "sftp"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        process.stdin.write(b"\0\0\0\5" + b"\1" + b"\0\0\0\3")  # SSH_FXP_INIT, version 3
        process.stdin.flush()
        assert process.stdout.read(9)[4:] == b"\2\0\0\0\3"
        process.stdin.close()
        assert process.wait(IN_TIME_S) == 0


def test_input_and_output_byte_for_byte(server):
    data = bytes(range(256)) * 16384  # 4 MiB
    result = run(CONNECT, server, HOST, "cat", data=data)
    assert (result.returncode, result.stdout == data) == (0, True)


def test_the_shell_reads_input_and_ends_with_it(server):
    assert both(server, "-T", HOST, data=b"echo in\nexit 5\n").returncode == 5


# ---- what is given to us -------------------------------------------------------------------------


@pytest.mark.parametrize("redirection", ["<&-", ">&-", "2>&-", "<&- >&-", "</dev/null"])
def test_closed_and_strange_streams(server, redirection):
    script = f'"$@" {redirection}; echo "status $?"'
    said = []
    for program in (SSH, CONNECT):
        words = command(program, server, HOST, "wc -c; echo err >&2; exit 7")
        done = subprocess.run(
            ["sh", "-c", script, "sh", *words], stdin=subprocess.DEVNULL, capture_output=True,
            timeout=IN_TIME_S, check=False,
        )  # fmt: skip
        said.append((done.stdout, done.stderr))
    assert said[0] == said[1]
    assert said[0][0].endswith(b"status 7\n")


@pytest.mark.parametrize("kind", ["pipe", "socket", "terminal"])
def test_what_others_have_too_is_not_made_non_blocking(server, kind):
    match kind:
        case "pipe":
            reading, writing = os.pipe()
        case "terminal":
            writing, reading = os.openpty()
        case _:
            reading, writing = (end.detach() for end in socket.socketpair())
    try:
        with subprocess.Popen(
            command(CONNECT, server, "-T", HOST, "cat"),
            stdin=reading, stdout=subprocess.PIPE, start_new_session=True,
        ) as process:  # fmt: skip
            os.write(writing, b"line\n")
            assert process.stdout.readline() == b"line\n"
            assert not fcntl.fcntl(reading, fcntl.F_GETFL) & os.O_NONBLOCK
            process.send_signal(signal.SIGTERM)
            assert process.wait(IN_TIME_S) == 255
    finally:
        os.close(reading)
        os.close(writing)


def test_a_file_is_read_from_where_it_stands_and_appended_to(server, tmp_path):
    source, result = tmp_path / "source", tmp_path / "result"
    source.write_bytes(b"first\n" + LARGE)
    result.write_bytes(b"before\n")
    words = command(CONNECT, server, HOST, "cat")
    script = 'read line; "$@" >>"$0"; echo after >>"$0"'
    with source.open("rb") as stdin:
        done = subprocess.run(
            ["bash", "-c", script, str(result), *words], stdin=stdin, timeout=60, check=False
        )
    assert done.returncode == 0
    assert result.read_bytes() == b"before\n" + LARGE + b"after\n"


# ---- one direction does not stop the other -------------------------------------------------------


def test_input_flows_while_output_is_blocked(server, tmp_path):
    count = tmp_path / "count"
    remote = f"head -c {len(LARGE)} /dev/zero & wc -c >{count}; wait"
    with subprocess.Popen(
        command(CONNECT, server, HOST, remote), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdin.write(LARGE)
        process.stdin.close()
        eventually(lambda: count.exists() and count.read_text(), "all input has arrived", 30)
        assert int(count.read_text()) == len(LARGE)
        assert len(process.stdout.read()) == len(LARGE)
        assert process.wait(IN_TIME_S) == 0


def test_output_flows_while_nobody_reads_the_input(server):
    remote = f"head -c {len(LARGE)} /dev/zero; exit 2"
    result = run(CONNECT, server, HOST, remote, data=LARGE * 3)
    assert (result.returncode, len(result.stdout)) == (2, len(LARGE))


@pytest.mark.parametrize("remote", ["yes", "yes; exit 3", "yes; echo err >&2; exit 4"])
def test_an_output_that_is_closed_early(server, remote):
    script = '"$@" | head -n 1; echo "${PIPESTATUS[0]}"'
    said = [
        subprocess.run(
            ["bash", "-c", script, "bash", *command(program, server, "-n", HOST, remote)],
            capture_output=True, timeout=IN_TIME_S, check=False,
        )
        for program in (SSH, CONNECT)
    ]  # fmt: skip
    assert [(one.stdout, one.stderr) for one in said[1:]] == [(said[0].stdout, said[0].stderr)]
    assert said[0].stdout.startswith(b"y\n")


def test_an_input_that_the_command_ends_early(server):
    script = 'yes | "$@"; echo "${PIPESTATUS[*]}"'
    words = command(CONNECT, server, HOST, "head -n 1; exit 2")
    result = subprocess.run(
        ["bash", "-c", script, "bash", *words],
        capture_output=True, timeout=IN_TIME_S, check=False,
    )  # fmt: skip
    assert (result.stdout, result.stderr) == (b"y\n141 2\n", b"")


# ---- beside the session --------------------------------------------------------------------------


def test_forwarded_connections_outlive_the_session(server, echo_port):
    port = free_port()
    with subprocess.Popen(
        command(CONNECT, server, "-D", str(port), HOST, "echo up; cat; exit 5"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == b"up\n"
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"\5\1\0\5\1\0\1\x7f\0\0\1" + echo_port.to_bytes(2, "big"))
            assert client.recv(12, socket.MSG_WAITALL)[3] == 0
            process.stdin.close()
            assert process.stdout.read() == b""  # the command has ended
            client.sendall(b"still here")
            assert client.recv(10, socket.MSG_WAITALL) == b"still here"
            assert process.poll() is None
        assert process.wait(IN_TIME_S) == 5


def local(text):
    return ["-o", "PermitLocalCommand=yes", "-o", f"LocalCommand={text}"]


def test_a_local_command_runs_after_the_login(server):
    text = "echo local '%h %n %p %r %u %T %%'; cat; exit 3"
    result = both(server, *local(text), HOST, "echo remote", data=b"input\n")
    assert result.stdout.endswith(b" NONE %\ninput\nremote\n")
    assert both(server, "-o", "LocalCommand=echo no", HOST, "echo remote").stdout == b"remote\n"
    assert both(server, *local("none"), HOST, "echo remote").stdout == b"remote\n"


@pytest.mark.parametrize(
    ("arguments", "home"),
    [
        (["-l", "a$(touch${IFS}FILE)", "127.0.0.1"], None),
        (["-l", "a;touch FILE", "127.0.0.1"], None),
        (["-l", "a'b", "127.0.0.1"], None),
        (["-l", "a\nb", "127.0.0.1"], None),
        (["-l", "-x", "127.0.0.1"], None),
        (["$(touch${IFS}FILE)"], None),
        (["-o", "HostName=127.0.0.1|touch FILE", "x"], None),
        (["-o", "HostKeyAlias=`touch FILE`", "127.0.0.1"], None),
        (["127.0.0.1"], "/tmp/a b"),
        (["127.0.0.1"], "/tmp/$(touch FILE)"),
    ],
)
def test_values_that_a_shell_could_misread(server, tmp_path, arguments, home):
    """T84: refused before anything is connected, and never run."""
    file = tmp_path / "FILE"
    words = [word.replace("FILE", str(file)) for word in arguments]
    variables = {} if home is None else {"HOME": home.replace("FILE", str(file))}
    text = "echo %h %n %r %k %d"
    connections = len(server.program.lines)
    result = run(CONNECT, server, *local(text), *words, **variables)
    assert (result.returncode, result.stdout) == (255, b"")
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert not file.exists()
    assert len(server.program.lines) == connections


def test_in_the_background_after_the_local_command(server, tmp_path):
    mark = tmp_path / "mark"
    text = f"echo local; test ! -e {mark}"
    remote = f"cat; touch {mark}; exit 3"
    result = run(CONNECT, server, "-f", *local(text), HOST, remote, data=b"not sent")
    assert (result.returncode, result.stdout) == (0, b"local\n")
    eventually(mark.exists, "the command has run")


def test_a_local_command_without_a_session(server):
    words = command(CONNECT, server, "-N", *local("echo 'local %n'"), HOST)
    with running(*words) as program:
        program.wait_line("^local 127.0.0.1$")
        assert not program.ended


def test_a_signal_ends_the_session(server):
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        with subprocess.Popen(
            command(CONNECT, server, HOST, "echo up; exec cat"),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        ) as process:  # fmt: skip
            assert process.stdout.readline() == b"up\n"
            process.send_signal(number)
            assert process.wait(IN_TIME_S) == 255


def test_a_lost_link_ends_it(server):
    with subprocess.Popen(
        command(CONNECT, server, HOST, "echo $PPID; exec cat"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        os.kill(int(process.stdout.readline()), signal.SIGKILL)
        assert process.wait(IN_TIME_S) == 255
        assert b"connection to 127.0.0.1" in process.stderr.read()


@pytest.mark.parametrize("options", [[], ["-t", "-t"]])
def test_the_page_of_gateway_serve(serve, options):
    result = run(CONNECT, serve, *options, f"{USER}@127.0.0.1")
    newline = b"\r\n" if options else b"\n"
    assert result.returncode == 0
    assert result.stdout.startswith(
        b"This is a jump box of gateway: tunnels, and no shell." + newline
    )
    refused = run(CONNECT, serve, f"{USER}@127.0.0.1", "id")
    assert (refused.returncode, refused.stdout) == (1, b"")
    assert b"runs no programs" in refused.stderr


def test_threads_are_not_needed(server):
    """A pipe is read without a thread, which a fork into the background would lose."""
    with subprocess.Popen(
        command(CONNECT, server, HOST, "cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdin.write(b"line\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"line\n"
        assert threads_that_read(process.pid, 0) == []
        process.stdin.close()
        assert process.wait(IN_TIME_S) == 0


def threads_that_read(pid, descriptor):
    """The threads of a process that are inside read(2) of a descriptor."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        words = (task / "syscall").read_text().split()
        if words[:2] == ["0", hex(descriptor)]:
            found.append(task.name)
    return found
