"""Logins at our server with a host key and a user key of every type, by every client.

Both ages of ssh, dbclient and plink, and AsyncSSH and Paramiko. A cell is a login with the keys of
one type on both sides, bytes moved, and a rekey.
"""

from __future__ import annotations

import subprocess

import pytest

from tests.interop.clients import CLIENTS, SERVE_OPTIONS, Login
from tests.support.programs import client_options, make_keys, running_gateway_serve

TYPES = {
    "ed25519": ["-t", "ed25519"],
    "ecdsa256": ["-t", "ecdsa", "-b", "256"],
    "ecdsa384": ["-t", "ecdsa", "-b", "384"],
    "ecdsa521": ["-t", "ecdsa", "-b", "521"],
    "rsa2048": ["-t", "rsa", "-b", "2048"],
}


@pytest.fixture(scope="module")
def servers(openssh):
    """A server of ours for a type of host key, started when it is first asked for."""
    running = {}

    def start(name):
        if name not in running:
            manager = running_gateway_serve(user_and_host_keys(openssh, name), *SERVE_OPTIONS)
            running[name] = manager, manager.__enter__()
        return running[name][1]

    yield start
    for manager, _ in running.values():
        manager.__exit__(None, None, None)


def user_and_host_keys(openssh, name):
    """Make a folder with both keys, and a CA whose users are let in too."""
    folder, options = openssh.folder / name, TYPES[name]
    keys = make_keys(folder)
    for path in (keys.user, keys.host):
        path.unlink()
        path.with_suffix(".pub").unlink()
        openssh.keygen("-q", *options, "-N", "", "-f", path)
    certified, ca = folder / "certified", folder / "ca"
    for path in (certified, ca):
        openssh.keygen("-q", *options, "-N", "", "-f", path)
    openssh.keygen("-q", "-s", ca, "-I", "alice", "-n", "alice", folder / "certified.pub")
    plain = keys.user.with_suffix(".pub").read_text()
    keys.authorized.write_text(f"{plain}cert-authority {ca.with_suffix('.pub').read_text()}")
    return keys


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("program", ["ssh", "dbclient", "plink"])
def test_programs(openssh, servers, echo_port, program, name):
    server = servers(name)
    CLIENTS[program](Login(server, echo_port, server.keys.user, openssh=openssh))


@pytest.mark.parametrize("name", TYPES)
def test_ssh_with_a_certificate(openssh, servers, echo_port, name):
    server = servers(name)
    CLIENTS["ssh"](Login(server, echo_port, server.keys.folder / "certified", openssh=openssh))


@pytest.mark.parametrize("openssh", ["debian"], indirect=True)
@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("library", ["asyncssh", "paramiko"])
def test_libraries(openssh, servers, echo_port, library, name):
    server = servers(name)
    CLIENTS[library](Login(server, echo_port, server.keys.user))


@pytest.mark.parametrize("openssh", ["debian"], indirect=True)
@pytest.mark.parametrize("name", TYPES)
def test_asyncssh_with_a_certificate(openssh, servers, echo_port, name):
    server = servers(name)
    CLIENTS["asyncssh"](Login(server, echo_port, server.keys.folder / "certified"))


REFUSED = {
    "expired": ["-n", "alice", "-V", "-2d:-1d"],
    "for another user": ["-n", "bob"],
    "for nobody": [],
    "from elsewhere": ["-n", "alice", "-O", "source-address=192.0.2.0/24"],
    "with a command": ["-n", "alice", "-O", "force-command=true"],
}


@pytest.mark.parametrize("how", REFUSED)
def test_certificates_that_let_nobody_in(tmp_path, how):
    keys = make_keys(tmp_path / "keys")
    ca, user = keys.folder / "ca", keys.folder / "certified"
    for path in (ca, user):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    subprocess.run(
        ["ssh-keygen", "-q", "-s", ca, "-I", how, *REFUSED[how], f"{user}.pub"], check=True
    )
    keys.authorized.write_text(f"cert-authority {ca.with_suffix('.pub').read_text()}")
    with running_gateway_serve(keys, "-v", "--permit-open", "127.0.0.1:*") as server:
        options = client_options(server)
        options[options.index("-i") + 1] = str(user)
        result = subprocess.run(
            ["ssh", *options, "-o", "BatchMode=yes", "-W", "127.0.0.1:1", "alice@127.0.0.1"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        assert result.returncode == 255
        assert "Permission denied (publickey)" in result.stderr
        server.program.wait_line("certificate refused: ")
