"""A session channel (RFC 4254 §6): what is asked of it, its output, errors and exit status.

`SessionPlan` says what to ask for, `Session` is the channel. Who wants its output takes it:
`capture` keeps it, `gateway.net.stdio` carries it to this program's own.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from gateway.errors import ChannelClosed, ConnectionLost, printable
from gateway.ssh import messages, wire
from gateway.ssh.channel import discard

if TYPE_CHECKING:
    from gateway import events
    from gateway.net.link import Link
    from gateway.net.port import ChannelPort
    from gateway.net.pty import LocalTerminal, WindowSize

CHANNEL_TYPE: Final = "session"
MAXIMUM_CAPTURED: Final = 1024 * 1024  # bytes of output that are kept
NO_STATUS: Final = 255  # as ssh(1), when the server reports none
BREAK_MS: Final = 1000  # as OpenSSH


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """What to ask the server for: a command, a subsystem's name, or with None a shell.

    ``terminal`` is the name in TERM of what a terminal there is to be, or None for no terminal;
    ``needs_terminal`` if it is worth nothing without. ``environment`` is sent before (§6.4).
    """

    command: str | None = None
    is_subsystem: bool = False
    terminal: str | None = None
    needs_terminal: bool = False
    environment: tuple[tuple[str, str], ...] = ()


class Session:
    """One command, subsystem or shell."""

    def __init__(self, port: ChannelPort) -> None:
        self.port = port
        self.output = port.pending
        self.errors = bytearray()
        self.has_terminal = False
        self.takes_input = True  # until the server says that nobody reads it
        self.signal = ""
        self._changed = trio.lowlevel.ParkingLot()
        self._replies: deque[bool] = deque()
        self._status: int | None = None
        port.on_change = self._changed.unpark_all
        port.on_request = self._on_request
        port.on_reply = self._on_reply
        port.channel.extended_sink = self._keep_errors

    @property
    def status(self) -> int:
        """The exit status, or what ssh(1) makes of none."""
        return NO_STATUS if self._status is None else self._status

    @property
    def is_over(self) -> bool:
        """Whether no more output can come."""
        return self.port.close_received or self.port.failure is not None

    async def changed(self) -> None:
        """Wait until anything happens: output, a reply, a request, an end."""
        await self._changed.park()

    def _keep_errors(self, _data_type_code: int, data: memoryview) -> int:
        self.errors += data
        self._changed.unpark_all()
        return 0

    def _on_reply(self, success: bool) -> None:  # noqa: FBT001 - a callback's only argument
        self._replies.append(success)
        self._changed.unpark_all()

    def _on_request(self, request: events.ChannelRequested) -> bool:
        reader = wire.Reader(request.type_specific)
        match request.request_type:
            case "exit-status":
                self._status = reader.uint32() & 0xFF
            case "exit-signal":
                self.signal = printable(reader.string(), 32)
                self._status = NO_STATUS
            case messages.EOW:
                self.takes_input = False
                self._changed.unpark_all()
            case _:
                return False
        return True

    # -- what is asked for -------------------------------------------------------------------------

    async def start(self, plan: SessionPlan, terminal: LocalTerminal | None = None) -> None:
        """Start what is planned; ``terminal`` is ours, where there is to be one.

        Raises `ChannelClosed` if the server refuses.
        """
        channel = self.port.channel
        if plan.terminal is not None and terminal is not None:
            channel.send_request("pty-req", terminal.request(plan.terminal))
        for name, value in plan.environment:
            channel.send_notice("env", wire.text(name) + wire.text(value))
        if plan.command is None:
            channel.send_request("shell")
        else:
            kind = "subsystem" if plan.is_subsystem else "exec"
            channel.send_request(kind, wire.text(plan.command))
        self.port.link.flush()
        if plan.terminal is not None and terminal is not None:
            self.has_terminal = await self._reply()
            if not self.has_terminal and plan.needs_terminal:
                raise ChannelClosed("the server gives no terminal: leave out -t, or use -T")
        if not await self._reply():
            what = "run the command" if plan.command is not None else "start a shell"
            if plan.is_subsystem:
                what = f"start the subsystem {printable(plan.command or '', 64)}"
            raise ChannelClosed(f"the server refused to {what}")

    async def _reply(self) -> bool:
        """Return the next reply to a request; they come in the order of the requests."""
        while not self._replies:
            if self.port.failure is not None:
                raise self.port.failure
            if self.port.close_received:
                return False
            await self.changed()
        return self._replies.popleft()

    async def send(self, data: bytes) -> None:
        """Send input. Raises `ChannelClosed` or `ConnectionLost`."""
        view = memoryview(data)
        while view:
            await self.port.wait_room()
            view = view[self.port.channel.send(view) :]
            self.port.link.flush()

    def send_size(self, size: WindowSize) -> None:
        """Say that the terminal's size has changed (§6.7)."""
        self._notice("window-change", size.encode())

    def send_break(self) -> None:
        """Send a BREAK (RFC 4335)."""
        self._notice("break", wire.uint32(BREAK_MS))

    def _notice(self, request_type: str, type_specific: bytes = b"") -> None:
        if not self.is_over:
            self.port.channel.send_notice(request_type, type_specific)
            self.port.link.flush()

    def refuse_output(self) -> None:
        """Nobody reads the output: have it ended at its source, as by SIGPIPE.

        OpenSSH does so and goes on to its status; with others the session is closed.
        """
        port = self.port
        port.channel.sink = discard
        port.consumed(len(port.pending))
        port.pending.clear()
        if b"OpenSSH" in port.link.protocol.transport.peer_version:
            self._notice(messages.EOW)
        else:
            port.close()
            port.fail(ChannelClosed("the output cannot be written"))

    def close(self) -> None:
        """End the session."""
        self.port.close()

    # -- whole commands ----------------------------------------------------------------------------

    async def wait_for_output(self, text: bytes) -> bool:
        """Wait until the command has written ``text``; False if it ended without."""
        while text not in self.output:
            if self.is_over or self.port.eof_received:
                return False
            await self.changed()
        return True

    async def capture(self) -> Captured:
        """Keep the output until the server closes. Raises `ConnectionLost` or `ChannelClosed`."""
        port = self.port
        port.send_eof()
        output, errors = bytearray(), bytearray()
        while True:
            if self.output or self.errors:
                port.consumed(len(self.output) + len(self.errors))
                output += self.output
                errors += self.errors
                self.output.clear()
                self.errors.clear()
                if len(output) + len(errors) > MAXIMUM_CAPTURED:
                    raise ChannelClosed("the command says too much")
            elif self.is_over:
                break
            else:
                await self.changed()
        if isinstance(port.failure, ConnectionLost):
            raise port.failure
        return Captured(
            self.status, output.decode("utf-8", "replace"), errors.decode("utf-8", "replace")
        )


class Captured(NamedTuple):
    """What a command said and how it ended."""

    status: int
    output: str
    errors: str


async def capture(link: Link, command: str) -> Captured:
    """Run a command without input and return what it wrote, MAXIMUM_CAPTURED bytes at most.

    Raises `ChannelOpenError`, `ChannelClosed` or `ConnectionLost`.
    """
    session = Session(await link.open_channel(CHANNEL_TYPE, b""))
    try:
        await session.start(SessionPlan(command))
        return await session.capture()
    finally:
        session.close()
