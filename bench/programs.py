"""The programs that are measured, and what the kernel tells about them: time and memory."""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from bench import delay, relay
from netns import emulator
from netns.lab import Host, Lab, LabError, inside
from netns.topologies import TWO_HOSTS, with_line
from tests.support.programs import (
    GATEWAY,
    READY_TIMEOUT_S,
    Endpoint,
    Keys,
    Program,
    client_options,
    free_port,
    running,
    running_gateway_serve,
    running_sshd,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType
    from typing import Any, Self

    from netns.topologies import Topology

SAME_CIPHER = "aes128-gcm@openssh.com"
ENDS = [sys.executable, "-IS", str(Path(__file__).with_name("ends.py"))]
STEP_TIMEOUT_S = 180.0
CONGESTION_CONTROLS = ("cubic", "reno")
LIMIT = "two TCP relays"
SERVE_OPTIONS = ("--permit-open", "127.0.0.1:*", "--permit-listen", "localhost:*")
PORT_LINE = r"listening on (\d+)"


def fail(problem: str) -> NoReturn:
    sys.exit(f"bench: {problem}")


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


# ---- what is measured ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A line between client and server; a rate of 0 is none. Its delay is half of a round trip.

    It is `delay.py`'s on this host or, ``of_packets``, the lab's between two: there TCP is end to
    end, and what finds the buffer full is lost.
    """

    round_trip_ms: float
    rate_mbit: float
    buffer_bytes: int
    of_packets: bool = False
    loss: float = 0.0
    """The share of packets that never arrive, ``of_packets`` only."""

    @property
    def arguments(self) -> list[str]:
        """What the relay is told."""
        one_way_us = round(self.round_trip_ms * 500)
        return [str(one_way_us), str(round(self.rate_mbit * 1e6)), str(self.buffer_bytes)]

    @property
    def in_lab(self) -> emulator.Line:
        """The same for a lab."""
        return emulator.Line(
            self.rate_mbit, self.round_trip_ms / 2, self.buffer_bytes, loss=self.loss
        )

    @property
    def topology(self) -> Topology:
        """Client and server with this line between them."""
        return with_line(TWO_HOSTS, "client", "server", self.in_lab)


@dataclass(frozen=True)
class Spec:
    """A way from a client to a server, before it is started. ``peer``: compared with it.

    ``forward`` is the client's option: -D for the proxy, -L or -R for a port that leads to the data
    server. The client goes there through the same server ``jumps`` times before. ``starter`` starts
    what is neither.
    """

    name: str
    client: str
    server: str
    cipher: str = ""
    peer: str = ""
    line: Line | None = None
    tree: Path | None = None
    starter: Callable[[ExitStack, Bed, Spec], Case] | None = None
    forward: str = "-D"
    jumps: int = 0


@dataclass(frozen=True)
class Case:
    """One that runs. The pids are of its processes, with what they start."""

    spec: Spec
    entry_port: int
    client_pid: int
    server_pid: int
    server: Endpoint | None = None
    namespace: str = ""
    """Where its client is, if not in the machine's own network."""
    lab: Lab | None = None
    """The hosts it is between, if there are some."""

    @property
    def name(self) -> str:
        """What its figures are filed under."""
        return self.spec.name


@dataclass(frozen=True)
class Bed:
    """What all cases share. ``trees``: a suffix of names, and where that gateway is."""

    folder: Path
    keys: Keys
    bulk_port: int
    echo_port: int
    trees: dict[str, Path]
    languages: dict[str, str]


def standard_specs(
    bed: Bed, cipher: str = SAME_CIPHER, suffix: str = "", line: Line | None = None
) -> list[Spec]:
    """``ssh -D`` through sshd, and ours through both servers, of each tree."""
    peer = f"ssh -D → sshd{suffix}"
    found = [Spec(peer, "ssh", "sshd", cipher, line=line)]
    for tree, path in bed.trees.items():
        for server in ("sshd", "serve"):
            name = f"connect → {server}{suffix}{tree}"
            found.append(Spec(name, "connect", server, cipher, peer, line, path))
    return found


# ---- starting it ---------------------------------------------------------------------------------


@contextmanager
def tree_of(path: Path | None) -> Iterator[None]:
    """Programs started inside run this tree's gateway, not the one installed in .venv."""
    before = dict(os.environ)
    if path is not None:
        os.environ.update(PYTHONPATH=str(path), PYTHONSAFEPATH="1")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def own_program(bed: Bed, module: ModuleType) -> list[str]:
    """The command of a relay: in C where a compiler is found, else in Python."""
    name = module.__name__.rpartition(".")[2]
    source, program = bed.folder / f"{name}.c", bed.folder / name
    if name not in bed.languages:
        source.write_text(module.SOURCE)
        command = [shutil.which("cc") or "", "-O2", "-o", str(program), str(source)]
        done = bool(command[0]) and not subprocess.run(command, check=False).returncode
        bed.languages[name] = "C" if done else "Python"
    if bed.languages[name] == "C":
        return [str(program)]
    return [sys.executable, "-IS", str(module.__file__)]


def start_data_server(stack: ExitStack, port: int = 0) -> int:
    program = stack.enter_context(running(*ENDS, "server", str(port)))
    return int(program.wait_line(PORT_LINE)[1])


def start_relays(stack: ExitStack, bed: Bed) -> Case:
    ports, programs = [bed.bulk_port], []
    for _ in range(2):
        program = stack.enter_context(running(*own_program(bed, relay), str(ports[-1])))
        programs.append(program)
        ports.append(int(program.wait_line(PORT_LINE)[1]))
    return Case(Spec(LIMIT, "", ""), ports[-1], programs[1].pid, programs[0].pid)


def start_line(stack: ExitStack, bed: Bed, line: Line, target_port: int) -> int:
    """The port of a long line to ``target_port``."""
    command = [*own_program(bed, delay), str(target_port), *line.arguments]
    program = stack.enter_context(running(*command))
    return int(program.wait_line(PORT_LINE)[1])


def start_server(stack: ExitStack, bed: Bed, spec: Spec) -> Endpoint:
    with tree_of(spec.tree):
        if spec.server == "sshd":
            return stack.enter_context(running_sshd(bed.keys))
        return stack.enter_context(running_gateway_serve(bed.keys, *SERVE_OPTIONS))


def start_client(
    stack: ExitStack, spec: Spec, server: Endpoint, host: str = "127.0.0.1", target_port: int = 0
) -> tuple[Program, int, float]:
    """``ssh`` or ``gateway connect``, which take the same options; its port; when it was begun."""
    port = free_port()
    forward = str(port) if spec.forward == "-D" else f"{port}:127.0.0.1:{target_port}"
    options = ["-o", f"Ciphers={spec.cipher}"] if spec.cipher else []
    command = ["ssh"] if spec.client == "ssh" else [*GATEWAY, "connect"]
    where = f"{getpass.getuser()}@{host}"
    if spec.jumps:
        names = [f"hop{number}" for number in range(spec.jumps)]
        options += ["-J", ",".join(names), "-F", str(jump_config(server, spec.cipher, names))]
    with tree_of(spec.tree):
        started_s = time.perf_counter()
        program = stack.enter_context(
            running(*command, "-N", spec.forward, forward, *client_options(server), *options, where)
        )
    return program, port, started_s


def jump_config(server: Endpoint, cipher: str, names: list[str]) -> Path:
    """What -J has for the hops: no option of the command line is for them, but -F.

    They are the server by other names, or ssh calls it a loop.
    """
    keys, user = server.keys, getpass.getuser()
    path = keys.folder / "jump_config"
    path.write_text(
        f"Host {' '.join(names)}\nHostName 127.0.0.1\nPort {server.port}\nUser {user}\n"
        f"Host *\nIdentityFile {keys.user}\nIdentitiesOnly yes\nStrictHostKeyChecking accept-new\n"
        f"UserKnownHostsFile {keys.known_hosts}\nGlobalKnownHostsFile none\nCiphers {cipher}\n"
    )
    return path


def start(stack: ExitStack, bed: Bed, spec: Spec) -> Case:
    """Start a case, or its server alone; it runs until the stack is left."""
    if spec.starter is not None:
        return spec.starter(stack, bed, spec)
    if spec.name == LIMIT:
        return start_relays(stack, bed)
    if spec.line is not None and spec.line.of_packets:
        return start_between_hosts(stack, bed, spec, spec.line)
    server = near = start_server(stack, bed, spec)
    if not spec.client:
        return Case(spec, 0, 0, server.program.pid, server)
    if spec.line is not None:
        near = Endpoint(server.program, start_line(stack, bed, spec.line, server.port), server.keys)
    program, port, _ = start_client(stack, spec, near, target_port=bed.bulk_port)
    if spec.forward == "-D":
        wait_for_proxy(program, port)
    else:
        wait_until_ready(program, port, b"get 1\n", 1)
    return Case(spec, port, program.pid, server.program.pid, server)


def start_between_hosts(stack: ExitStack, bed: Bed, spec: Spec, line: Line) -> Case:
    """The same with client and server on hosts of their own; the ports are those of the bed."""
    lab = stack.enter_context(Lab(line.topology))
    near, far = lab["client"], lab["server"]
    for each in (near, far):
        choose_congestion_control(each)
    host = far.ipv4()
    with far.inside(), tree_of(spec.tree):
        for port in (bed.bulk_port, bed.echo_port):
            start_data_server(stack, port)
        if spec.server == "sshd":
            server = stack.enter_context(running_sshd(bed.keys, f"ListenAddress {host}"))
        else:
            options = ("--listen", f"{host}:0", "--permit-open", "127.0.0.1:*")
            server = stack.enter_context(running_gateway_serve(bed.keys, *options))
            port = int(server.program.wait_line(rf"listening on {re.escape(host)}:(\d+)")[1])
            server = replace(server, port=port)
    with near.inside():
        program, port, _ = start_client(stack, spec, server, host)
        wait_for_proxy(program, port)
    return Case(spec, port, program.pid, server.program.pid, server, near.namespace)


def choose_congestion_control(host: Host) -> None:
    """The first that the kernel has: both fill a buffer, whatever the machine uses."""
    for name in CONGESTION_CONTROLS:
        with suppress(OSError):
            host.sysctl("net.ipv4.tcp_congestion_control", name)
            return
    raise LabError("the kernel has none of " + ", ".join(CONGESTION_CONTROLS))


def wait_for_proxy(program: Program, port: int) -> None:
    """Ask until a SOCKS server answers."""
    wait_until_ready(program, port, b"\x05\x01\x00", 2)


def wait_until_ready(program: Program, port: int, question: bytes, length: int) -> None:
    """Ask until there is an answer of this length: ssh says nothing when it is ready.

    A port alone does not count: one that is bound before the login lets clients wait.
    """
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline and not program.ended:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=READY_TIMEOUT_S) as sock:
                sock.send(question)
                if len(sock.recv(length)) == length:
                    return
        except OSError:
            time.sleep(0.001)
    fail("it did not come up:\n" + "\n".join(program.lines))


# ---- the measuring client ------------------------------------------------------------------------


class Client:
    """A process that measures: started, perhaps waited for until it is ready, and asked."""

    def __init__(
        self, what: str, *command: str, tree: Path | None = None, namespace: str = ""
    ) -> None:
        self._what = what
        with tree_of(tree), inside(namespace):
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

    def wait_ready(self) -> None:
        """Return when it says that everything is open."""
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            self.finish()
            fail(f"{self._what}: it ended before it was ready")

    def finish(self) -> dict[str, Any]:
        """Tell one that holds something to let go; return what was measured."""
        try:
            output, errors = self._process.communicate(timeout=STEP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.stop()
            fail(f"{self._what}: not done within {STEP_TIMEOUT_S:.0f} s")
        if self._process.returncode:
            fail(f"{self._what}: {errors.strip() or self._process.returncode}")
        found = json.loads(output.splitlines()[-1])
        assert isinstance(found, dict)
        return found

    @property
    def ended(self) -> bool:
        """Whether it is done."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.ended:
            self.stop()


def client(case: Case, task: str, target_port: int, **options: float) -> Client:
    """Start to measure one thing through a case."""
    request = {
        "task": task,
        "entry": case.entry_port,
        "target": target_port,
        "through_socks": case.name != LIMIT and case.spec.forward == "-D",
        **options,
    }
    command = [*ENDS, "client", json.dumps(request)]
    return Client(f"{task} through {case.name}", *command, namespace=case.namespace)


def ask(case: Case, task: str, target_port: int, **options: float) -> dict[str, Any]:
    """Measure one thing through a case."""
    with client(case, task, target_port, **options) as asked:
        return asked.finish()


# ---- processor time and memory -------------------------------------------------------------------


def process_tree(root: int) -> list[int]:
    """A process and all below it."""
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                waiting += [int(child) for child in task.read_text().split()]
            except OSError:
                continue
    return found


def cpu_seconds(root: int) -> float:
    """Processor time of a process tree so far, with that of its children that have ended."""
    tick = os.sysconf("SC_CLK_TCK")
    total = 0.0
    for pid in process_tree(root):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            utime, stime, ended_utime, ended_stime = map(int, fields[11:15])
        except OSError:
            continue  # it ended between the two looks
        total += (exact_seconds(pid) or (utime + stime) / tick) + (ended_utime + ended_stime) / tick
    return total


def exact_seconds(pid: int) -> float:
    """The same in nanoseconds where the kernel tells: utime and stime count in 10 ms."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").glob("*/schedstat"))
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9
    except OSError:
        return 0.0


def memory_mb(root: int, kind: str) -> float:
    """What a process tree has in memory: ``Rss``, or ``Pss`` where its processes share pages."""
    total_kib = 0
    for pid in process_tree(root):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue  # it ended between the two looks
        total_kib += sum(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))
    return total_kib * 1024 / 1e6
