"""WireGuard between two hosts: in userspace, a peer of `scripts/bench tun`, and in the kernel.

wireguard-go is Debian's. Both have the MTU that they choose by themselves, 1420. Both ends have a
device of another name, since the sockets by which wg(8) finds wireguard-go's are files of this
machine.
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


def why_not(*programs: str) -> str:
    """Why it cannot be measured here, or ""; by what ``programs`` it needs, else by all."""
    missing = [PROGRAMS[program] for program in programs or PROGRAMS if not shutil.which(program)]
    return f"not installed: apt-get install {' '.join(missing)}" if missing else ""


def note() -> str:
    """What to know of its row, or why there is none."""
    reason = why_not()
    return f"wireguard-go: {reason}" if reason else "wireguard-go: MTU 1500 outside and 1420 inside"


def connect(stack: ExitStack, folder: Path, ends: tuple[End, End]) -> tuple[Program, Program]:
    """Have a tunnel of wireguard-go between two hosts, with addresses; its processes."""
    programs = [_start(stack, end) for end in ends]
    _configure(folder, ends)
    return programs[0], programs[1]


def connect_in_kernel(folder: Path, ends: tuple[End, End]) -> None:
    """The same by the kernel's own."""
    for end in ends:
        _run(end.host, "ip", "link", "add", end.device, "type", "wireguard")
    _configure(folder, ends)


def _configure(folder: Path, ends: tuple[End, End]) -> None:
    keys = {}
    for end in ends:
        secret = _wg("genkey")
        file = folder / f"{end.device}.key"
        file.touch(mode=0o600)
        file.write_text(secret)
        keys[end.device] = (str(file), _wg("pubkey", data=secret).strip())
    for end, other in (ends, ends[::-1]):
        _run(
            end.host, "wg", "set", end.device, "private-key", keys[end.device][0],
            "listen-port", str(PORT), "peer", keys[other.device][1],
            "allowed-ips", f"{other.address}/32", "endpoint", f"{other.host.ipv4()}:{PORT}",
        )  # fmt: skip
        _run(end.host, "ip", "address", "add", f"{end.address}/24", "dev", end.device)
        _run(end.host, "ip", "link", "set", end.device, "up")


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
