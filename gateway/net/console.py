"""A session in the foreground: with a terminal, its keys, its signals and what escapes do.

While the session has a terminal on the server, ours is raw, and whatever ends the session makes it
what it was. A signal that ends the program cancels the task in here (`gateway.cli.terminal`).
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from gateway.errors import ChannelClosed, ConnectionLost, GatewayError
from gateway.net.command_line import PROMPT, run_line
from gateway.net.escapes import Escape, Escapes
from gateway.net.local_command import run_locally
from gateway.net.pty import LocalTerminal
from gateway.net.session import CHANNEL_TYPE, Session
from gateway.net.stdio import STDIN, carry, standard_streams

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from gateway.net.command_line import Forwards
    from gateway.net.link import Link
    from gateway.net.session import SessionPlan
    from gateway.net.stdio import Streams

MESSAGE_DEADLINE_S: Final = 1.0  # for a terminal to show what an escape says, if it shows anything
_END_OF_FILE: Final = b"\x04"
_SIGNALS: Final = (signal.SIGWINCH, signal.SIGCONT, signal.SIGQUIT)


@dataclass(frozen=True, slots=True)
class Foreground:
    """What the person at the terminal may do.

    ``reads_input`` says whether the session gets our input, ``has_command_line`` and
    ``may_run_locally`` whether ``~C`` opens and what it takes. ``escape`` is one byte, or None for
    no escapes. ``change_verbosity`` takes 1 or -1 and returns the new LogLevel;
    ``stop_listening`` ends the taking of further connections. ``take_terminal`` keeps others from
    asking on the terminal while a session reads it.
    """

    reads_input: bool = True
    escape: bytes | None = None
    has_command_line: bool = False
    may_run_locally: bool = False
    change_verbosity: Callable[[int], str] = lambda _step: "unchanged"
    stop_listening: Callable[[], None] = lambda: None
    forwards: Forwards | None = None
    take_terminal: Callable[[], AbstractAsyncContextManager[None]] = nullcontext


async def run_session(link: Link, plan: SessionPlan, foreground: Foreground) -> int:
    """Run a session with this program's input, output and errors; return the exit status.

    Raises `ChannelOpenError`, `ChannelClosed` or `ConnectionLost`.
    """
    if not (foreground.reads_input and os.isatty(STDIN)):
        return await _run_session(link, plan, foreground)
    async with foreground.take_terminal():
        return await _run_session(link, plan, foreground)


async def _run_session(link: Link, plan: SessionPlan, foreground: Foreground) -> int:
    has_keys = plan.terminal is not None and foreground.reads_input
    terminal = LocalTerminal(STDIN if has_keys else None)
    session = Session(await link.open_channel(CHANNEL_TYPE, b""))
    try:
        with standard_streams(reads_input=foreground.reads_input) as streams:
            await session.start(plan, terminal)  # Ctrl-C still ends the wait for it
            if not session.has_terminal:
                terminal = LocalTerminal(None)
            with terminal.raw():
                return await _Console(link, session, streams, terminal, foreground).run()
    finally:
        session.close()


class _Console:
    """One session's; `run` carries it to its end."""

    def __init__(
        self,
        link: Link,
        session: Session,
        streams: Streams,
        terminal: LocalTerminal,
        foreground: Foreground,
    ) -> None:
        self._link = link
        self._session = session
        self._streams = streams
        self._terminal = terminal
        self._foreground = foreground
        self._scope = trio.CancelScope()
        self._escapes = Escapes(foreground.escape or b"~")

    async def run(self) -> int:
        """Return the exit status. Raises `ChannelClosed` or `ConnectionLost`."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                if self._terminal.is_raw:
                    await nursery.start(self._take_signals)
                send = self._session.send if self._foreground.escape is None else self._type
                await carry(self._session, self._streams, send)
                nursery.cancel_scope.cancel()
        if self._scope.cancelled_caught:
            raise ChannelClosed("disconnected from the keyboard")
        if isinstance(self._session.port.failure, ConnectionLost):
            raise self._session.port.failure
        return self._session.status

    async def _take_signals(self, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(*_SIGNALS) as signals:
            self._tell_size()  # it may have changed meanwhile
            task_status.started()
            async for number in signals:
                if number == signal.SIGQUIT:
                    self._scope.cancel()
                elif number == signal.SIGCONT and self._terminal.is_raw:
                    self._terminal.make_raw()  # a shell had it meanwhile
                self._tell_size()

    def _tell_size(self) -> None:
        size = self._terminal.new_size()
        if size is not None and self._session.has_terminal:
            self._session.send_size(size)

    # -- escapes -----------------------------------------------------------------------------------

    async def _type(self, keys: bytes) -> None:
        for part in self._escapes.feed(keys):
            if isinstance(part, Escape):
                await self._act(part)
            else:
                await self._session.send(part)

    async def _act(self, escape: Escape) -> None:
        match escape:
            case Escape.COMMAND_LINE:
                await self._open_command_line()
                return
            case Escape.SUSPEND:
                await self._show(f"{self._escapes.shown(escape)} [suspend gateway]")
                self._suspend()
                return
            case Escape.LESS_VERBOSE | Escape.MORE_VERBOSE:
                level = self._foreground.change_verbosity(1 if escape.value == "v" else -1)
                await self._show(f"{self._escapes.shown(escape)} [LogLevel {level}]")
                return
        await self._show(self._escapes.shown(escape))
        match escape:
            case Escape.DISCONNECT:
                self._scope.cancel()
                await trio.lowlevel.checkpoint()
            case Escape.BREAK:
                self._session.send_break()
            case Escape.REKEY:
                with suppress(GatewayError):  # one is under way, or the link is gone
                    self._link.protocol.transport.start_rekey(trio.current_time())
                self._link.flush()
            case Escape.LIST:
                await self._show(*self._connections())
            case Escape.BACKGROUND:
                await self._go_to_background()
            case Escape.HELP:
                await self._show(*self._escapes.help())

    async def _show(self, *lines: str) -> None:
        """Show lines, but never wait for long: the terminal may be stopped."""
        newline = "\r\n" if self._terminal.is_raw else "\n"
        text = "".join(line + newline for line in lines)
        with trio.move_on_after(MESSAGE_DEADLINE_S), suppress(OSError):
            await self._streams.stderr.write_all(text.encode("utf-8", "replace"))

    def _connections(self) -> list[str]:
        lines = ["The following connections are open:"]
        lines += [
            f"  #{channel.channel_id} {channel.channel_type} "
            f"({channel.bytes_in} bytes in, {channel.bytes_out} bytes out)"
            for channel in self._link.protocol.connection.channels.values()
        ]
        if self._foreground.forwards is not None:
            lines += [f"  {line}" for line in self._foreground.forwards.list()]
        return lines

    def _suspend(self) -> None:
        """Stop as a shell wants it; what follows happens when it lets us go on."""
        was_raw = self._terminal.is_raw
        self._terminal.restore()
        signal.raise_signal(signal.SIGTSTP)
        if was_raw:
            self._terminal.make_raw()
            self._tell_size()

    async def _go_to_background(self) -> None:
        """Leave the terminal to the shell, and go on until the forwarded connections have ended."""
        self._terminal.restore()
        self._foreground.stop_listening()
        await self._show("[backgrounded]")
        sys.stdout.flush()
        sys.stderr.flush()
        if os.fork():
            os._exit(0)
        await self._session.send(_END_OF_FILE)
        self._session.port.send_eof()
        self._session.takes_input = False
        await trio.sleep_forever()  # nothing more is read

    async def _open_command_line(self) -> None:
        if not self._foreground.has_command_line:
            await self._show("commandline disabled: it needs EnableEscapeCommandline=yes")
            return
        stdin, stdout, stderr = self._streams.stdin, self._streams.stdout, self._streams.stderr
        if stdin is None:
            return
        was_raw = self._terminal.is_raw
        async with stdout.lock, stderr.lock:  # nothing comes between meanwhile
            self._terminal.make_line()
            try:
                with suppress(OSError):
                    await stderr.write_locked(f"\n{PROMPT}".encode())
                    line = (await stdin.read()).decode("utf-8", "replace")
                    for said in await self._run_line(line):
                        await stderr.write_locked(f"{said}\n".encode("utf-8", "replace"))
            finally:
                if was_raw:
                    self._terminal.make_raw()

    async def _run_line(self, line: str) -> list[str]:
        if "\x03" in line:  # Ctrl-C: nothing after all
            return [""]
        may_run = run_locally if self._foreground.may_run_locally else None
        return await run_line(line, self._foreground.forwards, may_run)
