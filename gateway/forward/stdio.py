"""-W: standard input and output, joined to one channel (ssh.c, ssh_init_stdio_forwarding)."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from gateway.errors import ChannelOpenError, ConnectionLost
from gateway.forward.local import UNKNOWN_ORIGINATOR, open_target
from gateway.net.stdio import standard_streams
from gateway.net.stream import ChannelStream

if TYPE_CHECKING:
    from gateway.forward.spec import End
    from gateway.net.descriptors import Descriptor
    from gateway.net.links import LinkSet
    from gateway.net.port import ChannelPort


async def carry(links: LinkSet, target: End, *, reads_input: bool) -> None:
    """Carry until the target has ended, whatever input there is, or nobody reads the output.

    Without ``reads_input`` the target sees the end of its data at once. Raises `ChannelOpenError`
    or `ConnectionLost`.
    """
    port = await _open(links, target)
    with standard_streams(reads_input=reads_input) as streams:
        async with ChannelStream(port) as stream, trio.open_nursery() as nursery:
            nursery.start_soon(_send_input, streams.stdin, stream)
            with suppress(OSError):  # nobody reads it: as a program that gets SIGPIPE
                await _write_output(stream, streams.stdout)
            nursery.cancel_scope.cancel()
            failure = port.failure
    if isinstance(failure, ConnectionLost):
        raise failure


async def _open(links: LinkSet, target: End) -> ChannelPort:
    answered = trio.Event()

    def opened(_port: ChannelPort) -> None:
        answered.set()

    port = open_target(links, target, UNKNOWN_ORIGINATOR, opened)
    try:
        await answered.wait()
    except trio.Cancelled:
        port.close()
        raise
    if isinstance(port.failure, ChannelOpenError):
        raise ChannelOpenError(
            port.failure.reason_code, f"the server cannot connect to {target.shown}: {port.failure}"
        )
    if port.failure is not None:
        raise port.failure
    return port


async def _send_input(stdin: Descriptor | None, stream: ChannelStream) -> None:
    with suppress(trio.BrokenResourceError):  # the output side reports how it ended
        with suppress(OSError):  # as an end of the input
            while stdin is not None and (data := await stdin.read()):
                await stream.send_all(data)
        await stream.send_eof()


async def _write_output(stream: ChannelStream, stdout: Descriptor) -> None:
    """Write until the far end has ended. Raises `OSError`."""
    with suppress(trio.BrokenResourceError):
        while data := await stream.receive_some():
            await stdout.write_all(data)
