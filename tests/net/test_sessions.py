"""A session whose server does what it likes: bounds hold, and what it says is only data."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

from gateway.errors import ChannelClosed, ConnectionLost
from gateway.net.descriptors import Descriptor
from gateway.net.pty import LocalTerminal
from gateway.net.session import Session, SessionPlan
from gateway.net.stdio import Streams, carry
from gateway.ssh import messages, wire
from gateway.ssh.flow import INITIAL_WINDOW
from gateway.ssh.numbers import EXTENDED_DATA_STDERR
from tests.support.memory import linked, make_links


class Far:
    """The server's end: what it was asked, and what it answers."""

    def __init__(self, port, answers):
        self.port = port
        self.asked = []
        self._answers = answers
        port.on_request = self._on_request

    def _on_request(self, request):
        self.asked.append((request.request_type, request.want_reply, request.type_specific))
        return self._answers.get(request.request_type, True)

    def tell(self, request_type, type_specific=b""):
        self.port.channel.send_notice(request_type, type_specific)
        self.port.link.flush()

    def raw(self, message):
        self.port.link.protocol.outbound.append(message.encode())
        self.port.link.flush()

    def close(self):
        self.port.close()


@asynccontextmanager
async def session_pair(**answers):
    """A session on a link in memory, and the server's end of it."""
    fars = []
    links = make_links(capacity=1 << 22)
    links.on_accept = lambda port: fars.append(Far(port, answers))
    async with linked(links):
        session = Session(await links.link.open_channel("session", b""))
        yield session, fars[0], links


@asynccontextmanager
async def streams():
    """Pipes for input, output and errors: our ends of them, and the others."""
    pipes = [os.pipe() for _ in range(3)]
    (stdin, typing), (reading, stdout), (errors, stderr) = pipes
    ours = Streams(
        Descriptor.for_reading(stdin),
        Descriptor.for_writing(stdout),
        Descriptor.for_writing(stderr),
    )
    try:
        yield ours, typing, reading, errors
    finally:
        ours.close()
        for end in (end for pair in pipes for end in pair):
            with suppress(OSError):
                os.close(end)


# ---- what is asked -------------------------------------------------------------------------------


async def test_everything_is_asked_in_one_go_and_in_order():
    async with session_pair() as (session, far, _):
        plan = SessionPlan("ls", terminal="vt100", environment=(("A", "1"), ("B", "ä")))
        await session.start(plan, LocalTerminal(None))
        pty = wire.text("vt100") + bytes(16) + wire.string(b"\0")
        assert far.asked == [
            ("pty-req", True, pty),
            ("env", False, wire.text("A") + wire.text("1")),
            ("env", False, wire.text("B") + wire.text("ä")),
            ("exec", True, wire.text("ls")),
        ]
        assert session.has_terminal


@pytest.mark.parametrize(
    ("plan", "refused", "problem"),
    [
        (SessionPlan("ls"), "exec", "the server refused to run the command"),
        (SessionPlan(), "shell", "the server refused to start a shell"),
        (SessionPlan("a\nb", is_subsystem=True), "subsystem", r"start the subsystem a\nb"),
        (SessionPlan(terminal="x", needs_terminal=True), "pty-req", "gives no terminal"),
    ],
)
async def test_refusals_are_told(plan, refused, problem):
    async with session_pair(**{refused: False}) as (session, _, _):
        with pytest.raises(ChannelClosed) as caught:
            await session.start(plan, LocalTerminal(None))
        assert problem in str(caught.value)


async def test_a_shell_goes_on_without_the_terminal_that_it_may_have():
    async with session_pair(**{"pty-req": False}) as (session, _, _):
        await session.start(SessionPlan(terminal="x"), LocalTerminal(None))
        assert not session.has_terminal


async def test_a_server_that_closes_instead_of_answering():
    async with session_pair() as (session, far, _):
        far.close()
        with pytest.raises(ChannelClosed):
            await session.start(SessionPlan("ls"))


async def test_answers_that_nobody_waits_for_change_nothing():
    async with session_pair(exec=False) as (session, far, links):
        far.raw(messages.ChannelSuccess(session.port.channel.channel_id))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ChannelClosed):
            await session.start(SessionPlan("ls"))
        assert links.link.failure is None


# ---- what is told --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [b"TERM", b"\x1b]0;x\x07\n" * 20_000, b"\xff\xfe", b"", b"\0" * 100_000]
)
async def test_any_name_of_a_signal_is_harmless(name):
    """T50: escaped and cut, whatever stands there."""
    async with session_pair() as (session, far, links):
        rest = b"\1" + wire.string(b"\x1b[2J" * 10_000) + wire.text("")
        far.tell("exit-signal", wire.string(name) + rest)
        far.close()
        assert (await session.capture()).status == 255
        assert session.signal.isprintable()
        assert len(session.signal) <= 400
        assert links.link.failure is None


@pytest.mark.parametrize("request_type", ["exit-status", "exit-signal"])
async def test_a_request_that_is_cut_is_an_error_of_the_protocol(request_type):
    async with session_pair() as (session, far, links):
        far.tell(request_type, b"\0\0")
        with pytest.raises(ConnectionLost):
            await session.capture()
        assert "Error" not in str(links.link.failure)


async def test_requests_after_the_close_end_the_link():
    async with session_pair() as (session, far, links):
        far.raw(messages.ChannelClose(session.port.channel.channel_id))
        status = messages.ChannelRequest(
            session.port.channel.channel_id, "exit-status", False, wire.uint32(0)
        )
        far.raw(status)
        await links.link.ended.wait()
        assert "not open" in str(links.link.failure)


async def test_unknown_requests_are_refused():
    async with session_pair() as (session, far, links):
        replies = []
        far.port.on_reply = replies.append
        for name in ("pty-req", "signal", "x" * 1000, "exec", "window-change"):
            far.port.channel.send_request(name, bytes(1000))
        links.server.flush()
        await trio.testing.wait_all_tasks_blocked()
        assert replies == [False] * 5
        assert session.status == 255


async def test_the_status_is_a_byte_and_the_last_one_counts():
    async with session_pair() as (session, far, _):
        far.tell("exit-status", wire.uint32(7))
        far.tell("exit-status", wire.uint32(0xFFFF_FF03))
        far.close()
        assert (await session.capture()).status == 3


# ---- floods --------------------------------------------------------------------------------------


async def test_a_flood_waits_while_output_is_blocked():
    """Both streams, in the largest and in the smallest pieces; then it goes on."""
    async with session_pair() as (session, far, links), streams() as (ours, typing, out, err):
        os.close(typing)
        channel = far.port.channel
        sent = errors = 0

        async def flood():
            nonlocal sent, errors
            while True:
                with suppress(ChannelClosed, ConnectionLost):
                    await far.port.wait_room()
                sent += channel.send(b"x" * 100_000)
                for _ in range(50):
                    errors += channel.send_extended(EXTENDED_DATA_STDERR, b"e")
                links.server.flush()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(carry, session, ours, session.send)
            nursery.start_soon(flood)
            await trio.testing.wait_all_tasks_blocked(0.1)
            total = sent + errors
            assert total >= INITIAL_WINDOW
            assert len(session.output) + len(session.errors) <= session.port.channel.window.held
            assert session.port.channel.window.held <= total
            before = total
            for end in (out, err):
                os.set_blocking(end, False)
            while sent + errors == before:
                for end in (out, err):
                    with suppress(BlockingIOError):
                        os.read(end, 1 << 16)
                await trio.sleep(0)
            nursery.cancel_scope.cancel()


async def test_a_broken_output_stops_a_flood_at_once():
    """A server that is no OpenSSH knows no eow@openssh.com: the session is closed."""
    async with session_pair() as (session, far, links), streams() as (ours, _, out, _):
        os.close(out)

        async def flood():
            with suppress(ChannelClosed, ConnectionLost):
                while True:
                    await far.port.wait_room()
                    far.port.channel.send(b"x" * 100_000)
                    links.server.flush()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            await carry(session, ours, session.send)
            nursery.cancel_scope.cancel()
        assert session.status == 255
        await trio.testing.wait_all_tasks_blocked()
        assert far.port.close_received


async def test_input_that_the_server_does_not_want_is_not_read():
    async with (
        session_pair() as (session, far, _),
        streams() as (ours, typing, _, _),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(carry, session, ours, session.send)
        os.write(typing, b"first")
        while not far.port.pending:
            await trio.sleep(0.001)
        far.tell("eow@openssh.com")
        while session.takes_input:
            await trio.sleep(0.001)
        os.write(typing, b"second")
        await trio.testing.wait_all_tasks_blocked()
        assert far.port.pending == b"first"
        far.close()
