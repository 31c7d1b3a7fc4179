"""tcpip-forward and its cancel at `gateway serve`. Hazards T63 and T64."""

from __future__ import annotations

import socket
import struct

import pytest
import trio
import trio.testing

from gateway import events
from gateway.net.listen import addresses_to_bind
from gateway.policy.limits import Limits
from gateway.serving import listeners
from gateway.ssh.messages import TcpipForward
from tests.support.memory import read_all, send_all
from tests.support.programs import free_port
from tests.support.serving import ALICE_KEY, BOB_KEY, make_options, running_box


def is_free(port, host="127.0.0.1"):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


async def connect(port):
    return await trio.open_tcp_stream("127.0.0.1", port)


async def is_reset(port):
    """Connect, and say whether the connection is reset."""
    try:
        async with await connect(port) as stream:
            await stream.receive_some()
    except (OSError, trio.BrokenResourceError):
        return True
    return False


async def opened(client, count=1):
    """Return the channel that the server opened towards a client."""
    with trio.fail_after(30):
        while len(client.opened) < count:
            await trio.sleep(0.005)
    return client.opened[count - 1]


async def listening(box, client, host="localhost", port=0):
    """Have a port listened on; return its number."""
    box.rules.listen.add((host, port))
    reply = await client.forward(host, port)
    assert reply.success, client.said
    if port:
        assert reply.response_specific == b""
        return port
    return struct.unpack(">I", reply.response_specific)[0]


async def test_port_0_is_told_and_carries_both_ways():
    async with running_box() as box:
        client = await box.log_in()
        port = await listening(box, client)
        (added,) = box.of_type(events.ListenerAdded)
        assert (added.bind_host, added.port, added.user_name) == ("localhost", port, "alice")
        async with await connect(port) as stream:
            request, channel = await opened(client)
            here = stream.socket.getsockname()
            assert (request.connected_address, request.connected_port) == ("localhost", port)
            assert (request.originator_address, request.originator_port) == here[:2]
            await stream.send_all(b"to the client")
            assert await read_all(channel, 13) == b"to the client"
            await send_all(channel, b"and back")
            assert await stream.receive_some() == b"and back"
            await stream.send_eof()
            channel.send_eof()
            assert await stream.receive_some() == b""
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(30):
            while not box.of_type(events.ChannelEnded):
                await trio.sleep(0.005)
        (ended,) = box.of_type(events.ChannelEnded)
        assert (ended.kind, ended.bytes_in, ended.bytes_out) == ("forwarded-tcpip", 8, 13)
        assert ended.originator == f"127.0.0.1 port {here[1]}"


@pytest.mark.parametrize(
    "host", ["", "0.0.0.0", "::", "localhost", "127.0.0.1", "*", "box.internal", "192.0.2.1"]
)
async def test_the_policy_is_asked_about_the_address_as_it_was_written(host):
    async with running_box() as box:
        client = await box.log_in()
        port = free_port()
        assert not (await client.forward(host, port)).success
        assert box.rules.asked == [("alice", host, port)]
        assert client.said == ["denied: no rule does"]
        assert is_free(port)
        (decision,) = box.of_type(events.Decision)
        assert (decision.action, decision.allowed) == ("listen", False)


@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        ("", [address for _, address in addresses_to_bind("")]),
        ("localhost", [address for _, address in addresses_to_bind("localhost")]),
        ("0.0.0.0", ["0.0.0.0"]),
        ("127.0.0.1", ["127.0.0.1"]),
    ],
)
async def test_what_a_bind_address_means(host, addresses):
    async with running_box() as box:
        client = await box.log_in()
        await listening(box, client, host)
        (added,) = box.of_type(events.ListenerAdded)
        assert set(added.addresses) <= set(addresses)
        assert added.addresses[0] == addresses[0]


@pytest.mark.parametrize(
    ("host", "port", "why"),
    [
        ("localhost", 65536, "port 65536 does not exist"),
        ("localhost", 0xFFFFFFFF, "port 4294967295 does not exist"),
        ("no-such-name.invalid", 4444, "is no address to listen on"),
        ("192.0.2.1", 4444, "no such address"),
        ("127.0.0.1\0", 4444, "a name holds a NUL"),
    ],
)
async def test_what_cannot_be_listened_on_even_with_a_rule(host, port, why):
    async with running_box() as box:
        box.rules.listens_everywhere = True
        client = await box.log_in()
        assert not (await client.forward(host, port)).success
        assert why in client.said[0]
        assert not box.of_type(events.ListenerAdded)


async def test_a_privileged_port_needs_a_rule_of_its_own():
    """T63. Whether the system lets us bind it then, depends on who runs this."""
    async with running_box() as box:
        box.rules.listen.add(("127.0.0.1", 0))  # all ports
        client = await box.log_in()
        assert not (await client.forward("127.0.0.1", 887)).success
        assert client.said == ["denied: port 887 is below 1024 and needs a rule of its own"]
        box.rules.listen.clear()
        box.rules.listen.add(("127.0.0.1", 887))
        reply = await client.forward("127.0.0.1", 887)
        assert reply.success or "cannot listen on 127.0.0.1 port 887" in client.said[1]


async def test_port_0_without_a_reply_is_refused():
    async with running_box() as box:
        box.rules.listens_everywhere = True
        client = await box.log_in()
        fields = TcpipForward("localhost", 0).encode()
        client.link.protocol.connection.notify_global("tcpip-forward", fields)
        assert not await client.cancel("localhost", 0)  # answered after it
        assert not box.of_type(events.ListenerAdded)


async def test_a_key_without_forwarding_may_not_listen_whatever_the_rules_say():
    async with running_box(make_options(prefix="no-port-forwarding ")) as box:
        box.rules.listens_everywhere = True
        client = await box.log_in()
        assert not (await client.forward("localhost", 0)).success
        assert "forbid forwarding" in client.said[0]


async def test_duplicates_and_unknown_cancels_are_refused_and_a_cancel_frees_at_once():
    async with running_box() as box:
        client = await box.log_in()
        port = await listening(box, client, "127.0.0.1")
        box.rules.listens_everywhere = True
        assert not (await client.forward("127.0.0.1", port)).success
        assert not (await client.forward("localhost", port)).success, "it overlaps"
        assert not await client.cancel("127.0.0.1", port + 1)
        assert not await client.cancel("localhost", port)
        assert not is_free(port)
        assert await client.cancel("127.0.0.1", port)
        assert is_free(port)
        assert not await client.cancel("127.0.0.1", port), "only once"
        assert [event.reason for event in box.of_type(events.ListenerRemoved)] == ["cancelled"]
        assert await listening(box, client, "127.0.0.1", port) == port


async def test_a_cancelled_listener_leaves_its_clients_alone():
    async with running_box() as box:
        client = await box.log_in()
        port = await listening(box, client)
        async with await connect(port) as stream:
            _, channel = await opened(client)
            assert await client.cancel("localhost", port)
            await stream.send_all(b"still here")
            assert await read_all(channel, 10) == b"still here"


async def test_the_listeners_of_a_link_close_when_it_ends():
    async with running_box() as box:
        for _ in range(20):
            client = await box.log_in()
            port = await listening(box, client)
            stream = await connect(port)
            await opened(client)
            client.carrier.close()  # without a word
            with trio.fail_after(30):
                while box.server.shared.links:
                    await trio.sleep(0.005)
            assert is_free(port)
            with pytest.raises(trio.BrokenResourceError):  # a reset: not to be taken for an end
                await stream.receive_some()
            await stream.aclose()
        assert box.server.shared.forwards == {}
        assert {event.reason for event in box.of_type(events.ChannelEnded)} == {"link lost"}


async def test_a_client_that_refuses_a_channel_resets_who_connected():
    async with running_box() as box:
        client = await box.log_in()
        client.refuses_with = "nobody is at home"
        port = await listening(box, client)
        assert await is_reset(port)
        assert box.server.shared.channels == 0
        assert not box.of_type(events.ChannelStarted)


async def test_the_policy_is_asked_again_for_each_client():
    async with running_box() as box:
        client = await box.log_in()
        port = await listening(box, client)
        box.rules.listen.clear()
        assert await is_reset(port)
        assert not client.opened


async def test_a_defect_of_the_policy_costs_one_client(caplog):
    async with running_box() as box:
        client = await box.log_in()
        port = await listening(box, client)
        box.rules.defect = RuntimeError("a defect")
        assert await is_reset(port)
        assert not (await client.forward("localhost", 0)).success
        assert "internal error" in caplog.text
        box.rules.defect = None
        async with await connect(port):
            await opened(client)


async def test_clients_are_bounded(monkeypatch):
    monkeypatch.setattr(listeners, "MAXIMUM_ACCEPTED", 2)
    async with running_box() as box:
        client = await box.log_in()
        port = await listening(box, client)
        client.carrier.inbox.is_frozen = True  # it answers no open
        streams = [await connect(port) for _ in range(2)]
        assert await is_reset(port)
        assert box.server.shared.channels == 2
        client.carrier.inbox.thaw()
        await opened(client, 2)
        for stream in streams:
            await stream.aclose()


async def test_so_are_listeners_and_channels(monkeypatch):
    monkeypatch.setattr(listeners, "MAXIMUM_FORWARDS", 2)
    async with running_box(make_options(limits=Limits(channels_per_user=1))) as box:
        client = await box.log_in()
        port = await listening(box, client)
        await listening(box, client)
        assert not (await client.forward("localhost", 0)).success
        assert "2 places, which is the limit" in client.said[-1]
        async with await connect(port):
            await opened(client)
            assert await is_reset(port)
            assert "channels_per_user" in box.of_type(events.Decision)[-1].rule


# ---- a port that an older link has ---------------------------------------------------------------


async def test_an_older_link_that_answers_keeps_its_port():
    async with running_box() as box:
        older, newer = await box.log_in(), await box.log_in()
        port = await listening(box, older)
        box.rules.listen.add(("localhost", port))
        assert not (await newer.forward("localhost", port)).success
        assert "an older connection of yours, which lives" in newer.said[0]
        async with await connect(port):
            await opened(older)


async def test_a_dead_link_loses_its_port_to_the_same_user_and_key(monkeypatch):
    monkeypatch.setattr(listeners, "PROBE_DEADLINE_S", 0.2)
    async with running_box() as box:
        older, newer = await box.log_in(), await box.log_in()
        port = await listening(box, older)
        for pipe in (older.carrier.inbox, older.carrier.outbox):
            pipe.is_frozen = True
        order = []
        answered = trio.Event()

        def ask(name, specific=b""):
            def on_reply(reply):
                order.append((name, reply.success))
                if len(order) == 201:
                    answered.set()

            newer.link.ask(name, specific).on_arrival = on_reply

        box.rules.listen.add(("localhost", port))
        ask("tcpip-forward", TcpipForward("localhost", port).encode())
        for number in range(200):  # requests behind it are answered after it
            ask(f"unknown-{number}")
        newer.link.flush()
        await answered.wait()
        assert order[0] == ("tcpip-forward", True)
        assert order[1:] == [(f"unknown-{number}", False) for number in range(200)]
        assert box.of_type(events.ListenerAdded)[-1].taken_from
        (removed,) = box.of_type(events.ListenerRemoved)
        assert "taken over by link" in removed.reason
        async with await connect(port):
            await opened(newer)


@pytest.mark.parametrize(
    ("key", "user_name"), [(BOB_KEY, "alice"), (ALICE_KEY, "bob"), (BOB_KEY, "bob")]
)
async def test_nobody_else_is_given_a_port_even_of_a_dead_link(monkeypatch, key, user_name):
    monkeypatch.setattr(listeners, "PROBE_DEADLINE_S", 0.0)
    async with running_box() as box:
        older, newer = await box.log_in(), await box.log_in(key, user_name=user_name)
        port = await listening(box, older)
        for pipe in (older.carrier.inbox, older.carrier.outbox):
            pipe.is_frozen = True
        box.rules.listen.add(("localhost", port))
        assert not (await newer.forward("localhost", port)).success
        assert "for another user or key" in newer.said[0]
        assert not is_free(port)


async def test_a_port_of_another_program_is_refused():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        async with running_box() as box:
            box.rules.listens_everywhere = True
            client = await box.log_in()
            assert not (await client.forward("localhost", other.getsockname()[1])).success
            assert "another program uses this port" in client.said[0]
