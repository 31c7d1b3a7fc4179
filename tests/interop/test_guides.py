"""The command lines of the usual tunnelling guides, with real programs at their ends (issue 8)."""

from __future__ import annotations

import contextlib
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.interop.far import HERE, Far, running_far
from tests.interop.targets import Target, content, curl, need, web_page
from tests.support.programs import free_port, running

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE, OTHER_PAGE = content("page", 1_000_003), content("other page", 500_009)


@pytest.fixture(scope="module")
def database() -> Iterator[int]:
    """The port of a PostgreSQL, which does not run as root."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        pytest.skip("postgresql is not installed")
    binaries, port = found[-1].parent, free_port()
    user = pwd.getpwnam("postgres")
    with tempfile.TemporaryDirectory(prefix="pg.") as name:
        data = Path(name) / "data"
        shutil.chown(name, user.pw_uid)
        subprocess.run(
            [binaries / "initdb", "-D", data, "-A", "trust", "-N"], check=True, user="postgres",
            stdout=subprocess.DEVNULL, cwd=name,
        )  # fmt: skip
        command = (
            str(binaries / "postgres"), "-D", str(data), "-p", str(port), "-k", name,
            "-c", f"listen_addresses={HERE}",
        )  # fmt: skip
        with running("setpriv", f"--reuid={user.pw_uid}", "--clear-groups", *command) as program:
            program.wait_line("ready to accept connections")
            yield port


def psql(port: int, query: str) -> str:
    done = subprocess.run(
        [need("psql"), "-h", HERE, "-p", str(port), "-U", "postgres", "-Atc", query],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("way", ["-L", "-R"])
def test_a_database(far: Far, database: int, way: str) -> None:
    """-L 5432:127.0.0.1:5432, and the same the other way round."""
    port = free_port()
    with far.connected(way, f"{port}:{HERE}:{database}"):
        assert psql(port, "SELECT sum(n) FROM generate_series(1, 1000) n") == "500500\n"
        many = psql(port, "SELECT n, repeat('x', 100) FROM generate_series(1, 30000) n")
        assert many.splitlines()[-1] == f"30000|{'x' * 100}"


def test_a_databases_socket(far: Far, database: int) -> None:
    """As psql likes it: the socket has the port's number in its name."""
    with far.connected("-L", f"{far.folder}/.s.PGSQL.5432:{HERE}:{database}"):
        done = subprocess.run(
            [need("psql"), "-h", far.folder, "-U", "postgres", "-Atc", "SELECT 6 * 7"],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert done.stdout == "42\n", done.stderr


def test_two_web_servers(far: Far) -> None:
    """Two -L in one command line."""
    with Target(web_page(PAGE)) as one, Target(web_page(OTHER_PAGE)) as other:
        ports = free_port(), free_port()
        forwards = (
            "-L", f"{ports[0]}:localhost:{one.port}", "-L", f"{ports[1]}:localhost:{other.port}",
        )  # fmt: skip
        with far.connected(*forwards):
            assert curl(f"http://localhost:{ports[0]}/").stdout == PAGE
            assert curl(f"http://localhost:{ports[1]}/").stdout == OTHER_PAGE


def test_a_browser_proxy_on_an_address(far: Far) -> None:
    """-D 127.0.0.1:6000, and -R 6000 for the far side."""
    here, there = free_port(), free_port()
    with Target(web_page(PAGE)) as target, far.connected("-D", f"{HERE}:{here}", "-R", str(there)):
        for port in (here, there):
            url = f"http://localhost:{target.port}/"
            result = curl("--socks5-hostname", f"{HERE}:{port}", url)
            assert (result.stderr, result.stdout == PAGE) == (b"", True)


def test_ssh_through_our_stdio_forwarding(far: Far) -> None:
    """-o ProxyCommand="gateway connect -W %h:%p jump"."""
    with contextlib.ExitStack() as stack:
        inner = stack.enter_context(running_far("serve"))
        command = far.command("-W", "%h:%p")
        command.remove("-N")
        done = subprocess.run(
            [
                need("ssh"), "-F", "none", "-i", str(inner.server.keys.user), "-p",
                str(inner.server.port), "-o", "UserKnownHostsFile=/dev/null", "-o",
                "StrictHostKeyChecking=no", "-o", f"ProxyCommand={' '.join(command)}",
                "root@127.0.0.1",
            ],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert "  user        root\n" in done.stdout, done.stderr
