"""`gateway forward`: forwardings of a running `gateway connect`, added and cancelled (issue 8)."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import tempfile
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateway.cli.forward import run_forward
from tests.interop.far import HERE, WHO, Far, bound, busy_port, dialled, round_trip, running_far
from tests.interop.targets import read_exactly, socks
from tests.support.programs import (
    GATEWAY,
    client_options,
    eventually,
    free_port,
    run_gateway,
    running,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.programs import Program


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """The folder for what runs, of a user who has nothing else running."""
    return tmp_path


@contextmanager
def connected(far: Far, runtime: Path, *arguments: str) -> Iterator[Program]:
    with running(*far.command(*arguments), XDG_RUNTIME_DIR=str(runtime)) as program:
        program.wait_line("everything is up")
        yield program


def forward(far: Far, runtime: Path, *arguments: str) -> str:
    """Run `gateway forward HOST`; return what it prints."""
    done = refused(far, runtime, *arguments, status=0)
    assert done.stderr == ""
    return done.stdout


def refused(
    far: Far, runtime: Path, *arguments: str, status: int = 255
) -> subprocess.CompletedProcess[str]:
    host = ("-F", "none", "-p", str(far.server.port), WHO)
    done = run_gateway("forward", *host, *arguments, XDG_RUNTIME_DIR=str(runtime))
    assert done.returncode == status, done.stderr
    return done


def test_added_and_cancelled(far: Far, runtime: Path, echo_port: int) -> None:
    """Every kind, while a connection of each that was there stays."""
    local, dynamic, remote, reverse = (free_port() for _ in range(4))
    here, there = far.folder / "here", far.folder / "there"
    specs = [
        ("-L", f"{local}:{HERE}:{echo_port}", str(local)),
        ("-L", f"{here}:{HERE}:{echo_port}", str(here)),
        ("-D", str(dynamic), str(dynamic)),
        ("-R", f"{remote}:{HERE}:{echo_port}", str(remote)),
        ("-R", str(reverse), str(reverse)),
        ("-R", f"{there}:{HERE}:{echo_port}", str(there)),
    ]
    with connected(far, runtime):
        assert forward(far, runtime, "list") == ""
        for option, spec, _ in specs:
            forward(far, runtime, "add", option, spec)
        assert len(forward(far, runtime, "list").splitlines()) == len(specs)
        for end in (local, here, remote, there):
            round_trip(dialled(end))
        for port in (dynamic, reverse):
            with socks(port, HERE, echo_port) as sock:
                round_trip(sock)
        with dialled(local) as one, dialled(remote) as another:
            for sock in (one, another):
                sock.sendall(b"before")
                assert read_exactly(sock, 6) == b"before"
            for option, _, listens in specs:
                forward(far, runtime, "cancel", option, listens)
            assert forward(far, runtime, "list") == ""
            assert not any(map(bound, (local, dynamic, remote, reverse)))
            assert not here.exists()
            for sock in (one, another):
                sock.sendall(b"after")
                assert read_exactly(sock, 5) == b"after"
        there.unlink(missing_ok=True)  # sshd leaves it
        for option, spec, _ in specs:
            forward(far, runtime, "add", option, spec)
        round_trip(dialled(remote))
    there.unlink(missing_ok=True)


def test_a_free_port(far: Far, runtime: Path, echo_port: int) -> None:
    with connected(far, runtime, "-R", f"0:{HERE}:{echo_port}") as program:
        first = int(program.wait_line(r"Allocated port (\d+)")[1])
        second = int(forward(far, runtime, "add", "-R", f"0:{HERE}:{echo_port}"))
        for port in (first, second):
            round_trip(dialled(port))
        spec = f"-R 0:[{HERE}]:{echo_port}"
        listed = f"{spec} (port {first})\n{spec} (port {second})\n"
        assert forward(far, runtime, "list") == listed
        forward(far, runtime, "cancel", "-R", str(second))
        assert (bool(bound(first)), bool(bound(second))) == (True, False)
        forward(far, runtime, "cancel", "-R", f"0:{HERE}:{echo_port}")
        assert bound(first) == set()


def test_what_goes_wrong_is_told(far: Far, runtime: Path, echo_port: int) -> None:
    with connected(far, runtime), busy_port() as port:
        for option in ("-L", "-R"):
            spec = f"{port}:{HERE}:{echo_port}"
            assert f"port {port}: " in refused(far, runtime, "add", option, spec).stderr
        for arguments, sentence in {
            ("add", "-D", "0"): "0 is not a port",
            ("add", "-L", "1:2"): "the target is missing",
            ("cancel", "-L", "7"): "-L 7: there is no such forwarding",
            ("cancel", "-R", "7"): "-R 7: there is no such forwarding",
            ("add",): "add needs a -L, -R or -D",
            ("list", "-D", "1"): "list takes no forwarding",
            ("show",): "show is neither list, add nor cancel",
        }.items():
            assert sentence in refused(far, runtime, *arguments).stderr
        assert forward(far, runtime, "list") == ""
        forward(far, runtime, "add", "-R", f"0:{HERE}:{echo_port}")


def test_whom_it_finds(far: Far, runtime: Path) -> None:
    assert "no gateway connect to" in refused(far, runtime, "list").stderr
    with connected(far, runtime, "-D", str(free_port())) as killed:
        killed.signal(signal.SIGKILL)
        killed.wait()
    assert "no gateway connect to" in refused(far, runtime, "list").stderr
    with connected(far, runtime, "-D", f"{HERE}:{(port := free_port())}"):
        assert len(list((runtime / "gateway").iterdir())) == 1, "what the killed one left is gone"
        assert forward(far, runtime, "list") == f"-D [{HERE}]:{port}\n"
        with connected(far, runtime):
            stderr = refused(far, runtime, "list").stderr
            assert "2 of them are connected to" in stderr
            path = stderr.rpartition("--socket ")[2].strip()
            assert run_gateway("forward", "--socket", path, "list").returncode == 0
    assert list((runtime / "gateway").iterdir()) == []


def test_control_path(far: Far, runtime: Path) -> None:
    path = runtime / "control"
    with connected(far, runtime, "-S", f"{runtime}/%%", "-o", f"ControlPath={path}"):
        assert Path(f"{runtime}/%.gateway").exists()
    with connected(far, runtime, "-o", f"ControlPath={path}"):
        named = ("-o", f"ControlPath={path}")
        assert forward(far, runtime, *named, "list") == ""
        assert run_gateway("forward", "--socket", f"{path}.gateway", "list").returncode == 0
    Path(f"{path}.gateway").write_text("somebody's")
    with connected(far, runtime, "-S", str(path)) as program:
        program.wait_line("there is no control socket: .* there is such a file already")
    assert Path(f"{path}.gateway").read_text() == "somebody's"
    with connected(far, runtime, "-S", "none"):
        assert "no gateway connect to" in refused(far, runtime, "list").stderr
    assert not (runtime / "gateway").exists()


def test_the_background(far: Far, runtime: Path, echo_port: int) -> None:
    """-f: the one that stays is the one that is asked."""
    options = ("-f", "-N", *client_options(far.server))
    started = run_gateway("connect", *options, WHO, XDG_RUNTIME_DIR=str(runtime))
    assert started.returncode == 0, started.stderr
    (control,) = (runtime / "gateway").iterdir()
    pid = int(control.suffix[1:])
    try:
        port = int(forward(far, runtime, "add", "-R", f"0:{HERE}:{echo_port}"))
        round_trip(dialled(port))
    finally:
        os.kill(pid, signal.SIGTERM)
    eventually(lambda: not control.exists(), "it has ended")


# ---- who may ask, and what -----------------------------------------------------------------------


def ask(path: Path, request: bytes, user: int = 0) -> bytes:
    """Send bytes as a user and return what comes back."""
    script = (
        "import os, socket, sys\n"
        "os.setuid(int(sys.argv[2]))\n"
        "sock = socket.socket(socket.AF_UNIX)\n"
        "sock.settimeout(20)\n"
        "sock.connect(sys.argv[1])\n"
        "sock.sendall(sys.stdin.buffer.read())\n"
        "sys.stdout.buffer.write(sock.makefile('rb').readline())\n"
    )
    done = subprocess.run(
        [*GATEWAY[:1], "-c", script, str(path), str(user or os.getuid())],
        input=request, capture_output=True, check=False, timeout=30,
    )  # fmt: skip
    assert "Permission" not in done.stderr.decode()
    return done.stdout


def test_the_file_is_its_users_alone(far: Far) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can ask as somebody else")
    with tempfile.TemporaryDirectory() as name:
        runtime = Path(name)
        path = runtime / "control"
        with connected(far, runtime, "-S", str(path)) as program:
            control = Path(f"{path}.gateway")
            assert stat.S_IMODE(control.lstat().st_mode) == 0o600
            assert json.loads(ask(control, b'{"do": "list"}\n')) == {"forwards": []}
            runtime.chmod(0o711)  # as if nothing protected it
            control.chmod(0o666)
            assert ask(control, b'{"do": "list"}\n', user=65534) == b""
            program.wait_line("somebody else than its user has connected: refused")


def test_a_folder_of_ours_that_others_may_enter_is_not_used(far: Far, runtime: Path) -> None:
    (runtime / "gateway").mkdir(mode=0o755)
    with connected(far, runtime) as program:
        program.wait_line("there is no control socket: .*chmod 700")
        assert list((runtime / "gateway").iterdir()) == []


@pytest.mark.parametrize(
    "request_line",
    [
        b"", b"\n", b"\0\0\0\x0c\0\0\0\1", b"[]\n", b'{"do": "exit"}\n', b'{"do": "add"}\n',
        b'{"do": "add", "kind": "X", "forward": "1"}\n',
        b'{"do": "add", "kind": "L", "forward": 1}\n',
        b"[" * 8000 + b"\n", b"x" * 100_000, b'{"do": "add", "kind": "L", "forward": "\xff"}\n',
    ],
)  # fmt: skip
def test_nonsense(control: tuple[Path, Program], request_line: bytes) -> None:
    path, program = control
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(path))
        try:
            sock.sendall(request_line)
            sock.shutdown(socket.SHUT_WR)
            reply = sock.makefile("rb").readline()
        except ConnectionError:
            reply = b'{"error": "too long"}'
    assert "error" in json.loads(reply)
    assert not program.ended
    assert json.loads(ask(path, b'{"do": "list"}\n')) == {"forwards": []}


def test_those_who_say_nothing_keep_nobody_away(control: tuple[Path, Program]) -> None:
    path, _ = control
    silent = [socket.socket(socket.AF_UNIX) for _ in range(15)]
    for sock in silent:
        sock.connect(str(path))
    assert json.loads(ask(path, b'{"do": "list"}\n')) == {"forwards": []}
    for sock in silent:
        sock.close()


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Program]]:
    runtime = tmp_path_factory.mktemp("run")
    with running_far("serve") as far, connected(far, runtime, "-S", f"{runtime}/c") as program:
        yield runtime / "c.gateway", program


# ---- who asks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"[]",
        b"{}",
        b'{"forwards": [{}]}',
        b'{"forwards": 1}',
        b'{"forwards": [["a"]]}',
        b"x" * 99,
    ],
)
def test_a_reply_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], reply: bytes
) -> None:
    assert run_forward(["--socket", str(answering(tmp_path, reply)), "list"]) == 255
    assert "there was no answer that is known here" in capsys.readouterr().err


def test_a_reply_cannot_paint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, reply in enumerate((
        {"error": "\x1b[2J"},
        {"forwards": [{"forward": "\x1b[2J", "port": 1, "chosen": True}]},
    )):  # fmt: skip
        (tmp_path / str(number)).mkdir()
        path = answering(tmp_path / str(number), json.dumps(reply).encode())
        run_forward(["--socket", str(path), "list"])
    said = capsys.readouterr()
    assert "[2J" in said.out
    assert "[2J" in said.err
    assert "\x1b" not in said.out + said.err


def test_another_user_is_not_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid():
        pytest.skip("needs root, to be another user")
    heard: list[bytes] = []
    path = answering(tmp_path, b"{}", heard, user=65534)
    assert run_forward(["--socket", str(path), "list"]) == 255
    assert "another user listens there" in capsys.readouterr().err
    eventually(lambda: heard == [b""], "the stranger hears nothing")


def answering(
    folder: Path, reply: bytes, heard: list[bytes] | None = None, user: int | None = None
) -> Path:
    """Listen as a stranger who has been there first, and give everybody the same reply."""
    path = folder / "control"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    if user is not None:  # who listens is who called listen(2)
        os.seteuid(user)
    try:
        listener.listen()
    finally:
        os.seteuid(os.getuid())

    def answer() -> None:
        with listener:
            sock, _ = listener.accept()
            with sock:
                data = sock.recv(1000)
                if heard is not None:
                    heard.append(data)
                with suppress(BrokenPipeError):
                    sock.sendall(reply + b"\n")

    threading.Thread(target=answer, daemon=True).start()
    return path
