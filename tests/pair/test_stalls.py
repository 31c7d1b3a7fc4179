"""A peer that stops after each of its messages, in either role: login, open, data, rekey, close.

Hazards T13a, T47. The clock is virtual. Whatever the peer has stopped at, a deadline ends the link,
whoever waited for something is told, and what waits to be sent has a bound.
"""

from __future__ import annotations

import itertools

import pytest
import trio
import trio.testing

from gateway.errors import GatewayError
from gateway.net.link import WATCH_INTERVAL_S
from gateway.policy.limits import Limits
from gateway.serving.link import ALIVE_COUNT_MAX, ALIVE_INTERVAL_S, GRACE_JITTER_MS
from gateway.ssh.flow import INITIAL_WINDOW
from gateway.ssh.packets import LANE_HARD_LIMIT
from gateway.ssh.transport import KEX_TIMEOUT_S, VERSION
from tests.support.memory import assert_released, make_links, read_all, send_all
from tests.support.serving import make_options, running_box

LOGIN_S = 30
DATA = bytes(range(256)) * 64
SLACK_S = 3 * WATCH_INTERVAL_S
LONGEST_S = (
    LOGIN_S + KEX_TIMEOUT_S + ALIVE_INTERVAL_S * ALIVE_COUNT_MAX + GRACE_JITTER_MS / 1000 + SLACK_S
)
FOR_EVER_S = 3600


NOTHING, VERSION_ONLY = -1, 0


class Stall:
    """Lets one side send so many messages and no more; ``deaf``: nor does it read any more.

    It is made before its link runs. The KEXINIT that waits there is the first message.
    """

    def __init__(self, link, messages, *, deaf):
        self.left = max(messages - 1, 0)
        self.happened = trio.Event()
        outbound, carrier = link.protocol.outbound, link.carrier
        version = len(VERSION) + 2
        if messages == NOTHING:
            outbound._wire, outbound._end = None, 0
        elif messages == VERSION_ONLY:
            outbound._end = version
        if messages <= 1:
            self.happened.set()
        kind, stall = type(outbound), self

        class Stalling(kind):
            __slots__ = ()

            def _seal(self, payload):
                if stall.may_send():
                    kind._seal(self, payload)

            def seal_channel_data(self, *arguments):
                if stall.may_send():
                    kind.seal_channel_data(self, *arguments)

        def before(_operation):
            if deaf and stall.happened.is_set():
                carrier.inbox.is_frozen = True

        outbound.__class__ = Stalling
        carrier.before = before

    def may_send(self):
        if self.left:
            self.left -= 1
            return True
        self.happened.set()
        return False


async def watch(link, seen):
    """Note how much waits to be sent, and how long the link lives."""
    outbound, began_s = link.protocol.outbound, trio.current_time()
    while not link.ended.is_set():
        seen.append(outbound._lane_bytes)
        with trio.move_on_after(WATCH_INTERVAL_S):
            await link.ended.wait()
    await trio.testing.wait_all_tasks_blocked()
    assert_released(link)
    assert str(link.failure)
    assert trio.current_time() - began_s < LONGEST_S
    assert max(seen) <= LANE_HARD_LIMIT


async def until_it_ends(link, session):
    """Run a session that may hang until the link has ended; return whether it went to its end."""
    seen, done = [], False
    with trio.fail_after(FOR_EVER_S):
        async with trio.open_nursery() as nursery:

            async def run():
                nonlocal done
                try:
                    done = await session()
                except* GatewayError:
                    pass  # it was told, which is all there is to ask

            nursery.start_soon(run)
            await watch(link, seen)
            nursery.cancel_scope.cancel()
    return done


def run_all(one):
    """Run with a stall after the version, after one message, two, … until there is none."""
    for messages in itertools.count(NOTHING):
        clock = trio.testing.MockClock(autojump_threshold=0)
        if trio.run(one, messages, clock=clock):
            return messages
    raise AssertionError


# ---- a client that stops, at the server of `gateway serve` ---------------------------------------


@pytest.mark.parametrize("deaf", [False, True], ids=["reads on", "reads no more"])
def test_a_server_ends_whatever_a_client_stops_at(deaf):
    async def one(messages):
        async with running_box(make_options(limits=Limits(login_grace_s=LOGIN_S))) as box:
            client = box.connect()
            stall = Stall(client.link, messages, deaf=deaf)
            await trio.testing.wait_all_tasks_blocked()
            (served,) = box.server.shared.links.values()

            async def session():
                await client.log_in_with_keys()
                port = await client.link.open_channel("session", b"")
                port.channel.send_request("shell")
                await rekey_and_ask(client.link)
                await rekey_and_ask(client.link, started_by=served.link)
                port.send_eof()
                port.close()
                client.link.flush()
                await trio.testing.wait_all_tasks_blocked()
                client.link.close()
                return True

            done = await until_it_ends(served.link, session)
            client.link.close()
            assert not box.server.shared.links
            return done and not stall.happened.is_set()

    assert run_all(one) > 18


async def rekey_and_ask(link, started_by=None):
    """Renew the keys, and wait for an answer under the new ones."""
    starter = started_by or link
    starter.protocol.transport.start_rekey(trio.current_time())
    starter.flush()
    await link.global_request("nobody-knows@test", b"")


# ---- a server that stops, at our client ----------------------------------------------------------


@pytest.mark.parametrize("deaf", [False, True], ids=["reads on", "reads no more"])
def test_a_client_ends_whatever_a_server_stops_at(deaf):
    """Data both ways, a window that is full, keys renewed by either side, EOF and CLOSE."""

    async def one(messages):
        links = make_links(alive_interval_s=ALIVE_INTERVAL_S)
        links.on_accept = echo
        stall = Stall(links.server, messages, deaf=deaf)

        async def session():
            try:
                await links.log_in(LOGIN_S)
            except GatewayError:
                links.link.close()  # as whoever logs in does
                raise
            port = await links.link.open_channel("test", b"")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_all, port, DATA)
                assert await read_all(port, len(DATA)) == DATA
            await rekey_and_ask(links.link)
            port.channel.send(bytes(INITIAL_WINDOW))  # nobody reads what comes back
            await rekey_and_ask(links.link, started_by=links.server)
            port.send_eof()
            port.close()
            await rekey_and_ask(links.link)
            links.link.close()
            return True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(links.client.run)
            nursery.start_soon(links.server.run)
            try:
                done = await until_it_ends(links.link, session)
            finally:
                links.link.close()
                links.server.close()
        return done and not stall.happened.is_set()

    assert run_all(one) > 18


def echo(port):
    """Send back what comes, as far as there is room."""

    def sink(data):
        if port.may_send:
            port.channel.send(data)
        return len(data)

    port.channel.sink = sink
