"""Ways to a server between hosts: a VPN over each of them does not swallow it, and torsocks."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

import pytest

from tests.interop.hops import block, write_config
from tests.interop.targets import need
from tests.support.programs import GATEWAY, eventually, make_keys
from tests.support.vpn import PORT, READY_S, Site, running_site, start_serve, unchanged

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from netns.lab import Lab

pytestmark = pytest.mark.netns

PROXY_PORT = 1080
TARGET = "10.20.0.2"
# Everything, or what has the server in it.
TUNNELS = [("--full-tunnel",), ("--vpn", "10.20.0.0/24,10.99.2.0/24")]


@pytest.fixture(scope="module")
def lab(routed: Lab) -> Lab:
    routed["target"].start_echo()
    return routed


@pytest.fixture(scope="module")
def site(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running_site("serve", lab, tmp_path_factory.mktemp("keys")) as site:
        yield site


@contextlib.contextmanager
def proxy_on(lab: Lab, host: str) -> Iterator[None]:
    need("microsocks")
    proxy = lab[host].start("microsocks", "-p", str(PROXY_PORT))
    try:
        eventually(lambda: f":{PROXY_PORT}" in lab[host].run("ss", "-ltnH").stdout, "it listens")
        yield
    finally:
        proxy.stop()


@pytest.mark.parametrize("tunnel", TUNNELS, ids=["everything", "subnets"])
@pytest.mark.parametrize("command", ["nc %h %p", "sh -c 'nc %h %p; true'", "nc -F %h %p"])
def test_over_a_command(site: Site, lab: Lab, tunnel: tuple[str, ...], command: str) -> None:
    need("nc")
    fdpass = "yes" if "-F" in command else "no"
    options = ("-o", f"ProxyCommand={command}", "-o", f"ProxyUseFdpass={fdpass}")
    with unchanged(site.client, site.server), site.vpn(*tunnel, *options):
        assert site.client.ping(TARGET, 3).received == 3
        site.client.echo("tcp", TARGET, 300_000)


@pytest.mark.parametrize("tunnel", TUNNELS, ids=["everything", "subnets"])
def test_over_a_proxy(site: Site, lab: Lab, tunnel: tuple[str, ...]) -> None:
    address = next(a for a in lab["router"].addresses if a.startswith("10.99.2."))
    with (
        proxy_on(lab, "router"),
        unchanged(site.client, site.server),
        site.vpn(*tunnel, "--via", f"socks5h://{address}:{PROXY_PORT}"),
    ):
        assert site.client.ping(TARGET, 3).received == 3
        site.client.echo("tcp", TARGET, 300_000)


def test_over_a_command_whose_way_cannot_be_seen(site: Site, lab: Lab) -> None:
    need("nc")
    command = f"ProxyCommand=nc -X 5 -x 127.0.0.1:{PROXY_PORT} %h %p"
    with proxy_on(lab, "client"), unchanged(site.client):
        arguments = site.command("--full-tunnel", "-o", command)
        result = site.client.run(*arguments, timeout_s=READY_S)
    assert result.returncode == 255
    assert "it cannot be seen which connection of the ProxyCommand leads" in result.stderr


def test_over_a_hop(site: Site, lab: Lab, tmp_path: Path) -> None:
    router, address = lab["router"], next(a for a in lab["router"].addresses if "99.1" in a)
    keys = make_keys(tmp_path / "keys")
    config = write_config(
        tmp_path / "config",
        block("hop", keys, PORT, address=address, user="root"),
        block("server", site.keys, PORT, address=site.server.ipv4(), user="root"),
    )
    hop = start_serve(router, keys, "--permit-open", f"{site.server.ipv4()}:{PORT}")
    try:
        with unchanged(site.client, site.server):
            connect = site.client.start(
                *GATEWAY, "connect", "-F", str(config), "--full-tunnel", "-J", "hop", "server"
            )
            try:
                connect.wait_for_line("tunnel through", READY_S)
                assert site.client.ping(TARGET, 3).received == 3
                site.client.echo("tcp", TARGET, 300_000)
            finally:
                connect.process.send_signal(signal.SIGINT)
                connect.process.wait(READY_S)
                connect.stop()
    finally:
        hop.stop()


def test_torsocks(site: Site, lab: Lab) -> None:
    """It gives a program no IPv6, and each connection through its proxy."""
    need("torsocks")
    wrapped = ["torsocks", "-P", str(PROXY_PORT), *GATEWAY, "connect", "-v", "-N", "-D", "6000"]
    with proxy_on(lab, "client"):
        connect = site.client.start(*wrapped, *site.options())
        try:
            connect.wait_for_line("SOCKS proxy on localhost:6000", READY_S)
            url = f"telnet://{site.server.ipv4()}:{PORT}"
            curl = ["curl", "-sS", "--max-time", "3", "--socks5-hostname", "127.0.0.1:6000", url]
            fetched = site.client.run(*curl)
        finally:
            connect.stop()
    assert fetched.returncode == 97, "the box itself is closed, and says so"
    assert "(2)" in fetched.stderr
