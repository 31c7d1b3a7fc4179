"""Stock clients through `gateway serve`, and AsyncSSH on either side (issue 2)."""

from __future__ import annotations

import asyncio
import re
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
    free_port,
    make_keys,
    running,
    running_connect,
    running_ssh_proxy,
)

if TYPE_CHECKING:
    import socket
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
    page = ssh(serve, "root@127.0.0.1")
    assert page.returncode == 0
    assert b"tunnels, and no shell" in page.stdout
    refused = ssh(serve, "root@127.0.0.1", "id")
    assert refused.returncode == 1
    assert b"It runs no programs" in refused.stderr


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


def test_ssh_asks_to_listen_where_nobody_may_and_goes_on(serve: Endpoint, page: int) -> None:
    with running_ssh_proxy(serve, "-R", "0:localhost:1") as port:
        result = curl("--socks5-hostname", f"localhost:{port}", f"http://localhost:{page}/")
        assert result.stdout == PAGE


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
            refusal = await connection.run("id")
            assert (refusal.exit_status, refusal.stdout) == (1, "")
            assert "It runs no programs" in str(refusal.stderr)
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
