"""--via: stock proxies in front of the first connection, and programs that put one there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.interop.hops import host_block, run, write_config
from tests.interop.sides import CONNECT
from tests.interop.targets import content, need
from tests.support.programs import Endpoint, free_port, make_keys, running_sshd
from tests.support.proxies import (
    PASSWORD,
    USER,
    StockProxy,
    running_microsocks,
    running_ncat,
    running_ssh_d,
    running_tor,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LARGE = content("via", 5_000_011)
QUOTED = "alice:se%3Acret%2F%E2%82%AC"
PROXIES = {
    "microsocks": ("microsocks", "socks5h", "", lambda _: running_microsocks()),
    "microsocks, password": (
        "microsocks", "socks5h", f"{QUOTED}@",
        lambda _: running_microsocks("-u", USER, "-P", PASSWORD),
    ),
    "microsocks, local names": ("microsocks", "socks5", "", lambda _: running_microsocks()),
    "ssh -D, SOCKS4A": ("ssh", "socks4a", "bob@", running_ssh_d),
    "ssh -D, SOCKS5": ("ssh", "socks5h", "", running_ssh_d),
    "ncat, HTTP": ("ncat", "http", "", lambda _: running_ncat()),
    "ncat, HTTP, password": (
        "ncat", "http", f"{QUOTED}@",
        lambda _: running_ncat("--proxy-auth", f"{USER}:{PASSWORD}"),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def config(
    sshd: Endpoint, serve: Endpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("via")
    with running_sshd(make_keys(folder / "target")) as target:
        yield write_config(
            folder / "config",
            host_block("target", target),
            host_block("by-name", target, address="localhost"),
            host_block("stock", sshd),
            host_block("box", serve),
            host_block("box-again", serve),
        )


@pytest.fixture(scope="module")
def socks() -> Iterator[StockProxy]:
    need("microsocks")
    with running_microsocks() as proxy:
        yield proxy


@pytest.mark.parametrize("name", PROXIES)
@pytest.mark.parametrize("host", ["target", "by-name"])
def test_a_proxy_carries_both_ways(name: str, host: str, config: Path, sshd: Endpoint) -> None:
    program, scheme, login, start = PROXIES[name]
    need(program)
    with start(sshd) as proxy:
        url = f"{scheme}://{login}127.0.0.1:{proxy.port}"
        result = run(CONNECT, config, "-4", "--via", url, host, "cat", data=LARGE)
    assert (result.stdout, result.returncode) == (LARGE, 0), result.stderr


def test_a_chain_of_proxies_and_hops(config: Path, socks: StockProxy) -> None:
    need("ncat")
    with running_ncat() as http, running_microsocks() as last:
        vias = [f"socks5h://127.0.0.1:{socks.port}", f"http://127.0.0.1:{http.port}",
                f"socks5h://127.0.0.1:{last.port}"]  # fmt: skip
        options = [word for url in vias for word in ("--via", url)]
        result = run(CONNECT, config, *options, "-J", "stock,box", "target", "cat", data=LARGE)
    assert (result.stdout, result.returncode) == (LARGE, 0), result.stderr
    assert any(f"127.0.0.1:{http.port}" in line for line in socks.program.lines)


def test_urls_from_a_file_and_no_password_in_what_we_say(config: Path, tmp_path: Path) -> None:
    need("microsocks")
    file = tmp_path / "proxies"
    with running_microsocks("-u", USER, "-P", "sesame") as proxy:
        file.write_text(f"# mine\nsocks5h://alice:sesame@127.0.0.1:{proxy.port}\n")
        file.chmod(0o600)
        result = run(CONNECT, config, "-v", "-v", "--via", f"@{file}", "target", "echo in")
        assert result.stdout == b"in\n", result.stderr
        assert b"sesame" not in result.stderr
        file.write_text(f"socks5h://alice:mistake@127.0.0.1:{proxy.port}\n")
        result = run(CONNECT, config, "-v", "-v", "--via", f"@{file}", "target", "echo in")
    assert b"it does not take this user and password: check them in its URL" in result.stderr
    assert b"mistake" not in result.stderr
    file.chmod(0o644)
    result = run(CONNECT, config, "--via", f"@{file}", "target", "echo in")
    assert b"others may read or write the file: run chmod 600" in result.stderr


def fails(config: Path, *arguments: str) -> str:
    result = run(CONNECT, config, *arguments, "true")
    assert result.returncode == 255, result
    (line,) = result.stderr.decode().splitlines()
    return line


def test_a_proxy_that_wants_a_password(config: Path) -> None:
    need("microsocks")
    need("ncat")
    with running_microsocks("-u", USER, "-P", PASSWORD) as proxy:
        said = fails(config, "--via", f"socks5h://127.0.0.1:{proxy.port}", "target")
    assert "lets nobody in without authentication: write user and password into its URL" in said
    with running_ncat("--proxy-auth", "a:b") as proxy:
        said = fails(config, "--via", f"http://127.0.0.1:{proxy.port}", "target")
        assert "407 Proxy Authentication Required: write user and password into its URL" in said
        said = fails(config, "--via", f"http://a:c@127.0.0.1:{proxy.port}", "target")
        assert "it does not take this user and password" in said


def test_a_proxy_that_is_down_and_one_that_finds_nobody(config: Path, socks: StockProxy) -> None:
    port = free_port()
    said = fails(config, "--via", f"socks5h://127.0.0.1:{port}", "target")
    assert f"cannot connect to the socks5h proxy 127.0.0.1 port {port}: Connection refused" in said
    said = fails(config, "--via", f"socks5h://127.0.0.1:{socks.port}", "-p", str(port), "target")
    assert f"no connection to 127.0.0.1 port {port}: the host refused the connection" in said
    url = f"socks5h://127.0.0.1:{socks.port}"
    said = fails(config, "--via", url, "-o", "HostName=no-such-name.invalid", "target")
    assert "no connection to no-such-name.invalid port " in said
    said = fails(config, "--via", f"socks5://127.0.0.1:{socks.port}", "-o",
                 "HostName=no-such-name.invalid", "target")  # fmt: skip
    assert said.startswith("gateway: cannot find no-such-name.invalid")


def test_tor_without_a_network(config: Path, tmp_path: Path) -> None:
    """It speaks its own SOCKS and looks names up itself, or rather says that it cannot."""
    need("tor")
    with running_tor(tmp_path / "tor") as tor:
        url = f"socks5h://127.0.0.1:{tor.port}"
        said = fails(config, "--via", url, "-o", "HostName=a.example", "-o", "ConnectTimeout=10",
                     "target")  # fmt: skip
    assert "the socks5h proxy 127.0.0.1 port" in said
    assert "makes no connection to a.example port " in said


def test_settings_of_the_first_connection_hold_for_the_one_to_the_proxy(
    config: Path, socks: StockProxy
) -> None:
    url = f"socks5h://127.0.0.1:{socks.port}"
    result = run(CONNECT, config, "--via", url, "-b", "127.0.0.77", "-B", "lo", "target", "echo x")
    assert result.stdout == b"x\n", result.stderr
    socks.program.wait_line(r"client\[\d+\] 127\.0\.0\.77: connected")
    said = fails(config, "--via", url, "-b", "192.0.2.77", "target")
    assert "the bind address (-b) is not one of this machine" in said
    said = fails(config, "--via", url, "-6", "target")
    assert said.startswith("gateway: cannot find 127.0.0.1: ")
    down = f"socks5h://127.0.0.1:{free_port()}"
    result = run(CONNECT, config, "-v", "--via", down, "-o", "ConnectionAttempts=2", "target", "x")
    assert result.stderr.count(b"Connection refused") == 2


@pytest.mark.parametrize("host", ["target", "by-name"])
def test_netcat_as_the_guides_have_it(host: str, config: Path, socks: StockProxy) -> None:
    need("nc")
    command = f"ProxyCommand=nc -X 5 -x localhost:{socks.port} %h %p"
    result = run(CONNECT, config, "-o", command, host, "cat", data=LARGE)
    assert (result.stdout, result.returncode) == (LARGE, 0), result.stderr


@pytest.mark.parametrize(
    "way",
    [
        ["--via", "socks5h://localhost:{port}"],
        ["-o", "ProxyCommand=nc -X 5 -x localhost:{port} %h %p"],
        ["-J", "stock,box", "--via", "socks5h://localhost:{port}"],
    ],
    ids=["--via", "nc", "-J"],
)
def test_the_same_to_a_box(way: list[str], config: Path, socks: StockProxy, echo_port: int) -> None:
    """A `gateway serve`, which runs no command."""
    need("nc")
    words = [word.replace("{port}", str(socks.port)) for word in way]
    host = "box-again" if "-J" in way else "box"
    before = len(socks.program.lines)
    result = run(CONNECT, config, *words, "-W", f"127.0.0.1:{echo_port}", host, data=LARGE)
    assert (result.stdout == LARGE, result.returncode) == (True, 0), result.stderr
    assert len(socks.program.lines) > before


def test_proxychains(config: Path, socks: StockProxy, tmp_path: Path) -> None:
    program = need("proxychains4")
    file = tmp_path / "proxychains.conf"
    file.write_text(f"strict_chain\n[ProxyList]\nsocks5 127.0.0.1 {socks.port}\n")
    before = len(socks.program.lines)
    wrapped = [program, "-q", "-f", str(file), *CONNECT]
    result = run(wrapped, config, "target", "cat", data=LARGE)
    assert (result.stdout, result.returncode) == (LARGE, 0), result.stderr
    assert len(socks.program.lines) > before
