"""What the server listens on for us (-R), and who comes to us from there (RFC 4254 §7.1, OpenSSH
PROTOCOL §2.4).

THEORY OF OPERATION

A request is noted before its answer, since clients may follow that in the same packet; what is
refused is forgotten again. A port that the server is to choose is known, and noted, with the
answer. A channel for what is not noted is refused: the server may not choose where we connect to.

The server names the listener of a client as we did. Some name the address that they have bound
instead; where only one of ours has the port, it is that one.

Without a target the client says it, in SOCKS: `reverse_socks`.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Final

from gateway.errors import (
    ConnectionLost,
    GatewayError,
    RemoteProtocolError,
    printable,
)
from gateway.forward.reverse_socks import serve_socks
from gateway.forward.spec import ALL_INTERFACES, MAXIMUM_PORT, End, Forward, Tcp, Unix
from gateway.net.dial import DialError, connect_unix, dial
from gateway.net.port import nothing
from gateway.net.relay import Relay
from gateway.ssh import wire
from gateway.ssh.messages import (
    CANCEL,
    ForwardedStreamlocal,
    ForwardedTcpip,
    StreamlocalForward,
    TcpipForward,
)
from gateway.ssh.numbers import OpenFailure

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    import trio

    from gateway import events
    from gateway.forward.permit import Permitted
    from gateway.net.link import Answer
    from gateway.net.login import ClientLink

log = logging.getLogger(__name__)

_UNEXPLAINED: Final = (
    "the server does not say why; it may be in use there, or forbidden by its configuration "
    "(in sshd_config: AllowTcpForwarding, AllowStreamLocalForwarding, PermitListen)"
)


class ForwardRefused(GatewayError):
    """The server does not listen, or not stop to listen, as it was asked to."""


class Request:
    """A listener that the server was asked for; ``wait`` for the answer."""

    def __init__(self, forward: Forward, answer: Answer) -> None:
        self.forward = forward
        self.port = forward.listen.port if isinstance(forward.listen, Tcp) else 0
        self.refusal = ""
        self.answer = answer

    async def wait(self) -> None:
        """Return when the server listens. Raises `ForwardRefused` or `ConnectionLost`."""
        await self.answer.wait()
        if self.refusal:
            raise ForwardRefused(self.refusal)


class Remote:
    """The listeners that the server has for us. ``close`` it before ``nursery`` ends."""

    def __init__(self, client: ClientLink, nursery: trio.Nursery, permitted: Permitted) -> None:
        self._client = client
        self._link = client.link
        self._nursery = nursery
        self._permitted = permitted
        self._forwards: dict[End, Forward] = {}  # by where the server listens, as it is told
        client.on_channel_open = self._requested

    def close(self) -> None:
        """Take nobody from now on: the link may outlive the nursery."""
        self._client.on_channel_open = self._client.refuse_channel

    # -- asking ------------------------------------------------------------------------------------

    def ask(self, forward: Forward) -> Request:
        """Ask the server to listen; requests may follow each other without a wait.

        Raises `ConnectionLost`, and `ForwardRefused` for what is listened on already.
        """
        end = _as_told(forward.listen)
        if end in self._forwards:
            raise ForwardRefused(f"{forward}: the server listens there for you already")
        asked = _request(end)
        request = Request(forward, self._link.ask(asked.request_name, asked.encode()))
        request.answer.on_arrival = partial(self._answered, request, end)
        if request.port or isinstance(end, Unix):
            self._forwards[end] = forward
        self._client.last_words = ""
        self._link.flush()
        return request

    def _answered(self, request: Request, end: End, reply: events.GlobalReplied) -> None:
        said, self._client.last_words = self._client.last_words, ""
        if not reply.success:
            self._forwards.pop(end, None)
            request.refusal = _refusal(end, said)
        elif isinstance(end, Tcp) and not end.port:
            port = _port_untrusted(reply.response_specific)
            if not port:
                request.refusal = f"{request.forward}: the server does not say which port it chose"
                return
            request.port = port
            self._forwards[Tcp(end.host, port)] = request.forward

    async def cancel(self, forward: Forward, port: int) -> None:
        """Have the server listen no more; ``port`` is the one that it listens on, or 0.

        Raises `ForwardRefused` or `ConnectionLost`.
        """
        end = _as_told(forward.listen)
        if isinstance(end, Tcp):
            end = Tcp(end.host, port)
        request = _request(end)
        reply = await self._link.global_request(CANCEL + request.request_name, request.encode())
        if not reply.success:
            raise ForwardRefused(f"{forward}: the server does not stop to listen there")
        self._forwards.pop(end, None)

    # -- who comes ---------------------------------------------------------------------------------

    def _requested(self, event: events.ChannelOpenRequested) -> None:
        """Take the server's open; it is answered once the target was reached."""
        try:
            forward, originator = self._find_untrusted(event)
        except RemoteProtocolError as error:
            self._refuse(event.channel_id, OpenFailure.CONNECT_FAILED, str(error))
            return
        if forward is None:
            kind = printable(event.channel_type, 64)
            log.warning("the server opens a %s channel that was not asked for: refused", kind)
            self._refuse(
                event.channel_id, OpenFailure.ADMINISTRATIVELY_PROHIBITED, "this was not asked for"
            )
            return
        shown = f"{forward} for {originator}"
        if forward.target is None:
            serve = partial(
                serve_socks, self._link, event.channel_id, self._permitted, _dial, shown
            )
        else:
            serve = partial(self._connect, event.channel_id, forward.target, shown)
        self._nursery.start_soon(self._guarded, serve, event.channel_id)

    def _find_untrusted(self, event: events.ChannelOpenRequested) -> tuple[Forward | None, str]:
        """Say which listener a client has come to, and where from."""
        match event.channel_type:
            case ForwardedTcpip.channel_type:
                tcp = ForwardedTcpip.decode_untrusted(event.type_specific)
                originator = f"{printable(tcp.originator_address, 64)} port {tcp.originator_port}"
                end = Tcp(tcp.connected_address, tcp.connected_port)
                return self._forwards.get(end) or self._only_one(end.port), originator
            case ForwardedStreamlocal.channel_type:
                path = ForwardedStreamlocal.decode_untrusted(event.type_specific).socket_path
                return self._forwards.get(Unix(path)), "a client there"
        return None, ""

    def _only_one(self, port: int) -> Forward | None:
        found = [
            forward
            for end, forward in self._forwards.items()
            if isinstance(end, Tcp) and end.port == port
        ]
        return found[0] if len(found) == 1 else None

    def _refuse(self, channel_id: int, reason_code: int, description: str) -> None:
        self._link.refuse_channel(channel_id, reason_code, description)

    async def _guarded(self, serve: Callable[[], Awaitable[None]], channel_id: int) -> None:
        """Serve a client; a defect of ours ends its channel and nothing else."""
        try:
            await serve()
        except Exception:
            log.exception("internal error while a forwarded channel was opened")
            self._refuse(channel_id, OpenFailure.CONNECT_FAILED, "an internal error")

    async def _connect(self, channel_id: int, target: End, shown: str) -> None:
        try:
            sock = await _dial(target)
        except DialError as error:
            log.info("%s: cannot connect: %s", shown, error.text)
            self._refuse(channel_id, OpenFailure.CONNECT_FAILED, error.text)
            return
        try:
            port = self._link.confirm_channel(channel_id)
        except ConnectionLost:
            sock.close()
            return
        log.debug("%s: connected", shown)
        Relay(sock, port).start(nothing)


async def _dial(target: End) -> socket.socket:
    """Connect to a target here. Raises `DialError`."""
    if isinstance(target, Unix):
        return connect_unix(target.path)
    return await dial(target.host or "", target.port)


def _as_told(end: End) -> End:
    """Return what the server is told to bind (channels.c, channel_rfwd_bind_host)."""
    if isinstance(end, Unix):
        return end
    if end.host is None:
        return Tcp("localhost", end.port)
    return Tcp("", end.port) if end.host in ALL_INTERFACES else end


def _request(end: End) -> StreamlocalForward | TcpipForward:
    if isinstance(end, Unix):
        return StreamlocalForward(end.path)
    return TcpipForward(end.host or "", end.port)


def _port_untrusted(specific: bytes) -> int:
    """Return the port that a server has chosen, or 0."""
    try:
        port = wire.Reader(specific).uint32()
    except RemoteProtocolError:
        return 0
    return port if port <= MAXIMUM_PORT else 0


def _refusal(end: End, said: str) -> str:
    where = f"path {end.path}" if isinstance(end, Unix) else f"port {end.port}"
    why = f"the server says: {said}" if said else _UNEXPLAINED
    return f"remote port forwarding failed for listen {where}: {why}"
