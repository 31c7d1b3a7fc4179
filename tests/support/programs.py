"""Real programs for tests: sshd, `gateway serve`, `gateway connect`, and a target to reach.

Every program is started directly, waits for the line that says it is ready, and is ended by its
handle.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from gateway.ssh.keyfiles import encode_private_key_file
from gateway.ssh.keys import PrivateKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from netns.lab import Host

GATEWAY = [sys.executable, "-m", "gateway"]
READY_TIMEOUT_S = 60.0 * float(os.environ.get("TEST_PATIENCE", "1"))
"""TEST_PATIENCE: how many times slower than usual a machine may be, as emulated ones are."""
USER = getpass.getuser()
"""Whom a stock sshd that was started by us lets in."""


def eventually(condition: Callable[[], object], what: str, timeout_s: float = 10.0) -> None:
    """Look until a condition holds: for what only the kernel's tables tell."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.02)


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

    def wait_line(
        self, pattern: str, timeout_s: float = READY_TIMEOUT_S, *, first: int = 0
    ) -> re.Match[str]:
        """Return the match of the first line with ``pattern``, from the line number ``first`` on;
        fail with all lines otherwise.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                for line in self.lines[first:]:
                    if match := re.search(pattern, line):
                        return match
                remaining = deadline - time.monotonic()
                if remaining <= 0 or (not self._thread.is_alive() and self.ended):
                    raise AssertionError(f"no line {pattern!r} in:\n" + "\n".join(self.lines))
                self._changed.wait(min(remaining, 0.5))

    @property
    def ended(self) -> bool:
        """Whether it has come to its end."""
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
                self._process.wait(5)  # ssh may miss a SIGTERM that comes just before its poll
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(30)
        self._thread.join(5)  # ends with the pipe, which a grandchild may still hold
        if not self._thread.is_alive() and self._process.stdout is not None:
            self._process.stdout.close()


def children_of(pid: int) -> list[int]:
    """Return the process ids of a process's children, and theirs."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            after_name = path.read_text().rpartition(")")[2].split()
            if int(after_name[1]) == pid:
                child = int(path.parent.name)
                found += [child, *children_of(child)]
    return found


def open_sockets(pid: int) -> int:
    """Count the sockets that a process and its children have open."""
    count = 0
    for process in (pid, *children_of(pid)):
        with contextlib.suppress(OSError):
            for entry in os.scandir(f"/proc/{process}/fd"):
                with contextlib.suppress(OSError):
                    count += Path(entry.path).readlink().name.startswith("socket:")
    return count


@contextlib.contextmanager
def running(*arguments: str, **environment: str) -> Iterator[Program]:
    """Run a program for the length of a with block."""
    program = Program(*arguments, **environment)
    try:
        yield program
    finally:
        program.stop()


class Terminal:
    """A program with a terminal of its own, and somebody who reads and types there."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.shown = ""
        self.seen_raw = ""  # all that was shown, as it was
        self.matched = ""  # what was expected last, as it was shown
        self._master, slave = os.openpty()
        # A session leader without a terminal that opens one makes it its controlling terminal.
        self._process = subprocess.Popen(
            ["sh", "-c", 'exec "$@" <>"$0" >&0 2>&0', os.ttyname(slave), *arguments],
            env={**os.environ, **environment},
            start_new_session=True,
        )
        self._slave = slave  # stays open until the program has opened it

    def expect(self, pattern: str, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until something is shown; what was shown up to its end is forgotten."""
        deadline = time.monotonic() + timeout_s
        while not (match := re.search(pattern, self.shown)):
            if not self._read(deadline - time.monotonic()):
                raise AssertionError(f"{pattern!r} was not shown, but: {self.shown!r}")
        self.matched = match[0]
        self.shown = self.shown[match.end() :]

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self._master], [], [], max(timeout_s, 0))[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # as Linux reports that nobody has the other side open
            return False
        if self._slave >= 0:  # the program has it open: from now on its end is seen
            os.close(self._slave)
            self._slave = -1
        text = data.decode("utf-8", "replace")
        self.seen_raw += text
        self.shown += text.replace("\r\n", "\n")
        return bool(data)

    @property
    def seen(self) -> str:
        """All that was shown."""
        return self.seen_raw.replace("\r\n", "\n")

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def attributes(self) -> list[Any]:
        """The terminal's settings."""
        return termios.tcgetattr(self._master)

    @attributes.setter
    def attributes(self, attributes: list[Any]) -> None:
        termios.tcsetattr(self._master, termios.TCSANOW, attributes)

    @property
    def echoes(self) -> bool:
        """Whether what is typed is shown."""
        return bool(self.attributes[3] & termios.ECHO)

    def resize(self, rows: int, columns: int) -> None:
        """Change the window's size."""
        termios.tcsetwinsize(self._master, (rows, columns))

    def type(self, text: str) -> None:
        """Type a line."""
        self.press(text + "\n")

    def press(self, keys: str | bytes) -> None:
        """Press keys without Enter."""
        os.write(self._master, keys.encode() if isinstance(keys, str) else keys)

    def signal(self, number: int) -> None:
        """Send the program a signal."""
        self._process.send_signal(number)

    def wait(self, timeout_s: float = READY_TIMEOUT_S) -> int:
        """Read to the end; return the exit status."""
        deadline = time.monotonic() + timeout_s
        while self._read(deadline - time.monotonic()):
            pass
        return self._process.wait(max(deadline - time.monotonic(), 1))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(30)
        for descriptor in {self._master, self._slave} - {-1}:
            os.close(descriptor)


def run_gateway(
    *arguments: str, timeout_s: float = 30.0, data: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run gateway to its end, without a terminal; the streams are text."""
    result = subprocess.run(
        [*GATEWAY, *arguments],
        input=data,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, **environment},
        start_new_session=True,
        check=False,
    )
    assert "Traceback" not in result.stderr, result.stderr
    return result


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
    keys.host.with_suffix(".pub").write_text(host.public.openssh_text() + "\n")
    return keys


@dataclass(frozen=True)
class Endpoint:
    """A running SSH server."""

    program: Program
    port: int
    keys: Keys


SSHD_CONFIG = """\
Port {port}
{listen}
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


@dataclass(frozen=True)
class OpenSSH:
    """An OpenSSH and other stock programs of its age: the machine's, or some to chroot into."""

    folder: Path
    """For keys and other files that its programs read."""
    root: Path | None = None
    chroots: bool = True
    """Else they have the files, the users and the shell of this machine."""

    def command(self, program: str, *arguments: str) -> list[str]:
        """Return what runs a program; `FileNotFoundError` where there is none."""
        path = shutil.which(program, path=self._search_path())
        if path is None:
            raise FileNotFoundError(f"{program} is not installed")
        if self.root is None:
            return [path, *arguments]
        if not self.chroots:
            return [*self._loader(self.root), path, *arguments]
        return ["chroot", str(self.root), str(self.inside(Path(path))), *arguments]

    def on_this_machine(self, program: str, *arguments: str) -> list[str]:
        """Return what runs a program with the files, the users and the shell of this machine."""
        return replace(self, chroots=False).command(program, *arguments)

    @staticmethod
    def _loader(root: Path) -> list[str]:
        """Return the start of a command: what is unpacked somewhere finds its own libraries."""
        (loader,) = root.glob("usr/lib/*/ld-linux*.so.*")
        return [str(loader), "--library-path", str(loader.parent)]

    def version(self, program: str) -> str:
        """Return the first line of what it says with -V; Dropbear's and OpenSSH's say it aside."""
        done = subprocess.run(
            self.command(program, "-V"), stderr=subprocess.STDOUT, stdout=subprocess.PIPE,
            text=True, check=True,
        )  # fmt: skip
        return done.stdout.splitlines()[0]

    def _search_path(self) -> str:
        if self.root is not None:
            return f"{self.root}/usr/bin:{self.root}/usr/sbin"
        return os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"

    def inside(self, path: Path) -> Path:
        """Return a path as its programs see it."""
        if self.root is None or not self.chroots:
            return path
        return Path("/") / path.relative_to(self.root)

    def endpoint(self, server: Endpoint) -> Endpoint:
        """Return a server with its keys as these programs see them."""
        return Endpoint(server.program, server.port, Keys(self.inside(server.keys.folder)))

    @property
    def cat(self) -> str:
        """A command at its far end that sends back what it gets."""
        return "cat" if self.root is None or not self.chroots else "busybox cat"

    def server_options(self) -> str:
        """Return what the tests need of its sshd: no pause for an address whose logins fail.

        Outside of its root it is also told how to start the programs that it consists of.
        """
        if self.root is None:
            return ""
        options = "PerSourcePenalties no\n"
        if self.chroots:
            return options
        for option, name in (("SshdSessionPath", "sshd-session"), ("SshdAuthPath", "sshd-auth")):
            starter = self.folder / name
            program = shlex.join([*self._loader(self.root), f"{self.root}/usr/lib/openssh/{name}"])
            starter.write_text(f'#!/bin/sh\nexec {program} "$@"\n')
            starter.chmod(0o755)
            options += f"{option} {starter}\n"
        return options

    def keygen(self, *arguments: str | Path) -> str:
        """Run ssh-keygen; return what it says."""
        seen = [str(self.inside(a) if isinstance(a, Path) else a) for a in arguments]
        done = subprocess.run(
            self.command("ssh-keygen", *seen),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


def newest_peers() -> Path:
    """Return the folder of the newest peers; `FileNotFoundError` where they cannot be had."""
    made = subprocess.run(
        [Path(__file__).parent.parent.parent / "scripts" / "newest-peers"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if made.returncode == 3:
        raise FileNotFoundError(made.stderr.strip())
    assert made.returncode == 0, made.stderr
    return Path(made.stdout.strip())


@contextlib.contextmanager
def running_sshd(
    keys: Keys,
    extra: str = "",
    openssh: OpenSSH | None = None,
    log_level: str = "VERBOSE",
    addresses: Sequence[str] = ("127.0.0.1",),
) -> Iterator[Endpoint]:
    """Run a stock sshd."""
    openssh = openssh or OpenSSH(keys.folder)
    if not (openssh.root and openssh.chroots) and os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    port = free_port()
    config = keys.folder / f"sshd_config.{port}"
    seen = Keys(openssh.inside(keys.folder))
    extra = openssh.server_options() + extra
    listen = "\n".join(f"ListenAddress {address}" for address in addresses)
    config.write_text(SSHD_CONFIG.format(port=port, listen=listen, keys=seen, extra=extra))
    path = str(openssh.inside(config))
    options = ("-D", "-e", "-f", path, "-o", f"LogLevel={log_level}")
    with running(*openssh.command("sshd", *options)) as program:
        for address in addresses:
            program.wait_line(f"Server listening on {re.escape(address)} port")
        try:
            yield Endpoint(program, port, keys)
        finally:
            for session in children_of(program.pid):  # which outlive it
                with contextlib.suppress(ProcessLookupError):
                    os.kill(session, signal.SIGTERM)


@contextlib.contextmanager
def running_sshd_in(
    host: Host, keys: Keys, extra: str = "", openssh: OpenSSH | None = None
) -> Iterator[Endpoint]:
    """Run a stock sshd with tunnels in a host of the lab; who has the keys knows it."""
    options = f"PermitTunnel yes\n{extra}"
    with contextlib.ExitStack() as stack:
        with host.inside():
            server = running_sshd(keys, options, openssh, addresses=host.addresses)
            endpoint = stack.enter_context(server)
        host_key = keys.host.with_suffix(".pub").read_text()
        lines = (f"[{address}]:{endpoint.port} {host_key}" for address in host.addresses)
        keys.known_hosts.write_text("".join(lines))
        yield endpoint


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


@contextlib.contextmanager
def running_box(keys: Keys, config: str, at: str = "127.0.0.1:0") -> Iterator[Endpoint]:
    """Run `gateway serve -c` with a gateway.toml, which has the host keys of a folder already."""
    host_keys = [path.with_suffix("").name for path in sorted(keys.folder.glob("host_key*.pub"))]
    path = keys.folder / "gateway.toml"
    path.write_text(f'listen = ["{at}"]\nhost_keys = {host_keys}\n{config}')
    with running(*GATEWAY, "serve", "-v", "-v", "-c", str(path)) as program:
        port = int(program.wait_line(r"listening on \S+:(\d+)")[1])
        yield Endpoint(program, port, keys)


def client_options(server: Endpoint) -> list[str]:
    """Return the options that ssh and `gateway connect` share for a server of ours."""
    keys = server.keys
    return [
        "-F", "none", "-p", str(server.port), "-i", str(keys.user), "-o", "IdentitiesOnly=yes",
        "-o", f"UserKnownHostsFile={keys.known_hosts}", "-o", "GlobalKnownHostsFile=none",
        "-o", "StrictHostKeyChecking=accept-new",
    ]  # fmt: skip


@dataclass(frozen=True)
class Proxy:
    """A running SOCKS proxy."""

    program: Program
    port: int


@contextlib.contextmanager
def running_connect(server: Endpoint, *options: str) -> Iterator[Proxy]:
    """Run `gateway connect -N -D` to a server."""
    port = free_port()
    with running(
        *GATEWAY, "connect", "-N", "-D", str(port), *client_options(server), *options,
        f"{USER}@127.0.0.1",
    ) as program:  # fmt: skip
        program.wait_line(f"SOCKS proxy on localhost:{port}")
        yield Proxy(program, port)


@contextlib.contextmanager
def running_ssh_proxy(server: Endpoint, *options: str) -> Iterator[int]:
    """Run the stock `ssh -N -D` to a server; yield the proxy's port."""
    port = free_port()
    with running(
        "ssh", "-v", "-N", "-D", str(port), *client_options(server), *options, "root@127.0.0.1"
    ) as program:
        program.wait_line(r"Entering interactive session|pledge: network")
        yield port
