"""The far side's SOCKS proxy (-R without a target): its clients come as channels, and we dial.

As `gateway.proxy.socks` is for clients of this machine, with the ends swapped: the channel must be
confirmed before its client can say where to, PermitRemoteOpen limits that, and the reply follows
the connection. A client that leaves meanwhile ends what is dialled for it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from gateway.errors import ConnectionLost, GatewayError, printable
from gateway.forward.permit import Permitted, is_permitted
from gateway.forward.spec import Tcp
from gateway.net.dial import DialError
from gateway.net.port import nothing
from gateway.net.relay import Relay
from gateway.net.stream import ChannelStream
from gateway.socks.replies import ReplyCode, reply_for_open_failure
from gateway.socks.server import HANDSHAKE_LIMIT, SocksError, SocksServer
from gateway.ssh.numbers import OpenFailure

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from gateway.net.link import Link
    from gateway.net.port import ChannelPort
    from gateway.socks.server import Request

    Dial = Callable[[Tcp], Awaitable[socket.socket]]

log = logging.getLogger(__name__)

PATIENCE_S: Final = 10.0  # for a request; as `gateway.proxy.socks`


class _NoTargetError(GatewayError):
    """A client gets none: why."""


async def serve_socks(
    link: Link, channel_id: int, permitted: Permitted, dial: Dial, shown: str
) -> None:
    """Confirm a channel and serve its client, up to the relay; ``shown`` is for the log."""
    try:
        port = link.confirm_channel(channel_id)
    except ConnectionLost:
        return
    stream, server = ChannelStream(port), SocksServer()
    try:
        request = await _request(server, stream)
        sock = await _target(server, stream, request, permitted, dial)
    except (trio.BrokenResourceError, trio.ClosedResourceError, _NoTargetError) as error:
        log.info("%s: %s", shown, error)
        port.close()
        return
    except BaseException:
        port.close()
        raise
    try:
        sock.send(server.early_data())  # HANDSHAKE_LIMIT at most, into an empty buffer
    except OSError as error:
        log.info("%s: %s", shown, error.strerror)
        sock.close()
        port.close()
    else:
        Relay(sock, port).start(nothing)


async def _request(server: SocksServer, stream: ChannelStream) -> Request:
    with trio.move_on_after(PATIENCE_S):
        while server.request is None:
            data = await stream.receive_some(HANDSHAKE_LIMIT)
            if not data:
                raise _NoTargetError("the client left without a SOCKS request")
            try:
                server.receive(data)
            except SocksError as error:
                await _send(server, stream)
                raise _NoTargetError(str(error)) from error
            await _send(server, stream)
        return server.request
    raise _NoTargetError(f"no SOCKS request within {PATIENCE_S:.0f} s")


async def _target(
    server: SocksServer, stream: ChannelStream, request: Request, permitted: Permitted, dial: Dial
) -> socket.socket:
    """Connect, and tell the client how that went."""
    reply, said = ReplyCode.NOT_ALLOWED, "PermitRemoteOpen does not name it"
    if is_permitted(permitted, request.host, request.port):
        try:
            sock = await _dialled(stream.port, Tcp(request.host, request.port), dial)
        except DialError as error:
            reply = reply_for_open_failure(OpenFailure.CONNECT_FAILED, error.text)
            said = error.text
        else:
            server.succeed()
            try:
                await _send(server, stream)
            except BaseException:
                sock.close()
                raise
            return sock
    server.fail(reply)
    await _send(server, stream)
    await stream.send_eof()
    raise _NoTargetError(f"{printable(request.host)} port {request.port}: {said}")


async def _send(server: SocksServer, stream: ChannelStream) -> None:
    if answer := server.data_to_send():
        await stream.send_all(answer)


async def _dialled(port: ChannelPort, target: Tcp, dial: Dial) -> socket.socket:
    """Dial as long as the client is there. Raises `DialError`."""
    with trio.CancelScope() as scope:

        def look() -> None:
            if port.close_received or port.failure is not None:
                scope.cancel()

        port.on_change = look
        look()
        return await dial(target)
    raise _NoTargetError("the client left while its target was dialled")
