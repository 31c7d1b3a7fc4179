"""The forwardings of a link while it is up: listed, added and cancelled, whoever asks for it.

ssh's command line, its ``~C`` and `gateway forward` all come here. A cancelled one takes no more
clients; those that it has stay (as with ssh).
"""

from __future__ import annotations

import logging
import socket
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING

from gateway import events
from gateway.forward.local import ListenOptions, Local, listen
from gateway.forward.permit import ANY_TARGET, Permitted
from gateway.forward.remote import ForwardRefused, Remote
from gateway.forward.spec import Kind, Tcp, Unix, parse_forward, parse_listen
from gateway.net.listen import serve
from gateway.proxy.socks import SocksProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import trio

    from gateway.errors import GatewayError
    from gateway.forward.local import Listener
    from gateway.forward.remote import Request
    from gateway.forward.spec import End, Forward
    from gateway.net.links import LinkSet
    from gateway.net.login import ClientLink

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ForwardOptions:
    """How to listen here, and where the far side's SOCKS clients may go."""

    listening: ListenOptions = field(default_factory=ListenOptions)
    permitted: Permitted = ANY_TARGET


@dataclass(frozen=True, slots=True)
class Active:
    """A forwarding that is up; ``port`` is what really listens, or 0 for a unix socket."""

    forward: Forward
    port: int
    listener: Listener | None = None  # of this machine


class Table:
    """All forwardings of a link. ``close`` it before ``nursery`` ends."""

    def __init__(
        self,
        client: ClientLink,
        links: LinkSet,
        nursery: trio.Nursery,
        options: ForwardOptions,
        report: Callable[[events.Event], None],
    ) -> None:
        self._links = links
        self._nursery = nursery
        self._options = options
        self._report = report
        self._remote = Remote(client, nursery, options.permitted)
        self._socks: SocksProxy | None = None
        self._active: list[Active] = []

    @property
    def active(self) -> Sequence[Active]:
        """What is up, in the order in which it came."""
        return tuple(self._active)

    async def add(self, kind: Kind, spec: str) -> Active:
        """Listen, here or there, as an option of ssh(1) says.

        Raises `ConfigError`, `NetworkSetupError`, `ForwardRefused` or `ConnectionLost`.
        """
        forward = parse_forward(kind, spec)
        if forward.kind is Kind.REMOTE:
            return await self._added(self._remote.ask(forward))
        return self.adopt(forward, await listen(forward.listen, self._options.listening))

    def adopt(self, forward: Forward, listener: Listener) -> Active:
        """Take clients from a listener of this machine, which is this object's from now on."""
        if forward.target is None:
            _warn_of_strangers(listener)
            welcome = self._proxy().welcome
        else:
            welcome = Local(self._links, forward.target, str(forward)).welcome
        for sock in listener.sockets:
            self._nursery.start_soon(serve, sock, welcome)
        self._report(events.ListenerOpened(_purpose(forward), listener.address, listener.port))
        return self._note(Active(forward, listener.port, listener))

    def _proxy(self) -> SocksProxy:
        """Return the SOCKS proxy, one for all listeners, which runs from the first on."""
        if self._socks is None:
            self._socks = SocksProxy(self._links)
            self._nursery.start_soon(self._socks.run)
        return self._socks

    async def add_remote(self, forwards: Iterable[Forward]) -> list[GatewayError]:
        """Ask the server for all at once; return what went wrong. Raises `ConnectionLost`."""
        requests: list[Request] = []
        failures: list[GatewayError] = []
        for forward in forwards:
            try:
                requests.append(self._remote.ask(forward))
            except ForwardRefused as error:
                failures.append(error)
        for request in requests:
            try:
                await self._added(request)
            except ForwardRefused as error:
                failures.append(error)
        return failures

    async def _added(self, request: Request) -> Active:
        await request.wait()
        forward, end = request.forward, request.forward.listen
        if isinstance(end, Tcp) and not end.port:
            self._report(events.RemotePortAllocated(request.port, _shown_target(forward)))
        else:
            self._report(events.RemoteListenerOpened(_purpose(forward), end.shown))
        return self._note(Active(forward, request.port))

    def _note(self, active: Active) -> Active:
        self._active.append(active)
        return active

    async def cancel(self, kind: Kind, spec: str) -> None:
        """Listen no more where a forwarding of this kind was asked to, or has its chosen port.

        Raises `ConfigError`, `ForwardRefused` or `ConnectionLost`.
        """
        end = parse_listen(kind, spec)
        found = next(filter(partial(_is_meant, kind, end), self._active), None)
        if found is None:
            raise ForwardRefused(f"-{kind.value} {end}: there is no such forwarding")
        if found.listener is None:
            await self._remote.cancel(found.forward, found.port)
        else:
            found.listener.close()
        if found in self._active:  # somebody else may have asked for the same meanwhile
            self._active.remove(found)
        log.info("%s: cancelled", found.forward)

    def close(self) -> None:
        """Take no more clients, wherever they come to."""
        self.stop_listening()
        self._remote.close()

    def stop_listening(self) -> None:
        """Listen no more on this machine."""
        for active in self._active:
            if active.listener is not None:
                active.listener.close()


def _is_meant(kind: Kind, end: End, active: Active) -> bool:
    listens = active.forward.listen
    if active.forward.kind is not kind:
        return False
    if isinstance(end, Tcp) and isinstance(listens, Tcp):
        return end.host == listens.host and end.port in (listens.port, active.port)
    return end == listens


def _warn_of_strangers(listener: Listener) -> None:
    """Our SOCKS has no passwords, so who reaches its port is the user for the far end (T66).

    An address is the user's own choice, as with ssh; it is only said what it means.
    """
    names = (sock.getsockname() for sock in listener.sockets if sock.family != socket.AF_UNIX)
    if any(not ip_address(name[0].partition("%")[0]).is_loopback for name in names):
        log.warning(
            "the SOCKS proxy on %s port %d has no password: whoever reaches it goes where you "
            "may go; on localhost it is for this machine alone",
            listener.address,
            listener.port,
        )


def _purpose(forward: Forward) -> str:
    return "SOCKS proxy" if forward.target is None else f"forward to {forward.target.shown}"


def _shown_target(forward: Forward) -> str:
    """Write a target as ssh does in this one message (ssh.c, ssh_confirm_remote_forward)."""
    match forward.target:
        case None:
            return "socks:0"
        case Unix(path):
            return path
        case Tcp(host, port):
            return f"{host}:{port}"
