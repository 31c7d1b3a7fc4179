"""`gateway connect host command` against a stock sshd: what ssh(1) would do."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.interop.targets import content
from tests.support.programs import GATEWAY, USER, client_options, free_port

if TYPE_CHECKING:
    from tests.support.programs import Endpoint

LARGE = content("exec", 5_000_011)
HOST = f"{USER}@127.0.0.1"


def connect(
    sshd: Endpoint, *arguments: str, data: bytes | None = b""
) -> subprocess.CompletedProcess[bytes]:
    options = ["-o", "LogLevel=ERROR", *client_options(sshd)]
    return _run(*options, *arguments, data=data)


def _run(*arguments: str, data: bytes | None = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*GATEWAY, "connect", *arguments], input=data, capture_output=True, timeout=40, check=False
    )


@pytest.fixture(scope="module", autouse=True)
def _known(sshd: Endpoint) -> None:
    """Have the host key recorded: that message is not what these tests look at."""
    assert connect(sshd, HOST, "true").returncode == 0


def test_output_errors_and_status(sshd: Endpoint) -> None:
    result = connect(sshd, HOST, "echo out; echo err >&2; exit 3")
    assert (result.stdout, result.stderr, result.returncode) == (b"out\n", b"err\n", 3)


@pytest.mark.parametrize("status", [0, 1, 127, 254, 255])
def test_the_status_is_the_commands(sshd: Endpoint, status: int) -> None:
    assert connect(sshd, HOST, f"exit {status}").returncode == status


def test_a_command_that_a_signal_ended(sshd: Endpoint) -> None:
    assert connect(sshd, HOST, "kill -TERM $$").returncode == 255


def test_the_words_of_a_command_are_joined_by_blanks(sshd: Endpoint) -> None:
    result = connect(sshd, HOST, "printf", "'[%s]'", "a", "'b  c'", "-N", "-p")
    assert result.stdout == b"[a][b  c][-N][-p]"


def test_options_after_the_host(sshd: Endpoint) -> None:
    result = connect(sshd, HOST, "-n", "-T", "echo", "-n", "words")
    assert (result.stdout, result.returncode) == (b"words", 0)


def test_two_dashes_end_the_options(sshd: Endpoint) -> None:
    assert connect(sshd, HOST, "--", "echo", "-N").stdout == b"-N\n"
    assert connect(sshd, "--", HOST, "-n", "echo", "-N").stdout == b"-N\n"


def test_user_and_port_in_every_form(sshd: Endpoint) -> None:
    port, options = str(sshd.port), client_options(sshd)
    assert options[2:4] == ["-p", port]
    without_port = [*options[:2], *options[4:]]
    for form in (
        [f"ssh://{USER}@127.0.0.1:{port}"],
        ["-p", port, "-l", USER, "127.0.0.1"],
        [f"-p{port}", f"-l{USER}", "127.0.0.1"],
        ["-o", f"Port={port}", "-o", f"User {USER}", "127.0.0.1"],
        ["127.0.0.1", "-p", port, "-l", USER],
    ):
        result = _run(*without_port, *form, "echo", "here")
        assert (result.stdout, result.returncode) == (b"here\n", 0), (form, result.stderr)


def test_large_input_and_output_byte_for_byte(sshd: Endpoint) -> None:
    result = connect(sshd, HOST, "cat", data=LARGE)
    assert result.stdout == LARGE
    assert result.returncode == 0


def test_large_output_on_both_streams(sshd: Endpoint) -> None:
    result = connect(sshd, HOST, "head -c 3000000 /dev/zero; head -c 2000000 /dev/zero >&2")
    assert (len(result.stdout), len(result.stderr)) == (3_000_000, 2_000_000)


def test_without_input(sshd: Endpoint) -> None:
    result = connect(sshd, "-n", HOST, "cat; echo end", data=b"not to be sent")
    assert result.stdout == b"end\n"


def test_input_that_nobody_reads(sshd: Endpoint) -> None:
    result = connect(sshd, HOST, "echo done", data=LARGE)
    assert (result.stdout, result.returncode) == (b"done\n", 0)


def test_an_end_of_input_that_never_comes(sshd: Endpoint) -> None:
    with subprocess.Popen(
        [*GATEWAY, "connect", "-o", "LogLevel=ERROR", *client_options(sshd), HOST, "echo done"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read() == b"done\n"
        assert process.wait(60) == 0


def test_an_output_that_nobody_reads(sshd: Endpoint) -> None:
    with subprocess.Popen(
        [*GATEWAY, "connect", "-n", "-o", "LogLevel=ERROR", *client_options(sshd), HOST, "yes"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(4) == b"y\ny\n"
        process.stdout.close()
        assert process.wait(60) == 255
        assert b"Traceback" not in process.stderr.read()


@pytest.mark.parametrize("options", [(), ("-T",)])
def test_the_shell_reads_the_input(sshd: Endpoint, options: tuple[str, ...]) -> None:
    result = connect(sshd, *options, HOST, data=b"echo in the shell\nexit 5\n")
    assert result.returncode == 5
    assert result.stdout.endswith(b"in the shell\n")


def test_a_command_and_a_proxy_in_one(sshd: Endpoint) -> None:
    result = connect(sshd, "-D", f"127.0.0.1:{free_port()}", HOST, "echo", "both")
    assert (result.stdout, result.returncode) == (b"both\n", 0), result.stderr
