"""A session channel that runs a command (RFC 4254 §6): its input, output, errors and exit status.

The program's own descriptors may be files, pipes or terminals shared with a shell, so they are not
made non-blocking: threads read and write them, a chunk at a time.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import trio

from gateway.errors import ChannelClosed, ConnectionLost, RemoteProtocolError, printable
from gateway.ssh import wire

if TYPE_CHECKING:
    from gateway import events
    from gateway.net.link import ChannelPort, Link

CHUNK_SIZE: Final = 64 * 1024
NO_STATUS: Final = 255  # as ssh(1), when the server reports none


class Session:
    """One command, or the login shell without a terminal."""

    def __init__(self, port: ChannelPort) -> None:
        self._port = port
        self._errors = bytearray()
        self._changed = trio.lowlevel.ParkingLot()
        self._replied = trio.Event()
        self._accepted = False
        self._status: int | None = None
        self.signal = ""
        port.on_change = self._changed.unpark_all
        port.on_request = self._on_request
        port.on_reply = self._on_reply
        port.channel.extended_sink = self._keep_errors

    def _keep_errors(self, _data_type_code: int, data: memoryview) -> int:
        self._errors += data
        self._changed.unpark_all()
        return 0

    def _on_reply(self, success: bool) -> None:  # noqa: FBT001 - a callback's only argument
        self._accepted = success
        self._replied.set()

    def _on_request(self, request: events.ChannelRequested) -> bool:
        reader = wire.Reader(request.type_specific)
        match request.request_type:
            case "exit-status":
                self._status = reader.uint32() & 0xFF
            case "exit-signal":
                self.signal = printable(reader.text(), 32)
                self._status = NO_STATUS
            case _:
                return False
        return True

    async def start(self, command: str | None) -> None:
        """Start the command, or the user's shell. Raises `ChannelClosed` if the server refuses."""
        if command is None:
            self._port.channel.send_request("shell")
        else:
            self._port.channel.send_request("exec", wire.text(command))
        self._port.link.flush()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_start)
            await self._replied.wait()
            nursery.cancel_scope.cancel()
        if self._port.failure is not None:
            raise self._port.failure
        if not self._accepted:
            raise ChannelClosed("the server refused to run the command")

    async def _watch_start(self) -> None:
        while self._port.failure is None and not self._port.close_received:
            await self._changed.park()
        self._replied.set()

    async def run(self, stdin: int | None, stdout: int, stderr: int) -> int:
        """Carry input and output until the server closes; return the exit status.

        The arguments are descriptors; without ``stdin`` the command sees the end of its input.
        Raises `ConnectionLost`.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_input, stdin)
            await self._write_output(stdout, stderr)
            nursery.cancel_scope.cancel()
        self._port.close()
        if isinstance(self._port.failure, ConnectionLost):
            raise self._port.failure
        return NO_STATUS if self._status is None else self._status

    async def _send_input(self, stdin: int | None) -> None:
        port = self._port
        try:
            while stdin is not None:
                data = await trio.to_thread.run_sync(
                    os.read, stdin, CHUNK_SIZE, abandon_on_cancel=True
                )
                if not data:
                    break
                view = memoryview(data)
                while view:
                    await port.wait_room()
                    view = view[port.channel.send(view) :]
                    port.link.flush()
            port.send_eof()
        except (ChannelClosed, ConnectionLost, RemoteProtocolError, OSError):
            return  # the output side reports how it ended

    async def _write_output(self, stdout: int, stderr: int) -> None:
        port = self._port
        while True:
            if port.pending:
                await self._write(stdout, port.pending)
            elif self._errors:
                await self._write(stderr, self._errors)
            elif port.close_received or port.failure is not None:
                return
            else:
                await self._changed.park()

    async def _write(self, descriptor: int, waiting: bytearray) -> None:
        data = bytes(waiting[:CHUNK_SIZE])
        del waiting[: len(data)]
        try:
            await trio.to_thread.run_sync(_write_all, descriptor, data)
        except OSError:  # nobody reads our output any more: as a command that gets SIGPIPE
            self._port.close()
            self._port.fail(ChannelClosed("the output cannot be written"))
            return
        self._port.consumed(len(data))


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


async def run_command(link: Link, command: str | None, stdin: int | None) -> int:
    """Run a command over a link with this program's standard output and error.

    Raises `ChannelOpenError`, `ChannelClosed` or `ConnectionLost`.
    """
    session = Session(await link.open_channel("session", b""))
    await session.start(command)
    return await session.run(stdin, 1, 2)
