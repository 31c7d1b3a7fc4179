"""Other people's SSH clients: each sends DATA through a server of ours to an echo and back.

On the way the keys change: every client here asks for it or is asked. That it was done is what our
server says, and the client too where it tells what it does; the rest of DATA is sent only then.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import socket
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from tests.interop.targets import content
from tests.support.programs import OpenSSH, client_options, eventually, free_port, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractAsyncContextManager

    from tests.support.programs import Endpoint, Program

DATA = content("clients", 250_000)
REKEY_BYTES = 100_000
UNTIL_REKEY = 150_000  # of DATA
SERVE_OPTIONS = ("-v", "-v", "--permit-open", "127.0.0.1:*", "--rekey-bytes", str(REKEY_BYTES))
"""What `gateway serve` needs to be told to meet these clients."""


@dataclass(frozen=True)
class Login:
    """What a client is told."""

    server: Endpoint
    target: int
    """The port of the echo."""
    key: Path
    """With a certificate in KEY-cert.pub, that is what it logs in with."""
    user: str = "alice"
    kex: str | None = None
    cipher: str | None = None
    mac: str | None = None
    openssh: OpenSSH | None = None
    """Where the programs of a client that is one are taken from."""
    first_line: int = field(init=False)
    """Where in the server's log this login begins."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "first_line", len(self.server.program.lines))

    def wait_rekeyed(self) -> None:
        """Wait until our server says that a second key exchange is complete."""
        self.server.program.wait_line(r"link \d+: keys 2: ", first=self.first_line)

    def command(self, program: str, *arguments: str) -> list[str]:
        openssh = self.openssh or OpenSSH(self.server.keys.folder)
        try:
            return openssh.command(program, *arguments)
        except FileNotFoundError as error:
            pytest.skip(str(error))

    def inside(self, path: Path) -> str:
        return str(self.openssh.inside(path) if self.openssh else path)

    @property
    def certificate(self) -> Path | None:
        path = self.key.with_name(f"{self.key.name}-cert.pub")
        return path if path.exists() else None

    @property
    def home(self) -> str:
        """A home directory without anybody's settings."""
        return self.inside(self.server.keys.folder)


def check(received: bytes | bytearray) -> None:
    """Fail, without showing all of it, unless everything came back."""
    assert len(received) == len(DATA)
    assert hashlib.sha256(received).digest() == hashlib.sha256(DATA).digest()


class Stream(Protocol):
    """A socket, or Paramiko's channel."""

    def sendall(self, data: bytes, /) -> object: ...
    def recv(self, most: int, /) -> bytes: ...
    def shutdown(self, how: int, /) -> object: ...


def turn(stream: Stream, data: bytes, *, last: bool) -> bytes:
    """Send data to the echo and return what comes back meanwhile; the last is all until its end."""
    received = bytearray()

    def send() -> None:
        stream.sendall(data)
        if last:
            stream.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    while (last or len(received) < len(data)) and (piece := stream.recv(1 << 16)):
        received.extend(piece)
    sender.join()
    return bytes(received)


def exchange(login: Login, stream: Stream) -> None:
    """Send the beginning of DATA to the echo, await the rekey, send the rest."""
    begin = turn(stream, DATA[:UNTIL_REKEY], last=False)
    login.wait_rekeyed()
    check(begin + turn(stream, DATA[UNTIL_REKEY:], last=True))


def through_forward(login: Login, port: int) -> None:
    """Use a local forward to the echo."""
    with socket.create_connection(("127.0.0.1", port), 20) as sock:
        exchange(login, sock)


def last_keys(said: str) -> int:
    """Return the number of key exchanges that a program of ours, with -v -v, has told of."""
    return max(int(number) for number in re.findall(r"\bkeys (\d+): ", said))


def count(program: Program, text: str) -> int:
    """Count the lines that a program has said with a text in them."""
    return sum(text in line for line in program.lines)


def choices(**chosen: str | None) -> Iterable[str]:
    """Return ssh's options for what is chosen."""
    for keyword, value in chosen.items():
        if value:
            yield f"-o{keyword}={value}"


# ---- command lines -------------------------------------------------------------------------------


def ssh_command(login: Login, *arguments: str) -> list[str]:
    """Return OpenSSH's."""
    server = login.openssh.endpoint(login.server) if login.openssh else login.server
    shared = client_options(server)
    shared[shared.index("-i") + 1] = login.inside(login.key)
    return login.command("ssh", *arguments, *shared, f"{login.user}@127.0.0.1")


def dbclient_command(login: Login, *arguments: str, host: str = "") -> list[str]:
    """Return Dropbear's; it has a format of its own for keys."""
    converted = login.key.with_suffix(".dropbear")
    if not converted.exists():
        paths = (login.inside(login.key), login.inside(converted))
        convert = login.command("dropbearconvert", "openssh", "dropbear", *paths)
        subprocess.run(convert, check=True, capture_output=True)
    return login.command(
        "dbclient", "-y", "-y", "-i", login.inside(converted), *arguments,
        host or f"{login.user}@127.0.0.1/{login.server.port}",
    )  # fmt: skip


def plink_command(login: Login, *arguments: str, host: str = "") -> list[str]:
    """Return PuTTY's; it has a format of its own for keys, and wants the host key named."""
    converted = login.key.with_suffix(".ppk")
    if not converted.exists():
        certificate = login.certificate
        options = ("--certificate", login.inside(certificate)) if certificate else ()
        paths = (login.inside(login.key), "-O", "private", "-o", login.inside(converted))
        subprocess.run(login.command("puttygen", *paths, *options), check=True, capture_output=True)
    shown = OpenSSH(login.server.keys.folder).keygen("-l", "-f", login.server.keys.host)
    return login.command(
        "plink", "-batch", "-ssh", "-i", login.inside(converted), "-hostkey", shown.split()[1],
        "-P", str(login.server.port), *arguments,
        host or f"{login.user}@127.0.0.1",
    )  # fmt: skip


# ---- one local forward, and a rekey --------------------------------------------------------------


def ssh(login: Login) -> None:
    """`ssh -L`."""
    port = free_port()
    command = ssh_command(
        login, "-v", "-N", "-L", f"{port}:127.0.0.1:{login.target}",
        *choices(KexAlgorithms=login.kex, Ciphers=login.cipher, MACs=login.mac),
        "-o", f"RekeyLimit={REKEY_BYTES}",
    )  # fmt: skip
    with running(*command) as program:
        program.wait_line("Entering interactive session")
        through_forward(login, port)
        eventually(lambda: count(program, "SSH2_MSG_NEWKEYS received") > 1, "ssh has rekeyed")


def dbclient(login: Login) -> None:
    """`dbclient -L`."""
    port = free_port()
    cipher = ["-c", login.cipher] if login.cipher else []
    mac = ["-m", login.mac] if login.mac else []
    command = dbclient_command(
        login, "-N", *cipher, *mac, "-L", f"127.0.0.1:{port}:127.0.0.1:{login.target}"
    )
    with running(*command, HOME=login.home) as program:
        eventually(lambda: listens(port) or program.ended, "dbclient listens")
        assert not program.ended, program.lines
        through_forward(login, port)


def plink(login: Login) -> None:
    """`plink -L`."""
    port = free_port()
    command = plink_command(login, "-v", "-N", "-L", f"{port}:127.0.0.1:{login.target}")
    with running(*command, HOME=login.home) as program:
        program.wait_line("Local port .* forwarding to")
        eventually(lambda: listens(port), "plink listens")
        through_forward(login, port)
        program.wait_line("(?i)rekey|key re-exchange")


def listens(port: int) -> bool:
    """Say whether somebody listens, without a connection: the kernel's table tells."""
    wanted = f"0100007F:{port:04X} 00000000:0000 0A"
    return wanted in Path("/proc/net/tcp").read_text()


# ---- libraries -----------------------------------------------------------------------------------


def connected_asyncssh(login: Login, **options: object) -> AbstractAsyncContextManager[Any]:
    """Log in with AsyncSSH, which finds a certificate by its name."""
    module = pytest.importorskip("asyncssh", reason="asyncssh is not installed")
    trusted = module.import_public_key(login.server.keys.host.with_suffix(".pub").read_text())
    connection: AbstractAsyncContextManager[Any] = module.connect(
        "127.0.0.1", login.server.port, username=login.user, client_keys=[str(login.key)],
        known_hosts=([trusted], [], []), config=None, agent_path=None, **options,
    )  # fmt: skip
    return connection


def asyncssh(login: Login) -> None:
    """AsyncSSH."""
    chosen = {"kex_algs": login.kex, "encryption_algs": login.cipher, "mac_algs": login.mac}
    options = {key: [value] for key, value in chosen.items() if value}

    async def use() -> bytes:
        async with connected_asyncssh(login, rekey_bytes=REKEY_BYTES, **options) as connection:
            reader, writer = await connection.open_connection("127.0.0.1", login.target)

            async def send(data: bytes) -> None:
                for at in range(0, len(data), 16384):
                    writer.write(data[at : at + 16384])
                    await writer.drain()

            begin, rest = DATA[:UNTIL_REKEY], DATA[UNTIL_REKEY:]
            _, received = await asyncio.gather(send(begin), reader.readexactly(len(begin)))
            await asyncio.to_thread(login.wait_rekeyed)
            _, more = await asyncio.gather(send(rest), reader.readexactly(len(rest)))
            writer.write_eof()
            return bytes(received + more + await reader.read())

    check(asyncio.run(asyncio.wait_for(use(), 20)))


@contextlib.contextmanager
def connected_paramiko(login: Login) -> Iterator[Any]:
    """Log in with Paramiko."""
    module = pytest.importorskip("paramiko", reason="paramiko is not installed")
    trusted = login.server.keys.host.with_suffix(".pub").read_text().split()[1]
    with socket.create_connection(("127.0.0.1", login.server.port), 20) as sock:
        transport = module.Transport(sock)
        try:
            chosen = transport.get_security_options()
            wanted = {"kex": login.kex, "ciphers": login.cipher, "digests": login.mac}
            for what, name in wanted.items():
                if name:
                    setattr(chosen, what, (name,))
            transport.start_client(timeout=20)
            assert transport.get_remote_server_key().get_base64() == trusted
            key = module.PKey.from_path(login.key)
            if login.certificate:
                key.load_certificate(str(login.certificate))
            transport.auth_publickey(login.user, key)
            yield transport
        finally:
            transport.close()
            transport.join(5)


def paramiko(login: Login) -> None:
    """Paramiko."""
    with connected_paramiko(login) as transport:
        first = transport.H
        channel = transport.open_channel(
            "direct-tcpip", ("127.0.0.1", login.target), ("127.0.0.1", 1), timeout=20
        )
        exchange(login, channel)
        assert first != transport.H  # the exchange hash, of another exchange


CLIENTS: dict[str, Callable[[Login], None]] = {
    "ssh": ssh,
    "dbclient": dbclient,
    "plink": plink,
    "asyncssh": asyncssh,
    "paramiko": paramiko,
}
