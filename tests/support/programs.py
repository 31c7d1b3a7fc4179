"""Real programs for tests: sshd, `gateway serve`, `gateway connect`, and a target to reach.

Every program is started directly, waits for the line that says it is ready, and is ended by its
handle.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.ssh.keyfiles import encode_private_key_file
from gateway.ssh.keys import PrivateKey

if TYPE_CHECKING:
    from collections.abc import Iterator

GATEWAY = [sys.executable, "-m", "gateway"]
READY_TIMEOUT_S = 20.0


def free_port() -> int:
    """Return a port that is free now on both loopbacks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Program:
    """A started program whose output lines are collected; ``wait_line`` waits for one."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def _collect(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        for raw in stream:
            with self._changed:
                self.lines.append(raw.decode("utf-8", "replace").rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_line(self, pattern: str, timeout_s: float = READY_TIMEOUT_S) -> re.Match[str]:
        """Return the match of the first line with ``pattern``; fail with all lines otherwise."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                for line in self.lines:
                    if match := re.search(pattern, line):
                        return match
                remaining = deadline - time.monotonic()
                if remaining <= 0 or (not self._thread.is_alive() and self._ended()):
                    raise AssertionError(f"no line {pattern!r} in:\n" + "\n".join(self.lines))
                self._changed.wait(min(remaining, 0.5))

    def _ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self, timeout_s: float = READY_TIMEOUT_S) -> int:
        """Wait for the end; return the exit status."""
        status = self._process.wait(timeout_s)
        self._thread.join(timeout_s)
        return status

    def signal(self, number: int) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def stop(self) -> None:
        """End the program, kindly at first."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(5)
        self._thread.join(5)
        if self._process.stdout is not None:
            self._process.stdout.close()


@contextlib.contextmanager
def running(*arguments: str, **environment: str) -> Iterator[Program]:
    """Run a program for the length of a with block."""
    program = Program(*arguments, **environment)
    try:
        yield program
    finally:
        program.stop()


@dataclass(frozen=True)
class Keys:
    """A folder with a user's key, a host key, and the files that trust them."""

    folder: Path

    @property
    def user(self) -> Path:
        """The user's private key file."""
        return self.folder / "id_ed25519"

    @property
    def host(self) -> Path:
        """The host's private key file."""
        return self.folder / "host_key"

    @property
    def authorized(self) -> Path:
        """authorized_keys with the user's key."""
        return self.folder / "authorized_keys"

    @property
    def known_hosts(self) -> Path:
        """known_hosts, empty at first."""
        return self.folder / "known_hosts"


def make_keys(folder: Path) -> Keys:
    """Make fresh keys in a folder."""
    keys = Keys(folder)
    folder.mkdir(mode=0o700, exist_ok=True)
    user, host = PrivateKey.generate(os.urandom), PrivateKey.generate(os.urandom)
    for path, key in ((keys.user, user), (keys.host, host)):
        path.touch(mode=0o600)
        path.write_bytes(encode_private_key_file(key))
    keys.authorized.write_text(user.public.openssh_text() + "\n")
    keys.authorized.chmod(0o600)
    keys.user.with_suffix(".pub").write_text(user.public.openssh_text() + "\n")
    return keys


@dataclass(frozen=True)
class Endpoint:
    """A running SSH server."""

    program: Program
    port: int
    keys: Keys


SSHD_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {keys.host}
AuthorizedKeysFile {keys.authorized}
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
MaxStartups 100
MaxSessions 100
LogLevel VERBOSE
{extra}
"""


def sshd_path() -> str | None:
    """Return where sshd is."""
    return shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


@contextlib.contextmanager
def running_sshd(keys: Keys, extra: str = "") -> Iterator[Endpoint]:
    """Run the stock sshd."""
    path = sshd_path()
    assert path is not None
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    port = free_port()
    config = keys.folder / f"sshd_config.{port}"
    config.write_text(SSHD_CONFIG.format(port=port, keys=keys, extra=extra))
    with running(path, "-D", "-e", "-f", str(config)) as program:
        program.wait_line("Server listening on")
        yield Endpoint(program, port, keys)


@contextlib.contextmanager
def running_gateway_serve(keys: Keys, *options: str) -> Iterator[Endpoint]:
    """Run `gateway serve`; by default the loopback may be reached at every port."""
    arguments = options or ("--permit-open", "127.0.0.1:*", "--permit-open", "localhost:*",
                            "--permit-open", "[::1]:*")  # fmt: skip
    with running(
        *GATEWAY, "serve", "--listen", "127.0.0.1:0", "--host-key", str(keys.host),
        "--authorized-keys", str(keys.authorized), *arguments,
    ) as program:  # fmt: skip
        port = int(program.wait_line(r"listening on 127\.0\.0\.1:(\d+)")[1])
        yield Endpoint(program, port, keys)


def client_options(server: Endpoint) -> list[str]:
    """Return the options that ssh and `gateway connect` share for a server of ours."""
    keys = server.keys
    return [
        "-F", "none", "-p", str(server.port), "-i", str(keys.user), "-o", "IdentitiesOnly=yes",
        "-o", f"UserKnownHostsFile={keys.known_hosts}", "-o", "GlobalKnownHostsFile=none",
        "-o", "StrictHostKeyChecking=accept-new",
    ]  # fmt: skip


@contextlib.contextmanager
def running_proxy(server: Endpoint, *options: str, user: str = "root") -> Iterator[int]:
    """Run `gateway connect -N -D` to a server; yield the proxy's port."""
    port = free_port()
    with running(
        *GATEWAY, "connect", "-N", "-D", str(port), *client_options(server), *options,
        f"{user}@127.0.0.1",
    ) as program:  # fmt: skip
        program.wait_line(f"SOCKS proxy on localhost:{port}")
        yield port


@contextlib.contextmanager
def running_ssh_proxy(server: Endpoint, *options: str) -> Iterator[int]:
    """Run the stock `ssh -N -D` to a server; yield the proxy's port."""
    port = free_port()
    with running(
        "ssh", "-v", "-N", "-D", str(port), *client_options(server), *options, "root@127.0.0.1"
    ) as program:
        program.wait_line(r"Entering interactive session|pledge: network")
        yield port
