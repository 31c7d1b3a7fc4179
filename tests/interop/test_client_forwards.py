"""-L, -R, -D and -W of `gateway connect`, to a stock sshd and to `gateway serve` (issue 8)."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import struct
import subprocess
import threading
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest

from tests.interop.far import (
    DATA,
    HERE,
    WHO,
    Far,
    bound,
    busy_port,
    dialled,
    round_trip,
    running_far,
)
from tests.interop.targets import (
    BlackHole,
    Target,
    begin_socks,
    content,
    read_all,
    read_exactly,
    read_reply,
    reset,
    socks,
)
from tests.support.programs import (
    GATEWAY,
    client_options,
    eventually,
    free_port,
    open_sockets,
    running,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LARGE = content("large", 8_000_009)  # more than a window
LOOPBACK = {"127.0.0.1", "::1"}
EVERYWHERE = {"0.0.0.0", "::"}


@pytest.fixture
def echo_path(far: Far, echo_port: int) -> Iterator[Path]:
    """A unix socket that leads to the echo."""
    path = far.folder / "echo"
    with far.connected("-L", f"{path}:{HERE}:{echo_port}"):
        yield path


@pytest.fixture
def path(far: Far) -> Iterator[Path]:
    """A path for a socket; sshd leaves its own behind."""
    path = far.folder / "listens"
    yield path
    path.unlink(missing_ok=True)


# ---- the forms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bind", ["", "localhost:", f"{HERE}:", "*:", ":", "[::1]:"])
def test_local_port_to_port(far: Far, echo_port: int, bind: str) -> None:
    port = free_port()
    with far.connected("-L", f"{bind}{port}:{HERE}:{echo_port}"):
        address = "::1" if bind == "[::1]:" else HERE
        round_trip(socket.create_connection((address, port), 20))
    assert bound(port) == set()


def test_local_port_to_socket(far: Far, echo_path: Path) -> None:
    port = free_port()
    with far.connected("-L", f"{port}:{echo_path}"):
        round_trip(dialled(port))


def test_local_socket_to_port(far: Far, echo_port: int, path: Path) -> None:
    with far.connected("-L", f"{path}:{HERE}:{echo_port}"):
        mode = path.lstat().st_mode
        assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o600)
        round_trip(dialled(path))
    assert not path.exists()


def test_local_socket_to_socket(far: Far, echo_path: Path, path: Path) -> None:
    with far.connected("-L", f"{path}:{echo_path}"):
        round_trip(dialled(path))


@pytest.mark.parametrize("bind", ["", "localhost:", f"{HERE}:", "*:", ":", "[::1]:"])
def test_remote_port_to_port(far: Far, echo_port: int, bind: str) -> None:
    port = free_port()
    with far.connected("-R", f"{bind}{port}:{HERE}:{echo_port}"):
        expected = LOOPBACK if bind in ("", "localhost:") else EVERYWHERE
        if bind in (f"{HERE}:", "[::1]:"):
            expected = {"::1" if bind == "[::1]:" else HERE}
        assert bound(port) == expected
        address = "::1" if bind == "[::1]:" else HERE
        round_trip(socket.create_connection((address, port), 20))
    eventually(lambda: not bound(port), "the port is free when the client is gone")


def test_remote_port_to_socket(far: Far, echo_path: Path) -> None:
    port = free_port()
    with far.connected("-R", f"{port}:{echo_path}"):
        round_trip(dialled(port))


def test_remote_socket_to_port(far: Far, echo_port: int, path: Path) -> None:
    with far.connected("-R", f"{path}:{HERE}:{echo_port}"):
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        round_trip(dialled(path))


def test_remote_socket_to_socket(far: Far, echo_path: Path, path: Path) -> None:
    with far.connected("-R", f"{path}:{echo_path}"):
        round_trip(dialled(path))


def test_free_ports_are_told_as_ssh_tells_them(far: Far, echo_port: int) -> None:
    forwards = ("-R", f"0:{HERE}:{echo_port}", "-R", f"*:0:localhost:{echo_port}", "-R", "0")
    with far.connected(*forwards) as program:
        told = [line for line in program.lines if line.startswith("Allocated port ")]
        ports = [int(line.split()[2]) for line in told]
        assert [line.partition(" for ")[2] for line in told] == [
            f"remote forward to {HERE}:{echo_port}",
            f"remote forward to localhost:{echo_port}",
            "remote forward to socks:0",
        ]
        assert len(set(ports)) == 3
        round_trip(dialled(ports[0]))
        assert bound(ports[1]) == EVERYWHERE
        with socks(ports[2], HERE, echo_port) as sock:
            round_trip(sock)


# ---- SOCKS ---------------------------------------------------------------------------------------


def test_several_dynamic_forwards(far: Far, echo_port: int, path: Path) -> None:
    first, second = free_port(), free_port()
    with far.connected("-D", str(first), "-D", f"{HERE}:{second}", "-D", str(path)):
        assert bound(second) == {HERE}
        for port in (first, second):
            with socks(port, HERE, echo_port) as sock:
                round_trip(sock)
        with dialled(path) as sock:
            sock.sendall(b"\x05\x01\x00")
            assert read_exactly(sock, 2) == b"\x05\x00"


@pytest.mark.parametrize("host", [HERE, "localhost"])
def test_the_far_sides_socks_proxy(far: Far, echo_port: int, host: str) -> None:
    port = free_port()
    with far.connected("-R", str(port)), socks(port, host, echo_port, DATA[:500]) as sock:
        assert read_exactly(sock, 500) == DATA[:500]
        round_trip(sock)


def test_the_far_sides_socks_proxy_on_a_socket(far: Far, echo_port: int, path: Path) -> None:
    with far.connected("-R", str(path)), dialled(path) as sock:
        sock.sendall(b"\x04\x01" + echo_port.to_bytes(2, "big") + socket.inet_aton(HERE) + b"\0")
        assert read_exactly(sock, 8)[:2] == b"\0\x5a"
        round_trip(sock)


@pytest.mark.parametrize(
    ("permitted", "host", "reply"),
    [
        ("any", HERE, 0), ("none", HERE, 2), ("127.0.0.1:{port}", HERE, 0), ("*:{port}", HERE, 0),
        ("127.0.0.1:*", HERE, 0), ("127.0.0.1:1 localhost:*", HERE, 2),
        ("LOCALHOST:{port}", "localhost", 0), ("127.0.0.1:*", "localhost", 2),
    ],
)  # fmt: skip
def test_where_clients_there_may_go(
    far: Far, echo_port: int, permitted: str, host: str, reply: int
) -> None:
    port = free_port()
    option = f"PermitRemoteOpen={permitted.format(port=echo_port)}"
    with (
        far.connected("-R", str(port), "-o", option) as program,
        begin_socks(port, host, echo_port) as sock,
    ):
        assert read_reply(sock) == reply
        if reply:
            program.wait_line("PermitRemoteOpen does not name it")


def test_what_the_far_sides_socks_proxy_says(far: Far) -> None:
    port, closed = free_port(), free_port()
    with far.connected("-R", str(port)) as program:
        with begin_socks(port, HERE, closed) as sock:
            assert read_reply(sock) == 5
            assert sock.recv(1) == b""
        with begin_socks(port, "no-such-name.invalid", 1) as sock:
            assert read_reply(sock) == 4
        with dialled(port) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert sock.recv(1) == b""
        program.wait_line("this is HTTP")
        with socks(port, HERE, far.server.port) as sock:
            assert sock.recv(4) == b"SSH-"


# ---- standard input and output -------------------------------------------------------------------


def stdio(far: Far, *arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*GATEWAY, "connect", *client_options(far.server), *arguments, WHO],
        input=data, capture_output=True, timeout=30, check=False,
    )  # fmt: skip


def test_standard_input_and_output(far: Far, echo_port: int, echo_path: Path) -> None:
    for target in (f"{HERE}:{echo_port}", f"[{HERE}]:{echo_port}", str(echo_path)):
        done = stdio(far, "-W", target, data=LARGE)
        assert (done.returncode, done.stdout == LARGE) == (0, True), done.stderr


def test_standard_output_gets_what_comes_after_the_end_of_the_input(far: Far) -> None:
    def answer(sock: socket.socket) -> None:
        sock.sendall(b"heard " + read_all(sock))

    with Target(answer) as target:
        assert stdio(far, "-W", f"{HERE}:{target.port}", data=b"you").stdout == b"heard you"
        assert stdio(far, "-n", "-W", f"{HERE}:{target.port}", data=b"x").stdout == b"heard "


def test_standard_input_that_others_made_non_blocking(far: Far, echo_port: int) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    command = [*GATEWAY, "connect", *client_options(far.server), "-W", f"{HERE}:{echo_port}", WHO]
    with subprocess.Popen(command, stdin=reading, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        for data in (DATA, b"more"):
            os.write(writing, data)
            assert program.stdout.read(len(data)) == data
        os.close(writing)
        assert program.wait(60) == 0
    os.close(reading)


def test_standard_input_stays_open_and_the_target_is_reset(far: Far) -> None:
    def answer(sock: socket.socket) -> None:
        sock.sendall(b"bye")
        sock.recv(1)  # until it is written to
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    command = [*GATEWAY, "connect", *client_options(far.server), "-W"]
    with (
        Target(answer) as target,
        subprocess.Popen(
            [*command, f"{HERE}:{target.port}", WHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as program,
    ):
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stdout.read(3) == b"bye"
        program.stdin.write(b"x")
        program.stdin.flush()
        assert program.stdout.read() == b""
        assert program.wait(60) == 0


def test_standard_input_to_where_nobody_listens(far: Far) -> None:
    port = free_port()
    done = stdio(far, "-W", f"{HERE}:{port}")
    assert (done.returncode, done.stdout) == (255, b"")
    sentence = f"the server cannot connect to {HERE} port {port}: Connection refused"
    assert sentence.encode() in done.stderr


def test_stdio_forwarding_clears_the_other_forwards(far: Far, echo_port: int) -> None:
    """What ssh's manual says that -W implies."""
    with busy_port() as port:
        target = ("-W", f"{HERE}:{echo_port}", "-L", f"{port}:{HERE}:1")
        assert stdio(far, *target, data=DATA).stdout == DATA
        done = stdio(far, *target, "-o", "ClearAllForwardings=no")
        assert (done.returncode, done.stdout) == (255, b"")
        assert f"port {port}: another program uses this port".encode() in done.stderr
        options = ("-o", "ClearAllForwardings=no", "-o", "ExitOnForwardFailure=no")
        assert stdio(far, *target, *options, data=DATA).stdout == DATA


@pytest.mark.parametrize("where", ["input", "output"])
def test_yes_and_head(far: Far, where: str) -> None:
    """It ends when nobody takes any more of what never ends."""

    def read_little(sock: socket.socket) -> None:
        read_exactly(sock, 10)
        reset(sock)

    def send_on(sock: socket.socket) -> None:
        while True:
            try:
                sock.sendall(b"y\n" * 10_000)
            except OSError:
                return

    with Target(read_little if where == "input" else send_on) as target:
        command = [
            *GATEWAY, "connect", *client_options(far.server), "-W", f"{HERE}:{target.port}", WHO,
        ]  # fmt: skip
        if where == "input":
            yes = subprocess.Popen(["yes"], stdout=subprocess.PIPE)
            done = subprocess.run(
                command, stdin=yes.stdout, capture_output=True, timeout=30, check=False
            )
            assert yes.stdout is not None
            yes.stdout.close()
            assert yes.wait(60) == -signal.SIGPIPE
            assert (done.returncode, done.stdout) == (0, b"")
            return
        program = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        with program:
            assert program.stdout is not None
            assert program.stdout.read(10) == b"y\n" * 5
            program.stdout.close()
            assert program.wait(60) == 0


# ---- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "bind", "expected"),
    [
        ((), "", LOOPBACK), (("-g",), "", EVERYWHERE), (("-o", "GatewayPorts=yes"), "", EVERYWHERE),
        (("-g",), "localhost:", LOOPBACK), (("-g",), f"{HERE}:", {HERE}), (("-4",), "", {HERE}),
        ((), "127.0.0.2:", {"127.0.0.2"}), (("-6",), "*:", {"::"}), ((), "[::]:", {"::"}),
    ],
)  # fmt: skip
def test_what_is_bound_here(
    sshd_far: Far, options: tuple[str, ...], bind: str, expected: set[str]
) -> None:
    local, dynamic = free_port(), free_port()
    forwards = ("-L", f"{bind}{local}:{HERE}:1", "-D", f"{bind}{dynamic}")
    if "-6" in options:  # which is also how the server is reached
        options = ("-o", "AddressFamily=inet6", "-o", "HostName=::1")
    with sshd_far.connected(*options, *forwards):
        assert (bound(local), bound(dynamic)) == (expected, expected)


@pytest.fixture(scope="module")
def sshd_far() -> Iterator[Far]:
    with running_far("sshd", "ListenAddress ::1") as found:
        yield found


@pytest.mark.parametrize(
    ("gateway_ports", "bind", "expected"),
    [
        ("no", "", LOOPBACK), ("no", "*:", LOOPBACK), ("no", f"{HERE}:", {HERE}),
        ("yes", "", EVERYWHERE), ("yes", "localhost:", EVERYWHERE), ("yes", "*:", EVERYWHERE),
        ("clientspecified", "", LOOPBACK), ("clientspecified", "*:", EVERYWHERE),
        ("clientspecified", "127.0.0.2:", {"127.0.0.2"}), ("clientspecified", "0.0.0.0:",
                                                           {"0.0.0.0"}),
    ],
)  # fmt: skip
def test_what_the_servers_gateway_ports_binds(
    echo_port: int, gateway_ports: str, bind: str, expected: set[str]
) -> None:
    port = free_port()
    forward = f"{bind}{port}:{HERE}:{echo_port}"
    with running_far("sshd", f"GatewayPorts {gateway_ports}") as far, far.connected("-R", forward):
        assert bound(port) == expected
        round_trip(socket.create_connection((min(expected).replace("0.0.0.0", HERE), port), 20))


def test_socket_files(far: Far, echo_port: int, path: Path) -> None:
    forward = ("-L", f"{path}:{HERE}:{echo_port}")
    with far.connected(*forward, "-o", "StreamLocalBindMask=0111"):
        assert stat.S_IMODE(path.lstat().st_mode) == 0o666
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    refused = subprocess.run(far.command(*forward), capture_output=True, check=False, timeout=30)
    assert refused.returncode == 255
    assert b"there is such a file already: remove it" in refused.stderr
    with far.connected(*forward, "-o", "StreamLocalBindUnlink=yes"):
        round_trip(dialled(path))
    path.write_text("no socket")
    refused = subprocess.run(
        far.command(*forward, "-o", "StreamLocalBindUnlink=yes"),
        capture_output=True, check=False, timeout=30,
    )  # fmt: skip
    assert b"the file there is no socket" in refused.stderr
    assert path.read_text() == "no socket"


# ---- what is configured --------------------------------------------------------------------------


def test_forwards_of_a_file(far: Far, echo_port: int) -> None:
    local, remote, dynamic = free_port(), free_port(), free_port()
    config = far.folder / "config"
    config.write_text(f"""\
Host {HERE}
    LocalForward {far.folder}/%p-%n {HERE}:{echo_port}
    LocalForward {local} [{HERE}]:{echo_port}
    RemoteForward {remote} ${{ECHO}}
Host *
    DynamicForward {dynamic}
""")
    command = far.command("-F", str(config))
    with running(*command, ECHO=f"{HERE}:{echo_port}") as program:
        program.wait_line("everything is up")
        round_trip(dialled(far.folder / f"{far.server.port}-{HERE}"))
        round_trip(dialled(local))
        round_trip(dialled(remote))
        with socks(dynamic, HERE, echo_port) as sock:
            round_trip(sock)
    with far.connected("-F", str(config), "-o", "ClearAllForwardings=yes"):
        assert (bound(local), bound(remote), bound(dynamic)) == (set(), set(), set())


# ---- chains --------------------------------------------------------------------------------------


def test_a_chain_of_nine(far: Far, echo_port: int) -> None:
    """Alternating -L and -R, each through a connection of its own."""
    with ExitStack() as stack:
        target = echo_port
        for number in range(9):
            port = free_port()
            option = "-R" if number % 2 else "-L"
            stack.enter_context(far.connected(option, f"{port}:{HERE}:{target}"))
            target = port
        round_trip(dialled(target), LARGE)


def test_a_chain_of_four_sockets(far: Far, echo_port: int) -> None:
    with ExitStack() as stack:
        target = f"{HERE}:{echo_port}"
        path = far.folder
        for number in range(4):
            path = far.folder / f"chain-{number}"
            option = "-R" if number % 2 else "-L"
            stack.enter_context(far.connected(option, f"{path}:{target}"))
            target = str(path)
        round_trip(dialled(path), LARGE)
    for left in far.folder.glob("chain-*"):
        left.unlink()


# ---- what goes wrong -----------------------------------------------------------------------------


def failing(kind: str, port: int, path: Path, target: int) -> tuple[str, ...]:
    return {
        "-L": ("-L", f"{port}:{HERE}:{target}"),
        "-L, socket": ("-L", f"{path}:{HERE}:{target}"),
        "-D": ("-D", str(port)),
        "-R": ("-R", f"{port}:{HERE}:{target}"),
        "-R, socket": ("-R", f"{path}:{HERE}:{target}"),
        "-R, SOCKS": ("-R", str(port)),
        "-w": ("-w", "any"),
    }[kind]


@pytest.mark.parametrize("kind", ["-L", "-L, socket", "-D", "-R", "-R, socket", "-R, SOCKS", "-w"])
def test_a_forward_that_fails(far: Far, echo_port: int, path: Path, kind: str) -> None:
    """Alone or with ExitOnForwardFailure it ends the program, else the others go on."""
    if kind == "-w" and os.getuid() != 0:
        pytest.skip("only root may make a tun device")
    path.write_text("somebody's")
    with busy_port() as port:
        forward = failing(kind, port, path, echo_port)
        alone = subprocess.run(far.command(*forward), capture_output=True, timeout=30, check=False)
        assert alone.returncode == 255
        assert re.search(rb"port %d|%s|tun" % (port, bytes(path)), alone.stderr)
        good = free_port()
        others = ("-L", f"{good}:{HERE}:{echo_port}", "-R", f"0:{HERE}:{echo_port}")
        done = subprocess.run(
            far.command(*forward, *others, "-o", "ExitOnForwardFailure=yes"),
            capture_output=True, timeout=30, check=False,
        )  # fmt: skip
        assert done.returncode == 255
        assert bound(good) == set()
        with far.connected(*forward, *others) as program:
            round_trip(dialled(good))
            round_trip(dialled(int(program.wait_line(r"^Allocated port (\d+)")[1])))
    assert path.read_text() == "somebody's"


def test_in_the_background_a_forward_that_fails_is_told_in_time(far: Far, echo_port: int) -> None:
    """-f: the status is that of the forwards, since it goes to the background after them."""
    with busy_port() as port:
        forward = ("-f", "-R", f"{port}:{HERE}:{echo_port}", "-o", "ExitOnForwardFailure=yes")
        done = subprocess.run(
            far.command(*forward), stdin=subprocess.DEVNULL, capture_output=True, timeout=30,
            check=False,
        )  # fmt: skip
    assert done.returncode == 255
    assert f"failed for listen port {port}".encode() in done.stderr


def test_nothing_stays_of_a_login_that_fails(far: Far, path: Path) -> None:
    done = subprocess.run(
        far.command("-L", f"{path}:{HERE}:1", "-o", "PubkeyAuthentication=no"),
        stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, path.exists()) == (255, False)


@pytest.mark.parametrize("kind", ["sshd", "serve"])
def test_a_refused_listener_is_told_with_the_cause(kind: str) -> None:
    with running_far(kind, "AllowTcpForwarding no") as far:
        if kind == "serve":
            config = far.server.keys.folder / "gateway.toml"
            config.write_text(config.read_text().replace('"*:*"', '"localhost:1-9"'))
            far.server.program.signal(signal.SIGHUP)
            far.server.program.wait_line("read again")
        done = subprocess.run(
            far.command("-R", "4321:localhost:1"), capture_output=True, timeout=30, check=False
        )
    assert done.returncode == 255
    assert b"remote port forwarding failed for listen port 4321" in done.stderr
    why = b"Server has disabled port forwarding" if kind == "sshd" else b"no rule allows"
    assert why in done.stderr


def test_a_target_that_nobody_serves(far: Far) -> None:
    """The client sees the end at once, and the log says why."""
    local, remote, closed = (free_port() for _ in range(3))
    forwards = ("-L", f"{local}:{HERE}:{closed}", "-R", f"{remote}:{HERE}:{closed}")
    with far.connected(*forwards) as program:
        with pytest.raises(ConnectionResetError), dialled(local) as sock:
            sock.recv(1)
        program.wait_line(rf"-L {local}:.* for 127.0.0.1 port \d+: Connection refused")
        with suppress(ConnectionResetError), dialled(remote) as sock:
            assert sock.recv(1) == b""
        program.wait_line(rf"-R {remote}:.* for .* port \d+: cannot connect: Connection refused")


# ---- hazards -------------------------------------------------------------------------------------


def both_ways(far: Far, stack: ExitStack, target: int) -> dict[str, int]:
    """Forward to a target from here and from there."""
    ports = {"-L": free_port(), "-R": free_port()}
    options = (
        word for option, port in ports.items() for word in (option, f"{port}:{HERE}:{target}")
    )
    stack.enter_context(far.connected(*options))
    return ports


@pytest.mark.parametrize("option", ["-L", "-R"])
def test_half_close_by_the_client_then_a_large_answer(far: Far, option: str) -> None:
    """T61."""
    received = []

    def answer_after_the_end(sock: socket.socket) -> None:
        received.append(read_all(sock))
        sock.sendall(LARGE)

    with ExitStack() as stack:
        target = stack.enter_context(Target(answer_after_the_end))
        with dialled(both_ways(far, stack, target.port)[option]) as sock:
            sock.sendall(DATA)
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == LARGE
    assert received == [DATA]


@pytest.mark.parametrize("option", ["-L", "-R"])
def test_half_close_by_the_target_then_a_large_upload(far: Far, option: str) -> None:
    """T61."""
    received = []

    def answer_at_once(sock: socket.socket) -> None:
        sock.sendall(DATA)
        sock.shutdown(socket.SHUT_WR)
        received.append(read_all(sock))

    with ExitStack() as stack:
        target = Target(answer_at_once)
        ports = both_ways(far, stack, target.port)
        with target, dialled(ports[option]) as sock:
            assert read_all(sock) == DATA
            sock.sendall(LARGE)
    assert received == [LARGE]


@pytest.mark.parametrize("option", ["-L", "-R"])
@pytest.mark.parametrize("who", ["client", "target"])
def test_a_reset_ends_the_other_side(far: Far, option: str, who: str) -> None:
    """T61."""
    has_ended = threading.Event()

    def handle(sock: socket.socket) -> None:
        sock.sendall(b"!")
        if who == "target":
            assert sock.recv(1) == b"?"
            reset(sock)
            return
        with suppress(ConnectionResetError):
            assert sock.recv(2) == b"?"
            assert sock.recv(1) == b""
        has_ended.set()

    with ExitStack() as stack:
        target = stack.enter_context(Target(handle))
        sock = stack.enter_context(dialled(both_ways(far, stack, target.port)[option]))
        assert sock.recv(1) == b"!"
        sock.sendall(b"?")
        if who == "client":
            reset(sock)
            assert has_ended.wait(60)
        else:
            with suppress(ConnectionResetError):
                assert sock.recv(1) == b""


@pytest.mark.parametrize("option", ["-L", "-R"])
def test_clients_that_leave_during_the_open_leave_nothing(far: Far, option: str) -> None:
    """T62."""
    with ExitStack() as stack:
        hole = stack.enter_context(BlackHole())
        port = free_port()
        program = stack.enter_context(far.connected(option, f"{port}:{HERE}:{hole.port}"))

        def sockets() -> tuple[int, int]:
            return open_sockets(program.pid), open_sockets(far.server.program.pid)

        before = sockets()
        for _ in range(100):
            reset(dialled(port))
        eventually(lambda: sum(sockets()) > sum(before), "an open that waits")
        hole.open_up()
        eventually(
            lambda: all(now <= then for now, then in zip(sockets(), before, strict=True)),
            f"as many sockets as before: {before}",
        )


def test_a_lost_link_resets_clients() -> None:
    """T61: what is cut off is not taken for whole."""

    def stay(sock: socket.socket) -> None:
        sock.sendall(b"!")
        with suppress(ConnectionResetError):
            assert sock.recv(1) == b""

    port = free_port()
    with (
        Target(stay) as target,
        running_far("serve") as other,
        other.connected("-L", f"{port}:{HERE}:{target.port}") as program,
    ):
        with dialled(port) as sock:
            assert sock.recv(1) == b"!"
            other.server.program.signal(signal.SIGKILL)
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        assert program.wait() == 255


def test_the_ports_of_a_killed_client_are_free_soon(far: Far) -> None:
    """T64."""
    ports = [free_port() for _ in range(5)]
    for port in ports:
        with far.connected("-R", f"{port}:localhost:1") as program:
            assert bound(port) == LOOPBACK
            program.signal(signal.SIGKILL)
            program.wait()
    eventually(lambda: not any(map(bound, ports)), "all are free", 2)
