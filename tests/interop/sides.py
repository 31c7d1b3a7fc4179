"""Both sides of a comparison, ssh and `gateway connect`, and a sshd of either age for sessions."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

from tests.support.programs import GATEWAY, USER, client_options, make_keys, running_sshd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.programs import Endpoint, OpenSSH

SSH = [shutil.which("ssh") or "ssh"]
CONNECT = [*GATEWAY, "connect"]
HOST = f"{USER}@127.0.0.1"


def command(program: list[str], server: Endpoint, *arguments: str) -> list[str]:
    """Return what runs a client, one that does not warn of what only its age warns of."""
    quiet = ("-o", "IgnoreUnknown=Warn*", "-o", "WarnWeakCrypto=no")
    return [*program, *quiet, *client_options(server), *arguments]


@contextlib.contextmanager
def running_for_sessions(openssh: OpenSSH, config: str = "") -> Iterator[Endpoint]:
    """Run a sshd with the files and programs of this machine, whose host key both sides know."""
    keys = make_keys(openssh.folder / "session-keys")
    with running_sshd(keys, config, replace(openssh, chroots=False)) as server:
        for program in (SSH, CONNECT):
            done = subprocess.run(
                command(program, server, HOST, "true"), check=False,
                stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=30,
            )  # fmt: skip
            assert done.returncode == 0
        yield server
