"""VPNs in the lab: a server of either kind on one host, `gateway connect --vpn` on another."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from netns.state import difference
from tests.support.programs import (
    GATEWAY,
    Keys,
    OpenSSH,
    children_of,
    eventually,
    make_keys,
    newest_peers,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netns.lab import Host, Lab
    from netns.state import Snapshot
    from scripts.child import Child

PORT = 2222
READY_S = 60.0

SSHD_CONFIG = """\
Port {port}
HostKey {keys.host}
AuthorizedKeysFile {keys.authorized}
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
PermitTunnel yes
{extra}
"""

SERVE_CONFIG = """\
listen = ["*:{port}"]
host_keys = ["{keys.host}"]
audit = "{keys.folder}/audit"
{users}
{extra}
"""
USERS = ("root", "alice", "bob")


def openssh_or_skip(age: str, folder: Path) -> OpenSSH:
    """Return the OpenSSH of an age, "debian" or "newest"; skip the test where it is missing."""
    if age == "debian":
        if shutil.which("sshd", path="/usr/sbin:/usr/local/sbin") is None:
            pytest.skip("sshd is not installed")
        return OpenSSH(folder)
    try:
        return OpenSSH(folder, newest_peers())
    except FileNotFoundError as error:
        pytest.skip(str(error))


def start_sshd(host: Host, keys: Keys, openssh: OpenSSH, extra: str = "") -> Child:
    """Start a stock sshd on a host, with this machine's programs behind its logins."""
    Path("/run/sshd").mkdir(exist_ok=True)
    if openssh.root is not None:  # its parts are not where it was told when it was built
        for keyword, name in (("SshdSessionPath", "sshd-session"), ("SshdAuthPath", "sshd-auth")):
            extra = f"{keyword} {_wrapper(keys.folder, openssh, name)}\n{extra}"
        extra = f"{openssh.server_options()}{extra}"
    config = keys.folder / "sshd_config"
    config.write_text(SSHD_CONFIG.format(port=PORT, keys=keys, extra=extra))
    sshd = host.start(*openssh.on_this_machine("sshd", "-D", "-e", "-f", str(config)))
    sshd.wait_for_line("Server listening on", READY_S)
    return sshd


def _wrapper(folder: Path, openssh: OpenSSH, name: str) -> Path:
    assert openssh.root is not None
    (program,) = openssh.root.glob(f"usr/lib/openssh/{name}")
    (loader,) = openssh.root.glob("usr/lib/*/ld-linux*.so.*")
    wrapper = folder / name
    wrapper.write_text(f'#!/bin/sh\nexec {loader} --library-path {loader.parent} {program} "$@"\n')
    wrapper.chmod(0o755)
    return wrapper


def start_serve(host: Host, keys: Keys, *options: str) -> Child:
    """Start `gateway serve` with a tunnel for everybody who may log in, or as ``options`` say."""
    return _until_it_listens(host.start(*serve_command(keys, *options)))


def serve_command(keys: Keys, *options: str) -> list[str]:
    """Return what `start_serve` runs."""
    return [
        *GATEWAY, "serve", "-v", "-v", "--listen", f"*:{PORT}", "--host-key", str(keys.host),
        "--authorized-keys", str(keys.authorized), *(options or ("--permit-tunnel",)),
    ]  # fmt: skip


def start_configured_serve(host: Host, keys: Keys, extra: str) -> Child:
    """Start `gateway serve` with a gateway.toml for `USERS`, with an audit log; ``extra`` in it."""
    users = "\n".join(f'[users.{name}]\nauthorized_keys = "{keys.authorized}"' for name in USERS)
    config = keys.folder / "gateway.toml"
    config.write_text(SERVE_CONFIG.format(port=PORT, keys=keys, users=users, extra=extra))
    return _until_it_listens(host.start(*GATEWAY, "serve", "-v", "-v", "-c", str(config)))


def _until_it_listens(serve: Child) -> Child:
    serve.wait_for_line(r"listening on \S+:2222", READY_S)
    return serve


@dataclass
class Site:
    """Where a client reaches a server that opens tunnels. ``kind`` is serve or an age of sshd."""

    kind: str
    client: Host
    server: Host
    keys: Keys
    process: Child
    known_hosts: Path
    user: str = "root"

    @property
    def is_stock(self) -> bool:
        """Whether the server is an sshd."""
        return self.kind != "serve"

    def options(self, address: str | None = None) -> list[str]:
        """Return what ssh and `gateway connect` need to get there, the destination last."""
        return [
            "-F", "none", "-p", str(PORT), "-i", str(self.keys.user), "-o", "IdentitiesOnly=yes",
            "-o", f"UserKnownHostsFile={self.known_hosts}", "-o", "GlobalKnownHostsFile=none",
            "-o", "StrictHostKeyChecking=accept-new",
            f"{self.user}@{address or self.server.ipv4()}",
        ]  # fmt: skip

    def command(self, *options: str, address: str | None = None) -> list[str]:
        """Return the command of a VPN with these options; the server's side is set up too."""
        setup = ("--remote-setup",) if self.is_stock else ()
        return [*GATEWAY, "connect", "-v", *setup, *options, *self.options(address)]

    @contextlib.contextmanager
    def vpn(self, *options: str, address: str | None = None) -> Iterator[Child]:
        """Have a VPN for the length of a with block, in which it is up; it ends as by Ctrl-C."""
        connect = self.client.start(*self.command(*options, address=address))
        try:
            connect.wait_for_line("tunnel through", READY_S)
            yield connect
        finally:
            if connect.process.poll() is None:
                connect.process.send_signal(signal.SIGINT)
            connect.process.wait(READY_S)
            connect.stop()


@contextlib.contextmanager
def running_site(kind: str, lab: Lab, folder: Path, extra: str = "") -> Iterator[Site]:
    """Run a server in a lab, which is as before at the end.

    ``kind`` is "serve", or an age of sshd; ``extra`` is for their configuration.
    """
    keys = make_keys(folder)
    server = lab["server"]
    before = server.snapshot()
    if kind != "serve":
        process = start_sshd(server, keys, openssh_or_skip(kind, keys.folder), extra)
    elif extra:
        process = start_configured_serve(server, keys, extra)
    else:
        process = start_serve(server, keys)
    site = Site(kind, lab["client"], server, keys, process, keys.folder / "known_hosts")
    yield site
    site.process.stop()
    assert difference(before, server.snapshot()) == ""


@contextlib.contextmanager
def unchanged(*hosts: Host) -> Iterator[None]:
    """Assert that hosts are soon as they were before the with block."""
    before = [host.snapshot() for host in hosts]
    yield
    for host, then in zip(hosts, before, strict=True):
        with contextlib.suppress(AssertionError):  # a server ends a client's part on its own time
            eventually(partial(_is_as, then, host), "as before")
        assert difference(then, host.snapshot()) == "", host.name


def _is_as(then: Snapshot, host: Host) -> bool:
    return difference(then, host.snapshot()) == ""


def type_in(host: Host, *commands: str) -> None:
    """Run commands of a shell, all of which succeed."""
    done = host.run("sh", "-ec", "\n".join(commands))
    assert done.returncode == 0, (commands, done.stderr)


def sent_bytes(client: Host) -> int:
    """Return how much has left by the client's cable."""
    (link,) = json.loads(client.run("ip", "-s", "-j", "link", "show", "eth0").stdout)
    return int(link["stats64"]["tx"]["bytes"])


def guardian_of(process: Child) -> int:
    """Return the guardian's process id."""
    for pid in children_of(process.process.pid):
        if b"guardian_process" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise AssertionError(f"{process.name} has no guardian")


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def kill_and_wait(*pids: int) -> None:
    """Kill processes that somebody else started, at once, and wait for their end."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: all(map(is_gone, pids)), f"the end of {pids}")


# ---- users and machines with fewer rights --------------------------------------------------------

NOBODY = 65_534


def as_nobody(*command: str) -> list[str]:
    """Return what runs a command as a user that may read every file and has no other right.

    Read, since the interpreter and this checkout may be root's.
    """
    only = "-all,+dac_read_search"
    return [
        "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
        f"--inh-caps={only}", f"--ambient-caps={only}", f"--bounding-set={only}", *command,
    ]  # fmt: skip


def with_tun_node(mode: str, *command: str) -> list[str]:
    """Return what runs a command, in a host, that sees another /dev/net/tun; mode "" for none.

    A host's programs have a mount namespace of their own.
    """
    make = f"mknod -m {mode} /dev/net/tun c 10 200" if mode else "true"
    script = f'mount -t tmpfs -o mode=755 none /dev/net && {make} && exec "$@"'
    return ["sh", "-c", script, "sh", *command]
