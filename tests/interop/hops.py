"""Hosts with names, for tests of the ways to a server: a file that ssh(1) and we read."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.support.programs import USER

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.programs import Endpoint, Keys

OURS = f"{sys.executable} -m gateway"


def host_block(name: str, server: Endpoint, *lines: str, address: str = "127.0.0.1") -> str:
    """Return the block of a host that is one of our servers, with its keys."""
    return block(name, server.keys, server.port, *lines, address=address)


def block(name: str, keys: Keys, port: int, *lines: str, address: str, user: str = USER) -> str:
    """Return the block of any host that has keys of ours."""
    settings = (
        f"HostName {address}",
        f"Port {port}",
        f"User {user}",
        f"IdentityFile {keys.user}",
        f"UserKnownHostsFile {keys.known_hosts}",
        *lines,
    )
    return f"Host {name}\n" + "".join(f"  {line}\n" for line in settings)


COMMON = (
    "Host *\n  IdentitiesOnly yes\n  GlobalKnownHostsFile none\n  ConnectTimeout 10\n"
    "  StrictHostKeyChecking accept-new\n  LogLevel ERROR\n"
)


def write_config(path: Path, *blocks: str) -> Path:
    """Write a configuration file of blocks, the first of which win."""
    path.write_text("".join((*blocks, COMMON)))
    path.chmod(0o600)
    return path


def with_lines(config: Path, folder: Path, lines: str) -> Path:
    """Write another configuration file: one with lines that win over what it has."""
    return write_config(folder / "config", lines, config.read_text())


def run(
    program: list[str], config: Path, *arguments: str, data: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run ssh, or what is like it, to its end."""
    return subprocess.run(
        [*program, "-F", str(config), *arguments],
        input=data,
        capture_output=True,
        timeout=40,
        check=False,
        env={**os.environ, **environment},
        start_new_session=True,
    )
