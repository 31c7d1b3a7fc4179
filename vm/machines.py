"""Vagrant and its three machines: up, a shell in each, and away again."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from scripts.child import Child, ChildError
from vm.host import virsh

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).resolve().parents[1]
CACHE: Final = ROOT / ".lab"
BOX: Final = "gateway/debian-12"
BOX_FILE: Final = CACHE / "debian-12.box"
LOG: Final = CACHE / "vagrant.log"
UP_S: Final = 1800
COMMAND_S: Final = 120
NAMES: Final = ("client", "jump", "target")


class VagrantError(Exception):
    """Vagrant could not do it; the message has its last lines."""


def environment() -> dict[str, str]:
    """What Vagrant is to know: our box unless the person names another one."""
    found = dict(os.environ)
    if "LAB_BOX" not in found:
        found |= {"LAB_BOX": BOX, "LAB_BOX_FILE": str(BOX_FILE)}
    return found | {
        "VAGRANT_CWD": str(ROOT),
        "VAGRANT_DEFAULT_PROVIDER": "libvirt",
        "VAGRANT_NO_COLOR": "1",
        "VAGRANT_CHECKPOINT_DISABLE": "1",
    }


def vagrant(*arguments: str, timeout_s: float = UP_S) -> str:
    """Run Vagrant to its end; return what it says. Raises `VagrantError`."""
    with LOG.open("a+") as log:  # written as it goes, for a person who waits
        log.write(f"$ vagrant {' '.join(arguments)}\n")
        log.flush()
        begin = log.tell()
        done = subprocess.run(
            ["vagrant", "--no-tty", *arguments],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
        )
        log.seek(begin)
        said = log.read()
    if done.returncode:
        last = "\n    ".join(said.strip().splitlines()[-8:])
        raise VagrantError(f"vagrant {arguments[0]} failed; all of it is in {LOG}:\n    {last}")
    return said


@dataclass(frozen=True)
class Machine:
    """A machine that is up. ``address`` is the one by which this host reaches it."""

    name: str
    address: str
    config: Path

    def command(self, command: str) -> list[str]:
        """The ssh command that has its shell run a command."""
        return ["ssh", "-F", str(self.config), self.name, command]

    def run(self, command: str, timeout_s: float = COMMAND_S) -> subprocess.CompletedProcess[str]:
        """Run a shell's command as the user vagrant."""
        return subprocess.run(
            self.command(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def check(self, command: str, timeout_s: float = COMMAND_S) -> str:
        """Run it and return its output; it must end with 0, else AssertionError."""
        done = self.run(command, timeout_s)
        said = f"{done.stdout}{done.stderr}".strip()[-600:]
        assert done.returncode == 0, f"{self.name}: {command}: status {done.returncode}: {said}"
        return done.stdout

    def until(self, command: str, timeout_s: float = COMMAND_S) -> str:
        """Run it again and again until it ends with 0."""
        deadline = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                done = self.run(command, 30)
                if done.returncode == 0:
                    return done.stdout
            assert time.monotonic() < deadline, (
                f"{self.name}: not within {timeout_s:.0f} s: {command}"
            )
            time.sleep(1)

    @contextlib.contextmanager
    def running(self, command: str, ready: str, timeout_s: float = COMMAND_S) -> Iterator[Child]:
        """Have a program run for this block, from when it says ``ready``; it ends as by Ctrl-C."""
        number = f"/tmp/{os.getpid()}-{time.monotonic_ns()}.pid"
        # The shell becomes the program (after sudo: its child), so the number is its own.
        child = Child(command, self.command(f"{_with_number(command, number)}"))
        try:
            child.wait_for_line(ready, timeout_s)
            yield child
        finally:
            if child.process.poll() is None:
                self.run(f"sudo kill -INT $(cat {number})")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(COMMAND_S)
            child.stop()

    def says_of_network(self) -> str:
        """Everything of its network that a VPN changes, but what expires by itself."""
        said = self.check(
            "sudo sh -c 'ip -br address; ip rule; ip -6 rule; ip route show table all; "
            'ip -6 route show table all | sed "s/ expires [0-9]*sec//"; nft list ruleset; '
            "sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding'"
        )
        said = re.sub(r" packets \d+ bytes \d+", "", said)
        return re.sub(r"\n\s*elements = \{[^}]* ct count over [^}]*\}", "", said)


def _with_number(command: str, file: str) -> str:
    words, prefix = command, ""
    if command.startswith("sudo "):
        words, prefix = command.removeprefix("sudo "), "sudo "
    return f"{prefix}sh -c {shlex.quote(f'echo $$ >{file}; exec {words}')}"


def machines() -> dict[str, Machine]:
    """The three machines that are up, from what `vagrant ssh-config` says."""
    text = vagrant("ssh-config")
    path = CACHE / "ssh_config"
    shared = (
        f"Host *\n  ControlMaster auto\n  ControlPath {CACHE}/ssh-%n\n  ControlPersist 60\n"
        "  ServerAliveInterval 5\n  ServerAliveCountMax 3\n"
    )
    path.write_text(text[text.index("Host ") :] + shared)
    found = {}
    for block in re.split(r"^Host ", text, flags=re.MULTILINE)[1:]:
        name = block.split()[0]
        address = re.search(r"HostName (\S+)", block)
        assert address is not None
        found[name] = Machine(name, address[1], path)
    return found


def forget_connection(machine: Machine) -> None:
    """Have the next command log in anew: the machine has been away."""
    subprocess.run(
        ["ssh", "-F", str(machine.config), "-O", "exit", machine.name],
        capture_output=True,
        check=False,
    )


# ---- away again ----------------------------------------------------------------------------------


def box_is_known() -> bool:
    """Say whether Vagrant has our box already."""
    return f"{BOX} " in vagrant("box", "list")


def remove_leftovers() -> None:
    """Remove machines of ours that libvirt has and Vagrant has not: of an `up` that failed."""
    known = virsh("list", "--all", "--name").split()
    for name in NAMES:
        domain, disk = f"{ROOT.name}_{name}", f"{ROOT.name}_{name}.img"
        if domain in known and not (ROOT / f".vagrant/machines/{name}/libvirt/id").exists():
            virsh("destroy", domain)
            virsh("undefine", domain)
            virsh("vol-delete", "--pool", "default", disk)


def remove_box() -> None:
    """Remove our box from Vagrant, and its image from libvirt, which Vagrant leaves there."""
    with contextlib.suppress(VagrantError):
        vagrant("box", "remove", "--force", "--all", BOX)
    for line in virsh("vol-list", "default").splitlines():
        volume = line.split()[0]
        if volume.startswith(BOX.replace("/", "-VAGRANTSLASH-")):
            virsh("vol-delete", "--pool", "default", volume)


__all__ = ["Child", "ChildError", "Machine", "VagrantError", "machines", "vagrant"]
