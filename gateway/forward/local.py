"""Listeners of this machine: for -L, each client a channel to one target; for -D, see `proxy`.

A client costs no task. While the far end is asked, a plain function notes what happens on its
socket: a reset abandons the channel, the end of its data does not (it may have said all). Then a
`Relay` has both. Where the far end says no, the client gets a reset, which no program takes for an
empty answer, and the log the cause.
"""

from __future__ import annotations

import logging
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from gateway.errors import GatewayError
from gateway.forward.spec import ALL_INTERFACES, Tcp
from gateway.net import poller
from gateway.net.listen import (
    SOCKET_MASK,
    Sockets,
    describe,
    open_listeners_by_name,
    open_unix_listener,
    remove_socket,
    reset,
)
from gateway.net.port import nothing
from gateway.net.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.forward.spec import End
    from gateway.net.links import LinkSet
    from gateway.net.port import ChannelPort

log = logging.getLogger(__name__)

UNKNOWN_ORIGINATOR: Final = ("127.0.0.1", 65535)  # of one without an address; channels.c


@dataclass(frozen=True, slots=True)
class ListenOptions:
    """How to listen here: GatewayPorts, AddressFamily, StreamLocalBindMask, StreamLocalBindUnlink.

    ``family`` is the socket module's.
    """

    gateway_ports: bool = False
    family: int = socket.AF_UNSPEC
    bind_mask: int = SOCKET_MASK
    bind_unlink: bool = False


@dataclass(frozen=True, slots=True)
class Listener(Sockets):
    """The sockets of one forwarding, which listen; ``port`` is 0 for a unix socket."""

    address: str
    port: int


async def listen(end: End, options: ListenOptions) -> Listener:
    """Bind and listen; a cancel does not wait for a name's look-up. Raises `NetworkSetupError`."""
    if isinstance(end, Tcp):
        host = end.host
        if host is None and options.gateway_ports:
            host = ALL_INTERFACES[-1]
        sockets = tuple(await open_listeners_by_name(host, end.port, options.family))
        port = int(sockets[0].getsockname()[1])
        return Listener(sockets, None, host or "localhost", port)
    if options.bind_unlink:
        remove_socket(end.path)
    sock, file = open_unix_listener(end.path, options.bind_mask)
    return Listener((sock,), file, end.path, 0)


def open_target(
    links: LinkSet, end: End, originator: tuple[str, int], opened: Callable[[ChannelPort], object]
) -> ChannelPort:
    """Let the far end connect to a target; see `Link.ask_for_channel`. Raises `ConnectionLost`."""
    if isinstance(end, Tcp):
        return links.open_direct_tcpip(end.host or "", end.port, originator, opened)
    return links.open_direct_streamlocal(end.path, opened)


class Local:
    """The clients of one -L to ``target``; ``shown`` is the forwarding in words."""

    def __init__(self, links: LinkSet, target: End, shown: str) -> None:
        self._links = links
        self._target = target
        self._shown = shown

    def welcome(self, sock: socket.socket, address: Any) -> None:  # noqa: ANN401 - of any family
        """Take a client, whose socket is non-blocking."""
        client = _Client(sock, f"{self._shown} for {describe(address)}")
        is_tcp = isinstance(address, tuple)
        originator = (str(address[0]), int(address[1])) if is_tcp else UNKNOWN_ORIGINATOR
        try:
            client.port = open_target(self._links, self._target, originator, client.opened)
        except GatewayError as error:
            client.refuse(error)


class _Client:
    """A client whose target is asked for: from accept until a relay has its socket."""

    __slots__ = ("_events", "_shown", "_sock", "port")

    def __init__(self, sock: socket.socket, shown: str) -> None:
        self.port: ChannelPort | None = None
        self._sock = sock
        self._shown = shown
        self._events = 0  # not acted upon yet
        poller.current().watch_input(sock, self._note)

    def _note(self, event: int) -> None:
        self._events |= event
        if event & poller.BROKEN:
            log.info("%s: the client has left", self._shown)
            poller.close(self._sock)
            if self.port is not None:
                self.port.close()

    def opened(self, port: ChannelPort) -> None:
        """The far end has answered."""
        if port.failure is not None:
            self.refuse(port.failure)
            return
        log.debug("%s: connected", self._shown)
        Relay(self._sock, port).start(nothing, b"", self._events)

    def refuse(self, failure: GatewayError) -> None:
        """There is no channel for it."""
        log.info("%s: %s", self._shown, failure)
        reset(self._sock)
