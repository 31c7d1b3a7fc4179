"""The SOCKS proxy over a link in memory: who is late, who leaves when, and what an end leaves."""

from __future__ import annotations

import socket
import struct
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from gateway.net.links import LinkSet
from gateway.net.listen import open_listeners
from gateway.proxy import socks
from gateway.proxy.socks import PATIENCE_S, SocksProxy
from gateway.ssh.numbers import OpenFailure
from tests.support.memory import linked, make_links

WAIT_S = 60
GREETING, METHOD = b"\5\1\0", b"\5\0"
REQUEST = b"\5\1\0\1\x7f\0\0\1\0\x50"


class Proxied:
    """A proxy that runs, and the links behind it."""

    def __init__(self, links, proxy, address, scope):
        self.links = links
        self.proxy = proxy
        self.address = address
        self.scope = scope
        self.ours = []

    async def client(self, sent=b"", answer=b""):
        """A new client that has sent something and got the answer."""
        sock = socket.create_connection(self.address)
        sock.setblocking(False)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self.ours.append(stream)
        await stream.send_all(sent)
        await expect(stream, answer)
        return stream

    async def opening(self):
        """A client whose channel the far end has been asked for."""
        before = len(self.opens)
        stream = await self.client(GREETING + REQUEST, METHOD)
        await until(lambda: len(self.opens) > before)
        return stream

    async def refused(self):
        """A client that has heard a no."""
        self.links.accepts = False
        stream = await self.opening()
        self.links.accepts = True
        self.links.server.refuse_channel(
            list(self.opens)[-1], OpenFailure.CONNECT_FAILED, "Connection refused"
        )
        await expect(stream, b"\5\5\0\1" + bytes(6))
        return stream

    @property
    def opens(self):
        return self.links.server.protocol.connection.channels

    @property
    def clients(self):
        return len(self.proxy._clients)


async def until(condition):
    with trio.fail_after(WAIT_S):
        while not condition():
            await trio.testing.wait_all_tasks_blocked(0.002)


async def expect(stream, data):
    got = b""
    while len(got) < len(data):
        piece = await stream.receive_some(len(data) - len(got))
        assert piece, f"ended after {got!r}"
        got += piece
    assert got == data


def close(stream):
    stream.socket.close()


def reset(stream):
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


@asynccontextmanager
async def proxied():
    links = make_links()
    async with linked(links):
        link_set = LinkSet()
        link_set.add(links.link)
        proxy = SocksProxy(link_set)
        (listener,) = open_listeners("127.0.0.1", 0)
        scope = trio.CancelScope()
        it = Proxied(links, proxy, listener.getsockname(), scope)

        async def run():
            with scope:
                await proxy.run([listener])

        with listener:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(run)
                    yield it
                    scope.cancel()
            finally:
                for stream in it.ours:
                    stream.socket.close()


async def test_a_client_without_a_request_is_closed_when_its_time_is_over(mock_clock, caplog):
    caplog.set_level("INFO")
    async with proxied() as it:
        first = await it.client(GREETING, METHOD)
        mock_clock.jump(PATIENCE_S / 2)
        second = await it.client(GREETING[:1])
        await until(lambda: it.clients == 2)
        mock_clock.jump(PATIENCE_S / 2 - 0.1)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert it.clients == 2
        mock_clock.jump(0.1)
        assert await first.receive_some() == b""
        assert it.clients == 1
        mock_clock.jump(PATIENCE_S / 2)
        assert await second.receive_some() == b""
        assert it.clients == 0
        assert caplog.text.count("sent no request within 10 s") == 2


async def test_300_slow_clients_are_closed_in_time_and_another_does_not_wait(mock_clock):
    """T59: a byte now and then does not buy time, and costs others none."""
    async with proxied() as it:
        slow = [await it.client(GREETING[:1]) for _ in range(300)]
        await until(lambda: it.clients == 300)
        began_s = trio.current_time()
        served = await it.opening()
        await expect(served, b"\5\0\0\1" + bytes(6))
        assert trio.current_time() == began_s
        mock_clock.jump(PATIENCE_S / 2)
        for stream in slow:
            await stream.send_all(GREETING[1:2])
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert it.clients == 301
        mock_clock.jump(PATIENCE_S / 2)
        for stream in slow:
            assert await stream.receive_some() == b""
        await until(lambda: it.clients == 1)


async def test_the_far_end_may_take_its_time(mock_clock):
    async with proxied() as it:
        it.links.accepts = False
        await it.opening()
        mock_clock.jump(3 * PATIENCE_S)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert it.clients == 1


async def test_a_refused_client_that_stays_is_closed_when_its_time_is_over(mock_clock):
    async with proxied() as it:
        waiting = await it.client(GREETING, METHOD)
        mock_clock.jump(PATIENCE_S / 2)
        refused = await it.refused()
        assert await refused.receive_some() == b""  # its end was said at once
        await refused.send_all(b"x" * 100_000)  # which nobody wants
        mock_clock.jump(PATIENCE_S / 2)
        assert await waiting.receive_some() == b""
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert it.clients == 1
        mock_clock.jump(PATIENCE_S / 2)
        await until(lambda: it.clients == 0)


@pytest.mark.parametrize("bad", [b"GET / HTTP/1.0\r\n", b"\5\1\2", GREETING + b"\5\2\0\1"])
async def test_bad_input_is_answered_and_the_client_may_read_it(bad):
    async with proxied() as it:
        client = await it.client(bad)
        with trio.fail_after(WAIT_S):
            while await client.receive_some():
                pass
        assert it.clients == 1
        await client.aclose()
        await until(lambda: it.clients == 0)


@pytest.mark.parametrize("sent", [b"", GREETING[:1], GREETING, GREETING + REQUEST[:5]])
@pytest.mark.parametrize("leave", ["close", "reset"])
async def test_a_client_that_leaves_in_its_handshake(sent, leave):
    async with proxied() as it:
        client = await it.client(sent)
        await until(lambda: it.clients == 1)
        (reset if leave == "reset" else close)(client)
        await until(lambda: it.clients == 0)
        assert not it.opens
        await echo(it)


async def test_a_client_that_resets_while_the_far_end_is_asked():
    async with proxied() as it:
        it.links.accepts = False
        client = await it.opening()
        reset(client)
        await until(lambda: it.clients == 0)
        it.links.accepts = True
        await expect_close(it)
        await echo(it)


async def test_a_client_that_half_closes_while_the_far_end_is_asked_gets_its_answer():
    async with proxied() as it:
        it.links.accepts = False
        client = await it.opening()
        await client.send_all(b"question")
        await client.send_eof()
        await trio.testing.wait_all_tasks_blocked(0.01)
        port = it.links.server.confirm_channel(next(iter(it.opens)))
        await expect(client, b"\5\0\0\1" + bytes(6))
        await until(lambda: port.eof_received)
        assert bytes(port.pending) == b"question"
        port.channel.send(b"answer")
        port.send_eof()
        await expect(client, b"answer")
        assert await client.receive_some() == b""
        port.close()
        await until(lambda: it.clients == 0)


async def expect_close(it):
    """Confirm the newest channel, too late; the proxy closes it."""
    port = it.links.server.confirm_channel(list(it.opens)[-1])
    await until(lambda: port.close_received)
    port.close()
    await until(lambda: not it.opens)


async def echo(it):
    """Show that the proxy still works."""
    client = await it.client(GREETING + REQUEST + b"early", METHOD + b"\5\0\0\1" + bytes(6))
    far = it.links.accepted[-1]
    await until(lambda: bytes(far.pending) == b"early")
    far.channel.send(b"answer")
    far.link.flush()
    await expect(client, b"answer")
    far.close()
    await client.aclose()


async def test_a_lost_link_is_told_to_who_waits_and_who_comes():
    async with proxied() as it:
        it.links.accepts = False
        client = await it.opening()
        it.links.link.close()
        failed = b"\5\1\0\1" + bytes(6)
        await expect(client, failed)
        await it.client(GREETING + REQUEST, METHOD + failed)


async def test_a_defect_ends_one_client_only(monkeypatch, caplog):
    async with proxied() as it:
        bystander = await it.client(GREETING, METHOD)
        with monkeypatch.context() as patch:
            patch.setattr(socks, "Relay", None)
            broken = await it.client(GREETING + REQUEST, METHOD + b"\5\0\0\1" + bytes(6))
            assert await broken.receive_some() == b""
        assert "internal error" in caplog.text
        await bystander.send_all(REQUEST)
        await expect(bystander, b"\5\0\0\1" + bytes(6))
        await until(lambda: it.links.accepted[0].close_received)
        assert not it.links.accepted[1].close_received


async def test_the_end_leaves_nothing_in_whatever_state_clients_are():
    async with proxied() as it:
        await trio.testing.wait_all_tasks_blocked(0.01)
        before = descriptors()
        await it.client()
        await it.client(GREETING, METHOD)
        await it.client(GREETING + REQUEST, METHOD + b"\5\0\0\1" + bytes(6))
        await it.refused()
        it.links.accepts = False
        await it.opening()
        await until(lambda: it.clients == 5)
        it.scope.cancel()
        await until(lambda: it.clients == 0)
        for stream in it.ours:
            stream.socket.close()
        assert descriptors() == before
        assert not it.proxy._deadlines
        it.links.accepted[0].close()
        await expect_close(it)
        await until(lambda: not it.links.link.protocol.connection.channels)
