"""-J and ProxyJump: chains of stock sshd and `gateway serve`, for our client and the stock one."""

from __future__ import annotations

import contextlib
import shlex
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.interop.hops import host_block, run, with_lines, write_config
from tests.interop.sides import CONNECT, SSH
from tests.interop.targets import content
from tests.support.programs import (
    Endpoint,
    OpenSSH,
    Terminal,
    eventually,
    free_port,
    make_keys,
    open_sockets,
    running,
    running_gateway_serve,
    running_sshd,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LARGE = content("hops", 9_000_011)


@pytest.fixture(scope="module")
def config(
    sshd: Endpoint, serve: Endpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Hosts stock and box, more of each kind, and the target, an sshd with keys of its own."""
    folder = tmp_path_factory.mktemp("hops")
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(running_sshd(make_keys(folder / "target")))
        stock2 = stack.enter_context(running_sshd(make_keys(folder / "stock2")))
        box2 = stack.enter_context(running_gateway_serve(make_keys(folder / "box2")))
        yield write_config(
            folder / "config",
            host_block("target", target),
            host_block("stock", sshd),
            host_block("box", serve),
            host_block("stock2", stock2),
            host_block("box2", box2),
            host_block("behind", target, "ProxyJump box"),
            host_block("far", target, "ProxyJump box2,stock"),
            host_block("far-by-steps", target, "ProxyJump step"),
            host_block("step", sshd, "ProxyJump box"),
            host_block("direct", target, "ProxyCommand none", "ProxyJump nowhere"),
        )


CHAINS = ["stock", "box", "stock,box", "box,stock", "box,box2", "stock,stock2",
          "box,stock,box2", "stock,box,stock2"]  # fmt: skip


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("program", [CONNECT, SSH], ids=["gateway", "ssh"])
def test_a_chain_carries_both_ways(program: list[str], chain: str, config: Path) -> None:
    result = run(program, config, "-J", chain, "target", "cat", data=LARGE)
    assert result.returncode == 0, result.stderr
    assert result.stdout == LARGE


def test_the_newest_openssh_as_hop_and_as_client(
    openssh: OpenSSH, config: Path, serve: Endpoint, tmp_path: Path
) -> None:
    with running_sshd(make_keys(openssh.folder / "hop"), openssh=openssh) as hop:
        changed = with_lines(config, tmp_path, host_block("aged", hop))
        for chain in ("aged,box", "box,aged"):
            result = run(CONNECT, changed, "-J", chain, "target", "cat", data=LARGE)
            assert (result.stdout, result.returncode) == (LARGE, 0), result.stderr
        ssh = openssh.on_this_machine("ssh")
        way = f"ProxyCommand={shlex.join([*ssh, '-F', str(changed), '-W'])} %h:%p box"
        result = run(ssh, changed, "-o", way, "target", "cat", data=LARGE)
        assert (result.stdout, result.returncode) == (LARGE, 0), result.stderr


@pytest.mark.parametrize("host", ["behind", "far", "far-by-steps", "direct"])
def test_proxy_jump_of_the_configuration(host: str, config: Path) -> None:
    result = run(CONNECT, config, host, "echo there; exit 7")
    assert (result.stdout, result.returncode) == (b"there\n", 7), result.stderr


# -- what goes wrong -------------------------------------------------------------------------------


def connect_fails(config: Path, *arguments: str) -> str:
    result = run(CONNECT, config, *arguments, "true")
    assert result.returncode == 255, result
    lines = [line for line in result.stderr.decode().splitlines() if ": added [" not in line]
    assert len(lines) == 1, lines
    return lines[0]


def test_a_hop_that_is_down_is_named(config: Path, tmp_path: Path) -> None:
    changed = with_lines(config, tmp_path, f"Host stock2\n  Port {free_port()}\n")
    port = changed.read_text().split()[3]
    said = connect_fails(changed, "-J", "stock2,box", "target")
    assert f"cannot connect to 127.0.0.1 port {port}: Connection refused: nothing list" in said
    for first in ("stock", "box"):
        said = connect_fails(changed, "-J", f"{first},stock2", "target")
        assert f" does not connect to 127.0.0.1 port {port}: Connection refused: check the" in said


def test_a_hop_that_refuses_the_login_is_named(config: Path) -> None:
    said = connect_fails(config, "-J", "box,nobody-here@stock", "target")
    assert "nobody-here@127.0.0.1 port " in said
    assert "refused the login" in said


def test_a_hop_with_another_host_key_is_named(
    config: Path, serve: Endpoint, tmp_path: Path
) -> None:
    known = tmp_path / "known_hosts"
    other = make_keys(tmp_path / "other").host.with_suffix(".pub").read_text()
    known.write_text(f"[127.0.0.1]:{serve.port} {other}")
    changed = with_lines(config, tmp_path, f"Host box\n  UserKnownHostsFile {known}\n")
    said = connect_fails(changed, "-J", "stock,box", "target")
    assert f"THE HOST KEY OF [127.0.0.1]:{serve.port} HAS CHANGED" in said


def test_a_hop_that_forbids_forwarding_is_named(config: Path, tmp_path: Path) -> None:
    with running_sshd(make_keys(tmp_path / "keys"), "AllowTcpForwarding no") as closed:
        changed = with_lines(config, tmp_path, host_block("closed", closed))
        said = connect_fails(changed, "-J", "box,closed", "target")
    assert f"127.0.0.1 port {closed.port} does not connect to 127.0.0.1 port " in said
    assert said.endswith("its administrator has to allow this forwarding")


def test_ways_that_go_in_a_circle_are_refused(config: Path, tmp_path: Path) -> None:
    lines = (
        "Host a\n  ProxyJump b\nHost b\n  ProxyJump a\nHost self\n  ProxyJump self\n"
        "Host d\n  ProxyJump e\nHost *\n  ProxyJump e\n"
    )
    changed = with_lines(config, tmp_path, lines)
    assert "the way goes in a circle: a → b → a" in connect_fails(changed, "a")
    assert "the way goes in a circle: self → self" in connect_fails(changed, "self")
    said = connect_fails(changed, "d")
    assert "the way goes in a circle: e → e: write ProxyJump none for e, or exclude it" in said
    for option in ("-JB", "-oProxyJump=b", "-oProxyCommand=b"):
        assert "-J stands behind another" in connect_fails(config, option, "-J", "a", "target")


def test_options_of_the_command_line_are_not_for_the_hops(config: Path, tmp_path: Path) -> None:
    result = run(CONNECT, config, "-J", "box", "-i", "/nonexistent", "-p", "1", "target", "true")
    assert b"port 1: Connection refused" in result.stderr


def test_when_a_hop_dies_the_others_end_with_its_reason(
    config: Path, sshd: Endpoint, tmp_path: Path
) -> None:
    with running_gateway_serve(make_keys(tmp_path / "keys")) as box:
        changed = with_lines(config, tmp_path, host_block("dying", box))
        command = [*CONNECT, "-F", str(changed), "-N", "-D", str(free_port()), "-J", "dying,stock"]
        with running(*command, "target") as program:
            program.wait_line("SOCKS proxy on")
            box.program.signal(signal.SIGKILL)
            assert program.wait() == 255
    port = changed.read_text().split()[5]
    assert any(f"connection to 127.0.0.1 port {port} lost" in line for line in program.lines), (
        program.lines
    )


def test_a_silent_hop_ends_the_chain(config: Path, tmp_path: Path) -> None:
    alive = "  ServerAliveInterval 1\n  ServerAliveCountMax 1\n"
    with running_gateway_serve(make_keys(tmp_path / "keys")) as box:
        changed = with_lines(config, tmp_path, host_block("dying", box) + alive)
        command = [*CONNECT, "-F", str(changed), "-N", "-D", str(free_port()), "-J", "dying"]
        with running(*command, "target") as program:
            program.wait_line("SOCKS proxy on")
            box.program.signal(signal.SIGSTOP)
            try:
                assert program.wait() == 255
            finally:
                box.program.signal(signal.SIGCONT)
    assert any(
        "not a sign of life for" in line and f"127.0.0.1 port {box.port}" in line
        for line in program.lines
    ), program.lines


def test_prompts_name_the_hop(config: Path, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    lines = f"Host box target\n  StrictHostKeyChecking ask\n  UserKnownHostsFile {known}\n"
    changed = with_lines(config, tmp_path, lines)
    with Terminal(*CONNECT, "-F", str(changed), "-J", "box", "target", "echo done") as person:
        ports = [line.split()[1] for line in config.read_text().splitlines() if "Port" in line]
        person.expect(rf"\[127.0.0.1\]:{ports[2]}.* is not known")  # the box
        person.type("yes")
        person.expect(rf"\[127.0.0.1\]:{ports[0]}.* is not known")
        person.type("yes")
        person.expect("done")
        assert person.wait() == 0


def test_a_hop_asks_nothing_while_the_next_host_is_logged_in_to(
    config: Path, tmp_path: Path
) -> None:
    """What is answered to its offer of host keys cannot be taken for trust in the next host."""
    keys, other = make_keys(tmp_path / "hop"), tmp_path / "ecdsa"
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", other], check=True)
    with running_sshd(keys, f"HostKey {other}") as hop:
        keys.known_hosts.write_text(
            f"[127.0.0.1]:{hop.port} {keys.host.with_suffix('.pub').read_text()}"
        )
        lines = host_block("hop", hop, "UpdateHostKeys ask")
        lines += "Host target\n  StrictHostKeyChecking ask\n"
        lines += f"  UserKnownHostsFile {tmp_path}/known\n"
        changed = with_lines(config, tmp_path, lines)
        command = [*CONNECT, "-F", str(changed), "-N", "-D", str(free_port()), "-J", "hop"]
        with Terminal(*command, "target") as person:
            person.expect(r"Connect \(yes/no/fingerprint\)\? ")
            assert "Record that" not in person.seen
            person.type("yes")
            person.expect(r"Record that \(yes/no\)\? ")
            person.type("yes")
            person.expect("known_hosts, .*: added ecdsa")


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_hop_forgets_us(config: Path, tmp_path: Path, end: signal.Signals) -> None:
    """However the client ends, the hop closes its connection to the target."""
    with running_gateway_serve(make_keys(tmp_path / "keys")) as box:
        changed = with_lines(config, tmp_path, host_block("mine", box))
        before = open_sockets(box.program.pid)
        command = [*CONNECT, "-F", str(changed), "-N", "-D", str(free_port()), "-J", "mine"]
        with running(*command, "target") as program:
            program.wait_line("SOCKS proxy on")
            assert open_sockets(box.program.pid) > before
            program.signal(end)
            program.wait()
        eventually(lambda: open_sockets(box.program.pid) == before, "the hop closed both")
