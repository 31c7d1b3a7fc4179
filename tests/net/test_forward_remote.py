"""What a server may do with the listeners that a client has asked it for. Hazards T62 and T63."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from gateway.errors import ChannelOpenError
from gateway.forward import remote, reverse_socks
from gateway.forward.permit import ANY_TARGET
from gateway.forward.remote import ForwardRefused, Remote
from gateway.forward.spec import Forward, Kind, Tcp, parse_forward
from gateway.forward.table import ForwardOptions, Table
from gateway.net import relay
from gateway.net.links import LinkSet
from gateway.net.login import ClientLink
from gateway.ssh import messages, wire
from gateway.ssh.numbers import OpenFailure
from gateway.ssh.protocol import ClientSetup
from tests.interop.targets import read_exactly
from tests.support.memory import memory_carriers, read_all, send_all
from tests.support.programs import free_port
from tests.support.serving import ALICE_KEY, KeyDialogue, running_box


class Pair:
    """A client with forwardings, and the link that its server has with it."""

    def __init__(self, box, client, theirs, forwards):
        self.box, self.client, self.theirs, self.forwards = box, client, theirs, forwards

    async def open(self, kind, fields):
        """Have the server open a channel."""
        return await self.theirs.open_channel(kind, fields)

    def tcp(self, host, port):
        fields = messages.ForwardedTcpip(host, port, "192.0.2.1", 4321).encode()
        return self.open("forwarded-tcpip", fields)


@asynccontextmanager
async def pair(permitted=ANY_TARGET, *, has_forwards=True):
    async with running_box() as box, trio.open_nursery() as nursery:
        box.rules.listens_everywhere = True
        ours, theirs = memory_carriers()
        setup = ClientSetup("alice", (ALICE_KEY.public,))
        client = ClientLink(setup, ours, alive_interval_s=0, alive_count_max=3)
        nursery.start_soon(client.run)
        box.server.serve_carrier(theirs, "192.0.2.7")
        await client.log_in(KeyDialogue(ALICE_KEY), 10)
        (server_link,) = box.server.shared.links.values()
        forwards = Remote(client, nursery, permitted) if has_forwards else None
        yield Pair(box, client, server_link.link, forwards)
        client.link.close()
        nursery.cancel_scope.cancel()


@pytest.fixture
def listener():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        sock.settimeout(5)
        yield sock


def to(listener, listen="0"):
    host, port = listener.getsockname()
    return parse_forward(Kind.REMOTE, f"{listen}:{host}:{port}")


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("forwarded-tcpip", messages.ForwardedTcpip("localhost", 1, "", 0).encode()),
        ("forwarded-tcpip", messages.ForwardedTcpip("localhost", 2**32 - 1, "", 0).encode()),
        ("forwarded-streamlocal@openssh.com", messages.ForwardedStreamlocal("/etc/x").encode()),
        ("direct-tcpip", messages.DirectTcpip("127.0.0.1", 22, "", 0).encode()),
        ("session", b""), ("x11", b""), ("auth-agent@openssh.com", b""), ("tun@openssh.com", b""),
    ],
)  # fmt: skip
async def test_a_channel_that_was_not_asked_for_is_refused(listener, kind, fields):
    async with pair() as both:
        request = both.forwards.ask(to(listener))
        await request.wait()
        with pytest.raises(ChannelOpenError, match="this was not asked for") as caught:
            await both.open(kind, fields)
        assert caught.value.reason_code == OpenFailure.ADMINISTRATIVELY_PROHIBITED
        (await both.tcp("localhost", request.port)).close()


async def test_a_client_without_forwardings_lets_nobody_open_a_channel():
    async with pair(has_forwards=False) as both:
        for kind in ("session", "forwarded-tcpip", "x11", "auth-agent@openssh.com", ""):
            with pytest.raises(ChannelOpenError, match="opens channels only itself") as caught:
                await both.open(kind, b"")
            assert caught.value.reason_code == OpenFailure.ADMINISTRATIVELY_PROHIBITED
        assert both.client.link.protocol.connection.channels == {}


@pytest.mark.parametrize("kind", ["forwarded-tcpip", "forwarded-streamlocal@openssh.com"])
@pytest.mark.parametrize("fields", [b"", b"\xff" * 20, wire.text("a") + b"\0"])
async def test_fields_that_are_none(listener, kind, fields):
    async with pair() as both:
        await both.forwards.ask(to(listener)).wait()
        with pytest.raises(ChannelOpenError):
            await both.open(kind, fields)
        assert not both.client.link.is_lost


async def test_a_client_that_comes_with_the_answer_is_served(listener):
    """It is noted what was asked for before the server may act upon it."""
    async with pair() as both:
        request = both.forwards.ask(to(listener, str(free_port())))
        channel = await both.tcp("localhost", request.port)
        there, _ = listener.accept()
        with there:
            await send_all(channel, b"ping")
            there.settimeout(5)
            assert await trio.to_thread.run_sync(there.recv, 4) == b"ping"
            there.sendall(b"pong")
            assert await read_all(channel, 4) == b"pong"


async def test_a_server_that_names_the_address_that_it_bound(listener):
    async with pair() as both:
        request = both.forwards.ask(to(listener))
        await request.wait()
        for host in ("127.0.0.1", "::1", "0.0.0.0", ""):
            (await both.tcp(host, request.port)).close()
        await both.forwards.ask(to(listener, f"127.0.0.2:{request.port}")).wait()
        (await both.tcp("127.0.0.2", request.port)).close()
        with pytest.raises(ChannelOpenError, match="not asked for"):
            await both.tcp("::1", request.port)  # it could be either of two


async def test_nothing_leads_through_what_was_refused_or_cancelled(listener):
    async with pair() as both:
        port = free_port()
        both.box.rules.listens_everywhere = False
        with pytest.raises(ForwardRefused, match=f"failed for listen port {port}: .*no rule does"):
            await both.forwards.ask(to(listener, str(port))).wait()
        with pytest.raises(ChannelOpenError, match="not asked for"):
            await both.tcp("localhost", port)
        both.box.rules.listens_everywhere = True
        forward = to(listener, str(port))
        await both.forwards.ask(forward).wait()
        with pytest.raises(ForwardRefused, match="listens there for you already"):
            both.forwards.ask(forward)
        await both.forwards.cancel(forward, port)
        with pytest.raises(ChannelOpenError, match="not asked for"):
            await both.tcp("localhost", port)
        with pytest.raises(ForwardRefused, match="does not stop"):
            await both.forwards.cancel(forward, port)


@pytest.mark.parametrize("reply", [b"", b"\0\0\0", wire.uint32(0), wire.uint32(65536)])
async def test_a_chosen_port_that_is_none(listener, monkeypatch, reply):
    async with pair() as both:
        connection = both.theirs.protocol.connection
        answer = connection.reply_global
        monkeypatch.setattr(
            connection, "reply_global", lambda **_: answer(success=True, response_specific=reply)
        )
        with pytest.raises(ForwardRefused, match="does not say which port"):
            await both.forwards.ask(to(listener)).wait()


async def test_requests_that_follow_each_other_are_told_apart(listener):
    async with pair() as both:
        both.box.rules.listens_everywhere = False
        ports = [free_port() for _ in range(4)]
        for port in ports[::2]:
            both.box.rules.listen.add(("localhost", port))
        requests = [both.forwards.ask(to(listener, str(port))) for port in ports]
        refused = []
        for request in requests:
            try:
                await request.wait()
            except ForwardRefused as error:
                refused.append(str(error))
        for port, text in zip(ports[1::2], refused, strict=True):
            assert f"port {port}:" in text
            assert "no rule does" in text


async def test_a_target_that_cannot_be_reached_is_told():
    async with pair() as both:
        closed = free_port()
        request = both.forwards.ask(Forward(Kind.REMOTE, Tcp(None, 0), Tcp("127.0.0.1", closed)))
        await request.wait()
        with pytest.raises(ChannelOpenError, match="Connection refused") as caught:
            await both.tcp("localhost", request.port)
        assert caught.value.reason_code == OpenFailure.CONNECT_FAILED


async def test_a_server_that_leaves_while_a_target_is_dialled_leaves_nothing(listener, monkeypatch):
    """T62. A client of SOCKS that leaves ends the dialling; a target is reached, and let go."""
    dials, reached, dial = trio.Event(), trio.Event(), remote._dial

    async def slow(target):
        dials.set()
        await reached.wait()
        return await dial(target)

    monkeypatch.setattr(remote, "_dial", slow)
    async with pair() as both:
        request = both.forwards.ask(to(listener))
        await request.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(both.tcp, "localhost", request.port)
            await dials.wait()
            nursery.cancel_scope.cancel()
        socks = both.forwards.ask(parse_forward(Kind.REMOTE, "0"))
        await socks.wait()
        dials = trio.Event()
        channel = await both.tcp("localhost", socks.port)
        await send_all(channel, b"\x04\x01\0\x50\x7f\0\0\1\0")
        await dials.wait()
        channel.close()
        channels = both.client.link.protocol.connection.channels
        with trio.fail_after(30):
            while len(channels) > 1:  # the first is still being dialled
                await trio.sleep(0.005)
            reached.set()
            there, _ = await trio.to_thread.run_sync(listener.accept)
            with there:
                there.settimeout(5)
                assert await trio.to_thread.run_sync(there.recv, 1) == b""
            while channels:
                await trio.sleep(0.005)


async def test_a_defect_ends_its_channel_only(listener, monkeypatch, caplog):
    async with pair() as both:
        request = both.forwards.ask(to(listener))
        await request.wait()

        async def defect(target):
            raise ZeroDivisionError

        with monkeypatch.context() as patch:
            patch.setattr(remote, "_dial", defect)
            with pytest.raises(ChannelOpenError, match="internal error"):
                await both.tcp("localhost", request.port)
        assert "internal error while a forwarded channel was opened" in caplog.text
        (await both.tcp("localhost", request.port)).close()


@pytest.mark.parametrize("is_socks", [False, True])
async def test_a_defect_after_the_confirmation_ends_its_channel_only(
    listener, monkeypatch, caplog, is_socks
):
    host, port = listener.getsockname()
    asked = b"\x04\x01" + port.to_bytes(2, "big") + socket.inet_aton(host) + b"\0"
    async with pair() as both:
        request = both.forwards.ask(parse_forward(Kind.REMOTE, "0") if is_socks else to(listener))
        await request.wait()
        start = relay.Relay.start

        def defect(*args):
            start(*args)
            raise ZeroDivisionError

        with monkeypatch.context() as patch:
            patch.setattr(relay.Relay, "start", defect)
            channel = await both.tcp("localhost", request.port)
            if is_socks:
                await send_all(channel, asked)
            there, _ = await trio.to_thread.run_sync(listener.accept)
            with there, trio.fail_after(30):
                there.settimeout(5)
                assert await trio.to_thread.run_sync(there.recv, 1) == b""
                while not channel.close_received:
                    await trio.sleep(0.005)
        assert "internal error while a forwarded channel was opened" in caplog.text
        assert not both.client.link.carries_forwards
        (await both.tcp("localhost", request.port)).close()


async def test_a_socks_client_that_says_nothing_is_closed(monkeypatch, caplog):
    monkeypatch.setattr(reverse_socks, "PATIENCE_S", 0.05)
    async with pair() as both:
        request = both.forwards.ask(parse_forward(Kind.REMOTE, "0"))
        await request.wait()
        caplog.set_level("INFO")
        channel = await both.tcp("localhost", request.port)
        await send_all(channel, b"\x05")
        with trio.fail_after(30):
            while not channel.close_received:
                await trio.sleep(0.005)
        assert "no SOCKS request within" in caplog.text


@pytest.mark.parametrize("cut", [1, 3, 1000])
async def test_the_socks_conversation_in_pieces(listener, cut):
    host, port = listener.getsockname()
    asked = b"\x05\x01\0\x05\x01\0\x01" + socket.inet_aton(host) + port.to_bytes(2, "big")
    asked += b"early"
    async with pair() as both:
        request = both.forwards.ask(parse_forward(Kind.REMOTE, "0"))
        await request.wait()
        channel = await both.tcp("localhost", request.port)
        for start in range(0, len(asked), cut):
            await send_all(channel, asked[start : start + cut])
        assert await read_all(channel, 12) == b"\x05\0\x05\0\0\x01\0\0\0\0\0\0"
        there, _ = listener.accept()
        with there:
            there.settimeout(5)
            assert await trio.to_thread.run_sync(read_exactly, there, 5) == b"early"
            await send_all(channel, b"!")
            assert await trio.to_thread.run_sync(there.recv, 1) == b"!"


async def test_a_lost_link_ends_who_waits_for_an_answer(listener):
    async with pair() as both:
        both.theirs.protocol.connection.reply_global = lambda **_: None
        request = both.forwards.ask(to(listener))
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_expect_loss, request)
                await trio.testing.wait_all_tasks_blocked()
                both.client.link.close()


async def _expect_loss(request):
    with pytest.raises(Exception, match="closed by us"):
        await request.wait()


async def test_a_client_that_comes_while_the_connection_ends_is_refused(listener):
    """The link goes on for a while after what served its forwardings: for the goodbyes."""
    async with pair(has_forwards=False) as both:
        async with trio.open_nursery() as nursery:
            table = Table(both.client, LinkSet(), nursery, ForwardOptions(), lambda _event: None)
            host, port = listener.getsockname()
            added = await table.add(Kind.REMOTE, f"0:{host}:{port}")
            table.stop_listening()  # on this machine
            (await both.tcp("localhost", added.port)).close()
            table.close()
            nursery.cancel_scope.cancel()
        with pytest.raises(ChannelOpenError, match="opens channels only itself"):
            await both.tcp("localhost", added.port)
        assert not both.client.link.is_lost
