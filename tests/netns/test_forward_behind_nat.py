"""-R from a client behind NAT, with and without GatewayPorts, to sshd and to serve (issue 8)."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.support.programs import (
    GATEWAY,
    Endpoint,
    client_options,
    eventually,
    make_keys,
    running,
    running_gateway_serve,
    running_sshd_in,
)

if TYPE_CHECKING:
    from pathlib import Path

    from netns.lab import Host, Lab

pytestmark = [pytest.mark.netns, pytest.mark.interop]

FORWARD = "80:127.0.0.1:3000"


def curl(host: Host, address: str) -> str:
    return host.run("curl", "-sS", "--max-time", "10", f"http://{address}/page").stdout


@pytest.mark.parametrize(
    ("kind", "gateway_ports", "bind", "is_public"),
    [
        ("sshd", "no", "", False), ("sshd", "no", "*:", False), ("sshd", "yes", "", True),
        ("sshd", "clientspecified", "", False), ("sshd", "clientspecified", "*:", True),
        ("serve", "", "", False), ("serve", "", "*:", True),
    ],
)  # fmt: skip
def test_a_web_server_behind_nat(
    nated: Lab, tmp_path: Path, kind: str, gateway_ports: str, bind: str, *, is_public: bool
) -> None:
    client, server, world = nated["client"], nated["server"], nated["world"]
    (tmp_path / "page").write_text("the page")
    keys = make_keys(tmp_path / "keys")
    web = (sys.executable, "-u", "-m", "http.server", "3000", "--bind", "127.0.0.1")
    with ExitStack() as stack:
        with client.inside():
            page = stack.enter_context(running(*web, "--directory", str(tmp_path)))
        page.wait_line("Serving HTTP")
        if kind == "sshd":
            endpoint = stack.enter_context(
                running_sshd_in(server, keys, f"GatewayPorts {gateway_ports}")
            )
        else:
            with server.inside():
                options = ("--listen", "*:2222", "--permit-listen", "*:80")
                running_server = running_gateway_serve(keys, *options, "--permit-listen",
                                                       "localhost:80")  # fmt: skip
                endpoint = stack.enter_context(running_server)
            endpoint = Endpoint(endpoint.program, 2222, keys)
        with client.inside():
            program = stack.enter_context(
                running(
                    *GATEWAY, "connect", "-N", *client_options(endpoint), "-R", bind + FORWARD,
                    f"root@{server.ipv4()}",
                )
            )  # fmt: skip
        program.wait_line("forward to 127.0.0.1 port 3000")
        assert curl(server, "127.0.0.1") == "the page"
        assert (curl(world, server.ipv4()) == "the page") is is_public
        assert (curl(world, f"[{server.ipv6()}]") == "the page") is is_public
        program.stop()
        eventually(lambda: curl(server, "127.0.0.1") == "", "nobody listens any more")
