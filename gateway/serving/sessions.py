"""Sessions (RFC 4254 §6): no shell, but a page that says who you are and what you may do.

A stock client that asks for a terminal and a shell gets the page and exit status 0; one that wants
a program run gets a line on standard error and exit status 1.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from gateway.errors import ChannelClosed, ConnectionLost
from gateway.serving.channels import Refused
from gateway.ssh import wire
from gateway.ssh.channel import discard
from gateway.ssh.messages import EOW
from gateway.ssh.numbers import EXTENDED_DATA_STDERR, OpenFailure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway import events
    from gateway.net.port import ChannelPort
    from gateway.serving.channels import Channels, Record

SESSION: Final = "session"
MAXIMUM_SESSIONS: Final = 10  # of one link, as sshd_config(5), MaxSessions
WRITE_DEADLINE_S: Final = 10.0  # for a client to take the page

NO_PROGRAMS: Final = (
    "gateway: this is a jump box. It runs no programs and has no files: "
    "use it with -N -L, -R, -D, -W or -J.\n"
)

# Accepted, so that stock clients go on; nothing here depends on what they say.
_IGNORED: Final = frozenset(("env", "window-change", "signal", "xon-xoff", EOW))
_PROGRAMS: Final = frozenset(("exec", "subsystem"))
# Refused with a reason beside the answer: ssh asks for an agent without wanting one.
_NOT_FORWARDED: Final = {
    "auth-agent-req@openssh.com": "agent",
    "agent-req": "agent",  # RFC 9987
    "x11-req": "X11",
}


class Sessions:
    """The sessions of one link. ``page`` makes the text."""

    def __init__(self, channels: Channels, page: Callable[[], str]) -> None:
        self.channels = channels
        self.page = page
        self.count = 0

    def requested(self, event: events.ChannelOpenRequested) -> None:
        """Take an open. Raises `Refused`."""
        if self.count >= MAXIMUM_SESSIONS:
            raise Refused(
                f"denied: {MAXIMUM_SESSIONS} sessions are open, which is the limit",
                OpenFailure.RESOURCE_SHORTAGE,
            )
        record = self.channels.begin(SESSION, SESSION)
        try:
            port = self.channels.link.confirm_channel(event.channel_id)
        except ConnectionLost:
            record.fail(event.channel_id, "the connection ended first")
            return
        self.count += 1
        record.start(port, "")
        _Session(self, record, port)


class _Session:
    """One session, until its output is sent or its client leaves."""

    def __init__(self, sessions: Sessions, record: Record, port: ChannelPort) -> None:
        self._sessions = sessions
        self._record = record
        self._port = port
        self._has_terminal = False
        self._is_answered = False
        self._is_over = False
        port.channel.sink = discard
        port.on_request = self._on_request
        port.on_change = self._on_change

    def _on_change(self) -> None:
        if self._port.close_received or self._port.failure is not None:
            self._end()

    def _on_request(self, request: events.ChannelRequested) -> bool:
        name = request.request_type
        if name == "pty-req":
            self._has_terminal = True
            return True
        if name == "shell" and not self._is_answered:
            page = self._sessions.page()
            text = page.replace("\n", "\r\n") if self._has_terminal else page
            self._answer(partial(self._write, text.encode()), 0)
            return True
        if name in _PROGRAMS and not self._is_answered:
            newline = "\r\n" if self._has_terminal else "\n"
            text = NO_PROGRAMS.replace("\n", newline)
            self._answer(partial(self._write_error, text.encode()), 1)
            return True
        if what := _NOT_FORWARDED.get(name):
            connection = self._port.link.protocol.connection
            connection.explain(f"denied: this is a jump box, which forwards no {what}")
        return name in _IGNORED

    def _answer(self, write: Callable[[], Awaitable[None]], status: int) -> None:
        self._is_answered = True

        async def run() -> None:
            try:
                with trio.move_on_after(WRITE_DEADLINE_S):
                    await trio.lowlevel.checkpoint()  # the reply to the request goes first
                    await write()
                if self._port.may_send:
                    channel = self._port.channel
                    channel.send_notice("exit-status", wire.uint32(status))
                    self._port.send_eof()
            except (ChannelClosed, ConnectionLost):
                pass
            finally:
                self._end()

        self._sessions.channels.start_soon(run, self._end)

    async def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            await self._port.wait_room()
            view = view[self._port.channel.send(view) :]
            self._port.link.flush()

    async def _write_error(self, data: bytes) -> None:
        while data:
            await self._port.wait_room()
            data = data[self._port.channel.send_extended(EXTENDED_DATA_STDERR, data) :]
            self._port.link.flush()

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._sessions.count -= 1
            self._port.close()
            self._record.end(self._port)
