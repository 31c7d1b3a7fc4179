"""A session's input, output and errors, carried to and from this program's own.

Each direction has a task, so that one that is blocked stops no other; what waits in each is bounded
by the channel's window. Output that can be written at once is, by the channel's sink.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from gateway.errors import GatewayError
from gateway.net.descriptors import CHUNK_SIZE, Descriptor
from gateway.ssh.channel import discard_extended

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from gateway.net.session import Session

STDIN, STDOUT, STDERR = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Streams:
    """Where input comes from and output goes; without input, the command sees its end."""

    stdin: Descriptor | None
    stdout: Descriptor
    stderr: Descriptor

    def close(self) -> None:
        """Close them."""
        for descriptor in (self.stdin, self.stdout, self.stderr):
            if descriptor is not None:
                descriptor.close()


@contextmanager
def standard_streams(*, reads_input: bool) -> Iterator[Streams]:
    """Open this program's own for a with block; after it the output has ended for who reads it."""
    streams = Streams(
        Descriptor.for_reading(STDIN) if reads_input else None,
        Descriptor.for_writing(STDOUT),
        Descriptor.for_writing(STDERR),
    )
    try:
        yield streams
    finally:
        streams.close()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(null, STDOUT)
        os.close(null)


async def carry(
    session: Session, streams: Streams, send: Callable[[bytes], Awaitable[None]]
) -> None:
    """Carry until the server has closed, or is lost, and its output is written.

    ``send`` takes the input.
    """
    keep = session.port.channel.sink

    def write_or_keep(data: memoryview) -> int:
        count = 0 if session.output else streams.stdout.write_now(data)
        return count + (keep(data[count:]) if count < len(data) else 0)

    session.port.channel.sink = write_or_keep
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_send_input, session, streams.stdin, send)
        async with trio.open_nursery() as outputs:
            outputs.start_soon(_write_output, session, streams.stdout)
            outputs.start_soon(_write_errors, session, streams.stderr)
        nursery.cancel_scope.cancel()


async def _send_input(
    session: Session, stdin: Descriptor | None, send: Callable[[bytes], Awaitable[None]]
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_until_unwanted, session, nursery.cancel_scope)
        with suppress(GatewayError):  # the output side reports how it ended
            with suppress(OSError):  # as an end of the input
                while stdin is not None and (data := await stdin.read()):
                    await send(data)
            session.port.send_eof()
        nursery.cancel_scope.cancel()


async def _until_unwanted(session: Session, scope: trio.CancelScope) -> None:
    while session.takes_input:
        await session.changed()
    scope.cancel()


async def _write_output(session: Session, stdout: Descriptor) -> None:
    try:
        while await _write_some(session, session.output, stdout):
            pass
    except OSError:
        session.refuse_output()


async def _write_errors(session: Session, stderr: Descriptor) -> None:
    try:
        while await _write_some(session, session.errors, stderr):
            pass
    except OSError:
        session.port.channel.extended_sink = discard_extended
        session.port.consumed(len(session.errors))
        session.errors.clear()


async def _write_some(session: Session, waiting: bytearray, to: Descriptor) -> bool:
    """Write what waits, or wait for more; say whether there may be. Raises `OSError`."""
    if not waiting:
        if session.is_over:
            return False
        await session.changed()
        return True
    data = bytes(waiting[:CHUNK_SIZE])
    del waiting[: len(data)]
    try:
        await to.write_all(data)
    finally:
        session.port.consumed(len(data))
    return True
