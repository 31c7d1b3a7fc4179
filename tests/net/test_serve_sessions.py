"""Sessions, sockets and global requests at `gateway serve`; and what is not served."""

from __future__ import annotations

import os
import socket
import struct

import pytest
import trio
import trio.testing

from gateway import events
from gateway.errors import ChannelOpenError
from gateway.serving import link as link_module
from gateway.ssh import hostkeys, messages, wire
from gateway.ssh.keys import PrivateKey, parse_public_key_untrusted
from gateway.ssh.numbers import OpenFailure
from gateway.ssh.tunnel import OFFLOAD_CHANNEL_TYPE, OffloadOpen
from gateway.tun.packet import ANY_UNIT, Mode
from gateway.tun.superpump import LEAST_PACKET_SIZE
from tests.support.memory import read_all, send_all
from tests.support.pair import HOST_KEY
from tests.support.serving import ALICE_KEY, make_options, running_box


class Shell:
    """A session channel as a client sees it."""

    def __init__(self, port):
        self.port = port
        self.replies = []
        self.errors = b""
        self.status = None
        self.ended = trio.Event()
        port.on_reply = self.replies.append
        port.on_request = self._on_request
        port.on_change = lambda: self.ended.set() if port.close_received else None
        port.channel.extended_sink = self._on_error

    def _on_request(self, request):
        assert request.request_type == "exit-status"
        assert not request.want_reply
        (self.status,) = struct.unpack(">I", request.type_specific)
        return True

    def _on_error(self, code, data):
        assert code == 1
        self.errors += bytes(data)
        return len(data)

    def ask(self, name, fields=b""):
        self.port.channel.send_request(name, fields)
        self.port.link.flush()

    @property
    def output(self):
        return bytes(self.port.pending).decode()


async def session(client):
    return Shell(await client.link.open_channel("session", b""))


PTY = wire.text("xterm") + struct.pack(">IIII", 80, 24, 0, 0) + wire.string(b"")


async def test_a_shell_is_a_page_and_an_end():
    async with running_box() as box:
        client = await box.log_in()
        other = await box.log_in()
        shell = await session(client)
        shell.ask("env", wire.text("LANG") + wire.text("C"))
        shell.ask("shell")
        await shell.ended.wait()
        assert shell.replies == [True, True]
        assert (shell.status, shell.errors) == (0, b"")
        assert shell.port.eof_received
        rows = [line.split(None, 1) for line in shell.output.splitlines() if line]
        assert ["user", "alice"] in rows
        assert ["key", ALICE_KEY.public.fingerprint] in rows
        assert ["groups", "staff"] in rows
        assert ["connections", "2"] in rows
        assert ["channels", "1"] in rows
        assert "  open *:* (rule r1)\n" in shell.output
        assert "\r" not in shell.output
        await trio.testing.wait_all_tasks_blocked()
        assert box.server.shared.channels == 0
        (ended,) = box.of_type(events.ChannelEnded)
        assert (ended.kind, ended.bytes_out) == ("session", len(shell.output))
        assert other.link.failure is None


async def test_lines_end_with_cr_lf_on_a_terminal():
    async with running_box() as box:
        shell = await session(await box.log_in())
        shell.ask("pty-req", PTY)
        shell.ask("shell")
        await shell.ended.wait()
        assert shell.output.count("\n") == shell.output.count("\r\n") > 5


@pytest.mark.parametrize(
    ("request_type", "fields"),
    [("exec", wire.text("id")), ("subsystem", wire.text("sftp"))],
)
async def test_programs_are_refused_clearly(request_type, fields):
    async with running_box() as box:
        shell = await session(await box.log_in())
        shell.ask(request_type, fields)
        await shell.ended.wait()
        assert shell.replies == [True]
        assert (shell.status, shell.output) == (1, "")
        assert b"It runs no programs" in shell.errors


@pytest.mark.parametrize("name", ["x11-req", "auth-agent-req@openssh.com", "break", "unheard-of"])
async def test_what_a_session_does_not_have(name):
    async with running_box() as box:
        shell = await session(await box.log_in())
        shell.ask(name)
        shell.ask("shell")
        shell.ask("shell")  # one answer for each session
        await shell.ended.wait()
        assert shell.replies[:2] == [False, True]
        assert shell.output.count("You are") == 1


@pytest.mark.parametrize(
    ("name", "what"),
    [("x11-req", "X11"), ("auth-agent-req@openssh.com", "agent"), ("agent-req", "agent")],
)
async def test_what_is_not_forwarded_is_refused_with_a_reason(name, what):
    async with running_box() as box:
        client = await box.log_in()
        shell = await session(client)
        shell.ask(name)
        shell.ask("shell")
        await shell.ended.wait()
        assert client.said == [f"denied: this is a jump box, which forwards no {what}"]


async def test_a_session_that_nobody_uses_or_reads_ends_with_its_client():
    async with running_box() as box:
        client = await box.log_in()
        idle, left = await session(client), await session(client)
        left.port.close()
        await trio.testing.wait_all_tasks_blocked()
        assert box.server.shared.channels == 1
        assert idle.port.failure is None
        client.carrier.close()
        await trio.testing.wait_all_tasks_blocked()
        reasons = [event.reason for event in box.of_type(events.ChannelEnded)]
        assert reasons == ["ended", "link lost"]


async def test_a_client_without_a_window_does_not_hold_its_session(autojump_clock):
    async with running_box() as box:
        client = await box.log_in()
        shell = await session(client)
        (server_link,) = box.server.shared.links.values()
        (channel,) = server_link.link.protocol.connection.channels.values()
        channel.remote_window = 0
        shell.ask("shell")
        await shell.ended.wait()
        assert box.server.shared.channels == 0


async def test_sessions_are_few():
    async with running_box() as box:
        client = await box.log_in()
        for _ in range(10):
            await session(client)
        with pytest.raises(ChannelOpenError, match="10 sessions") as caught:
            await session(client)
        assert caught.value.reason_code == OpenFailure.RESOURCE_SHORTAGE


async def test_no_more_sessions_means_it():
    async with running_box() as box:
        client = await box.log_in()
        connection = client.link.protocol.connection
        connection.notify_global("no-more-sessions@openssh.com")
        with pytest.raises(ChannelOpenError, match="port 0 does not exist"):
            await client.open("127.0.0.1", 0)
        client.link.ask_for_channel("session", b"", lambda _port: None)
        await client.link.ended.wait()
        assert "after no-more-sessions (reason code 2)" in str(client.link.failure)


@pytest.mark.parametrize("kind", ["x11", "forwarded-tcpip", "auth-agent@openssh.com", "tun?", ""])
async def test_unknown_channel_types(kind):
    async with running_box() as box:
        client = await box.log_in()
        with pytest.raises(ChannelOpenError) as caught:
            await client.link.open_channel(kind, b"")
        assert caught.value.reason_code == OpenFailure.UNKNOWN_CHANNEL_TYPE
        assert not box.of_type(events.Decision)[0].allowed


async def test_packets_too_small_for_unfinished_ones_are_refused_before_a_device_is_made(
    monkeypatch,
):
    monkeypatch.setattr("gateway.ssh.connection.MAXIMUM_DATA", LEAST_PACKET_SIZE - 1)
    async with running_box() as box:
        client = await box.log_in()
        request = OffloadOpen(int(Mode.POINT_TO_POINT), ANY_UNIT, 1).encode()
        with pytest.raises(
            ChannelOpenError, match="takes packets of 131085 bytes or more"
        ) as caught:
            await client.link.open_channel(OFFLOAD_CHANNEL_TYPE, request)
        assert caught.value.reason_code == OpenFailure.CONNECT_FAILED
        assert not box.of_type(events.Decision)[0].allowed


@pytest.mark.parametrize("name", ["direct-tcpip", "direct-streamlocal@openssh.com"])
async def test_fields_that_cannot_be_read_cost_one_channel(name):
    async with running_box() as box:
        client = await box.log_in()
        with pytest.raises(ChannelOpenError) as caught:
            await client.link.open_channel(name, b"\xff\xff")
        assert caught.value.reason_code == OpenFailure.CONNECT_FAILED
        assert await session(client)


# ---- sockets -------------------------------------------------------------------------------------


def streamlocal(path):
    return messages.DirectStreamlocal(path, "127.0.0.1", 65536).encode()


async def test_a_socket_is_opened_only_if_a_rule_names_it(tmp_path):
    path = str(tmp_path / "socket")
    async with running_box() as box:
        client = await box.log_in()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            name = "direct-streamlocal@openssh.com"
            with pytest.raises(ChannelOpenError, match="denied: no rule does") as caught:
                await client.link.open_channel(name, streamlocal(path))
            assert caught.value.reason_code == OpenFailure.ADMINISTRATIVELY_PROHIBITED
            box.rules.unix.add(path)
            port = await client.link.open_channel(name, streamlocal(path))
            there, _ = listener.accept()
            with there:
                await send_all(port, b"ping")
                await trio.lowlevel.wait_readable(there)
                assert there.recv(4) == b"ping"
                there.sendall(b"pong")
                assert await read_all(port, 4) == b"pong"
        (started,) = box.of_type(events.ChannelStarted)
        assert (started.kind, started.requested) == (name, path)
        box.rules.unix.add("/nowhere")
        with pytest.raises(ChannelOpenError, match="No such file"):
            await client.link.open_channel(name, streamlocal("/nowhere"))


@pytest.mark.parametrize("path", ["", "relative", "/" + "a" * 107, "/a\0b", "@abstract"])
async def test_no_paths(path):
    async with running_box() as box:
        box.rules.unix.add(path)
        client = await box.log_in()
        with pytest.raises(ChannelOpenError) as caught:
            await client.link.open_channel("direct-streamlocal@openssh.com", streamlocal(path))
        assert caught.value.reason_code == OpenFailure.CONNECT_FAILED
        assert box.rules.asked == []


# ---- global requests -----------------------------------------------------------------------------


async def test_host_keys_are_announced_and_proven_once_each():
    keys = (HOST_KEY, PrivateKey.generate(os.urandom))
    async with running_box(make_options(host_keys=keys)) as box:
        client = await box.log_in()
        await client.host_keys_offered.wait()
        offered = hostkeys.offered_keys_untrusted(client.offered_host_keys)
        assert offered == tuple(key.public for key in keys)
        request = hostkeys.prove_request(offered)
        reply = await client.link.global_request(hostkeys.PROVE, request)
        session_id = client.link.protocol.transport.session_id
        hostkeys.check_proofs_untrusted(reply.response_specific, offered, session_id)
        twice = hostkeys.prove_request((offered[0], offered[0]))
        assert not (await client.link.global_request(hostkeys.PROVE, twice)).success
        stranger = hostkeys.prove_request((parse_public_key_untrusted(ALICE_KEY.public.blob),))
        assert not (await client.link.global_request(hostkeys.PROVE, stranger)).success
        assert not (await client.link.global_request(hostkeys.PROVE, b"\xff")).success
        for _ in range(link_module.MAXIMUM_PROOFS):
            await client.link.global_request(hostkeys.PROVE, request)
        assert not (await client.link.global_request(hostkeys.PROVE, request)).success


@pytest.mark.parametrize(
    ("name", "success"),
    [
        ("keepalive@openssh.com", True),
        ("streamlocal-forward@openssh.com", False),
        ("unheard-of", False),
        ("", False),
    ],
)
async def test_other_global_requests(name, success):
    async with running_box() as box:
        client = await box.log_in()
        assert (await client.link.global_request(name, b"")).success is success
