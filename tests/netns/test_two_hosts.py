"""Client and server in namespaces of their own: the lab itself, then the product in it."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from gateway.ssh.keyfiles import encode_private_key_file
from gateway.ssh.keys import PrivateKey
from netns.lab import Lab, LabError, namespaces
from netns.topologies import TWO_HOSTS, End

if TYPE_CHECKING:
    from pathlib import Path

    from netns.lab import Host

pytestmark = pytest.mark.netns

GATEWAY = (sys.executable, "-m", "gateway")
READY_S = 60
PAGE_PORT = 8000
PAGE_TEXT = "only the server sees this page\n"
NOWHERE = "203.0.113.9"  # RFC 5737: outside every subnet of the lab, which has no default route

SAY_HELLO = """
import socket, sys
listener = socket.create_server((sys.argv[1], 7), family=socket.getaddrinfo(sys.argv[1], 7)[0][0])
print("ready", flush=True)
while True:
    connection, peer = listener.accept()
    connection.sendall(f"hello {peer[0]}".encode())
    connection.close()
"""
HEAR_HELLO = """
import socket, sys
print(socket.create_connection((sys.argv[1], 7), 10).recv(100).decode())
"""


# ---- the lab -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_hosts_reach_each_other(two_hosts: Lab, family: str) -> None:
    client, server = two_hosts["client"], two_hosts["server"]
    address = getattr(server, family)()
    server.start(sys.executable, "-c", SAY_HELLO, address).wait_for_line("ready", READY_S)
    heard = client.run(sys.executable, "-c", HEAR_HELLO, address)
    assert heard.stdout == f"hello {getattr(client, family)()}\n", heard.stderr


def test_nothing_stays_behind(two_hosts: Lab) -> None:
    left_running = two_hosts["server"].start("sleep", "1000")
    not_known_to_the_lab = two_hosts["server"].run("sh", "-c", "sleep 1000 >/dev/null 2>&1 &")
    assert not_known_to_the_lab.returncode == 0
    assert len(namespaces(two_hosts.prefix)) == 2
    two_hosts.remove()
    two_hosts.remove()
    assert namespaces(two_hosts.prefix) == []
    assert left_running.process.returncode is not None


def test_half_a_lab_is_removed_too(two_hosts: Lab) -> None:
    bad_end = End("server", "eth0", ("not an address",))
    topology = dataclasses.replace(
        TWO_HOSTS, cables=(dataclasses.replace(TWO_HOSTS.cables[0], right=bad_end),)
    )
    lab = Lab(topology)
    with pytest.raises(LabError, match=r"`ip .*` failed: .*: .*address add not an address"), lab:
        pass
    assert namespaces(lab.prefix) == []
    assert len(namespaces(two_hosts.prefix)) == 2


# ---- the product ---------------------------------------------------------------------------------


@pytest.fixture
def proxy(two_hosts: Lab, tmp_path: Path) -> str:
    """`gateway serve` in server, `gateway connect` in client: the address of the SOCKS proxy."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    client, server = two_hosts["client"], two_hosts["server"]
    start_page(server, tmp_path)
    key = PrivateKey.generate(os.urandom)
    identity, authorized_keys = tmp_path / "id_ed25519", tmp_path / "authorized_keys"
    identity.touch(mode=0o600)
    identity.write_bytes(encode_private_key_file(key))
    authorized_keys.write_text(key.public.openssh_text().strip() + "\n")

    serve = [*GATEWAY, "serve", "--listen", f"{server.ipv4()}:2222"]
    serve += ["--host-key", str(tmp_path / "host_key"), "--authorized-keys", str(authorized_keys)]
    serve += ["--host", "intranet.demo=127.0.0.1", "--permit-open", f"intranet.demo:{PAGE_PORT}"]
    serve += ["--permit-open", f"{NOWHERE}:80"]
    server.start(*serve).wait_for_line(r"listening on \S+:2222", READY_S)

    connect = [*GATEWAY, "connect", "-N", "-D", "6000", "-p", "2222", "-i", str(identity)]
    connect += ["-F", "none", "-o", f"UserKnownHostsFile={tmp_path / 'known_hosts'}"]
    connect += ["-o", "StrictHostKeyChecking=accept-new", "-o", "IdentitiesOnly=yes"]
    connect += [f"demo@{server.ipv4()}"]
    client.start(*connect).wait_for_line(r"SOCKS proxy on localhost:6000", READY_S)
    return "localhost:6000"


def start_page(server: Host, folder: Path) -> None:
    page = folder / "page"
    page.mkdir()
    (page / "index.html").write_text(PAGE_TEXT)
    command = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1"]
    command += ["--directory", str(page), str(PAGE_PORT)]
    server.start(*command).wait_for_line("Serving HTTP", READY_S)


def curl(client: Host, proxy: str, url: str) -> tuple[int, str, str]:
    done = client.run("curl", "-sS", "-m", "20", "--socks5-hostname", proxy, url)
    return done.returncode, done.stdout, done.stderr


def test_the_page_behind_the_server_is_fetched(two_hosts: Lab, proxy: str) -> None:
    status, page, error = curl(two_hosts["client"], proxy, f"http://intranet.demo:{PAGE_PORT}/")
    assert (status, page, error) == (0, PAGE_TEXT, "")


def test_the_client_itself_cannot_reach_the_page(two_hosts: Lab, proxy: str) -> None:
    address = two_hosts["server"].ipv4()
    direct = two_hosts["client"].run("curl", "-sS", "-m", "20", f"http://{address}:{PAGE_PORT}/")
    assert direct.returncode == 7  # refused: the page is on the server's loopback


def test_a_network_without_a_route_is_named_so(two_hosts: Lab, proxy: str) -> None:
    status, _, error = curl(two_hosts["client"], proxy, f"http://{NOWHERE}/")
    assert status == 97, error
    assert "(3)" in error  # RFC 1928 §6: network unreachable
