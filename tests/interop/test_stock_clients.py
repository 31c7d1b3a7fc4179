"""Stock clients through `gateway serve`, and AsyncSSH on either side (issue 2)."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.interop.targets import (
    UNKNOWN_NAME,
    Target,
    content,
    curl,
    need,
    read_all,
    web_page,
)
from tests.support.programs import (
    GATEWAY,
    Endpoint,
    Keys,
    Program,
    client_options,
    eventually,
    free_port,
    make_keys,
    running,
    running_connect,
    running_ssh_proxy,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

asyncssh = pytest.importorskip("asyncssh", reason="asyncssh is not installed")

PAGE = content("stock page", 3_000_017)


@pytest.fixture(scope="module")
def page() -> Iterator[int]:
    """The port of a web page."""
    with Target(web_page(PAGE)) as target:
        yield target.port


def fetch(port: int) -> None:
    result = curl(f"http://127.0.0.1:{port}/")
    assert (result.stderr, result.stdout == PAGE) == (b"", True)


def ssh(server: Endpoint, *arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [need("ssh"), *client_options(server), *arguments],
        input=data,
        capture_output=True,
        timeout=30,
        check=False,
    )


# -- OpenSSH ---------------------------------------------------------------------------------------


def test_ssh_dynamic_forwarding(serve: Endpoint, page: int) -> None:
    need("ssh")
    with running_ssh_proxy(serve) as port:
        for host in ("localhost", "127.0.0.1"):
            result = curl("--socks5-hostname", f"localhost:{port}", f"http://{host}:{page}/")
            assert (result.stderr, result.stdout == PAGE) == (b"", True)


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"])
@pytest.mark.parametrize("method", ["curve25519-sha256", "curve25519-sha256@libssh.org"])
def test_ssh_local_forwarding(serve: Endpoint, page: int, cipher: str, method: str) -> None:
    port = free_port()
    with running(
        need("ssh"), "-v", "-N", "-L", f"{port}:localhost:{page}", *client_options(serve),
        "-o", f"Ciphers={cipher}", "-o", f"KexAlgorithms={method}", "anybody@127.0.0.1",
    ) as program:  # fmt: skip
        program.wait_line("Entering interactive session")
        fetch(port)


def test_ssh_standard_input_and_output_as_a_channel(serve: Endpoint) -> None:
    up, down = content("up", 2_000_003), content("down", 2_000_003)
    received = []

    def swap(sock: socket.socket) -> None:
        received.append(read_all(sock))
        sock.sendall(down)

    with Target(swap) as target:
        result = ssh(serve, "-W", f"127.0.0.1:{target.port}", "root@127.0.0.1", data=up)
    assert result.stdout == down
    assert received == [up]


def test_ssh_without_n_is_told_that_there_is_no_shell(serve: Endpoint) -> None:
    for arguments in (("root@127.0.0.1",), ("root@127.0.0.1", "id")):
        result = ssh(serve, *arguments)
        assert result.returncode == 255
        assert b"there is no shell here, use -N" in result.stderr


def test_ssh_is_told_why_a_target_was_not_opened(serve: Endpoint) -> None:
    for target, reason in (
        (f"127.0.0.1:{free_port()}", b"Connection refused"),
        (f"{UNKNOWN_NAME}:1", b"denied: no rule allows|name resolution|not known"),
        ("192.0.2.1:1", b"denied: no rule allows root to open 192.0.2.1 port 1"),
    ):
        result = ssh(serve, "-W", target, "root@127.0.0.1")
        assert result.returncode == 255
        assert re.search(reason, result.stderr), result.stderr


def test_ssh_with_an_unknown_key_is_refused(serve: Endpoint, tmp_path: Path) -> None:
    stranger = make_keys(tmp_path / "stranger")
    result = ssh(Endpoint(serve.program, serve.port, stranger), "-N", "root@127.0.0.1")
    assert result.returncode == 255
    assert b"Permission denied (publickey)" in result.stderr


@pytest.mark.parametrize("request_type", ["remote forwarding", "agent", "X11"])
def test_ssh_asks_for_what_is_not_served_and_goes_on(
    serve: Endpoint, page: int, request_type: str
) -> None:
    option = {"remote forwarding": ("-R", "0:localhost:1"), "agent": ("-A",), "X11": ("-X",)}
    with running_ssh_proxy(serve, *option[request_type]) as port:
        result = curl("--socks5-hostname", f"localhost:{port}", f"http://localhost:{page}/")
        assert result.stdout == PAGE


# -- Dropbear and PuTTY ----------------------------------------------------------------------------


def _dropbear_key(keys: Keys) -> Path:
    path = keys.folder / "dropbear"
    if not path.exists():
        subprocess.run(
            [need("dropbearconvert"), "openssh", "dropbear", str(keys.user), str(path)],
            capture_output=True, check=True,
        )  # fmt: skip
    return path


def test_dropbear_local_forwarding(serve: Endpoint, page: int, tmp_path: Path) -> None:
    port = free_port()
    with running(
        need("dbclient"), "-y", "-y", "-N", "-i", str(_dropbear_key(serve.keys)),
        "-L", f"{port}:127.0.0.1:{page}", "-p", str(serve.port), "root@127.0.0.1",
        HOME=str(tmp_path),
    ) as program:  # fmt: skip
        eventually(lambda: _is_open(port) or _no_algorithm(program), "dbclient listens")
        if _no_algorithm(program):  # Debian builds it without AES-GCM
            pytest.skip(f"nothing in common with this dbclient: {_no_algorithm(program)}")
        fetch(port)


def _no_algorithm(program: Program) -> str:
    return next((line for line in program.lines if "No matching algo" in line), "")


def _is_open(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def test_plink_local_forwarding(serve: Endpoint, page: int, tmp_path: Path) -> None:
    plink, port = need("plink"), free_port()
    key = tmp_path / "key.ppk"
    subprocess.run(
        [need("puttygen"), str(serve.keys.user), "-O", "private", "-o", str(key)], check=True
    )
    public = subprocess.run(
        ["ssh-keygen", "-l", "-f", str(serve.keys.host)], capture_output=True, text=True, check=True
    )
    with running(
        plink, "-batch", "-ssh", "-v", "-N", "-i", str(key), "-hostkey", public.stdout.split()[1],
        "-L", f"{port}:127.0.0.1:{page}", "-P", str(serve.port), "root@127.0.0.1",
    ) as program:  # fmt: skip
        program.wait_line("Local port .* forwarding to")
        eventually(lambda: _is_open(port), "plink listens")
        fetch(port)


# -- AsyncSSH --------------------------------------------------------------------------------------


def test_asyncssh_as_the_client(serve: Endpoint) -> None:
    up, down = content("asyncssh up", 2_000_003), content("asyncssh down", 2_000_003)
    received = []

    def swap(sock: socket.socket) -> None:
        received.append(read_all(sock))
        sock.sendall(down)

    async def use(port: int) -> bytes:
        options = {"username": "anybody", "client_keys": [str(serve.keys.user)]}
        async with asyncssh.connect(
            "127.0.0.1", serve.port, known_hosts=None, config=None, **options
        ) as connection:
            reader, writer = await connection.open_connection("127.0.0.1", port)
            writer.write(up)
            writer.write_eof()
            answer = await reader.read()
            with pytest.raises(asyncssh.ChannelOpenError, match="Connection refused") as refused:
                await connection.open_connection("127.0.0.1", free_port())
            assert refused.value.code == asyncssh.OPEN_CONNECT_FAILED
            with pytest.raises(asyncssh.ChannelOpenError, match="no rule allows anybody") as denied:
                await connection.open_connection("192.0.2.1", 1)
            assert denied.value.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED
            with pytest.raises(asyncssh.ChannelOpenError, match="no shell"):
                await connection.run("id")
            return bytes(answer)

    with Target(swap) as target:
        assert asyncio.run(use(target.port)) == down
    assert received == [up]


class _AsyncSSHServer(asyncssh.SSHServer):
    def begin_auth(self, username: str) -> bool:
        return True

    def connection_requested(self, *_: object) -> bool:
        return True


def test_asyncssh_as_the_server(tmp_path: Path, page: int) -> None:
    keys = make_keys(tmp_path / "keys")

    async def run_command(process: asyncssh.SSHServerProcess) -> None:
        process.stdout.write(await process.stdin.read())
        process.stderr.write(str(process.command).encode())
        process.exit(7)

    async def use() -> None:
        server = await asyncssh.listen(
            "127.0.0.1", 0, server_factory=_AsyncSSHServer, server_host_keys=[str(keys.host)],
            authorized_client_keys=str(keys.authorized), process_factory=run_command,
            encoding=None,
        )  # fmt: skip
        async with server:
            await asyncio.to_thread(_use_asyncssh, keys, server.get_port(), page)

    asyncio.run(use())


def _use_asyncssh(keys: Keys, port: int, page: int) -> None:
    server = Endpoint(Program("true"), port, keys)
    try:
        with running_connect(server, "-v", "-v", "-o", "RekeyLimit=1M") as proxy:
            option, url = ("--socks5-hostname", f"localhost:{proxy.port}"), "http://localhost"
            assert curl(*option, f"{url}:{page}/").stdout == PAGE
            proxy.program.wait_line(r"\bkeys 2: ")
            assert curl(*option, f"{url}:{page}/").stdout == PAGE
            assert b"(5)" in curl(*option, f"{url}:{free_port()}/").stderr
            assert b"(4)" in curl(*option, f"http://{UNKNOWN_NAME}/").stderr
        result = subprocess.run(
            [*GATEWAY, "connect", *client_options(server), "root@127.0.0.1", "say", "it"],
            input=PAGE, capture_output=True, timeout=30, check=False,
        )  # fmt: skip
        assert (result.returncode, result.stderr) == (7, b"say it")
        assert result.stdout == PAGE
    finally:
        server.program.stop()
