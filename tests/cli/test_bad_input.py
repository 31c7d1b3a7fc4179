"""Whatever goes wrong: one sentence with cause and remedy, status 255, in time, no traceback."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateway import __version__
from gateway.cli.connect import parse_arguments, run_connect
from gateway.cli.serve import run_serve
from gateway.errors import ConfigError
from gateway.ssh import wire
from gateway.ssh.protocol import Protocol, ServerSetup
from gateway.ssh.transport import Phase
from tests.interop.targets import BlackHole, Target, need, read_all, reset
from tests.support.pair import HOST_KEY, feed, take
from tests.support.programs import (
    GATEWAY,
    Endpoint,
    Keys,
    free_port,
    make_keys,
    run_gateway,
    running,
    running_connect,
    running_gateway_serve,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

IN_TIME_S = 60.0  # ConnectTimeout=1, and the start of a Python on a busy machine


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no configuration and no keys."""
    monkeypatch.setenv("HOME", str(tmp_path))


def failed(*arguments: str) -> str:
    """Run gateway, which has to fail as it should; return its one sentence."""
    started_s = time.monotonic()
    result = run_gateway(*arguments)
    assert time.monotonic() - started_s < IN_TIME_S
    assert result.returncode == 255, result
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if "host key ssh-ed25519" not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("gateway: ")
    assert lines[0].isprintable()
    return lines[0]


def connect_failed(*arguments: str) -> str:
    return failed("connect", "-F", "none", "-o", "ConnectTimeout=1", *arguments)


# -- the command itself ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "program", [GATEWAY, [str(sys.executable).rpartition("/")[0] + "/gateway"]]
)
def test_version_and_help(program: list[str]) -> None:
    version = subprocess.run([*program, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout == f"gateway {__version__}\n"
    assert version.stderr == ""
    usage = subprocess.run([*program, "--help"], capture_output=True, text=True, check=True)
    assert "gateway connect" in usage.stdout
    assert "gateway serve" in usage.stdout


@pytest.mark.parametrize("command", ["connect", "forward", "serve"])
def test_each_command_lists_its_options(command: str) -> None:
    result = run_gateway(command, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"gateway {command}" in result.stdout


def test_no_command_and_an_unknown_one() -> None:
    assert "a command is missing: see gateway --help" in failed()
    assert "there is no command 'conect': see gateway --help" in failed("conect")
    failed("con\x1b[31mect")


# -- the command line of connect -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["the host is missing", "--help"]),
        (["-N"], ["the host is missing", "--help"]),
        (["-z", "host"], ["-z", "--help"]),
        (["--vpm", "10.0.0.0/8", "host"], ["--vpm", "--help"]),
        (["-p"], ["-p", "--help"]),
        (["-p", "0", "host"], ["0 is not a port", "1 to 65535"]),
        (["-p", "65536", "host"], ["65536 is not a port", "1 to 65535"]),
        (["-p", "ssh", "host"], ["ssh is not a port", "1 to 65535"]),
        (["host", "-p", "x\x1b[2J"], ["is not a port", "1 to 65535"]),
        (["ssh://host:0"], ["0 is not a port", "1 to 65535"]),
        (["ssh://host/path"], ["has a path", "ssh://[user@]host[:port]"]),
        (["host:22"], ["host:22", "-p PORT"]),
        (["-D", "0", "host"], ["0 is not a port", "1 to 65535"]),
        (["-D", "::1:6000", "host"], ["brackets"]),
        (["-D", "no-port", "host"], ["is not a port", "1 to 65535"]),
        (["-o", "NoSuchKeyword=1", "host"], ["NoSuchKeyword", "IgnoreUnknown"]),
        (["-o", "Port", "host"], ["needs a keyword and a value", "-o Keyword=value"]),
        (["-o", "", "host"], ["needs a keyword and a value"]),
        (["-o", "Port=many", "host"], ["Port", "many is not a port"]),
        (["-o", "ProxyJump=a,,b", "host"], ["ProxyJump", "the host name is empty"]),
        (["-J", "a:0", "host"], ["ProxyJump", "0 is not a port"]),
        (["-J", "host", "host"], ["the way goes in a circle: host → host"]),
        (["-o", "ProxyCommand=nc %q", "host"], ["ProxyCommand", "the token %q has no meaning"]),
        (["--via", "ftp://proxy", "host"], ["--via", "ftp:// is no kind of proxy"]),
        (["--via", "http://p", "-o", "ProxyCommand=nc %h %p", "host"], ["--via", "ProxyCommand"]),
        (["-o", "StrictHostKeyChecking=perhaps", "host"], ["StrictHostKeyChecking", "perhaps"]),
        (["-o", "Ciphers=rot13", "host"], ["Ciphers", "rot13"]),
        (["-o", "RekeyLimit=little", "host"], ["RekeyLimit", "little"]),
        (["-F", "/no/such/file", "host"], ["/no/such/file", "no such configuration file", "-F"]),
        (["a;b"], ["the host name a;b contains the character ;"]),
        (["--", "-oProxyCommand=id"], ["begins with a dash"]),
        (["-l", "a`id`", "host"], ["the user name"]),
        (["us\x1ber@host"], ["control character"]),
        (["host\nname"], ["control character"]),
    ],
)
def test_a_command_line_that_makes_no_sense(
    arguments: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_connect(["-F", "none", *arguments]) == 255
    output, sentence = capsys.readouterr()
    assert (output, sentence.count("\n"), sentence[:9]) == ("", 1, "gateway: ")
    assert [part for part in parts if part not in sentence] == [], sentence


@pytest.mark.parametrize("letter", "MOI")
@pytest.mark.parametrize("after_the_host", [False, True])
def test_options_of_ssh_that_do_not_work_yet(letter: str, after_the_host: bool) -> None:
    option = [f"-{letter}"] if letter == "M" else [f"-{letter}", "argument"]
    # In this process: many letters, and no program is started for them.
    arguments = ["host", *option] if after_the_host else [*option, "host"]
    with pytest.raises(ConfigError, match=f"^-{letter}: .*does not work yet: see gateway connect"):
        parse_arguments(arguments)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Host a\n  ProxyJump bas;tion\n", ["ProxyJump", "the character ;"]),
        ("# comment\nProxyCommand nc %q %p\n", ["ProxyCommand", "%q has no meaning"]),
        ("\nNoSuchKeyword yes\n", ["NoSuchKeyword"]),
        ("\nPort many\n", ["Port", "many"]),
        ('\nUser "alice\n', ["quote"]),
        ("\nPort\n", ["Port"]),
    ],
)
def test_a_configuration_file_is_named_with_the_line(
    tmp_path: Path, text: str, parts: list[str]
) -> None:
    file = tmp_path / "config"
    file.write_text(text)
    sentence = failed("connect", "-F", str(file), "a")
    assert [part for part in ("config:2: ", *parts) if part not in sentence] == [], sentence


def test_the_users_own_configuration_file(tmp_path: Path) -> None:
    folder = tmp_path / ".ssh"
    folder.mkdir(mode=0o700)
    (folder / "config").write_text("Host somewhere\nProxyJump -bastion\n")
    assert ".ssh/config:2" in failed("connect", "somewhere")


# -- servers that cannot be reached ----------------------------------------------------------------


def test_a_closed_port() -> None:
    port = free_port()
    sentence = connect_failed("-N", "-p", str(port), "127.0.0.1")
    assert f"cannot connect to 127.0.0.1 port {port}: Connection refused" in sentence
    assert "is the port right" in sentence


def test_a_host_name_that_nobody_knows() -> None:
    sentence = connect_failed("-N", "no-such-name.invalid")
    assert "cannot find no-such-name.invalid" in sentence
    assert "check the name" in sentence


def test_an_address_that_never_answers() -> None:
    with BlackHole() as hole:
        sentence = connect_failed("-N", "-p", str(hole.port), "127.0.0.1")
    assert f"cannot connect to 127.0.0.1 port {hole.port}: Connection timed out" in sentence
    assert "firewall" in sentence


def test_a_bind_address_that_is_not_ours() -> None:
    sentence = connect_failed("-N", "-o", "BindAddress=192.0.2.1", "127.0.0.1")
    assert "not one of this machine" in sentence


@pytest.mark.parametrize("address", ["127.0.0.1:", "[::1]:", "*:", ""])
def test_a_port_in_use_for_the_proxy(address: str) -> None:
    with contextlib.ExitStack() as stack:
        port = free_port()
        for family, own in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            listener = stack.enter_context(socket.socket(family))
            try:
                listener.bind((own, port))
            except OSError:
                pytest.skip(f"this machine has no {own}")
            listener.listen()
        sentence = connect_failed("-N", "-D", f"{address}{port}", "127.0.0.1")
    assert f"port {port}: another program uses this port: end it, or choose" in sentence


def test_an_address_for_the_proxy_that_is_not_ours() -> None:
    sentence = connect_failed("-N", "-D", f"192.0.2.1:{free_port()}", "127.0.0.1")
    assert "this machine has no such address" in sentence


# -- servers that are none, or stop answering ------------------------------------------------------


def against(handler: Callable[[socket.socket], object], *options: str) -> str:
    """Connect to a server that a function plays; return the sentence."""
    with Target(handler) as target:
        known_hosts = Path(os.environ["HOME"]) / "known_hosts"
        known_hosts.write_text(f"[127.0.0.1]:{target.port} {HOST_KEY.public.openssh_text()}\n")
        return connect_failed(
            "-N", *options, "-o", f"UserKnownHostsFile={known_hosts}",
            "-p", str(target.port), "127.0.0.1",
        )  # fmt: skip


def says(data: bytes) -> Callable[[socket.socket], None]:
    """Say this, then wait for the client to leave."""

    def play(sock: socket.socket) -> None:
        sock.sendall(data)
        with contextlib.suppress(ConnectionResetError):
            read_all(sock)

    return play


def says_and_closes(data: bytes) -> Callable[[socket.socket], None]:
    """Say this, and close when the client has said its version."""

    def play(sock: socket.socket) -> None:
        sock.sendall(data)
        sock.recv(4096)

    return play


def test_a_web_server() -> None:
    def play(sock: socket.socket) -> None:
        sock.recv(4096)
        sock.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    sentence = against(play)
    assert "127.0.0.1 port" in sentence
    assert "SSH" in sentence


def test_a_server_that_closes_at_once() -> None:
    def play(sock: socket.socket) -> None:
        sock.shutdown(socket.SHUT_WR)
        read_all(sock)  # a close with bytes unread would be a reset

    assert "before it said anything in SSH" in against(play)


def test_a_server_that_resets_at_once() -> None:
    sentence = against(reset)
    assert "127.0.0.1 port" in sentence
    assert "Connection reset by peer" in sentence or "before it said anything" in sentence


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-1.5-old\r\n",
        b"SSH-2.0-" + b"x" * 300 + b"\r\n",
        b"SSH-2.0-bad\x1b]0;title\x07\r\n",
        b"SSH-2.0-nul\x00\r\n",
        b"SSH-2.0-ok\r\n" + bytes(100),
        b"SSH-2.0-ok\r\n" + b"\xff" * 100,
        b"a line that never ends " * 1000,
        b"a line before the version\r\n" * 1000,
        b"\x16\x03\x01" * 1000,
        bytes(range(256)) * 20,
    ],
)
def test_a_server_that_says_garbage(data: bytes) -> None:
    assert "127.0.0.1 port" in against(says(data))


def test_a_server_that_closes_after_its_version() -> None:
    sentence = against(says_and_closes(b"SSH-2.0-closing\r\n"))
    assert "127.0.0.1 port" in sentence


def test_control_characters_in_a_disconnect_are_escaped() -> None:
    text = "go\x1b[31m away\r\nroot@host# "

    message = b"\x01" + (11).to_bytes(4, "big") + wire.text(text) + wire.text("")  # DISCONNECT
    padding = bytes(4 + -(len(message) + 9) % 8)
    packet = bytes((len(padding),)) + message + padding
    sentence = against(says(b"SSH-2.0-leaving\r\n" + len(packet).to_bytes(4, "big") + packet))
    assert r"go\x1b[31m away\r\nroot@host#" in sentence


def server_protocol() -> Protocol:
    return Protocol(ServerSetup((HOST_KEY,), lambda _user, _key: True), 0.0)


PHASES = list(Phase)


def stops_at(phase: Phase) -> Callable[[socket.socket], None]:
    """Play a server that says no more when it has come to a phase."""

    def play(sock: socket.socket) -> None:
        protocol = server_protocol()
        with contextlib.suppress(ConnectionResetError):
            while PHASES.index(protocol.transport.phase) < PHASES.index(phase):
                sock.sendall(take(protocol))
                if not (data := sock.recv(65536)):
                    return
                feed(protocol, data)
            read_all(sock)

    return play


def test_a_server_that_says_nothing() -> None:
    sentence = against(says(b""))
    assert "did not answer within 1 s: it accepts connections but does not speak SSH" in sentence


@pytest.mark.parametrize(
    ("handler", "waiting_for"),
    [
        (says(b"SSH-2.0-silent\r\n"), "it does not begin the key exchange"),
        (stops_at(Phase.KEX), "it does not finish the key exchange"),
        (stops_at(Phase.AUTH), "it does not answer the request to log in"),
        (stops_at(Phase.CONNECTION), "it does not answer the login"),
    ],
    ids=["version", "kex", "service", "auth"],
)
def test_a_server_that_hangs_in_the_login(
    handler: Callable[[socket.socket], None], waiting_for: str, keys: Keys
) -> None:
    sentence = against(handler, "-i", str(keys.user))
    assert "did not answer within 1 s" in sentence
    assert waiting_for in sentence


def test_a_server_that_dies_after_the_login(keys: Keys) -> None:
    sentence = against(
        stops_at(Phase.CLOSED), "-i", str(keys.user),
        "-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=1",
    )  # fmt: skip
    assert "not a sign of life" in sentence


# -- signals and closed descriptors ----------------------------------------------------------------


@pytest.fixture(scope="module")
def serve(keys: Keys) -> Iterator[Endpoint]:
    with running_gateway_serve(keys) as endpoint:
        yield endpoint


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_connect_and_free_its_port(serve: Endpoint, number: signal.Signals) -> None:
    with running_connect(serve) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port)) as client:
            proxy.program.signal(number)
            assert proxy.program.wait(60) == 255
            client.settimeout(2)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
        assert not [line for line in proxy.program.lines if "Traceback" in line]
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", proxy.port))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_serve_and_its_links(keys: Keys, number: signal.Signals) -> None:
    with running_gateway_serve(keys) as server, running_connect(server) as proxy:
        server.program.signal(number)
        assert server.program.wait(60) == 0
        assert proxy.program.wait(60) == 255
        assert not [line for line in server.program.lines if "Traceback" in line]
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", server.port))


def test_ctrl_c_while_the_server_hangs() -> None:
    with (
        Target(says(b"SSH-2.0-silent\r\n")) as target,
        running(*GATEWAY, "connect", "-vv", "-F", "none", "-N", "-p", str(target.port),
                "127.0.0.1") as program,
    ):  # fmt: skip
        target.wait_for_connection()
        program.signal(signal.SIGINT)
        assert program.wait(60) == 255
    assert not [line for line in program.lines if "Traceback" in line]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_standard_descriptors_that_are_closed(closed: str) -> None:
    """What is printed must not go into a socket that got the number of a closed descriptor."""
    received = []

    def play(sock: socket.socket) -> None:
        with contextlib.suppress(ConnectionResetError):
            received.append(read_all(sock))

    with Target(play) as target:
        result = subprocess.run(
            ["sh", "-c", f'"$@" {closed}', "sh", *GATEWAY, "connect", "-F", "none",
             "-o", "ConnectTimeout=1", "-p", str(target.port), "127.0.0.1"],
            capture_output=True, text=True, check=False, timeout=20,
        )  # fmt: skip
    assert result.returncode == 255
    assert "Traceback" not in result.stderr
    assert (result.stderr == "") == ("2>" in closed)
    assert received[0].startswith(b"SSH-2.0-gateway")
    assert b"did not answer" not in received[0]


# -- serve -----------------------------------------------------------------------------------------


def serve_failed(keys: Keys, *options: str, **replaced: Path) -> str:
    host_key = replaced.get("host_key", keys.host)
    authorized_keys = replaced.get("authorized_keys", keys.authorized)
    return failed(
        "serve", "--listen", "127.0.0.1:0", "--host-key", str(host_key),
        "--authorized-keys", str(authorized_keys), *options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--no-such-option"], ["--no-such-option", "--help"]),
        (["a-word"], ["a-word", "--help"]),
        (["--listen", "127.0.0.1"], ["--listen", "is not a port", "0 to 65535"]),
        (["--listen", "127.0.0.1:65536"], ["65536 is not a port"]),
        (["--listen", "192.0.2.1:0"], ["this machine has no such address"]),
        (["--listen", "no-such-name.invalid:0"], ["cannot listen on no-such-name.invalid"]),
        (["--permit-open", "host"], ["--permit-open", "host is not of the form HOST:PORT"]),
        (["--permit-open", "host:99999"], ["--permit-open", "99999 is not a port"]),
        (["--permit-open", "host:0"], ["--permit-open", "0 is not a port"]),
        (["--permit-open", "::1:22"], ["--permit-open", "brackets"]),
        (["--permit-open", "10.0.0.0/8:22"], ["--permit-open", "10.0.0.0/8"]),
        (["--permit-open", ""], ["--permit-open", "an empty text"]),
        (["--host", "name"], ["--host name", "NAME=ADDRESS", "db=10.0.0.5"]),
        (["--host", "name=not-an-address"], ["NAME=ADDRESS"]),
        (["--host", "=10.0.0.1"], ["--host =10.0.0.1", "empty"]),
        (["--host", "a b=10.0.0.1"], ["blank or control character"]),
        (["--rekey-bytes", "many"], ["--rekey-bytes", "many"]),
    ],
)
def test_a_command_line_of_serve(
    keys: Keys,
    options: list[str],
    parts: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.cli.serve.start_logging", lambda _level: None)
    files = ["--host-key", str(keys.host), "--authorized-keys", str(keys.authorized)]
    assert run_serve(["--listen", "127.0.0.1:0", *files, *options]) == 255
    output, shown = capsys.readouterr()
    sentence = shown.splitlines()[-1]
    assert (output, sentence[:9]) == ("", "gateway: ")
    assert [part for part in parts if part not in sentence] == [], sentence


def test_serve_needs_its_files() -> None:
    assert "--host-key, --authorized-keys: see gateway serve --help" in failed("serve")


def test_authorized_keys_that_let_nobody_in(keys: Keys, tmp_path: Path) -> None:
    missing, empty = tmp_path / "missing", tmp_path / "empty"
    empty.write_text("# nobody yet\n")
    sentence = serve_failed(keys, authorized_keys=missing)
    assert f"{missing}: the list of keys cannot be read: No such file" in sentence
    assert "check its name, its owner and its permissions" in sentence
    sentence = serve_failed(keys, authorized_keys=empty)
    assert f"{empty}: it holds no usable key, so nobody could log in" in sentence
    assert "id_ed25519.pub" in sentence
    assert "is not a regular file" in serve_failed(keys, authorized_keys=tmp_path)


def test_host_keys_that_cannot_be_used(keys: Keys, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_text("this is no key\n")
    bad.chmod(0o600)
    assert str(bad) in serve_failed(keys, host_key=bad)
    bad.write_bytes(keys.host.read_bytes())
    bad.chmod(0o644)
    assert f"chmod 600 {bad}" in serve_failed(keys, host_key=bad)
    bad.chmod(0o600)
    subprocess.run(
        [need("ssh-keygen"), "-p", "-N", "secret", "-f", str(bad)], capture_output=True, check=True
    )
    sentence = serve_failed(keys, host_key=bad)
    assert "the host key has a passphrase" in sentence
    assert f"ssh-keygen -p -f {bad}" in sentence
    nowhere = tmp_path / "no" / "such" / "folder"
    assert f"{nowhere}: the host key cannot be made" in serve_failed(keys, host_key=nowhere)


def test_a_port_in_use_for_serve(keys: Keys) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        sentence = serve_failed(keys, "--listen", f"127.0.0.1:{port}")
    assert f"port {port}: another program uses this port" in sentence


def test_a_missing_host_key_is_made_for_its_owner_only(keys: Keys, tmp_path: Path) -> None:
    made = tmp_path / "made"
    arguments = ("--host-key", str(made), "--authorized-keys", str(keys.authorized))
    fingerprints = []
    for expected in ("made the host key", "listening on"):
        with running(*GATEWAY, "serve", "--listen", "127.0.0.1:0", *arguments) as program:
            program.wait_line("listening on")
            program.wait_line(expected)
            fingerprints.append(program.wait_line("host key ssh-ed25519 (SHA256:.*)")[1])
    assert fingerprints[0] == fingerprints[1]
    assert made.stat().st_mode & 0o777 == 0o600
