"""libvirt on this machine: what is missing, its daemons where nobody has started them, and traces.

Where systemd runs, libvirt is started by its sockets, and it is the system's. Elsewhere (a
container, a machine without systemd) its two daemons are started here, and then all that libvirt
changed is taken back: forwarding and its chains too, which it leaves behind itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

CPU: Final = Path("/proc/cpuinfo")
KVM: Final = Path("/dev/kvm")
CONFIG: Final = Path("/etc/libvirt/qemu.conf")
URI: Final = "qemu:///system"
TOOLS: Final = {
    "vagrant": "vagrant vagrant-libvirt",
    "virsh": "libvirt-clients",
    "libvirtd": "libvirt-daemon-system",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "dnsmasq": "dnsmasq-base",
    "rsync": "rsync",
    "ssh": "openssh-client",
}
DAEMONS: Final = ("virtlogd", "libvirtd")
END_S: Final = 30
START_S: Final = 120  # for libvirtd: it asks QEMU what it can do
FORWARDING: Final = (Path("/proc/sys/net/ipv4/ip_forward"),
                     Path("/proc/sys/net/ipv6/conf/all/forwarding"))  # fmt: skip
NETWORKS: Final = ("vagrant-libvirt", "gateway-edge", "gateway-inner")


class CannotRun(Exception):
    """This machine lacks something; the message says what, and what to do."""


def output(*command: str) -> str:
    """What a command says on its standard output; nothing where it fails."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def virsh(*arguments: str) -> str:
    """What virsh says of the system's libvirt."""
    return output("virsh", "--quiet", "--connect", URI, *arguments)


def check_tools() -> None:
    """Raise `CannotRun` where a program is missing."""
    missing = [packages for tool, packages in TOOLS.items() if shutil.which(tool) is None]
    if not missing:
        plugins = (
            output("vagrant", "plugin", "list") if "vagrant-libvirt" not in _packages() else ""
        )
        if plugins and "vagrant-libvirt" not in plugins:
            missing.append("vagrant-libvirt")
    if missing:
        names = " ".join(missing)
        raise CannotRun(
            f"not installed: {names}. On Debian: apt-get install --no-install-recommends {names}"
        )


def _packages() -> str:
    return output("dpkg-query", "--show", "vagrant-libvirt")


@contextlib.contextmanager
def libvirt(state: Path, *, keep: bool) -> Iterator[None]:
    """Have a libvirt in this block. Where we started it, nothing of it stays.

    Unless we ``keep`` it: then the file ``state`` says what to take back, for the next time.
    """
    if virsh("version"):
        started = Started.load(state)
    elif Path("/run/systemd/system").is_dir():
        raise CannotRun("libvirt does not answer: systemctl start libvirtd, and be in its group")
    elif os.geteuid() != 0:
        raise CannotRun("libvirt is not running, and only root can start it")
    else:
        started = Started.now()
    try:
        if started is not None:
            started.save(state)
            started.start()
            started.save(state)
        yield
    finally:
        if started is not None and not keep:
            started.end()
            state.unlink()


@dataclass
class Started:
    """The daemons that we started, by name, and what the machine was like before."""

    forwarding: dict[str, str]
    tables: list[str]
    pids: dict[str, int] = field(default_factory=dict)

    @classmethod
    def now(cls) -> Started:
        """Nothing is started yet."""
        forwarding = {str(path): path.read_text() for path in FORWARDING if path.exists()}
        return cls(forwarding, output("nft", "list", "tables").splitlines())

    @classmethod
    def load(cls, state: Path) -> Started | None:
        """Take over what another run kept; None if libvirt is somebody else's."""
        try:
            kept = cls(**json.loads(state.read_text()))
        except OSError:
            return None
        pid = kept.pids.get("libvirtd")
        return kept if pid and _is_running("libvirtd", pid) else None

    def save(self, state: Path) -> None:
        """Write it down, for a run that is killed too."""
        state.write_text(json.dumps(asdict(self)))

    def start(self) -> None:
        """Start what does not run. What the daemons start, the machines too, is in no hurry."""
        before = _without_kvm()
        for daemon in DAEMONS:
            if daemon not in self.pids:
                process = subprocess.Popen(
                    [*before, "nice", "-n", "5", daemon],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
                self.pids[daemon] = process.pid
        deadline = time.monotonic() + START_S
        while not virsh("version"):
            if time.monotonic() > deadline:
                raise CannotRun(f"libvirtd does not answer within {START_S} s")
            time.sleep(0.5)

    def end(self) -> None:
        """End them, and take back what libvirt leaves behind when its daemon has ended."""
        _destroy_networks()
        for daemon, pid in reversed(self.pids.items()):
            if _is_running(daemon, pid):
                os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + END_S
            while _is_running(daemon, pid) and time.monotonic() < deadline:
                time.sleep(0.1)
        for program in ("iptables", "ip6tables"):
            for table in ("filter", "nat", "mangle"):
                _remove_chains(program, table)
        for line in output("nft", "list", "tables").splitlines():
            if line not in self.tables and not _has_rules(output("nft", "list", *line.split())):
                output("nft", "delete", *line.split())
        for path, value in self.forwarding.items():
            if Path(path).read_text() != value:
                Path(path).write_text(value)


def _is_running(name: str, pid: int) -> bool:
    """Say whether this process is that program still; our own child is waited for."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    with contextlib.suppress(OSError):
        found = Path(f"/proc/{pid}/stat").read_text()
        return f"({name})" in found and found.rpartition(")")[2].split()[0] != "Z"
    return False


def kvm_usable() -> bool:
    """Say whether this machine really has hardware virtualisation, as the Vagrantfile does."""
    flags = re.search(r"\b(vmx|svm)\b", CPU.read_text())
    return os.access(KVM, os.W_OK) and flags is not None


def _without_kvm() -> list[str]:
    """Return what to write before a daemon so that it sees no /dev/kvm that is none.

    Where QEMU, started as root, can open it and QEMU's user cannot, libvirt 9 takes what it knows
    of QEMU for out of date at every question, and asks QEMU again, for seconds. So a file that
    nobody may read is in its place, and libvirt must not arrange a /dev of its own for each
    machine, for it cannot move that file's mount. Both are seen by the daemon alone.
    """
    if kvm_usable() or not KVM.exists():
        return []
    script = f"""set -e
        mount -t tmpfs -o mode=755 none /mnt
        (umask 777 && : >/mnt/kvm)
        (cat {CONFIG}; echo 'namespaces = []') >/mnt/qemu.conf
        mount --bind /mnt/kvm {KVM}
        mount --bind /mnt/qemu.conf {CONFIG}
        umount --lazy /mnt
        exec "$@"
    """
    return ["unshare", "--mount", "sh", "-c", script, "sh"]


# ---- traces --------------------------------------------------------------------------------------


def _destroy_networks() -> None:
    for network in NETWORKS:
        if network in virsh("net-list", "--name").split():
            virsh("net-destroy", network)
        if network in virsh("net-list", "--all", "--name").split():
            virsh("net-undefine", network)


def _remove_chains(program: str, table: str) -> None:
    """Remove libvirt's chains, all named LIBVIRT_…, and the jumps to them."""
    rules = output(f"{program}-save", "-t", table).splitlines()
    for rule in rules:
        if re.match(r"-A \w+ -j LIBVIRT_", rule):
            output(program, "-t", table, "-D", *rule.split()[1:])
    chains = [rule[1:].split()[0] for rule in rules if rule.startswith(":LIBVIRT_")]
    for option in ("-F", "-X"):
        for chain in chains:
            output(program, "-t", table, option, chain)


def _has_rules(table: str) -> bool:
    """Say whether a table, as nft(8) lists it, has more than chains that let everything pass."""
    empty = r"table .*|chain .*|type .* policy accept;|[{}]|#.*|"
    return any(re.fullmatch(empty, line.strip()) is None for line in table.splitlines())
