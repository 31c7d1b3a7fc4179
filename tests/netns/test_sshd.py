"""Stock sshd in a host of the lab: what a VPN through it needs is there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from netns.state import difference
from tests.support.programs import client_options, eventually, make_keys, running_sshd_in

if TYPE_CHECKING:
    from netns.lab import Lab
    from tests.support.programs import OpenSSH

pytestmark = [pytest.mark.netns, pytest.mark.interop]


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_a_tunnel_and_commands_of_root_in_the_network_of_the_host(
    routed: Lab, openssh: OpenSSH, family: str
) -> None:
    client, server = routed["client"], routed["server"]
    before = server.snapshot()
    keys = make_keys(openssh.folder / family)
    with running_sshd_in(server, keys, openssh=openssh) as sshd:
        ssh = openssh.command("ssh", "-o", "StrictHostKeyChecking=yes", *client_options(sshd))
        where = f"root@{getattr(server, family)()}"
        tunnel = client.start(*ssh, "-N", "-w", "any:any", where)
        eventually(lambda: "link tun0" in server.snapshot(), "the tunnel's device in the server")
        commands = "ip -brief link; sysctl -wn net.ipv4.ip_forward=1; nft add table inet t"
        done = client.run(*ssh, where, commands)
        assert done.returncode == 0, done.stderr
        words = re.findall(r"^\w+", done.stdout, re.MULTILINE)
        assert words == ["lo", "eth0", "eth1", "eth2", "tun0", "1"]
        changed = difference(before, server.snapshot())
        assert "+ nft table inet t: " in changed
        assert "+ sysctl net.ipv4.ip_forward: 1" in changed
        tunnel.kill()
        assert server.run("nft", "delete", "table", "inet", "t").returncode == 0
        server.sysctl("net.ipv4.ip_forward", "0")
        eventually(lambda: server.snapshot() == before, "the tunnel's device is gone")


def test_a_server_ends_with_its_sessions(routed: Lab, openssh: OpenSSH) -> None:
    """A session that outlives its server holds its output, and its tunnel's device."""
    client, server = routed["client"], routed["server"]
    before = server.snapshot()
    with running_sshd_in(server, make_keys(openssh.folder / "ends"), openssh=openssh) as sshd:
        ssh = openssh.command("ssh", *client_options(sshd), "-N", "-w", "any:any")
        tunnel = client.start(*ssh, f"root@{server.ipv4()}")
        eventually(lambda: "link tun0" in server.snapshot(), "the tunnel's device in the server")
    eventually(lambda: server.snapshot() == before, "the tunnel's device is gone")
    assert tunnel.process.wait(60) == 255  # its connection was closed
