"""Every stock client through `gateway serve -c`: all that it can forward, by key and certificate.

Who has a key is in a group, and rules are for the group. Who has a certificate is known to an
authority only, and rules are for a principal. One port is denied to everybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import socket
import subprocess
import threading
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.interop.clients import (
    DATA,
    Login,
    check,
    connected_asyncssh,
    connected_paramiko,
    count,
    dbclient_command,
    last_keys,
    listens,
    plink_command,
    ssh_command,
    turn,
)
from tests.interop.targets import Target, content, echo, need, socks
from tests.support.programs import (
    USER,
    Endpoint,
    OpenSSH,
    eventually,
    free_port,
    make_keys,
    running,
    running_box,
    running_sshd,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from typing import Any

    from tests.interop.clients import Stream

CONFIG = """\
[users.alice]
groups = ["staff"]
authorized_keys = "authorized_keys"

[[authorities]]
key = "{authority}"
users = ["carol"]

[[rules]]
id = "staff"
allow = "open"
to = ["127.0.0.1:*"]
groups = ["staff"]
[[rules]]
id = "staff listens"
allow = "listen"
to = ["localhost:*"]
groups = ["staff"]

[[rules]]
id = "certified"
allow = "open"
to = ["127.0.0.1:*"]
principals = ["tunnels"]
[[rules]]
id = "certified listens"
allow = "listen"
to = ["localhost:*"]
principals = ["tunnels"]

[[rules]]
id = "vault"
deny = "open"
to = ["127.0.0.1:{vault}"]
"""
USERS = {"key": ("alice", "id_ed25519"), "certificate": ("carol", "certified")}
LOAD = content("load", 8_000_000)
REKEY_LIMIT = 256 << 10


@dataclass(frozen=True)
class Place:
    """A server of ours, what is behind it, and whose programs are its clients."""

    openssh: OpenSSH
    server: Endpoint
    target: int
    vault: int
    """The port of an echo that nobody may reach."""

    def login(self, how: str) -> Login:
        user, key = USERS[how]
        path = self.server.keys.folder / key
        return Login(self.server, self.target, path, user=user, openssh=self.openssh)


@pytest.fixture(scope="module")
def place(openssh: OpenSSH, echo_port: int) -> Iterator[Place]:
    keys = make_keys(openssh.folder / "forwards")
    authority, certified = keys.folder / "authority", keys.folder / "certified"
    for path in (authority, certified):
        openssh.keygen("-q", "-t", "ed25519", "-N", "", "-f", path)
    names = ("-I", "carol's", "-n", "carol,tunnels")
    openssh.keygen("-q", "-s", authority, *names, certified.with_suffix(".pub"))
    public = authority.with_suffix(".pub").read_text().strip()
    with Target(echo) as vault:
        config = CONFIG.format(authority=public, vault=vault.port)
        with running_box(keys, config) as server:
            yield Place(openssh, server, echo_port, vault.port)


# ---- forwards ------------------------------------------------------------------------------------
# A client logs in once with all its forwards and hands over the ways that it has: to the echo, or,
# "denied", to the vault.

if TYPE_CHECKING:
    Ways = dict[str, Callable[[], AbstractContextManager[Stream]]]
    Use = Callable[[Ways], None]


def tcp(port: int) -> AbstractContextManager[Stream]:
    return socket.create_connection(("127.0.0.1", port), 20)


def use(place: Place, login: Login, ways: Ways) -> None:
    """Move DATA on every way, and none on the one that is denied."""
    for connect in (connect for way, connect in ways.items() if way != "denied"):
        with connect() as stream:
            check(turn(stream, DATA, last=True))
    with contextlib.suppress(ConnectionError), ways["denied"]() as stream:
        assert stream.recv(1) == b""
    refused = rf"open 127\.0\.0\.1 port {place.vault} .* refused: denied by rule vault"
    login.server.program.wait_line(refused, first=login.first_line)


def ssh(place: Place, login: Login, use: Use) -> None:
    local, denied, dynamic, remote = (free_port() for _ in range(4))
    command = ssh_command(
        login, "-v", "-N", "-o", "ExitOnForwardFailure=yes", "-D", str(dynamic),
        "-L", f"{local}:127.0.0.1:{place.target}", "-L", f"{denied}:127.0.0.1:{place.vault}",
        "-R", f"{remote}:127.0.0.1:{place.target}", "-R", f"0:127.0.0.1:{place.target}",
    )  # fmt: skip
    with running(*command) as program:
        allocated = int(program.wait_line(r"Allocated port (\d+) for remote forward")[1])
        program.wait_line(rf"remote forward success for: listen {remote}")
        use({
            "-L": partial(tcp, local),
            "-D": partial(socks, dynamic, "127.0.0.1", place.target),
            "-R": partial(tcp, remote),
            "-R 0": partial(tcp, allocated),
            "denied": partial(tcp, denied),
        })  # fmt: skip
        # It does not hear SIGTERM while it is busy with this.
        program.wait_line(f"free: direct-tcpip: listening port {denied}")


def dbclient(place: Place, login: Login, use: Use) -> None:
    local, denied, remote = (free_port() for _ in range(3))
    command = dbclient_command(
        login, "-N", "-L", f"127.0.0.1:{local}:127.0.0.1:{place.target}",
        "-L", f"127.0.0.1:{denied}:127.0.0.1:{place.vault}",
        "-R", f"{remote}:127.0.0.1:{place.target}", "-R", f"0:127.0.0.1:{place.target}",
    )  # fmt: skip
    with running(*command, HOME=login.home) as program:
        allocated = int(program.wait_line(r"Allocated port (\d+) for remote forward")[1])
        eventually(lambda: all(map(listens, (local, denied, remote))), "all ports listen")
        use({
            "-L": partial(tcp, local),
            "-R": partial(tcp, remote),
            "-R 0": partial(tcp, allocated),
            "denied": partial(tcp, denied),
        })  # fmt: skip


def plink(place: Place, login: Login, use: Use) -> None:
    local, denied, dynamic, remote = (free_port() for _ in range(4))
    command = plink_command(
        login, "-v", "-N", "-D", str(dynamic),
        "-L", f"{local}:127.0.0.1:{place.target}", "-L", f"{denied}:127.0.0.1:{place.vault}",
        "-R", f"{remote}:127.0.0.1:{place.target}",
    )  # fmt: skip
    with running(*command, HOME=login.home) as program:
        program.wait_line(rf"Remote port forwarding from {remote} enabled")
        eventually(lambda: all(map(listens, (local, denied, dynamic, remote))), "all ports listen")
        use({
            "-L": partial(tcp, local),
            "-D": partial(socks, dynamic, "127.0.0.1", place.target),
            "-R": partial(tcp, remote),
            "denied": partial(tcp, denied),
        })  # fmt: skip


def asyncssh(place: Place, login: Login, use: Use) -> None:
    here = "127.0.0.1"

    async def run() -> None:
        async with connected_asyncssh(login) as connection:
            target = (here, place.target)
            local = await connection.forward_local_port(here, 0, *target)
            denied = await connection.forward_local_port(here, 0, here, place.vault)
            dynamic = await connection.forward_socks(here, 0)
            remote = await connection.forward_remote_port("localhost", free_port(), *target)
            allocated = await connection.forward_remote_port("localhost", 0, *target)
            ways: Ways = {
                "direct": partial(tcp, local.get_port()),
                "dynamic": partial(socks, dynamic.get_port(), *target),
                "forwarded": partial(tcp, remote.get_port()),
                "forwarded from port 0": partial(tcp, allocated.get_port()),
                "denied": partial(tcp, denied.get_port()),
            }
            await asyncio.to_thread(use, ways)

    asyncio.run(asyncio.wait_for(run(), 30))


def paramiko(place: Place, login: Login, use: Use) -> None:
    here, origin = "127.0.0.1", ("127.0.0.1", 1)
    with connected_paramiko(login) as transport:

        def direct(port: int) -> AbstractContextManager[Stream]:
            from paramiko import ChannelException  # noqa: PLC0415 - it may be missing

            try:
                return transport.open_channel("direct-tcpip", (here, port), origin, timeout=20)
            except ChannelException as error:
                raise ConnectionRefusedError from error

        def accepted(channel: Any, *_: object) -> None:
            threading.Thread(target=echo, args=(channel,), daemon=True).start()

        fixed = free_port()
        transport.request_port_forward("localhost", fixed, accepted)
        allocated = transport.request_port_forward("localhost", 0, accepted)
        use({
            "direct-tcpip": partial(direct, place.target),
            "tcpip-forward": partial(tcp, fixed),
            "tcpip-forward of port 0": partial(tcp, allocated),
            "denied": partial(direct, place.vault),
        })  # fmt: skip


PROGRAMS = {"ssh": ssh, "dbclient": dbclient, "plink": plink}
LIBRARIES = {"asyncssh": asyncssh, "paramiko": paramiko}
debian_only = pytest.mark.parametrize("openssh", ["debian"], indirect=True)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        (name, how)
        for name in PROGRAMS
        for how in USERS
        if (name, how) != ("dbclient", "certificate")
    ],
)
def test_programs(place: Place, name: str, how: str) -> None:
    login = place.login(how)
    PROGRAMS[name](place, login, partial(use, place, login))


@debian_only
@pytest.mark.parametrize("how", USERS)
@pytest.mark.parametrize("name", LIBRARIES)
def test_libraries(place: Place, name: str, how: str) -> None:
    login = place.login(how)
    LIBRARIES[name](place, login, partial(use, place, login))


# ---- standard input and output -------------------------------------------------------------------

STDIO = {
    "ssh": (ssh_command, "-W"),
    "dbclient": (dbclient_command, "-B"),
    "plink": (plink_command, "-nc"),
}


def piped(login: Login, command: list[str]) -> None:
    """Send DATA through a program."""
    environment = {**os.environ, "HOME": login.home, "SHELL": "/bin/sh"}
    done = subprocess.run(
        command, input=DATA, capture_output=True, timeout=30, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    check(done.stdout)


@pytest.mark.parametrize("name", STDIO)
def test_standard_input_and_output(place: Place, name: str) -> None:
    command, option = STDIO[name]
    login = place.login("key")
    piped(login, command(login, option, f"127.0.0.1:{place.target}"))


# ---- to another sshd -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inner(place: Place) -> Iterator[Endpoint]:
    """Debian's sshd, which lets the same key in."""
    need("sshd")
    with running_sshd(place.server.keys) as server:
        yield server


def ssh_jump(login: Login, inner: Endpoint) -> list[str]:
    folder, server = login.server.keys.folder, login.server
    config = folder / "jump"
    config.write_text(f"""\
Host box
    HostName 127.0.0.1
    User {login.user}
    Port {server.port}
Host *
    IdentityFile {login.inside(login.key)}
    IdentitiesOnly yes
    UserKnownHostsFile {login.inside(folder / "jump_known_hosts")}
    GlobalKnownHostsFile none
    StrictHostKeyChecking accept-new
""")
    options = ("-F", login.inside(config), "-J", "box", "-p", str(inner.port))
    return login.command("ssh", *options, f"{USER}@127.0.0.1", "cat")


def dbclient_jump(login: Login, inner: Endpoint) -> list[str]:
    hops = f"{login.user}@127.0.0.1/{login.server.port},{USER}@127.0.0.1/{inner.port}"
    return [*dbclient_command(login, host=hops), "cat"]


def plink_jump(login: Login, inner: Endpoint) -> list[str]:
    hop = plink_command(login, "-nc", f"127.0.0.1:{inner.port}")
    if login.openssh is not None and login.openssh.root is not None:
        del hop[:2]  # whoever runs it is in that folder already
    last = replace(login, server=inner)
    proxy = ("-proxycmd", shlex.join(hop))  # which is not asked for a loopback address
    return [*plink_command(last, *proxy, host=f"{USER}@inner.invalid"), "cat"]


JUMPS = {"ssh": ssh_jump, "dbclient": dbclient_jump, "plink": plink_jump}


@pytest.mark.parametrize("name", JUMPS)
def test_jumps_to_another_sshd(place: Place, inner: Endpoint, name: str) -> None:
    login = place.login("key")
    first_line = len(place.server.program.lines)
    piped(login, JUMPS[name](login, inner))
    passed = rf"127\.0\.0\.1 port {inner.port}\) (ended|link lost): \d{{6}} bytes out"
    place.server.program.wait_line(passed, first=first_line)


# ---- keys that change under load -----------------------------------------------------------------


def test_ssh_changes_keys_under_load(place: Place) -> None:
    """Both ways on two channels, one that ssh has opened and one that we have."""
    login = place.login("key")
    local, remote = free_port(), free_port()
    command = ssh_command(
        login, "-v", "-N", "-o", "ExitOnForwardFailure=yes", "-o", f"RekeyLimit={REKEY_LIMIT}",
        "-L", f"{local}:127.0.0.1:{place.target}", "-R", f"{remote}:127.0.0.1:{place.target}",
    )  # fmt: skip
    returned: dict[int, bytes] = {}

    def move(port: int) -> None:
        with tcp(port) as stream:
            returned[port] = turn(stream, LOAD, last=True)

    with running(*command) as program:
        program.wait_line("remote forward success")
        threads = [threading.Thread(target=move, args=(port,)) for port in (local, remote)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [data == LOAD for data in returned.values()] == [True, True]
        ours = last_keys("\n".join(login.server.program.lines[login.first_line :]))
        theirs = count(program, "SSH2_MSG_NEWKEYS received")
    assert min(ours, theirs) > len(LOAD) // REKEY_LIMIT
