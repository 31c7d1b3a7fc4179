"""The newest OpenSSH, Dropbear and PuTTY in both roles: every kind of forward, while keys change.

Since 10.4 OpenSSH disconnects when anything but key exchange comes between our KEXINIT and our
NEWKEYS; two-way load with a rekey every 256 KB is what would show it, and `scripts/soak rekey` does
so for longer.
"""

from __future__ import annotations

import contextlib
import subprocess

import pytest

from tests.interop.bulk import exchange, our_client, our_server
from tests.interop.clients import Login, count, dbclient_command, last_keys, listens, plink_command
from tests.interop.clients import ssh_command as openssh_command
from tests.interop.far import HERE, dialled, round_trip
from tests.interop.targets import socks
from tests.support.programs import (
    Endpoint,
    eventually,
    free_port,
    make_keys,
    running,
    running_connect,
    running_gateway_serve,
    running_sshd,
)

BLOCKS = 50
REKEY_BYTES = 100_000
NEVER = 1 << 30
FORWARDS = ("-D", "-L", "-R")

pytestmark = [
    pytest.mark.interop,
    pytest.mark.parametrize("openssh", ["newest"], indirect=True),
]


# ---- every kind of forward -----------------------------------------------------------------------


def through(option, port, target):
    """Have bytes come back from an echo that a forward leads to."""
    if option == "-D":
        with socks(port, HERE, target) as sock:
            round_trip(sock)
    else:
        round_trip(dialled(port))


def arguments(ports, target):
    return [
        word
        for option, port in ports.items()
        for word in (option, str(port) if option == "-D" else f"{HERE}:{port}:{HERE}:{target}")
    ]


@contextlib.contextmanager
def running_dropbear(openssh):
    keys = make_keys(openssh.folder / "dropbear")
    host = keys.folder / "host_key.dropbear"
    paths = [str(openssh.inside(path)) for path in (keys.host, host)]
    convert = openssh.command("dropbearconvert", "openssh", "dropbear", *paths)
    subprocess.run(convert, check=True, capture_output=True)
    port = free_port()
    server = openssh.command(
        "dropbear", "-F", "-E", "-s", "-p", f"{HERE}:{port}", "-P", f"{paths[1]}.pid",
        "-r", paths[1], "-D", str(openssh.inside(keys.folder)),
    )  # fmt: skip
    with running(*server) as program:
        eventually(lambda: listens(port) or program.ended, "dropbear listens")
        assert not program.ended, program.lines
        yield Endpoint(program, port, keys)


@pytest.mark.parametrize("kind", ["sshd", "dropbear"])
def test_our_client_with_a_newest_server(openssh, echo_port, kind):
    keys = make_keys(openssh.folder / kind)
    server = running_dropbear(openssh) if kind == "dropbear" else running_sshd(keys, "", openssh)
    ports = {option: free_port() for option in FORWARDS[1:]}
    with (
        server as endpoint,
        running_connect(
            endpoint, "-v", "-v", *arguments(ports, echo_port), "-o", f"RekeyLimit={REKEY_BYTES}"
        ) as proxy,
    ):
        proxy.program.wait_line("everything is up")
        for option, port in {"-D": proxy.port, **ports}.items():
            through(option, port, echo_port)
        assert last_keys("\n".join(proxy.program.lines)) > len(FORWARDS)


CLIENTS = {
    "ssh": (openssh_command, FORWARDS),
    "dbclient": (dbclient_command, FORWARDS[1:]),  # it has no -D
    "plink": (plink_command, FORWARDS),
}


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_newest_client_with_our_server(openssh, echo_port, kind):
    command, options = CLIENTS[kind]
    ports = {option: free_port() for option in options}
    keys = make_keys(openssh.folder / f"with-{kind}")
    with running_gateway_serve(
        keys, "-v", "-v", "--permit-open", f"{HERE}:*", "--permit-listen", f"{HERE}:*",
        "--rekey-bytes", str(REKEY_BYTES),
    ) as server:  # fmt: skip
        login = Login(server, echo_port, keys.user, openssh=openssh)
        client = command(login, "-N", *arguments(ports, echo_port))
        with running(*client, HOME=login.home) as program:
            eventually(lambda: program.ended or all(map(listens, ports.values())), "all listen", 30)
            assert not program.ended, program.lines
            for option, port in ports.items():
                through(option, port, echo_port)
            assert last_keys("\n".join(server.program.lines)) > len(options)


# ---- new keys under load -------------------------------------------------------------------------


@pytest.mark.parametrize("way", [our_client, our_server])
def test_load_both_ways_while_both_sides_rekey(openssh, way):
    """T13c: the peer would end the link at the first packet that may not be there."""
    with way(openssh) as (port, ours, _):
        exchange(port, BLOCKS)
        said = "\n".join(ours.lines)
    assert "mlkem768x25519-sha256" in said
    assert last_keys(said) > BLOCKS // 2


# ---- strict key exchange -------------------------------------------------------------------------

CHACHA20 = "chacha20-poly1305@openssh.com"  # the sequence number is all of its nonce


@pytest.mark.parametrize("starter", ["ours", "theirs"])
@pytest.mark.parametrize("way", [our_client, our_server])
def test_sequence_numbers_begin_again_with_all_new_keys(openssh, way, starter):
    """T2: OpenSSH says when it resets its own; one of ours that ran on would end the link."""
    limits = {"ours": NEVER, "theirs": NEVER, starter: REKEY_BYTES}
    with way(openssh, "-o", f"Ciphers={CHACHA20}", **limits, log_level="DEBUG3") as link:
        port, ours, theirs = link
        exchange(port, 1)
        exchange(port, 1)
        times = last_keys("\n".join(ours.lines))
    assert times > 3
    assert count(theirs, "will use strict KEX ordering") >= 1
    for direction in ("send", "read"):
        assert count(theirs, f"resetting {direction} seqnr") >= times
