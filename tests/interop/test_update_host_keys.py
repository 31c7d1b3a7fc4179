"""UpdateHostKeys: further host keys of a known server are recorded once it has proved them."""

from __future__ import annotations

import subprocess

import pytest

from tests.support.programs import (
    GATEWAY,
    client_options,
    free_port,
    make_keys,
    running,
    running_sshd,
    sshd_path,
)

pytestmark = pytest.mark.timeout(60)
TYPES = ("ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256")


@pytest.fixture
def server(tmp_path):
    """An sshd with a host key of three types."""
    if sshd_path() is None:
        pytest.skip("sshd is not installed")
    keys = make_keys(tmp_path / "server")
    extra = []
    for kind in ("rsa", "ecdsa"):
        path = keys.folder / f"host_{kind}"
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", path], check=True)
        extra.append(f"HostKey {path}")
    with running_sshd(keys, "\n".join(extra)) as server:
        yield server


def connect(server, *options):
    return running(
        *GATEWAY, "connect", "-v", "-N", "-D", str(free_port()), *options, *client_options(server),
        "root@127.0.0.1",
    )  # fmt: skip


def recorded(server):
    lines = server.keys.known_hosts.read_text().splitlines()
    return sorted(line.split()[1] for line in lines)


def know_one_key(server):
    name = f"[127.0.0.1]:{server.port}"
    text = server.keys.host.with_name("host_rsa.pub").read_text()
    server.keys.known_hosts.write_text(f"{name} {text}")


def test_further_keys_of_a_known_server_are_recorded(server):
    know_one_key(server)
    with connect(server, "-o", "UpdateHostKeys=yes", "-o", "HostKeyAlgorithms=+ssh-rsa") as client:
        client.wait_line("added .*ssh-ed25519")
        client.wait_line("added .*ecdsa-sha2-nistp256")
    assert recorded(server) == sorted(TYPES)
    with connect(server, "-o", "StrictHostKeyChecking=yes") as client:
        client.wait_line("SOCKS proxy on")
    assert recorded(server) == sorted(TYPES), "nothing twice"


def test_not_for_a_server_that_was_met_just_now(server):
    """As ssh(1): the first meeting records one key; the next may learn more."""
    with connect(server, "-o", "UpdateHostKeys=yes") as client:
        client.wait_line("SOCKS proxy on")
    assert len(recorded(server)) == 1


@pytest.mark.parametrize("options", [(), ("-o", "UpdateHostKeys=no")], ids=["default", "no"])
def test_not_without_being_asked_where_another_file_is_named(server, options):
    know_one_key(server)
    with connect(server, *options) as client:
        client.wait_line("SOCKS proxy on")
    assert recorded(server) == ["ssh-rsa"]
