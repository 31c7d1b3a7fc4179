"""wireguard-go, the WireGuard of userspace, between two hosts: a peer of `scripts/bench tun`.

It is Debian's, with the MTU that it chooses by itself, 1420. Both of its ends have a device of
another name, since the sockets by which wg(8) finds them are files of this machine.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bench.programs import fail
from tests.support.programs import eventually, running

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

    from netns.lab import Host
    from tests.support.programs import Program

PROGRAMS: Final = {"wireguard-go": "wireguard-go", "wg": "wireguard-tools"}
"""By the Debian package each is in."""

PORT: Final = 51_820


@dataclass(frozen=True)
class End:
    """One host, and what it has in the tunnel."""

    host: Host
    device: str
    address: str


def why_not() -> str:
    """Why it cannot be measured here, or ""."""
    missing = [package for program, package in PROGRAMS.items() if not shutil.which(program)]
    return f"not installed: apt-get install {' '.join(missing)}" if missing else ""


def note() -> str:
    """What to know of its row, or why there is none."""
    reason = why_not()
    return f"wireguard-go: {reason}" if reason else "wireguard-go: MTU 1500 outside and 1420 inside"


def connect(stack: ExitStack, folder: Path, ends: tuple[End, End]) -> tuple[Program, Program]:
    """Have a tunnel between two hosts, with addresses; its processes."""
    keys = {}
    for end in ends:
        secret = _wg("genkey")
        file = folder / f"{end.device}.key"
        file.touch(mode=0o600)
        file.write_text(secret)
        keys[end.device] = (str(file), _wg("pubkey", data=secret).strip())
    programs = [_start(stack, end) for end in ends]
    for end, other in (ends, ends[::-1]):
        _run(
            end.host, "wg", "set", end.device, "private-key", keys[end.device][0],
            "listen-port", str(PORT), "peer", keys[other.device][1],
            "allowed-ips", f"{other.address}/32", "endpoint", f"{other.host.ipv4()}:{PORT}",
        )  # fmt: skip
        _run(end.host, "ip", "address", "add", f"{end.address}/24", "dev", end.device)
        _run(end.host, "ip", "link", "set", end.device, "up")
    return programs[0], programs[1]


def _start(stack: ExitStack, end: End) -> Program:
    with end.host.inside():
        program = stack.enter_context(running("wireguard-go", "-f", end.device))
    what = "\n".join(("wireguard-go", *program.lines))
    eventually(lambda: not end.host.run("wg", "show", end.device).returncode, what)
    return program


def _run(host: Host, *command: str) -> None:
    done = host.run(*command)
    if done.returncode:
        fail(f"{' '.join(command[:3])}: {done.stderr.strip()}")


def _wg(command: str, *, data: str = "") -> str:
    return subprocess.run(
        ["wg", command], input=data, capture_output=True, text=True, check=True
    ).stdout
