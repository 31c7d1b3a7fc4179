"""The guardian in a namespace: whatever ends it or its parent, the network is as it was before."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Self

import pytest

from netns.lab import Lab, ip
from netns.state import difference
from netns.topologies import TWO_HOSTS
from tests.netns.conftest import why_not
from tests.support.programs import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from netns.lab import Host

pytestmark = pytest.mark.netns

WITHOUT_RIGHTS = ("setpriv", "--inh-caps=-all", "--bounding-set=-all")
FORWARDING = "/proc/sys/net/ipv4/ip_forward"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A host with an idle device gw0, whose other end has a carrier and says nothing."""
    if reason := why_not[False]():
        pytest.skip(f"no network-namespace lab: {reason}")
    with Lab(TWO_HOSTS) as lab:
        client = lab["client"]
        run_ip = ("-n", client.namespace, "link")
        ip(*run_ip, "add", "gw0", "type", "veth", "peer", "name", "gw1")
        for device in ("gw0", "gw1"):
            ip(*run_ip, "set", device, "addrgenmode", "none", "up")
        ip(*run_ip, "set", "gw0", "down", "addrgenmode", "eui64")
        # Not what the kernel begins with: restoring these takes a write each.
        for path, value in (
            ("ipv4/conf/eth0/forwarding", "1"),
            ("ipv4/conf/all/accept_redirects", "0"),
            ("ipv6/conf/gw1/forwarding", "1"),
            ("ipv6/conf/gw1/accept_ra", "0"),
        ):
            write(client, f"/proc/sys/net/{path}", value)
        yield client


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the journals are, instead of /run/gateway."""
    folder = tmp_path / "run"
    monkeypatch.setenv("GATEWAY_RUN_DIR", str(folder))
    return folder


@pytest.fixture
def unchanged(host: Host, run_dir: Path) -> Iterator[None]:
    """Fails a test after which the host's network is not what it was, or a journal is left."""
    before = host.snapshot()
    yield
    assert difference(before, host.snapshot()) == ""
    assert [path.name for path in run_dir.iterdir()] == ["lock"]


class Program:
    """`tests.support.guarded` with a plan, in a host."""

    def __init__(self, host: Host, plan: str) -> None:
        command = host.command(sys.executable, "-m", "tests.support.guarded", plan)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.found: list[str] = []
        while (line := self._line()).startswith("found: "):
            self.found.append(line.removeprefix("found: "))
        ready = re.fullmatch(r"ready (\d+) (\d+)", line)
        assert ready, line + self.process.stderr.read()
        self.table, self.guardian = int(ready[1]), int(ready[2])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_details: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.wait_for_guardian()
        self.process.communicate()

    def apply(self, plan: str) -> None:
        self.process.stdin.write(plan + "\n")
        self.process.stdin.flush()
        assert self._line() == "applied"

    def end(self) -> list[str]:
        """End it in good order; what it says was undone."""
        output, errors = self.process.communicate(timeout=20)
        assert (self.process.returncode, errors) == (0, "")
        return [line.removeprefix("undone: ") for line in output.splitlines()]

    def kill(self, number: signal.Signals, *, guardian_too: bool = False) -> None:
        if guardian_too:
            os.kill(self.process.pid, signal.SIGSTOP)  # it shall not notice before it ends
            os.kill(self.guardian, signal.SIGKILL)
        self.process.send_signal(number)
        self.process.wait(60)

    def wait_for_guardian(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self.guardian)
            with os.fdopen(descriptor) as guardian:
                eventually(lambda: _has_ended(guardian.fileno()), "the guardian ends")

    def _line(self) -> str:
        return self.process.stdout.readline().rstrip("\n")


def _has_ended(pidfd: int) -> bool:
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return True
    return False


def cleanup(host: Host) -> list[str]:
    done = host.run(sys.executable, "-m", "gateway", "cleanup")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def write(host: Host, path: str, text: str) -> None:
    done = host.run("sh", "-c", f"echo {text} > {path}")
    assert done.returncode == 0, done.stderr


def read(host: Host, path: str) -> str:
    return host.run("cat", path).stdout.strip()


def of_ip(host: Host, *arguments: str) -> Any:
    return json.loads(ip("-n", host.namespace, "-j", *arguments))


# ---- every way to end ----------------------------------------------------------------------------


@pytest.mark.usefixtures("unchanged")
def test_what_a_plan_makes(host: Host) -> None:
    with Program(host, "client") as program:
        addresses = of_ip(host, "address", "show", "dev", "gw0")[0]
        assert addresses["mtu"] == 1400
        assert [a["local"] for a in addresses["addr_info"]] == ["10.8.0.2", "fd08::2"]
        routes = of_ip(host, "route", "show", "table", str(program.table))
        assert [(r.get("type"), r["dst"], r.get("prefsrc")) for r in routes] == [
            (None, "default", "10.8.0.2"),
            (None, "10.20.0.0/16", "10.8.0.2"),
            ("throw", "10.20.5.0/24", None),
        ]
        assert {rule["protocol"] for rule in of_ip(host, "-d", "rule")} == {"kernel", "103"}
        undone = program.end()
    assert len(undone) == 20
    assert undone[-1] == "sysctl -w net.ipv6.conf.gw0.accept_ra=0"


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("plan", "number"),
    [("client", signal.SIGTERM), ("client", signal.SIGKILL), ("server", signal.SIGKILL)],
)
def test_a_parent_that_is_killed(host: Host, plan: str, number: signal.Signals) -> None:
    with Program(host, plan) as program:
        os.kill(program.guardian, signal.SIGTERM)  # means nothing to it while its parent lives
        program.kill(number)
        program.wait_for_guardian()


@pytest.mark.usefixtures("unchanged")
def test_both_killed_then_cleanup(host: Host) -> None:
    with Program(host, "server") as program:
        assert cleanup(host) == ["nothing was left behind"]  # what runs is left alone
        program.kill(signal.SIGKILL, guardian_too=True)
    undone = cleanup(host)
    assert undone[0] == "undone: ip address add fd08::1 peer fd08::2/128 dev gw0 nodad"
    assert undone[-1] == f"undone: nft add table inet gateway-{program.table} …"


@pytest.mark.usefixtures("unchanged")
def test_both_killed_then_the_next_start(host: Host) -> None:
    with Program(host, "client") as first:
        first.kill(signal.SIGKILL, guardian_too=True)
    with Program(host, "client") as second:
        assert len(second.found) == 20
        assert second.table == first.table
        second.end()


@pytest.mark.usefixtures("unchanged")
def test_a_guardian_that_is_killed_is_replaced_at_the_end(host: Host) -> None:
    with Program(host, "client") as program:
        os.kill(program.guardian, signal.SIGKILL)
        assert len(program.end()) == 20


@pytest.mark.slow
@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("plan", ["subnets", "forwarding"])
def test_killed_at_every_step(host: Host, plan: str) -> None:
    done = host.run(sys.executable, "-m", "tests.support.guardian_faults", plan, timeout_s=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) >= 25


@pytest.mark.usefixtures("unchanged")
def test_a_cut_last_line_announced_nothing(host: Host, run_dir: Path) -> None:
    with Program(host, "subnets") as program:
        program.kill(signal.SIGKILL, guardian_too=True)
    (journal,) = run_dir.glob("*.journal")
    with journal.open("a") as file:
        file.write('\n{"make": 99, "plan": 1, "st')
    assert len(cleanup(host)) == 10


# ---- several at once -----------------------------------------------------------------------------


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("first_leaves_first", [True, False])
def test_the_last_one_turns_forwarding_off(host: Host, *, first_leaves_first: bool) -> None:
    with Program(host, "forwarding") as one, Program(host, "forwarding") as other:
        assert one.table != other.table
        assert read(host, "/proc/sys/net/ipv6/conf/eth0/accept_ra") == "2"
        leaving, staying = (one, other) if first_leaves_first else (other, one)
        leaving.end()
        assert read(host, FORWARDING) == "1"
        assert read(host, "/proc/sys/net/ipv6/conf/eth0/accept_ra") == "2"
        staying.end()


@pytest.mark.usefixtures("unchanged")
def test_what_the_first_one_noted_outlives_it(host: Host) -> None:
    with Program(host, "forwarding") as one, Program(host, "forwarding") as other:
        one.kill(signal.SIGKILL, guardian_too=True)
        cleanup(host)
        assert read(host, FORWARDING) == "1"
        other.end()


@pytest.mark.usefixtures("unchanged")
def test_forwarding_that_was_on_is_not_ours(host: Host) -> None:
    write(host, FORWARDING, "1")
    try:
        with Program(host, "forwarding") as program:
            text = host.run("nft", "list", "ruleset").stdout
            assert "meta nfproto ipv6 iifname" in text  # this family was no router before
            assert "meta nfproto ipv4 iifname" not in text
            program.end()
        assert read(host, FORWARDING) == "1"
    finally:
        write(host, FORWARDING, "0")
        write(host, "/proc/sys/net/ipv4/conf/all/accept_redirects", "0")
        write(host, "/proc/sys/net/ipv4/conf/eth0/forwarding", "1")


def test_what_others_change_meanwhile_is_left_alone(host: Host, run_dir: Path) -> None:
    before = host.snapshot()
    changed = {
        "/proc/sys/net/ipv4/conf/eth0/forwarding": "0",  # was on, as it is while we forward
        "/proc/sys/net/ipv4/conf/all/accept_redirects": "1",
        "/proc/sys/net/ipv6/conf/eth0/accept_ra": "0",
        "/proc/sys/net/ipv4/conf/gw0/rp_filter": "2",
    }
    old = {path: read(host, path) for path in changed}
    with Program(host, "server") as program:
        for path, value in changed.items():
            write(host, path, value)
        ip("-n", host.namespace, "address", "del", "10.8.0.1/32", "peer", "10.8.0.2", "dev", "gw0")
        ip("-n", host.namespace, "address", "add", "10.8.0.9/32", "dev", "gw0")
        host.run("nft", "delete", "table", "inet", f"gateway-{program.table}")
        program.end()
    assert {path: read(host, path) for path in changed} == changed
    for path, value in old.items():
        write(host, path, value)
    ip("-n", host.namespace, "address", "del", "10.8.0.9/32", "dev", "gw0")
    assert difference(before, host.snapshot()) == ""


def test_forwarding_that_others_turned_off_stays_off(host: Host, run_dir: Path) -> None:
    before = host.snapshot()
    with Program(host, "forwarding") as program:
        write(host, FORWARDING, "0")
        program.end()
    write(host, "/proc/sys/net/ipv4/conf/all/accept_redirects", "0")  # the kernel did those two
    write(host, "/proc/sys/net/ipv4/conf/eth0/forwarding", "1")
    assert difference(before, host.snapshot()) == ""


# ---- what the kernel refuses ---------------------------------------------------------------------


@pytest.mark.usefixtures("unchanged")
def test_a_plan_that_fails_is_undone_and_says_what_the_kernel_said(host: Host) -> None:
    script = """
import trio
from gateway.errors import NetworkSetupError
from gateway.tun.guardian import Guardian
from gateway.tun.steps import Address, Link, Route

async def main():
    async with Guardian() as guardian:
        table = guardian.table
        for third in (
            Route(table, "ipv4", "10.20.0.0/16", "gw0", preferred_source="192.0.2.1"),
            Address("gw9", "10.8.0.3/32"),
            Address("eth0", "10.99.0.1/24"),
        ):
            try:
                await guardian.apply([Link("gw0", 1400), Address("gw0", "10.8.0.2/32"), third])
            except NetworkSetupError as error:
                print(error)
    print(guardian.undone.undone)

trio.run(main)
"""
    done = host.run(sys.executable, "-c", script)
    assert done.stdout.splitlines() == [
        (
            "`ip route add 10.20.0.0/16 dev gw0 src 192.0.2.1 table 26487 proto 103` failed:"
            " Invalid argument; everything is as it was before"
        ),
        (
            "`ip address add 10.8.0.3/32 dev gw9` failed: there is no device gw9;"
            " everything is as it was before"
        ),
        (
            "`ip address add 10.99.0.1/24 dev eth0` failed: File exists;"
            " everything is as it was before"
        ),
        "()",
    ], done.stderr


@pytest.mark.usefixtures("unchanged")
def test_one_of_several_plans_is_undone_alone(host: Host) -> None:
    script = """
import json, trio
from gateway.tun.guardian import Guardian
from gateway.tun.steps import Address, Link

async def main():
    async with Guardian() as guardian:
        await guardian.apply([Link("gw0", 1400), Address("gw0", "10.8.0.2/32")])
        second = await guardian.apply([Address("gw0", "10.8.0.3/32")])
        await guardian.apply([Address("gw0", "10.8.0.4/32")])
        print((await guardian.undo(second)).undone)
        with trio.CancelScope() as scope:
            scope.cancel()
            await guardian.apply([Address("gw0", "10.8.0.5/32")])
        print(scope.cancelled_caught)
        with trio.CancelScope() as scope:
            async with Guardian() as inner:
                await inner.apply([Address("gw0", "10.8.0.6/32")])
                scope.cancel()
                await trio.sleep_forever()
        print(inner.undone.undone)
    print(*guardian.undone.undone, sep="\\n")

trio.run(main)
"""
    done = host.run(sys.executable, "-c", script)
    assert done.stdout.splitlines() == [
        "('ip address add 10.8.0.3/32 dev gw0',)",
        "True",
        "('ip address add 10.8.0.6/32 dev gw0',)",
        "ip address add 10.8.0.4/32 dev gw0",
        "ip address add 10.8.0.2/32 dev gw0",
        "ip link set dev gw0 mtu 1400 up",
    ], done.stderr


def test_a_dry_run_needs_no_rights_and_changes_nothing(host: Host, run_dir: Path) -> None:
    script = """
import trio
from gateway.tun.guardian import look
from gateway.tun.plan import main_routes

table, facts = trio.run(look)
print(table, *(f"{r.destination} {r.device}" for r in main_routes("", facts)))
"""
    before = host.snapshot()
    done = host.run(*WITHOUT_RIGHTS, sys.executable, "-c", script)
    assert done.stdout == "26487 10.99.0.0/24 eth0 fd99::/64 eth0\n", done.stderr
    assert difference(before, host.snapshot()) == ""
    assert not run_dir.exists()


def test_who_may_not_change_the_network_is_told(host: Host, run_dir: Path) -> None:
    done = host.run(*WITHOUT_RIGHTS, sys.executable, "-m", "gateway", "cleanup")
    assert (done.returncode, done.stderr) == (
        255,
        (
            "gateway: this machine's network may be changed by root alone (CAP_NET_ADMIN):"
            " run it with sudo\n"
        ),
    )


def test_a_folder_that_others_may_write_is_refused(host: Host, run_dir: Path) -> None:
    run_dir.mkdir()
    run_dir.chmod(0o777)
    done = host.run(sys.executable, "-m", "gateway", "cleanup")
    assert (done.returncode, done.stderr) == (
        255,
        (
            f"gateway: {run_dir} could be changed by others: it must be a folder of root's"
            " with mode 0700\n"
        ),
    )


# ---- other namespaces ----------------------------------------------------------------------------


def test_journals_of_other_networks(host: Host, run_dir: Path) -> None:
    with Lab(TWO_HOSTS) as elsewhere:
        run_ip = ("-n", elsewhere["client"].namespace, "link")
        ip(*run_ip, "add", "gw0", "type", "veth", "peer", "name", "gw1")
        ip(*run_ip, "set", "gw1", "up")
        with Program(elsewhere["client"], "subnets") as program:
            program.kill(signal.SIGKILL, guardian_too=True)
        (journal,) = run_dir.glob("*.journal")
        assert cleanup(host) == ["nothing was left behind"]
        assert journal.exists()  # its network is still there

    # The kernel may give the inode of a network that is gone to another one, and this machine has
    # other tests on it: so what the journal says is changed here, not the machine.
    text = journal.read_text()
    (inode,) = re.findall(r'"network": (\d+)', text)
    ours = host.run("stat", "-L", "-c", "%i", "/proc/self/ns/net").stdout.strip()
    for gone in ("1", ours):  # of no network, and of this one, which has another cookie
        journal.write_text(text.replace(f'"network": {inode}', f'"network": {gone}'))
        assert cleanup(host) == ["nothing was left behind"]
        assert not journal.exists()


# ---- a real tunnel -------------------------------------------------------------------------------

ECHO = """
import socket, sys
listener = socket.create_server((sys.argv[1], 0))
print("port", listener.getsockname()[1], flush=True)
connection, _ = listener.accept()
while data := connection.recv(100):
    connection.sendall(data)
"""


def test_the_carrier_is_not_swallowed_though_its_server_is_in_the_subnet(
    two_hosts: Lab, run_dir: Path
) -> None:
    """T71, and strict rp_filter, which drops the server's answers where no rule is about them."""
    client, server = two_hosts["client"], two_hosts["server"]
    ip("-n", server.namespace, "address", "add", "10.20.1.1/32", "dev", "lo")
    ip("-n", client.namespace, "route", "add", "default", "via", server.ipv4())
    ip("-n", client.namespace, "route", "add", "default", "via", server.ipv6())
    client.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter")
    echo = server.start(sys.executable, "-c", ECHO, "10.20.1.1")
    port = echo.wait_for_line(r"port (\d+)", 10)[1]
    before = client.snapshot()
    command = [sys.executable, "-m", "tests.support.routed_tun", "10.20.1.1", port]
    done = subprocess.run(
        client.command(*command), input="\n", capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    said = json.loads(done.stdout)
    assert said == {
        "echo": "still here",
        "tunnelled": "through the tunnel",
        "server": "tun0",
        "carrier": "eth0",
        "subnet": "tun0",
        "excluded": "eth0",
        "neighbour": "eth0",
        "internet": "tun0",
        "internet6": "RTNETLINK answers: No route to host",  # the lease has no IPv6
        "neighbour6": "eth0",
    }
    eventually(lambda: [p.name for p in run_dir.iterdir()] == ["lock"], "the guardian is done")
    assert difference(before, client.snapshot()) == ""
