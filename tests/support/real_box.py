"""`gateway serve -c` as administrators run it: users, rules and a log; clients are in this process.

The target takes as many bytes as the first four say, sends as many as the next four say, and ends.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from gateway.audit.records import decode
from gateway.audit.store import log_files
from gateway.net.carrier import SocketCarrier
from gateway.ssh.keyfiles import encode_private_key_file
from gateway.ssh.keys import PrivateKey

from .programs import GATEWAY, Program, free_port, running
from .serving import TestClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

USERS = ("alice", "bob", "carol")
TOP = """\
listen = ["127.0.0.1:0"]
host_keys = ["host_key"]
audit = "audit"
[limits]
opens_per_second_per_user = 100000
"""
RULES = """\
[[rules]]
id = "target"
allow = "open"
to = ["127.0.0.1:{target}", "127.0.0.1:{closed}"]
[[rules]]
id = "never"
deny = "open"
to = ["10.9.8.0/24:*"]
[[rules]]
id = "back"
allow = "listen"
to = ["localhost:*"]
[[rules]]
id = "sock"
allow = "unix"
to = ["{folder}/target", "{folder}/nobody"]
"""


@dataclass
class RealBox:
    """A folder with a gateway.toml; ``target`` is a port that answers, ``closed`` one that not."""

    folder: Path
    target: int
    closed: int
    keys: dict[str, PrivateKey]

    @classmethod
    def make(cls, folder: Path, target: int, rules: str = RULES) -> RealBox:
        """Write everything that a server needs."""
        folder.mkdir(mode=0o700)
        keys = {name: PrivateKey.generate(os.urandom) for name in USERS}
        (folder / "host_key").touch(mode=0o600)
        host = encode_private_key_file(PrivateKey.generate(os.urandom))
        (folder / "host_key").write_bytes(host)
        box = cls(folder, target, free_port(), keys)
        box.configure(rules)
        return box

    def configure(self, rules: str) -> None:
        """Write the configuration with these rules."""
        users = "".join(
            f'[users.{name}]\nkeys = ["{key.public.openssh_text()}"]\n'
            for name, key in self.keys.items()
        )
        filled = rules.format(target=self.target, closed=self.closed, folder=self.folder)
        self.config.write_text(TOP + users + filled)
        self.config.chmod(0o600)

    @property
    def config(self) -> Path:
        """The configuration."""
        return self.folder / "gateway.toml"

    @property
    def audit(self) -> Path:
        """The folder of the log."""
        return self.folder / "audit"

    @contextlib.contextmanager
    def serving(self) -> Iterator[tuple[Program, int]]:
        """Run the server; give it and its port."""
        with running(*GATEWAY, "serve", "-c", str(self.config)) as program:
            yield program, int(program.wait_line(r"listening on 127\.0\.0\.1:(\d+)")[1])

    async def log_in(self, nursery: trio.Nursery, user: str, port: int) -> TestClient:
        """Return a client that has logged in over a socket; it runs in the nursery."""
        sock = socket.create_connection(("127.0.0.1", port), 20)
        client = TestClient(user, (self.keys[user],), SocketCarrier(sock, "the box"))
        nursery.start_soon(client.run)
        await client.log_in_with_keys()
        return client

    def records(self, *kinds: str) -> list[dict[str, object]]:
        """Return the records of the log of these kinds."""
        lines = [line for path in log_files(self.audit) for line in path.read_bytes().splitlines()]
        return [fields for fields in map(decode, lines) if fields["kind"] in kinds]


async def serve_target(stream: trio.SocketStream) -> None:
    """Serve one client of the target."""
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError):
            header = b""
            while len(header) < 8:
                data = await stream.receive_some(8 - len(header))
                if not data:
                    return
                header += data
            up, down = struct.unpack(">II", header)
            while up:
                data = await stream.receive_some(up)
                if not data:
                    return
                up -= len(data)
            await stream.send_all(b"d" * down)


@contextlib.asynccontextmanager
async def real_box(folder: Path, rules: str = RULES) -> AsyncIterator[RealBox]:
    """Serve the target on a port and on a unix socket, and make a box in a folder."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        box = RealBox.make(folder, listeners[0].socket.getsockname()[1], rules)
        sock = trio.socket.socket(socket.AF_UNIX)
        await sock.bind(str(folder / "target"))
        sock.listen(50)
        listeners.append(trio.SocketListener(sock))
        nursery.start_soon(trio.serve_listeners, serve_target, listeners)
        yield box
        nursery.cancel_scope.cancel()
