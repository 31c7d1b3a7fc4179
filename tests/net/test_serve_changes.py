"""What changes while `gateway serve` runs: reloads, the end, and defects. Hazards T52 and T53."""

from __future__ import annotations

import contextlib
import dataclasses
import random

import pytest
import trio
import trio.testing

from gateway import events
from gateway.errors import ChannelOpenError, ConnectionLost
from gateway.net import link, relay
from gateway.policy.limits import Limits
from gateway.serving import opens
from tests.net.test_serve_listeners import connect, is_free, listening
from tests.net.test_serve_listeners import opened as forwarded
from tests.support.memory import read_all, send_all
from tests.support.serving import (
    ALICE_KEY,
    BOB_KEY,
    TestRules,
    make_options,
    make_people,
    running_box,
)


@pytest.fixture
async def echo_port(nursery):
    """A target that sends back what it gets."""

    async def echo(stream):
        with contextlib.suppress(trio.BrokenResourceError):  # a reset, where a link was lost
            async for data in stream:
                await stream.send_all(data)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, echo, listeners)
    return listeners[0].socket.getsockname()[1]


async def round_trip(port, data=b"hello"):
    await send_all(port, data)
    assert await read_all(port, len(data)) == data


# ---- reload --------------------------------------------------------------------------------------


async def test_a_new_policy_holds_from_the_next_channel_on(echo_port):
    """T53."""
    async with running_box() as box:
        client = await box.log_in()
        before = await client.open("127.0.0.1", echo_port)
        options = box.server.shared.options
        box.server.apply(dataclasses.replace(options, policy=TestRules(opens=False)))
        with pytest.raises(ChannelOpenError, match="denied: no rule does"):
            await client.open("127.0.0.1", echo_port)
        await round_trip(before)
        decision = box.of_type(events.Decision)[-1]
        assert (decision.allowed, decision.user_name) == (False, "alice")
        box.server.apply(options)
        await round_trip(await client.open("127.0.0.1", echo_port))


async def test_users_that_are_gone_lose_their_links_and_others_do_not(echo_port):
    async with running_box() as box:
        alice = await box.log_in()
        bob = await box.log_in(BOB_KEY, user_name="bob")
        kept = await bob.open("127.0.0.1", echo_port)
        people = make_people(users=frozenset(("bob",)))
        box.server.apply(make_options(people=people))
        await alice.link.ended.wait()
        assert "this user or key may not log in any more" in str(alice.link.failure)
        await round_trip(kept)
        await trio.testing.wait_all_tasks_blocked()
        closed = box.of_type(events.LinkClosed)
        assert [event.user_name for event in closed] == ["alice"]


async def test_a_key_that_is_gone_or_not_enough_any_more_ends_its_links():
    async with running_box() as box:
        alice, bob = await box.log_in(), await box.log_in(BOB_KEY, user_name="bob")
        box.server.apply(make_options(BOB_KEY))
        await alice.link.ended.wait()
        assert bob.link.failure is None
        people = make_people(required=2)
        box.server.apply(make_options(people=people))
        await bob.link.ended.wait()


async def test_listeners_that_a_new_policy_does_not_allow_close():
    async with running_box() as box:
        client = await box.log_in()
        gone, kept = await listening(box, client, "127.0.0.1"), await listening(box, client)
        rules = TestRules(listen={("localhost", 0)})
        box.server.apply(make_options(policy=rules))
        assert is_free(gone)
        (removed,) = box.of_type(events.ListenerRemoved)
        assert (removed.port, removed.reason) == (gone, "denied: no rule does")
        async with await connect(kept):
            await forwarded(client)


async def test_new_limits_hold_at_once():
    async with running_box() as box:
        client = await box.log_in()
        await client.link.open_channel("session", b"")
        box.server.apply(make_options(limits=Limits(channels_per_user=1)))
        with pytest.raises(ChannelOpenError, match="channels_per_user"):
            await client.link.open_channel("session", b"")


# ---- the end -------------------------------------------------------------------------------------


async def test_draining_waits_for_channels_and_takes_nothing_new(echo_port):
    async with running_box(make_options(listen=(("127.0.0.1", 0),))) as box:
        ssh_port = box.of_type(events.ListenerOpened)[0].port
        client = await box.log_in()
        channel = await client.open("127.0.0.1", echo_port)
        port = await listening(box, client)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.server.drain, 60)
            await trio.testing.wait_all_tasks_blocked()
            assert is_free(port)
            assert is_free(ssh_port)
            with pytest.raises(ConnectionLost):
                await box.log_in()
            with pytest.raises(ChannelOpenError, match="about to stop"):
                await client.open("127.0.0.1", echo_port)
            await round_trip(channel, b"still carried")
            channel.close()
        await client.link.ended.wait()
        assert "the server stops (reason code 11)" in str(client.link.failure)


async def test_draining_ends_at_its_deadline(autojump_clock):
    async with running_box() as box:
        client = await box.log_in()
        await client.link.open_channel("session", b"")
        began_s = trio.current_time()
        await box.server.drain(20)
        await client.link.ended.wait()
        assert trio.current_time() - began_s == pytest.approx(20, abs=1)
        assert "the server stops" in str(client.link.failure)


async def test_run_returns_when_all_is_drained(autojump_clock):
    async with running_box() as box:
        await box.log_in()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.server.drain)
        await trio.testing.wait_all_tasks_blocked()
        assert not box.server.shared.links


# ---- defects -------------------------------------------------------------------------------------


async def test_a_defect_while_a_channel_is_opened_ends_that_one(monkeypatch, caplog, echo_port):
    async with running_box() as box:
        client = await box.log_in()
        healthy = await client.open("127.0.0.1", echo_port)
        for where in ("dial", "rules"):
            with monkeypatch.context() as patch:
                if where == "dial":
                    patch.setattr(opens, "dial", lambda *_args, **_more: 1 / 0)
                else:
                    box.rules.defect = RuntimeError("a defect")
                with pytest.raises(ChannelOpenError, match="an internal error of the server"):
                    await client.open("127.0.0.1", echo_port)
                box.rules.defect = None
        assert caplog.text.count("internal error") == 2
        await round_trip(healthy)
        assert box.server.shared.channels == 1


async def test_a_defect_after_a_channel_was_confirmed_ends_that_one(monkeypatch, caplog, echo_port):
    start = relay.Relay.start

    def defect(*args):
        start(*args)
        raise ZeroDivisionError

    async with running_box() as box:
        client = await box.log_in()
        healthy = await client.open("127.0.0.1", echo_port)
        with monkeypatch.context() as patch:
            patch.setattr(relay.Relay, "start", defect)
            channel = await client.open("127.0.0.1", echo_port)
            with trio.fail_after(30):
                while not channel.close_received:
                    await trio.sleep(0.005)
        assert caplog.text.count("internal error") == 1
        await round_trip(healthy)
        assert box.server.shared.channels == 1


async def test_a_defect_of_the_report_changes_nothing(caplog, echo_port):
    async with running_box() as box:
        client = await box.log_in()
        report = box.server.shared._report
        box.server.shared._report = lambda _event: 1 / 0
        await round_trip(await client.open("127.0.0.1", echo_port))
        box.server.shared._report = report
        assert "internal error in the report" in caplog.text
        box.reported.clear()
        client.link.close()
        await trio.testing.wait_all_tasks_blocked()
        box.reported[:] = []


async def test_a_defect_of_one_link_ends_that_link(monkeypatch, caplog, echo_port):
    monkeypatch.setattr(link, "WATCH_INTERVAL_S", 0.05)
    async with running_box() as box:
        client, other = await box.log_in(), await box.log_in(BOB_KEY, user_name="bob")
        kept = await other.open("127.0.0.1", echo_port)
        server_link = next(iter(box.server.shared.links.values()))
        monkeypatch.setattr(server_link.link.protocol, "tick", lambda _now: 1 / 0)
        await client.link.ended.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert "internal error on the link" in caplog.text
        await round_trip(kept)
        assert box.server.shared.penalties._until_s, "a crash has a penalty"


async def test_a_defect_in_a_handler_of_events_ends_that_link(monkeypatch, caplog, echo_port):
    async with running_box() as box:
        client, other = await box.log_in(), await box.log_in(BOB_KEY, user_name="bob")
        kept = await other.open("127.0.0.1", echo_port)
        server_link = next(iter(box.server.shared.links.values()))
        server_link.link._handler = lambda _event: 1 / 0
        client.link.ask_for_channel("session", b"", lambda _port: None)
        await client.link.ended.wait()
        assert "internal error" in caplog.text
        await round_trip(kept)


# ---- what is reported ----------------------------------------------------------------------------


async def test_1000_channels_are_1000_pairs_with_exact_bytes(echo_port):
    async with running_box(make_options(limits=Limits(opens_per_second_per_user=2000))) as box:
        client = await box.log_in()
        port = await listening(box, client)
        dice = random.Random(4254)
        wanted = []

        async def direct():
            data = dice.randbytes(dice.randrange(1, 3000))
            channel = await client.open("127.0.0.1", echo_port)
            await round_trip(channel, data)
            wanted.append(("direct-tcpip", len(data), len(data)))
            channel.close()

        async def remote():
            up, down = dice.randbytes(dice.randrange(1, 3000)), dice.randbytes(10)
            count = len(client.opened)
            async with await connect(port) as stream:
                await stream.send_all(up)
                _, channel = await forwarded(client, count + 1)
                assert await read_all(channel, len(up)) == up
                await send_all(channel, down)
                assert await stream.receive_some() == down
                wanted.append(("forwarded-tcpip", len(down), len(up)))
                channel.close()

        for _ in range(90):
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(direct)
        for _ in range(100):
            await remote()
        with trio.fail_after(30):
            while box.server.shared.channels:
                await trio.sleep(0.005)
        ended = box.of_type(events.ChannelEnded)
        assert len(ended) == len(box.of_type(events.ChannelStarted)) == 1000
        assert sorted((e.kind, e.bytes_in, e.bytes_out) for e in ended) == sorted(wanted)
        allowed = [e for e in box.of_type(events.Decision) if e.allowed and e.action == "open"]
        assert len(allowed) == 900


async def test_the_story_of_a_link(echo_port):
    async with running_box() as box:
        client = await box.log_in()
        channel = await client.open("127.0.0.1", echo_port)
        await round_trip(channel)
        client.link.close()
        await trio.testing.wait_all_tasks_blocked()
        names = [type(event).__name__ for event in box.reported]
        assert names == [
            "ServerReady", "LinkAccepted", "LinkKeyed", "LoginAttempted", "LinkOpened", "Decision",
            "ChannelStarted", "ChannelEnded", "LinkClosed",
        ]  # fmt: skip
        keyed = box.of_type(events.LinkKeyed)[0]
        assert keyed.version.startswith("SSH-2.0-")
        assert keyed.keys.strict
        (started,), (ended,) = box.of_type(events.ChannelStarted), box.of_type(events.ChannelEnded)
        assert started.requested == f"127.0.0.1 port {echo_port}" == started.dialled
        assert started.originator == "127.0.0.1 port 4321" == ended.originator
        assert (ended.bytes_in, ended.bytes_out, ended.reason) == (5, 5, "link lost")
        (closed,) = box.of_type(events.LinkClosed)
        assert (closed.user_name, closed.key_exchanges) == ("alice", 1)
        assert closed.bytes_in > 500
        assert closed.bytes_out > 500


async def test_a_refused_target_is_one_decision():
    async with running_box() as box:
        box.rules.opens = False
        client = await box.log_in(ALICE_KEY)
        with pytest.raises(ChannelOpenError):
            await client.open("127.0.0.1", 22)
        (decision,) = box.of_type(events.Decision)
        assert (decision.action, decision.object) == ("open", "127.0.0.1 port 22 (127.0.0.1)")
        assert not box.of_type(events.ChannelStarted)
