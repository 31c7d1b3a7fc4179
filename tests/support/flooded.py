"""`gateway serve` with the limits that everybody gets, and what can be seen of it from outside."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway.ssh.keyfiles import encode_private_key_file
from gateway.ssh.keys import PrivateKey

from .programs import GATEWAY, Program, running
from .raw_client import Place

if TYPE_CHECKING:
    from collections.abc import Iterator

PEER, USER = "mallory", "alice"
HOST: Final = "127.0.0.1"
COUNTED: Final = ("links", "startups", "channels", "listeners", "tasks", "descriptors")
"""The gauges that have to be as before when a peer is gone."""
CONFIG = """\
listen = ["{host}:0"]
host_keys = ["host_key"]
audit = "audit"
[users.{PEER}]
keys = ["{peer}"]
[users.{USER}]
keys = ["{user}"]
[[rules]]
id = "target"
allow = "open"
to = ["{host}:{target}"]
[[rules]]
id = "back"
allow = "listen"
to = ["localhost:*"]
"""


@dataclass(frozen=True)
class FloodedBox:
    """A server that runs, and two users: one who behaves, and one who does not."""

    program: Program
    folder: Path
    host: str
    port: int
    keys: dict[str, PrivateKey]

    def place(self, user: str = PEER, source: str = "") -> Place:
        """Say where a client connects to, as whom and from where."""
        return Place(self.host, self.port, user, self.keys[user], source)

    def gauges(self) -> dict[str, int]:
        """Ask the server what it has now."""
        first = len(self.program.lines)
        self.program.signal(signal.SIGUSR1)
        said = self.program.wait_line(r"now: (.*)", 60.0, first=first)[1]
        return {name: int(count) for name, count in re.findall(r"(\w+) (\d+)", said)}

    def counted(self) -> dict[str, int]:
        """Ask for those that have to be as before in the end."""
        return {name: count for name, count in self.gauges().items() if name in COUNTED}

    def left_over(self, before: dict[str, int], within_s: float = 30.0) -> dict[str, int]:
        """Wait until no gauge is above what it was, not longer than that; return what is more.

        One may be below: to write the audit log takes two tasks now and then.
        """
        deadline = time.monotonic() + within_s
        while True:
            now = self.gauges()
            more = {name: now[name] - there for name, there in before.items() if now[name] > there}
            if not more or time.monotonic() > deadline:
                return more
            time.sleep(0.02)

    @property
    def resident_mb(self) -> float:
        """What it has in memory, in units of 10^6 bytes: cheap, no page table is walked."""
        pages = int(Path(f"/proc/{self.program.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    @property
    def peak_mb(self) -> float:
        """The most that it ever had in memory."""
        status = Path(f"/proc/{self.program.pid}/status").read_text()
        (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
        return int(kib) * 1024 / 1e6


@contextlib.contextmanager
def flooded_box(folder: Path, target: int, host: str = HOST) -> Iterator[FloodedBox]:
    """Run one; ``target`` is the only port that may be opened."""
    folder.mkdir(mode=0o700)
    keys = {name: PrivateKey.generate(os.urandom) for name in (PEER, USER)}
    (folder / "host_key").touch(mode=0o600)
    host_key = PrivateKey.generate(os.urandom)
    (folder / "host_key").write_bytes(encode_private_key_file(host_key))
    texts = {"peer": keys[PEER].public.openssh_text(), "user": keys[USER].public.openssh_text()}
    config = folder / "gateway.toml"
    config.write_text(CONFIG.format(host=host, target=target, PEER=PEER, USER=USER, **texts))
    config.chmod(0o600)
    with running(*GATEWAY, "serve", "-c", str(config)) as program:
        port = int(program.wait_line(rf"listening on {re.escape(host)}:(\d+)")[1])
        yield FloodedBox(program, folder, host, port, keys)
