"""A client whose network changes has its port again, although its old connection never ended."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from netns.lab import ip
from tests.interop.targets import need
from tests.netns.test_two_hosts import HEAR_HELLO, SAY_HELLO
from tests.support.programs import GATEWAY, READY_TIMEOUT_S, make_keys

if TYPE_CHECKING:
    from pathlib import Path

    from netns.lab import Host, Lab
    from scripts.child import Child

pytestmark = pytest.mark.netns

CONFIG = """\
host_keys = ["host_key"]
[users.alice]
authorized_keys = "authorized_keys"
[[rules]]
allow = "listen"
to = ["localhost:7"]
"""


def test_the_port_of_a_client_that_has_moved(two_hosts: Lab, tmp_path: Path) -> None:
    need("ssh")
    client, server = two_hosts["client"], two_hosts["server"]
    keys = make_keys(tmp_path / "keys")
    config = keys.folder / "gateway.toml"
    config.write_text(CONFIG)
    box = server.start(*GATEWAY, "serve", "-v", "-c", str(config))
    box.wait_for_line(r"listening on 0\.0\.0\.0:2222", READY_TIMEOUT_S)
    options = (
        "-v", "-N", "-F", "none", "-p", "2222", "-i", str(keys.user), "-o", "IdentitiesOnly=yes",
        "-o", f"UserKnownHostsFile={keys.known_hosts}", "-o", "StrictHostKeyChecking=accept-new",
        "-R", "7:127.0.0.1:7", "-o", "ExitOnForwardFailure=yes",
        f"alice@{server.ipv4()}",
    )  # fmt: skip

    client.start(sys.executable, "-c", SAY_HELLO, "127.0.0.1").wait_for_line(
        "ready", READY_TIMEOUT_S
    )

    def ssh() -> Child:
        started = client.start("ssh", *options)
        started.wait_for_line("remote forward success", READY_TIMEOUT_S)
        return started

    first = ssh()
    move(client, "10.99.0.3/24")
    second = ssh()
    assert first.process.poll() is None, "it does not know yet"
    heard = server.run(sys.executable, "-c", HEAR_HELLO, "127.0.0.1")
    assert heard.stdout == "hello 127.0.0.1\n", heard.stderr
    assert second.process.poll() is None


def move(host: Host, address: str) -> None:
    """Give a host another address instead of its first."""
    for action, which in (("delete", f"{host.ipv4()}/24"), ("add", address)):
        ip("-n", host.namespace, "address", action, which, "dev", "eth0")
