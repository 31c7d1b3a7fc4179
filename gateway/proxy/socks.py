"""The SOCKS proxy: a client's request, a channel, and an answer that follows the far end's.

The reply is sent after CHANNEL_OPEN_CONFIRMATION or CHANNEL_OPEN_FAILURE, never before, and names
the cause: that is what `ssh -D` does not do. A client's mistakes end that client's connection
only.
"""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING, Final

import trio

from gateway.errors import ChannelOpenError, ConnectionLost, GatewayError, printable
from gateway.net import poller
from gateway.net.listen import describe
from gateway.net.poller import Readiness
from gateway.net.relay import Relay
from gateway.socks.replies import ReplyCode, reply_for_open_failure
from gateway.socks.server import NotSocksError, SocksError, SocksServer

if TYPE_CHECKING:
    from gateway.net.links import LinkSet

log = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_S: Final = 10.0  # for the client's request; a slow one holds only itself
CLOSE_TIMEOUT_S: Final = 10.0  # RFC 1928 §6: the server closes within 10 s of a failure
RECEIVE_SIZE: Final = 4096


class SocksProxy:
    """Serves SOCKS clients from a set of links."""

    def __init__(self, links: LinkSet) -> None:
        self._links = links

    async def serve_client(self, sock: socket.socket) -> None:
        """Serve one accepted, non-blocking socket to its end. Raises nothing."""
        try:
            await self._serve(sock)
        except (OSError, GatewayError) as error:
            log.debug("a SOCKS client left: %s", error)
        finally:
            poller.close(sock)

    async def _serve(self, sock: socket.socket) -> None:
        server, ready = SocksServer(), Readiness(sock)
        with trio.move_on_after(HANDSHAKE_TIMEOUT_S) as deadline:
            try:
                if not await self._read_request(sock, ready, server):
                    return
            except SocksError as error:
                await self._report_bad_input(sock, server, error)
                return
        request = server.request
        if deadline.cancelled_caught or request is None:
            log.info("a SOCKS client sent no request within %.0f s", HANDSHAKE_TIMEOUT_S)
            return
        peer = sock.getpeername()
        originator = (str(peer[0]), int(peer[1])) if isinstance(peer, tuple) else ("127.0.0.1", 0)
        target = f"{printable(request.host)} port {request.port}"
        try:
            port = await self._links.open_direct_tcpip(request.host, request.port, originator)
        except ChannelOpenError as error:
            reply = reply_for_open_failure(error.reason_code, error.description)
            log.info("%s: refused by the far end: %s", target, error)
            await self._refuse(sock, server, reply)
            return
        except ConnectionLost as error:
            log.info("%s: %s", target, error)
            await self._refuse(sock, server, ReplyCode.GENERAL_FAILURE)
            return
        log.debug("%s: connected for %s", target, describe(peer))
        server.succeed()
        try:
            sock.send(server.data_to_send())  # a few bytes into an empty socket buffer
        except OSError:
            port.close()
            return
        await Relay(sock, port).run(server.early_data())

    async def _read_request(
        self, sock: socket.socket, ready: Readiness, server: SocksServer
    ) -> bool:
        """Read until the request is complete; say whether it is (or the client left)."""
        while server.request is None:
            try:
                data = sock.recv(min(RECEIVE_SIZE, server.room))
            except BlockingIOError:
                await ready.wait()
                continue
            if not data:
                return False
            server.receive(data)
            if answer := server.data_to_send():
                sock.send(answer)
        return True

    async def _report_bad_input(
        self, sock: socket.socket, server: SocksServer, error: SocksError
    ) -> None:
        level = logging.WARNING if isinstance(error, NotSocksError) else logging.INFO
        log.log(level, "SOCKS client %s: %s", describe(sock.getpeername()), error)
        await self._hang_up(sock, server.data_to_send())

    async def _refuse(self, sock: socket.socket, server: SocksServer, reply: ReplyCode) -> None:
        server.fail(reply)
        await self._hang_up(sock, server.data_to_send())

    async def _hang_up(self, sock: socket.socket, last_words: bytes) -> None:
        """Send, end our direction, and read on until the client closes: a close would reset."""
        if last_words:
            sock.send(last_words)
        sock.shutdown(socket.SHUT_WR)
        ready = Readiness(sock)
        with trio.move_on_after(CLOSE_TIMEOUT_S):
            while True:
                try:
                    if not sock.recv(RECEIVE_SIZE):
                        return
                except BlockingIOError:
                    await ready.wait()
