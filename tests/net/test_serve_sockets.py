"""streamlocal-forward@openssh.com and its cancel at `gateway serve`. Hazards T64 and T65."""

from __future__ import annotations

import os
import signal
import socket
import stat

import pytest
import trio

from gateway import events
from gateway.ssh.messages import ForwardedStreamlocal, StreamlocalForward
from tests.support.memory import read_all, send_all
from tests.support.real_box import real_box
from tests.support.serving import BOB_KEY, running_box


async def ask(client, path, name="streamlocal-forward@openssh.com"):
    return (await client.link.global_request(name, StreamlocalForward(path).encode())).success


async def cancel(client, path):
    return await ask(client, path, "cancel-streamlocal-forward@openssh.com")


async def connect(path):
    stream = await trio.open_unix_socket(path)
    assert isinstance(stream, trio.SocketStream)
    return stream


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "socket")


async def test_a_socket_carries_both_ways_and_is_gone_after_the_cancel(path):
    async with running_box() as box:
        client = await box.log_in()
        box.rules.unix.add(path)
        assert await ask(client, path)
        (added,) = box.of_type(events.ListenerAdded)
        assert (added.bind_host, added.port, added.addresses) == (path, 0, (path,))
        async with await connect(path) as stream:
            with trio.fail_after(30):
                while not client.opened:
                    await trio.sleep(0.005)
            request, channel = client.opened[0]
            assert request == ForwardedStreamlocal(path)
            await stream.send_all(b"to the client")
            assert await read_all(channel, 13) == b"to the client"
            await send_all(channel, b"and back")
            assert await stream.receive_some() == b"and back"
            assert await cancel(client, path)
            assert not os.path.lexists(path)
            await stream.send_all(b"those who came stay")
            assert await read_all(channel, 19) == b"those who came stay"
        (started,) = box.of_type(events.ChannelStarted)
        assert (started.kind, started.requested) == ("forwarded-streamlocal@openssh.com", path)
        (removed,) = box.of_type(events.ListenerRemoved)
        assert (removed.bind_host, removed.reason) == (path, "cancelled")
        assert not await cancel(client, path)


async def test_the_file_is_for_the_server_alone_and_goes_with_the_link(path):
    async with running_box() as box:
        client = await box.log_in()
        box.rules.unix.add(path)
        before = os.umask(0)
        try:
            assert await ask(client, path)
        finally:
            os.umask(before)
        mode = os.lstat(path).st_mode
        assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o600)
        client.carrier.close()  # without a word, as when it is killed
        with trio.fail_after(30):
            while os.path.lexists(path):
                await trio.sleep(0.005)


@pytest.mark.parametrize("what", ["no rule", "a file", "a dead socket", "no folder"])
async def test_what_is_refused_and_left_alone(tmp_path, path, what):
    async with running_box() as box:
        client = await box.log_in()
        match what:
            case "a file":
                (tmp_path / "socket").write_text("somebody's")
            case "a dead socket":
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.bind(path)
            case "no folder":
                path += "/below"
        if what != "no rule":
            box.rules.unix.add(path)
        before = os.path.lexists(path) and os.lstat(path).st_ino
        assert not await ask(client, path)
        assert client.said
        assert (os.path.lexists(path) and os.lstat(path).st_ino) == before
        assert box.of_type(events.ListenerAdded) == []


@pytest.mark.parametrize("path", ["", "relative", "/" + "a" * 107, "/a\0b", "@abstract", "/a/../b"])
async def test_no_paths(path):
    async with running_box() as box:
        box.rules.unix.add(path)
        client = await box.log_in()
        assert not await ask(client, path)
        assert box.rules.asked == []


async def test_a_file_that_has_taken_its_place_stays(tmp_path, path):
    async with running_box() as box:
        client = await box.log_in()
        box.rules.unix.add(path)
        assert await ask(client, path)
        (tmp_path / "socket").unlink()
        (tmp_path / "socket").write_text("somebody's")
        assert await cancel(client, path)
        assert (tmp_path / "socket").read_text() == "somebody's"


async def test_a_socket_belongs_to_one_link(path):
    async with running_box() as box:
        alice, bob = await box.log_in(), await box.log_in(BOB_KEY, user_name="bob")
        box.rules.unix.add(path)
        assert await ask(alice, path)
        assert not await ask(alice, path)
        assert "for this connection already" in alice.said[-1]
        assert not await ask(bob, path)
        assert "for another user or key" in bob.said[-1]
        newer = await box.log_in()
        assert not await ask(newer, path)
        assert "an older connection of yours, which lives" in newer.said[-1]
        assert await cancel(alice, path)
        assert await ask(bob, path)


async def test_each_client_is_decided_anew(path):
    async with running_box() as box:
        client = await box.log_in()
        box.rules.unix.add(path)
        assert await ask(client, path)
        box.rules.unix.clear()
        async with await connect(path) as stream:
            assert await stream.receive_some() == b""
        assert client.opened == []
        assert not box.of_type(events.Decision)[-1].allowed


async def test_what_the_log_says(tmp_path):
    async with real_box(tmp_path / "box") as box, trio.open_nursery() as nursery:
        path = f"{box.folder}/nobody"
        with box.serving() as (program, at):
            client = await box.log_in(nursery, "alice", at)
            assert await ask(client, path)
            async with await connect(path) as stream:
                await stream.send_all(b"12345")
                with trio.fail_after(30):
                    while not client.opened:
                        await trio.sleep(0.005)
                assert await read_all(client.opened[0][1], 5) == b"12345"
                client.opened[0][1].close()
                assert await stream.receive_some() == b""
            assert not await ask(client, "/run/other")
            assert await cancel(client, path)
            client.link.disconnect("good bye")
            program.signal(signal.SIGTERM)
            assert await trio.to_thread.run_sync(program.wait) == 0
        nursery.cancel_scope.cancel()
    (added,), (removed,) = box.records("listener.add"), box.records("listener.remove")
    for record in (added, removed):
        where = [record[name] for name in ("user", "bind", "port", "rule")]
        assert where == ["alice", path, 0, "sock"]
    assert removed["reason"] == "cancelled"
    (opened,), (closed,) = box.records("channel.open"), box.records("channel.close")
    assert (opened["channel_class"], opened["requested"]) == ("streamlocal", path)
    assert (opened["rule"], opened["dialled"]) == ("sock", "the SSH client")
    assert (closed["bytes_in"], closed["bytes_out"]) == (0, 5)
    decided = [(r["object"], r["allowed"]) for r in box.records("policy.decision")]
    assert ("/run/other", False) in decided
    assert (path, True) in decided
