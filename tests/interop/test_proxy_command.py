"""ProxyCommand and ProxyUseFdpass: the programs that guides name, through either server."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.interop.hops import host_block, run, with_lines, write_config
from tests.interop.sides import CONNECT, SSH
from tests.interop.targets import content, need
from tests.support.programs import (
    Endpoint,
    children_of,
    eventually,
    free_port,
    make_keys,
    running,
    running_sshd,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGE = content("command", 5_000_011)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    with running_sshd(make_keys(tmp_path_factory.mktemp("target"))) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def config(
    target: Endpoint, sshd: Endpoint, serve: Endpoint, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return write_config(
        tmp_path_factory.mktemp("commands") / "config",
        host_block("target", target),
        host_block("stock", sshd),
        host_block("box", serve),
    )


@pytest.mark.parametrize("jump", ["stock", "box"])
@pytest.mark.parametrize("program", [CONNECT, SSH], ids=["gateway", "ssh"])
def test_ssh_w_as_the_command(program: list[str], jump: str, config: Path) -> None:
    command = f"ProxyCommand=ssh -F {config} -W %h:%p {jump}"
    result = run(program, config, "-o", command, "target", "cat", data=LARGE)
    assert (result.stdout, result.returncode) == (LARGE, 0), result.stderr


def test_netcat(config: Path) -> None:
    need("nc")
    result = run(CONNECT, config, "-o", "ProxyCommand=nc %h %p", "target", "cat", data=LARGE)
    assert (result.stdout, result.returncode) == (LARGE, 0), result.stderr


def test_netcat_passes_its_connection(config: Path) -> None:
    need("nc")
    options = ["-o", "ProxyCommand=nc -F %h %p", "-o", "ProxyUseFdpass=yes"]
    result = run(CONNECT, config, *options, "target", "cat", data=LARGE)
    assert (result.stdout, result.returncode) == (LARGE, 0), result.stderr


def test_a_hop_by_a_command(config: Path, tmp_path: Path) -> None:
    need("nc")
    changed = with_lines(config, tmp_path, "Host box\n  ProxyCommand nc %h %p\n")
    result = run(CONNECT, changed, "-J", "box", "target", "cat", data=LARGE)
    assert (result.stdout, result.returncode) == (LARGE, 0), result.stderr


def test_its_tokens_and_errors(config: Path, target: Endpoint) -> None:
    """The shell sees what ssh's would; what the command says goes to our standard error."""
    command = "ProxyCommand=sh -c \"echo '%h %p %r %n %k %%' >&2; exit 3\""
    sides = [run(program, config, "-o", command, "target", "true") for program in (CONNECT, SSH)]
    for result in sides:
        assert f"127.0.0.1 {target.port} root target target %" in result.stderr.decode()
        assert result.returncode == 255


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("false", "the ProxyCommand false ended with status 1: what it said stands above"),
        ("/no/such/program", "the ProxyCommand /no/such/program cannot be run: check its name"),
        ("sh -c 'kill -9 $$'", "was ended by signal 9"),
        ("true", "the ProxyCommand true ended by itself: run it by hand to see why"),
    ],
)
def test_a_command_that_fails(command: str, said: str, config: Path) -> None:
    result = run(CONNECT, config, "-o", f"ProxyCommand={command}", "target", "true")
    assert said in result.stderr.decode()
    assert result.returncode == 255


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("true", "the ProxyCommand true ended by itself"),
        ("sleep 60", "passed no connection to 127.0.0.1 port"),
        ("sh -c 'echo x; exec sleep 60'", "passed no connection: does it know how to"),
    ],
)
def test_a_command_that_passes_nothing(command: str, said: str, config: Path) -> None:
    options = ["-o", f"ProxyCommand={command}", "-o", "ProxyUseFdpass=yes"]
    result = run(CONNECT, config, *options, "-o", "ConnectTimeout=1", "target", "true")
    assert said in result.stderr.decode()
    assert result.returncode == 255


def test_a_command_that_says_nothing(config: Path) -> None:
    options = ["-o", "ProxyCommand=sleep 60", "-o", "ConnectTimeout=1"]
    result = run(CONNECT, config, *options, "target", "true")
    assert "did not answer within 1 s" in result.stderr.decode()


@pytest.mark.parametrize("command", ["nc %h %p", "sh -c \"trap '' HUP; nc %h %p\""])
def test_the_command_ends_with_the_link(command: str, config: Path) -> None:
    """One that ignores SIGHUP too."""
    need("nc")
    arguments = ["-F", str(config), "-N", "-D", str(free_port()), "-o"]
    with running(*CONNECT, *arguments, f"ProxyCommand={command}", "target") as program:
        program.wait_line("SOCKS proxy on")
        children = children_of(program.pid)
        assert children
        program.signal(signal.SIGTERM)
        assert program.wait() == 255
    eventually(lambda: not any(map(is_alive, children)), "the command and its children ended")


def is_alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_the_link_ends_with_the_command(config: Path) -> None:
    need("nc")
    arguments = ["-F", str(config), "-N", "-D", str(free_port())]
    command = "ProxyCommand=nc %h %p"
    with running(*CONNECT, *arguments, "-o", command, "target") as program:
        program.wait_line("SOCKS proxy on")
        (child,) = children_of(program.pid)
        os.kill(child, signal.SIGKILL)
        assert program.wait() == 255
    assert any("the ProxyCommand nc " in line and "signal 9" in line for line in program.lines), (
        program.lines
    )
