"""Listening on this machine while a link is up."""

from __future__ import annotations

import os
import socket
import threading

import pytest
import trio
import trio.testing

from gateway.cli.terminal import Person
from gateway.client import ClientOptions, connect
from gateway.config.ssh_config import Environment, read_host_config
from gateway.forward.local import ListenOptions
from gateway.forward.spec import Kind
from gateway.forward.table import ForwardOptions, Table
from gateway.net.links import LinkSet
from tests.support.memory import make_links
from tests.support.programs import free_port

NAME = "name.example"
getaddrinfo = socket.getaddrinfo


class SlowResolver:
    """A resolver that answers when it is told to."""

    def __init__(self):
        self.asked, self.may_answer, self.has_answered = (threading.Event() for _ in range(3))

    def __call__(self, host, *arguments, **named):
        if host not in (NAME, NAME.encode()):  # trio encodes what is looked up
            return getaddrinfo(host, *arguments, **named)
        if arguments[-1] & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "no address")
        self.asked.set()
        self.may_answer.wait(30)
        self.has_answered.set()
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 0))]


@pytest.fixture
def resolver(monkeypatch):
    resolver = SlowResolver()
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    yield resolver
    resolver.may_answer.set()


async def at_start(tmp_path, *specs):
    """Listen as `gateway connect` does before it logs in."""
    home = Environment(tmp_path, "alice", "box", os.getuid(), {}, tmp_path)
    options = [("LocalForward", spec) for spec in specs]
    config = read_host_config("host.invalid", files=[], command_line=options, environment=home)
    await connect(ClientOptions(config), Person(), lambda _event: None)


async def while_up(_tmp_path, *specs):
    """Listen for who asks while there is a link."""
    async with trio.open_nursery() as nursery:
        table = Table(
            make_links().client, LinkSet(), nursery, ForwardOptions(), lambda _event: None
        )
        try:
            for spec in specs:
                await table.add(Kind.LOCAL, spec.replace(" ", ":"))
        finally:
            table.close()


def listens(port):
    with socket.socket() as sock:
        return not sock.connect_ex(("127.0.0.1", port))


@pytest.mark.parametrize("listen", [at_start, while_up])
async def test_a_cancel_does_not_wait_for_the_look_up(resolver, tmp_path, listen):
    """Ctrl-C with a resolver that is dead: what it says later opens nothing."""
    first, port = free_port(), free_port()
    target = "127.0.0.1:9"
    specs = [f"127.0.0.1:{first} {target}", f"{NAME}:{port} {target}"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen, tmp_path, *specs)
        await trio.to_thread.run_sync(resolver.asked.wait, abandon_on_cancel=True)
        assert listens(first)
        nursery.cancel_scope.cancel()
    assert not resolver.has_answered.is_set()
    resolver.may_answer.set()
    await trio.to_thread.run_sync(resolver.has_answered.wait)
    assert not listens(first)
    assert not listens(port)


@pytest.mark.parametrize(
    ("kind", "spec", "gateway_ports", "warns"),
    [
        (Kind.DYNAMIC, "{port}", False, False),
        (Kind.DYNAMIC, "localhost:{port}", True, False),
        (Kind.DYNAMIC, "127.0.0.2:{port}", False, False),
        (Kind.DYNAMIC, "[::1]:{port}", False, False),
        (Kind.DYNAMIC, "{folder}/socket", False, False),
        (Kind.DYNAMIC, "{port}", True, True),
        (Kind.DYNAMIC, "*:{port}", False, True),
        (Kind.DYNAMIC, ":{port}", False, True),
        (Kind.DYNAMIC, "0.0.0.0:{port}", False, True),
        (Kind.LOCAL, "*:{port}:127.0.0.1:9", False, False),
    ],
)
async def test_a_socks_proxy_for_everybody_is_said_aloud(
    tmp_path, caplog, kind, spec, gateway_ports, warns
):
    """T66: it has no password, so an address that others reach is for everybody."""
    port = free_port()
    spec = spec.format(port=port, folder=tmp_path)
    if "::1" in spec and not socket.has_ipv6:
        pytest.skip("no IPv6")
    options = ForwardOptions(ListenOptions(gateway_ports))
    async with trio.open_nursery() as nursery:
        table = Table(make_links().client, LinkSet(), nursery, options, lambda _event: None)
        await table.add(kind, spec)
        await trio.testing.wait_all_tasks_blocked()
        table.close()
        nursery.cancel_scope.cancel()
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == warns
    if warns:
        assert f"port {port} has no password: whoever reaches it goes where you may go" in said[0]
