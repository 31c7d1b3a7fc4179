"""A link on trio over memory carriers: its clock, its back-pressure, its end."""

from __future__ import annotations

import itertools
import os
from collections import deque
from contextlib import suppress

import pytest
import trio
import trio.testing

from gateway.errors import ChannelOpenError, ConnectionLost, GatewayError, RemoteProtocolError
from gateway.events import GlobalReplied
from gateway.net import poller
from gateway.net.link import (
    CONGESTION_DEADLINE_S,
    GOODBYE_DEADLINE_S,
    MESSAGES_AT_ONCE,
    WATCH_INTERVAL_S,
)
from gateway.net.login import MAXIMUM_EVENTS, ClientLink
from gateway.ssh import messages, packets
from gateway.ssh.flow import INITIAL_WINDOW
from gateway.ssh.protocol import ClientSetup
from gateway.ssh.transport import KEX_TIMEOUT_S, Phase, RekeyLimit
from tests.support.memory import (
    TestDialogue,
    assert_released,
    linked,
    make_links,
    memory_carriers,
    read_all,
    send_all,
)
from tests.support.pair import USER_KEY


def freeze(links):
    """Cut the wire both ways without a word to anyone."""
    for pipe in (links.client_carrier.inbox, links.client_carrier.outbox):
        pipe.is_frozen = True


# ---- keepalive -----------------------------------------------------------------------------------


async def test_a_silent_peer_is_found_dead_after_three_intervals(autojump_clock):
    links = make_links(alive_interval_s=15)
    async with linked(links):
        began_s = trio.current_time()
        freeze(links)
        await links.link.ended.wait()
        assert trio.current_time() - began_s == pytest.approx(45, abs=WATCH_INTERVAL_S)
        assert str(links.link.failure) == (
            "connection to the server lost: not a sign of life for 45 s"
        )


async def test_its_deadline_is_not_that_of_the_next_look_at_the_clock(autojump_clock):
    """README's 45 s were 50 for a peer that fell silent just after we had looked."""
    links = make_links(alive_interval_s=15)
    async with linked(links):
        await trio.sleep(WATCH_INTERVAL_S * 1.1)
        links.server.protocol.outbound.append(messages.Ignore(b"").encode())
        links.server.flush()
        await trio.testing.wait_all_tasks_blocked()
        freeze(links)
        heard_s = trio.current_time()
        await links.link.ended.wait()
        assert trio.current_time() - heard_s == pytest.approx(45)


async def test_an_idle_peer_that_answers_lives_for_ever(autojump_clock):
    links = make_links(alive_interval_s=15)
    async with linked(links):
        await trio.sleep(3602)  # not in the moment in which a probe is on its way
        assert links.link.failure is None
        assert links.link.protocol.connection._awaited == deque()


async def test_any_byte_counts_as_life(autojump_clock):
    links = make_links(alive_interval_s=15)
    async with linked(links):
        links.client_carrier.outbox.is_frozen = True  # our probes do not arrive
        for _ in range(20):
            await trio.sleep(14)
            links.server.protocol.outbound.append(messages.Ignore(b"").encode())
            links.server.flush()
        await trio.testing.wait_all_tasks_blocked()
        assert links.link.failure is None
        assert not links.client_carrier.outbox.data, "nobody had to be asked"


async def test_a_standstill_of_our_own_is_nobodys_silence(autojump_clock):
    """Stopped by ``~^Z`` or a debugger we hear nobody; who is gone is found out afterwards."""
    links = make_links(alive_interval_s=15)
    async with linked(links):
        for _ in range(3):
            autojump_clock.jump(3600)
            await trio.testing.wait_all_tasks_blocked()
            assert links.link.failure is None
        began_s = trio.current_time()
        freeze(links)
        await links.link.ended.wait()
        assert trio.current_time() - began_s == pytest.approx(45, abs=2 * WATCH_INTERVAL_S)


async def test_nobody_is_probed_before_the_login(autojump_clock):
    """P19: some peers stumble over it."""
    links = make_links(alive_interval_s=15)
    async with linked(links, log_in=False):
        await trio.sleep(300)
        assert links.link.failure is None
        assert links.link.protocol.connection._awaited == deque()
        assert (await links.log_in()).user_name == "alice"


async def test_without_an_interval_silence_is_no_failure(autojump_clock):
    links = make_links()
    async with linked(links):
        freeze(links)
        await trio.sleep(24 * 3600)
        assert links.link.failure is None


# ---- back-pressure -------------------------------------------------------------------------------


async def test_two_full_peers_never_wait_for_each_other(autojump_clock):
    """Both send all they can on several channels over a carrier of 4 KiB, and both read."""
    links = make_links(capacity=4096, alive_interval_s=15)
    size = 3 * INITIAL_WINDOW // 2
    data = os.urandom(size)
    async with linked(links):
        pairs = [await links.open_channel() for _ in range(2)]
        with trio.fail_after(600):
            async with trio.open_nursery() as nursery:

                async def check(port):
                    assert await read_all(port, size) == data

                for pair in pairs:
                    for port in pair:
                        nursery.start_soon(check, port)
                        nursery.start_soon(send_all, port, data)


async def test_two_full_peers_rekey(autojump_clock):
    """The same with a key exchange after every 64 KiB of either direction."""
    links = make_links(capacity=4096, rekey_limit=RekeyLimit(bytes=64 * 1024))
    data = os.urandom(INITIAL_WINDOW // 2)
    async with linked(links):
        local, remote = await links.open_channel()
        with trio.fail_after(600):
            async with trio.open_nursery() as nursery:

                async def check(port):
                    assert await read_all(port, len(data)) == data

                for port in (local, remote):
                    nursery.start_soon(check, port)
                    nursery.start_soon(send_all, port, data)


async def test_a_reader_that_stops_stops_only_itself(autojump_clock):
    links = make_links()
    async with linked(links):
        stopped, _ = await links.open_channel()
        _, source = stopped, links.accepted[-1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, source, bytes(2 * INITIAL_WINDOW))
            await trio.testing.wait_all_tasks_blocked()
            assert len(stopped.pending) == INITIAL_WINDOW
            local, remote = await links.open_channel()
            nursery.start_soon(send_all, remote, b"x" * 100_000)
            assert await read_all(local, 100_000) == b"x" * 100_000
            assert len(stopped.pending) == INITIAL_WINDOW, "not a byte beyond its window"
            await read_all(stopped, 2 * INITIAL_WINDOW)


async def test_a_peer_that_asks_but_never_reads_is_cut_off(autojump_clock):
    links = make_links(capacity=1024)
    async with linked(links):
        began_s = trio.current_time()
        links.client_carrier.inbox.is_frozen = True  # the client asks; the answers pile up
        connection = links.link.protocol.connection
        async with trio.open_nursery() as nursery:

            async def ask():
                while links.server.failure is None:
                    for _ in range(100):
                        connection._outbound.append(messages.Ping(bytes(1000)).encode())
                    links.link.flush()
                    with trio.move_on_after(1):
                        await links.server.ended.wait()
                    await trio.testing.wait_all_tasks_blocked()

            nursery.start_soon(ask)
            await links.server.ended.wait()
            nursery.cancel_scope.cancel()
        assert "does not read the replies" in str(links.server.failure)
        assert trio.current_time() - began_s < 3 * CONGESTION_DEADLINE_S
        assert len(links.server.protocol.outbound._lane) < 1000, "and it was bounded"


async def test_a_peer_that_reads_its_answers_late_gets_them_all(autojump_clock):
    """Reading pauses while too many replies wait, and goes on when they have left."""
    links = make_links(capacity=1024)
    async with linked(links):
        pongs = []
        client = links.link.protocol
        client.connection._handlers[messages.Pong.number] = pongs.append
        links.client_carrier.inbox.is_frozen = True
        links.client_carrier.outbox.capacity = 2**24
        for _ in range(8):
            for _ in range(150):
                client.outbound._seal(messages.Ping(bytes(1000)).encode())
            links.link.flush()
            await trio.testing.wait_all_tasks_blocked()
        assert links.client_carrier.outbox.data, "the server has stopped reading"
        links.client_carrier.inbox.thaw()
        with trio.fail_after(CONGESTION_DEADLINE_S):
            await wait_for(lambda: len(pongs) == 1200)


async def wait_for(condition):
    """Let the (virtual) time pass until the condition holds."""
    while not condition():
        await trio.sleep(0.1)


async def test_many_small_sends_in_a_batch_are_one_write(autojump_clock):
    links = make_links()
    async with linked(links):
        local, remote = await links.open_channel()
        await trio.testing.wait_all_tasks_blocked()
        before = links.client_carrier.writes
        for _ in range(1000):
            assert local.channel.send(b"small") == 5
        links.link.flush()
        assert links.client_carrier.writes == before + 1
        assert await read_all(remote, 5000) == b"small" * 1000


async def test_of_many_small_messages_few_are_taken_before_others_have_a_turn(autojump_clock):
    """T12: 256 KiB of the smallest messages would keep every other link waiting."""
    links = make_links(capacity=1 << 20)
    async with linked(links):
        inbound, server, turns = links.server.protocol.inbound, links.server, []

        def count_turn():
            turns.append(inbound.sequence_number)
            if links.server_carrier.inbox.data or len(turns) < 3:
                poller.current().again(count_turn)

        await trio.testing.wait_all_tasks_blocked()
        poller.current().again(count_turn)
        for _ in range(4):  # what the control lane may hold at once
            for _ in range(5000):
                links.link.protocol.outbound.append(messages.Ignore(b"").encode())
            links.link.flush()
        await wait_for(lambda: not links.server_carrier.inbox.data)
        taken = [after - before for before, after in itertools.pairwise(turns)]
        assert sum(taken) > 10_000
        *others, _first = sorted(taken)  # before it is known what comes
        assert max(others) < 4 * MESSAGES_AT_ONCE
        assert server.failure is None


async def test_large_messages_are_taken_many_at_once(autojump_clock):
    links = make_links(capacity=1 << 20)
    async with linked(links):
        sizes = []
        receive = links.server_carrier.recv_into

        def receiving(space):
            sizes.append(len(space))
            return receive(space)

        links.server_carrier.recv_into = receiving
        local, remote = await links.open_channel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, local, bytes(4 << 20))
            await read_all(remote, 4 << 20)
        assert sizes.count(packets.RECEIVE_SIZE) > len(sizes) / 2


@pytest.mark.parametrize(
    ("target_kib", "others", "turn_kib"),
    [
        (64, 0, 64),  # alone: all
        (64, 3, 16),  # one of few: the share, as a packet that is worth its cost
        (64, 1, 16),
        (64, 31, 4),  # one of many: several turns while the target goes out once
        (512, 3, 32),
        (4096, 3, 64),
    ],
)
async def test_a_turn_is_a_part_of_what_may_be_in_flight(
    autojump_clock, target_kib, others, turn_kib
):
    links = make_links()
    async with linked(links):
        link = links.link
        meter = link.protocol.connection.meter
        meter.target_out = meter.send_step = target_kib * 1024
        meter.send_until = link.protocol.outbound.data_total + meter.target_out
        for _ in range(others):
            link.turns.wait(lambda: None, is_bulk=True)
        assert link.bulk_limit() == turn_kib * 1024


async def test_a_carrier_that_takes_a_little_gets_the_rest_later(autojump_clock):
    links = make_links()
    async with linked(links):
        links.client_carrier.most = 700
        links.server_carrier.most = 11
        local, remote = await links.open_channel()
        data = os.urandom(100_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, local, data)
            assert await read_all(remote, len(data)) == data


# ---- the login's clock ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("says", "problem"),
    [
        (None, "it accepts connections but does not speak SSH"),
        (b"SSH-2.0-silent\r\n", "it does not begin the key exchange"),
        (Phase.KEX_STRICT, "it does not finish the key exchange"),
        (Phase.NEWKEYS_STRICT, "it does not finish the key exchange"),
        (Phase.SERVICE, "it does not answer the request to log in"),
        (Phase.AUTH, "it does not answer the login"),
    ],
)
async def test_a_server_that_hangs_is_named_with_the_step_it_hangs_at(
    autojump_clock, says, problem
):
    links = make_links()
    if isinstance(says, Phase):
        _stop_at(links, says)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(links.client.run)
        if isinstance(says, Phase):
            nursery.start_soon(links.server.run)
        elif says:
            links.server_carrier.send(memoryview(says))
        began_s = trio.current_time()
        with pytest.raises(ConnectionLost) as caught:
            await links.log_in(timeout_s=10)
        assert str(caught.value) == f"the server did not answer within 10 s: {problem}"
        assert trio.current_time() - began_s == pytest.approx(10, abs=0.1)
        links.link.close()
        links.server.close()


def _stop_at(links, phase):
    """Let no byte reach the client once it stands in ``phase``: byte by byte until then."""
    links.client_carrier.most = 1
    transport = links.link.protocol.transport

    def before(operation):
        if operation == "read" and transport.phase is phase:
            links.client_carrier.inbox.is_frozen = True

    links.client_carrier.before = before


async def test_the_users_time_is_not_the_servers(autojump_clock):
    class SlowUser(TestDialogue):
        async def trust(self, key):
            await trio.sleep(1000)

        async def identities(self, binding):
            await trio.sleep(1000)
            return await super().identities(binding)

        async def sign(self, identity, data, algorithm):
            await trio.sleep(1000)
            return await super().sign(identity, data, algorithm)

    links = make_links()
    async with linked(links, log_in=False):
        assert await links.client.log_in(SlowUser(), timeout_s=10)


@pytest.mark.parametrize("answer", ["HTTP/1.1 400 Bad Request\r\n" * 21, "\0" * 2000])
async def test_a_server_that_speaks_something_else(autojump_clock, answer):
    links = make_links()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(links.client.run)
        links.server_carrier.send(memoryview(answer.encode()))
        with pytest.raises(RemoteProtocolError, match="the server breaks the SSH protocol"):
            await links.log_in()
    assert_released(links.link)


async def test_a_server_that_closes_at_once(autojump_clock):
    links = make_links()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(links.client.run)
        links.server_carrier.outbox.is_closed = True
        with pytest.raises(ConnectionLost, match="before it said anything"):
            await links.log_in()


async def test_a_server_that_talks_without_end_during_the_login_is_left(autojump_clock):
    """Nobody takes the events while the user looks at the host key."""

    class Absent(TestDialogue):
        async def trust(self, key):
            for _ in range(2 * MAXIMUM_EVENTS):
                links.server.protocol.outbound.append_transport(messages.Debug(True, "x").encode())
            links.server.flush()
            await trio.sleep(10)

    links = make_links()
    async with linked(links, log_in=False):
        with trio.fail_after(60):
            with suppress(ConnectionLost):  # "the server says too much during the login"
                await links.client.log_in(Absent(), timeout_s=30)
        assert links.client._from_link.statistics().current_buffer_used <= MAXIMUM_EVENTS


# ---- the end -------------------------------------------------------------------------------------


async def test_goodbye_is_said(autojump_clock):
    links = make_links()
    async with linked(links):
        links.link.close("enough")
        await links.server.ended.wait()
        assert str(links.server.failure) == "the client disconnected:  (reason code 11)"


async def test_the_reason_of_a_breach_reaches_the_peer(autojump_clock):
    links = make_links()
    async with linked(links):
        links.server.protocol.outbound.append(messages.Pong(b"").encode() + b"?")
        links.server.flush()
        await links.link.ended.wait()
        await links.server.ended.wait()
        assert "bytes after the last field" in str(links.server.failure)
        assert isinstance(links.link.failure, RemoteProtocolError)


NASTY = "\x1b[2J\x07\r\n\u202e" + "x" * 200_000


async def test_the_peers_words_are_safe_to_show(autojump_clock):
    """T50: control characters and a flood of text, in DISCONNECT and in a refusal."""
    links = make_links()
    links.accepts = False
    async with linked(links):

        async def refuse():
            await trio.testing.wait_all_tasks_blocked()
            outbound = links.server.protocol.outbound
            outbound.append(messages.ChannelOpenFailure(0, 2, NASTY).encode())
            links.server.flush()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(refuse)
            with pytest.raises(ChannelOpenError) as caught:
                await links.link.open_channel("test", b"")
        links.server.protocol.outbound.append(messages.DisconnectMessage(2, NASTY).encode())
        links.server.flush()
        await links.link.ended.wait()
    for shown in (str(caught.value), str(links.link.failure)):
        assert shown.isprintable()
        assert "\\x1b[2J" in shown
        assert len(shown) < 1000


async def test_goodbye_does_not_wait_for_a_peer_that_is_gone(autojump_clock):
    links = make_links(capacity=2048)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(links.client.run)
        nursery.start_soon(links.server.run)
        await links.log_in()
        local, _ = await links.open_channel()
        freeze(links)
        local.channel.send(bytes(100_000))
        links.link.flush()
        began_s = trio.current_time()
        links.link.close()
        links.server.close()
    assert trio.current_time() - began_s <= GOODBYE_DEADLINE_S + 0.1
    assert_released(links.link)
    assert_released(links.server)


async def test_a_broken_link_wakes_everyone(autojump_clock):
    links = make_links(capacity=2048)
    woken = []

    async def expect(name, function, *args):
        with pytest.raises(GatewayError) as caught:
            await function(*args)
        woken.append((name, type(caught.value).__name__))

    async with linked(links):
        no_credit, _ = await links.open_channel()
        await send_all(no_credit, bytes(INITIAL_WINDOW))
        no_room, _ = await links.open_channel()
        await trio.testing.wait_all_tasks_blocked()
        freeze(links)
        while no_room.channel.room():
            no_room.channel.send(bytes(100_000))
        links.link.flush()
        links.accepts = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect, "credit", no_credit.wait_room)
            nursery.start_soon(expect, "room", no_room.wait_room)
            nursery.start_soon(expect, "open", links.link.open_channel, "test", b"")
            await trio.testing.wait_all_tasks_blocked()
            assert woken == []
            links.link.close("broken")
    assert sorted(woken) == [
        ("credit", "ConnectionLost"),
        ("open", "ConnectionLost"),
        ("room", "ConnectionLost"),
    ]
    assert_released(links.link)


async def test_an_answer_in_the_batch_that_loses_the_link(autojump_clock, caplog):
    links = make_links()
    async with linked(links):
        answer = links.link.ask("a@example.com", b"")
        connection = links.link.protocol.connection
        connection._emit(GlobalReplied(success=True, response_specific=b""))
        links.link.close("broken")
        links.link.dispatch()
        with pytest.raises(ConnectionLost):
            await answer.wait()
    assert not caplog.records


async def test_a_turn_in_which_the_link_is_lost_is_the_last(autojump_clock):
    links = make_links()
    async with linked(links):
        link, taken = links.link, []

        def lose():
            taken.append(1)
            link.close("broken")

        for is_bulk in (False, True, False, True):
            link.turns.wait(lose, is_bulk=is_bulk)
        link.turns.give(link.protocol.outbound, link.protocol.connection)
        assert taken == [1]


async def test_what_an_owner_does_after_the_end_takes_no_buffer(autojump_clock):
    links = make_links()
    async with linked(links):
        local, remote = await links.open_channel()
        await send_all(remote, bytes(INITIAL_WINDOW))
        await trio.testing.wait_all_tasks_blocked()
        assert len(local.pending) == INITIAL_WINDOW
        links.server.close()
        await links.link.ended.wait()
        await trio.testing.wait_all_tasks_blocked()
        local.consumed(len(local.pending))
        local.send_eof()
        local.close()
        assert_released(links.link)


async def test_an_abandoned_open_leaves_no_channel_behind(autojump_clock):
    """T62: the owner leaves while the answer is on its way."""
    links = make_links()
    async with linked(links):
        for _ in range(200):
            with trio.CancelScope() as scope:
                scope.cancel()
                await links.link.open_channel("test", b"")
        await trio.testing.wait_all_tasks_blocked()
        assert len(links.accepted) == 200
        for port in links.accepted:
            assert port.close_received
            port.close()
        await trio.testing.wait_all_tasks_blocked()
        assert links.link.protocol.connection.channels == {}
        assert links.server.protocol.connection.channels == {}


async def test_a_rekey_that_the_peer_leaves_hanging_ends_the_link(autojump_clock):
    """T13a, on trio's clock."""
    links = make_links()
    async with linked(links):
        freeze(links)
        links.link.protocol.transport.start_rekey(trio.current_time())
        began_s = trio.current_time()
        await links.link.ended.wait()
        assert "left a key exchange unanswered" in str(links.link.failure)
        assert trio.current_time() - began_s <= KEX_TIMEOUT_S + 2 * WATCH_INTERVAL_S


@pytest.mark.parametrize("request_", ["channel", "global", "ping"])
async def test_a_flood_of_requests_during_our_key_exchange_breaks_only_its_link(
    autojump_clock, monkeypatch, request_
):
    """The peer leaves our KEXINIT unanswered, but asks and asks; replies wait, and are bounded."""
    limit = 20_000
    monkeypatch.setattr(packets, "LANE_HARD_LIMIT", limit)
    flood = {
        "channel": messages.ChannelRequest(0, "x", True),
        "global": messages.GlobalRequest("x", True),
        "ping": messages.Ping(bytes(100)),
    }[request_].encode()
    links = make_links(capacity=2**24)
    async with linked(links):
        await links.open_channel()
        links.server.protocol.transport.start_rekey(trio.current_time())
        links.client_carrier.inbox.is_frozen = True  # the client does not see it
        for _ in range(2 * limit):
            links.link.protocol.outbound._seal(flood)
            links.link.flush()
        await links.server.ended.wait()
        assert "more and more replies" in str(links.server.failure)
        links.client_carrier.inbox.thaw()
        await links.link.ended.wait()
    assert_released(links.server)


async def test_debris_after_the_peer_left_is_no_error(autojump_clock):
    client_carrier, server_carrier = memory_carriers()
    client = ClientLink(
        ClientSetup("alice", (USER_KEY.public,)),
        client_carrier,
        alive_interval_s=0,
        alive_count_max=3,
    )
    server_carrier.send(memoryview(b"SSH-2.0-x\r\n"))
    server_carrier.close()
    await client.run()
    assert isinstance(client.link.failure, ConnectionLost)
    assert_released(client.link)
