"""T60 through either server: what the proxy says is what happened to the server's connection."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING

import pytest

from netns.lab import Lab, ip
from netns.topologies import TWO_HOSTS
from tests.netns.conftest import lab_or_skip
from tests.support.programs import GATEWAY
from tests.support.vpn import running_site

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.netns

PORT = 6000
READY_S = 60.0
SILENT, UNREACHABLE = "198.51.100.7", "198.51.100.8"
OUTCOMES = {
    "10.99.0.1": 5,  # refused: a host without a server
    "fd99::1": 5,
    "203.0.113.9": 3,  # network unreachable: there is no route
    "2001:db8::9": 3,
    UNREACHABLE: 4,  # host unreachable: there is no such neighbour
    SILENT: 6,  # TTL expired: nobody answers
}


@pytest.fixture(scope="module", params=["serve", "debian", "newest"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A proxy on the client; for the server there are some addresses where nothing is."""
    keys = tmp_path_factory.mktemp("socks") / "keys"
    with lab_or_skip(TWO_HOSTS) as lab, running_site(request.param, lab, keys) as site:
        run_ip = ("-n", site.server.namespace)
        for address in (SILENT, UNREACHABLE):
            ip(*run_ip, "route", "add", address, "dev", "eth0")
        ip(*run_ip, "neighbour", "add", SILENT, "dev", "eth0", "lladdr", "02:00:00:00:00:99")
        before = site.server.sysctl("net.ipv4.tcp_syn_retries")
        site.server.sysctl("net.ipv4.tcp_syn_retries", "2")
        connect = site.client.start(
            *GATEWAY, "connect", "-v", "-N", "-D", str(PORT), *site.options()
        )
        connect.wait_for_line("SOCKS proxy on", READY_S)
        yield lab
        connect.stop()
        site.server.sysctl("net.ipv4.tcp_syn_retries", before)
        for address in (SILENT, UNREACHABLE):
            ip(*run_ip, "route", "delete", address)


def reply_code(lab: Lab, address: str) -> int:
    """Return the proxy's answer to a client that asks for a port of an address."""
    found = ipaddress.ip_address(address)
    request = b"\5\1\0" + bytes([1 if found.version == 4 else 4]) + found.packed + b"\0\1"
    with lab["client"].inside():
        sock = socket.create_connection(("127.0.0.1", PORT), 10)
    with sock:
        sock.settimeout(20)
        sock.sendall(b"\5\1\0")
        assert sock.recv(2) == b"\5\0"
        sock.sendall(request)
        answer = sock.recv(100)
        assert sock.recv(100) == b"", "closed after the answer"
    return answer[1]


@pytest.mark.parametrize("address", OUTCOMES)
def test_what_the_reply_says(lab: Lab, address: str) -> None:
    assert reply_code(lab, address) == OUTCOMES[address]
