"""Listening on this machine while a link is up."""

from __future__ import annotations

import socket
import threading

import pytest
import trio
import trio.testing

from gateway.forward import local
from gateway.forward.local import ListenOptions, listen_by_name
from gateway.forward.spec import Kind, Tcp
from gateway.forward.table import ForwardOptions, Table
from gateway.net import listen
from gateway.net.links import LinkSet
from tests.support.memory import make_links
from tests.support.programs import free_port


class SlowLookUp:
    """A resolver that answers when it is told to."""

    def __init__(self):
        self.asked, self.may_answer, self.has_answered = (threading.Event() for _ in range(3))

    def __call__(self, _host):
        self.asked.set()
        self.may_answer.wait(5)
        self.has_answered.set()
        return listen.LOOPBACK


async def until_no_thread_runs():
    limiter = trio.to_thread.current_default_thread_limiter()
    with trio.fail_after(30):
        while limiter.borrowed_tokens:
            await trio.sleep(0.005)


async def test_a_cancel_does_not_wait_for_the_look_up(monkeypatch):
    """Ctrl-C with a resolver that is dead: what it says later opens nothing."""
    look_up, port = SlowLookUp(), free_port()
    monkeypatch.setattr(listen, "addresses_to_bind", look_up)
    async with trio.open_nursery() as nursery:
        table = Table(
            make_links().client, LinkSet(), nursery, ForwardOptions(), lambda _event: None
        )
        nursery.start_soon(table.add, Kind.LOCAL, f"name.example:{port}:127.0.0.1:9")
        await trio.to_thread.run_sync(look_up.asked.wait)
        nursery.cancel_scope.cancel()
    assert not look_up.has_answered.is_set()
    look_up.may_answer.set()
    await until_no_thread_runs()
    assert look_up.has_answered.is_set()
    with socket.socket() as sock:
        assert sock.connect_ex(("127.0.0.1", port)), "it listens"


async def test_a_cancel_that_comes_with_the_listener_closes_it(monkeypatch):
    opened = []

    def begin(end, options):
        opened.append(local_listen(end, options))
        trio.from_thread.run_sync(scope.cancel)
        return opened[0]

    local_listen = local.listen
    monkeypatch.setattr(local, "listen", begin)
    with trio.CancelScope() as scope:
        await listen_by_name(Tcp(None, 0), ListenOptions())
    await until_no_thread_runs()
    assert scope.cancelled_caught
    assert all(sock.fileno() < 0 for sock in opened[0].sockets)


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
