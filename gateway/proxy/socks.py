"""The SOCKS proxy: a client's request, a channel, and an answer that follows the far end's.

THEORY OF OPERATION

The reply is sent after CHANNEL_OPEN_CONFIRMATION or CHANNEL_OPEN_FAILURE, never before, and names
the cause: that is what `ssh -D` does not do. A client's mistakes, and defects of our own, end that
client's connection only.

A client costs no task. The poller calls the function of the state that the client is in:

    accepted ─► _read_request ─► _note ───────────► Relay: has the socket from now on
                     │ bad input   │ far end: no      │ over
                     ▼             ▼                  ▼
                   _read_on: until the client ─────► closed
                   closes, after our last words

The far end's answer comes by another callback, ``_opened``. `SocksProxy.run` owns all clients: it
looks at the clock for those who keep us waiting, and closes the rest when it ends.
"""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING, Final

import trio

from gateway.errors import ChannelOpenError, ConnectionLost, GatewayError, printable
from gateway.net import poller
from gateway.net.listen import describe, serve
from gateway.net.relay import Relay
from gateway.socks.replies import ReplyCode, reply_for_open_failure
from gateway.socks.server import NotSocksError, SocksError, SocksServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gateway.net.links import LinkSet
    from gateway.net.port import ChannelPort
    from gateway.socks.server import Request

log = logging.getLogger(__name__)

# How long a client may keep us waiting: for its request, and for its close after a failure
# (RFC 1928 §6 says 10 s).
PATIENCE_S: Final = 10.0
RECEIVE_SIZE: Final = 4096
READS_AT_ONCE: Final = 16  # of what a refused client still sends, before others have their turn


class SocksProxy:
    """Serves SOCKS clients from a set of links."""

    def __init__(self, links: LinkSet) -> None:
        self.links = links
        self.poller = poller.current()
        self._clients: set[_Client] = set()
        self._deadlines: dict[_Client, float] = {}  # the next one first: all have PATIENCE_S

    async def run(self, listeners: Iterable[socket.socket] = ()) -> None:
        """Serve until cancelled, then close all clients."""
        try:
            async with trio.open_nursery() as nursery:
                for listener in listeners:
                    nursery.start_soon(serve, listener, self.welcome)
                await self._enforce_deadlines()
        finally:
            for client in list(self._clients):
                client.close()

    def welcome(self, sock: socket.socket, address: object) -> None:
        """Take a client, whose socket is non-blocking."""
        client = _Client(self, sock, address)
        self._clients.add(client)
        self.expect(client)
        self.poller.watch_input(sock, client.ready)
        client.ready(poller.INPUT)  # it speaks first, and may have spoken

    def expect(self, client: _Client) -> None:
        """Give a client PATIENCE_S from now on."""
        self._deadlines.pop(client, None)
        self._deadlines[client] = trio.current_time() + PATIENCE_S

    def expect_nothing(self, client: _Client) -> None:
        """A client did what was expected."""
        self._deadlines.pop(client, None)

    def forget(self, client: _Client) -> None:
        """A client was closed."""
        self._deadlines.pop(client, None)
        self._clients.discard(client)

    async def _enforce_deadlines(self) -> None:
        """Close who is late. Nobody who comes while we sleep is late before we wake."""
        while True:
            now_s = trio.current_time()
            late = [client for client, deadline_s in self._deadlines.items() if deadline_s <= now_s]
            for client in late:
                client.give_up()
            await trio.sleep_until(next(iter(self._deadlines.values()), now_s + PATIENCE_S))


class _Client:
    """One SOCKS client, from accept to the end of its connection."""

    __slots__ = (
        "_address",
        "_events",
        "_is_refused",
        "_port",
        "_proxy",
        "_relay",
        "_server",
        "_sock",
        "_state",
    )

    def __init__(self, proxy: SocksProxy, sock: socket.socket, address: object) -> None:
        self._proxy = proxy
        self._sock = sock
        self._address = address
        self._server = SocksServer()
        self._state: Callable[[int], None] = self._read_request
        self._events = 0  # not acted upon yet
        self._port: ChannelPort | None = None
        self._relay: Relay | None = None
        self._is_refused = False

    def close(self) -> None:
        """End everything that this client has; harmless if it has ended."""
        self._proxy.forget(self)
        if self._relay is not None:
            self._relay.close()
            return
        self._proxy.poller.close(self._sock)
        if self._port is not None:
            self._port.close()

    def give_up(self) -> None:
        """PATIENCE_S are over."""
        if not self._is_refused:
            log.info("a SOCKS client sent no request within %.0f s", PATIENCE_S)
        self.close()

    def ready(self, event: int) -> None:
        """Take an event of the poller, CLOSED excepted."""
        if event:
            self._guard(self._state, event)

    def _guard(self, step: Callable[..., None], argument: object) -> None:
        """Take a step; whatever goes wrong ends this client only."""
        try:
            step(argument)
        except (OSError, GatewayError) as error:
            log.debug("a SOCKS client left: %s", error)
            self.close()
        except Exception:
            log.exception("internal error while serving a SOCKS client")
            self.close()

    # -- the request -------------------------------------------------------------------------------

    def _read_request(self, event: int) -> None:
        server = self._server
        self._events = event & poller.READABLE
        while server.request is None:
            if not self._events:
                return
            try:
                data = self._sock.recv(RECEIVE_SIZE)
            except BlockingIOError:
                return
            if not data:
                self.close()
                return
            if len(data) < RECEIVE_SIZE:
                self._events &= poller.ENDED  # then there may be more, or the end
            try:
                server.receive(data)
            except SocksError as error:
                self._report_bad_input(error)
                return
            if answer := server.data_to_send():
                self._sock.send(answer)
        self._open(server.request)

    def _report_bad_input(self, error: SocksError) -> None:
        level = logging.WARNING if isinstance(error, NotSocksError) else logging.INFO
        log.log(level, "SOCKS client %s: %s", describe(self._address), error)
        self._hang_up()

    # -- the far end -------------------------------------------------------------------------------

    def _open(self, request: Request) -> None:
        self._proxy.expect_nothing(self)
        self._state = self._note
        peer = self._address
        originator = (str(peer[0]), int(peer[1])) if isinstance(peer, tuple) else ("127.0.0.1", 0)
        try:
            self._port = self._proxy.links.open_direct_tcpip(
                request.host, request.port, originator, self._answered
            )
        except ConnectionLost as error:
            self._refuse(error)

    def _note(self, event: int) -> None:
        """While the far end is asked, only a reset ends the client: it may have half-closed."""
        self._events |= event
        if event & poller.BROKEN:
            self.close()

    def _answered(self, port: ChannelPort) -> None:
        self._guard(self._opened, port)

    def _opened(self, port: ChannelPort) -> None:
        if port.failure is not None:
            self._refuse(port.failure)
            return
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s: connected for %s", self._target(), describe(self._address))
        self._server.succeed()
        self._sock.send(self._server.data_to_send())  # a few bytes into an empty socket buffer
        self._relay = Relay(self._sock, port)
        self._relay.start(self.close, self._server.early_data(), self._events)

    def _target(self) -> str:
        request = self._server.request
        return "" if request is None else f"{printable(request.host)} port {request.port}"

    # -- no ----------------------------------------------------------------------------------------

    def _refuse(self, failure: GatewayError) -> None:
        """Tell the client in SOCKS why there is no channel."""
        reply = ReplyCode.GENERAL_FAILURE
        if isinstance(failure, ChannelOpenError):
            reply = reply_for_open_failure(failure.reason_code, failure.description)
            log.info("%s: refused by the far end: %s", self._target(), failure)
        else:
            log.info("%s: %s", self._target(), failure)
        self._server.fail(reply)
        self._hang_up()

    def _hang_up(self) -> None:
        """Send, end our direction, and read on until the client closes: a close would reset."""
        self._is_refused = True
        self._state = self._read_on
        if last_words := self._server.data_to_send():
            self._sock.send(last_words)
        self._sock.shutdown(socket.SHUT_WR)
        self._proxy.expect(self)
        self._read_on(0)

    def _read_on(self, _event: int) -> None:
        for _ in range(READS_AT_ONCE):
            try:
                data = self._sock.recv(RECEIVE_SIZE)
            except BlockingIOError:
                return
            if not data:
                self.close()
                return
        self._proxy.poller.again(lambda: self.ready(poller.INPUT))
