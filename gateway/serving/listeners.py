"""Ports that listen for a client: "tcpip-forward" and its cancel (RFC 4254 §7.1).

THEORY OF OPERATION

What may be listened on, the policy says, about the address as the client wrote it: "" is all
addresses, "localhost" the loopback; it allows no other name, so none is ever looked up. A client
that is accepted becomes a "forwarded-tcpip" channel towards the SSH client, and a relay as any
other; the policy is asked again for each.

A port belongs to one link, and to no other until that one cancels or ends. Only when the user is
the same, with the same key, and the older link does not answer a probe, is it dead without knowing
it yet: its listener is closed and the newer link has the port.
"""

from __future__ import annotations

import logging
import socket
import struct
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

from gateway import events
from gateway.errors import ConnectionLost, NetworkSetupError, printable
from gateway.net import poller
from gateway.net.listen import addresses_to_bind, describe, open_listeners, serve
from gateway.policy.rules import Action
from gateway.serving.authorize import authorize
from gateway.serving.channels import Refused
from gateway.ssh import wire
from gateway.ssh.messages import ForwardedTcpip, TcpipForward

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.net.link import ChannelPort
    from gateway.policy.rules import Verdict
    from gateway.serving.channels import Channels, Record

log = logging.getLogger(__name__)

TCPIP_FORWARD: Final = "tcpip-forward"
FORWARDED_TCPIP: Final = "forwarded-tcpip"

PROBE_DEADLINE_S: Final = 3.0  # for an older link to show that it lives
MAXIMUM_FORWARDS: Final = 64  # of one link
MAXIMUM_ACCEPTED: Final = 512  # clients of one link that wait for the SSH client's answer
PRIVILEGED_PORTS: Final = 1024  # those below: what clients of this machine trust
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER with a time of 0


class Forward:
    """One port that listens for a link, on one or more addresses."""

    def __init__(self, owner: Listeners, bind_host: str, port: int) -> None:
        self.owner = owner
        self.bind_host = bind_host
        self.port = port
        self.sockets: list[socket.socket] = []
        self.addresses: tuple[str, ...] = ()

    def close(self) -> None:
        """Listen no more, from this moment on."""
        for sock in self.sockets:
            poller.close(sock)


class Listeners:
    """The listeners of one link."""

    def __init__(self, channels: Channels) -> None:
        self.channels = channels
        self._shared = channels.shared
        self._link = channels.link
        self._forwards: dict[tuple[str, int], Forward] = {}  # as the client names them
        self._accepted = 0

    # -- requests ----------------------------------------------------------------------------------

    def add(
        self, request: TcpipForward, answer: Callable[[bytes | Refused], None], *, wants_reply: bool
    ) -> None:
        """Listen; ``answer`` is called once, now or later, with the reply's specific fields."""
        host, port = request.address_to_bind, request.port_to_bind
        try:
            addresses = self._check(host, port, wants_reply=wants_reply)
            holder = self._holder(addresses, port)
            if holder is None:
                answer(self._listen(host, port))
                return
            self._check_takeover(holder)
        except Refused as error:
            answer(self._refused(host, port, error))
            return
        self.channels.start_soon(
            partial(self._take_over, holder, host, port, answer),
            lambda: answer(Refused("an internal error of the server")),
        )

    def cancel(self, request: TcpipForward) -> None:
        """Stop listening, at once. Raises `Refused`."""
        key = (request.address_to_bind, request.port_to_bind)
        forward = self._forwards.get(key)
        if forward is None:
            raise Refused(f"{_shown(*key)} is not listened on for this connection")
        self.remove(forward, "cancelled")

    def _check(self, host: str, port: int, *, wants_reply: bool) -> list[tuple[int, str]]:
        """Return the addresses to bind. Raises `Refused`."""
        if port > 65535:
            raise Refused(f"port {port} does not exist")
        if not port and not wants_reply:
            raise Refused("port 0 was asked for without a reply that could tell the port")
        if problem := self._shared.refuses_new():
            raise Refused(f"denied: {problem}")
        if len(self._forwards) >= MAXIMUM_FORWARDS:
            raise Refused(
                f"this connection listens on {MAXIMUM_FORWARDS} ports, which is the limit"
            )
        verdict = self._decide(host, port)
        if not verdict.allowed:
            raise Refused(verdict.reason, rule_id=verdict.rule_id)
        if 0 < port < PRIVILEGED_PORTS and self._decide(host, 0) == verdict:
            raise Refused(f"denied: port {port} is below 1024 and needs a rule of its own")
        if (host, port) in self._forwards:
            raise Refused(f"{_shown(host, port)} is listened on for this connection already")
        self.channels.decided(
            -1, "listen", _shown(host, port), verdict.reason, allowed=True, rule_id=verdict.rule_id
        )
        return list(addresses_to_bind(host))

    def _decide(self, host: str, port: int) -> Verdict:
        """Ask the policy of the moment; port 0 is allowed by rules for all ports only."""
        return authorize(self._shared.policy, self.channels.login, Action.LISTEN, host, port)

    def _refused(self, host: str, port: int, error: Refused) -> Refused:
        self.channels.decided(
            -1, "listen", _shown(host, port), str(error), allowed=False, rule_id=error.rule_id
        )
        return error

    def _listen(self, host: str, asked_port: int, taken_from: int = 0) -> bytes:
        """Bind; return the reply. Raises `Refused`."""
        try:
            sockets = open_listeners(host, asked_port)
        except NetworkSetupError as error:
            raise Refused(str(error)) from error
        port = asked_port or int(sockets[0].getsockname()[1])
        forward = Forward(self, host, port)
        forward.sockets = sockets
        if problem := self._forbidden(forward):  # with port 0 a port was asked for, not this one
            forward.close()
            raise Refused(problem)
        forward.addresses = tuple(str(sock.getsockname()[0]) for sock in sockets)
        self._forwards[host, port] = forward
        self._shared.forwards.setdefault(port, []).append(forward)
        for sock in sockets:
            self.channels.start_soon(
                partial(serve, sock, partial(self._welcome, forward)),
                partial(self.remove, forward, "internal error"),
            )
        self._shared.report(
            events.ListenerAdded(
                self._link.link_id, self._user_name, host, port, forward.addresses, taken_from
            )
        )
        return b"" if asked_port else wire.uint32(port)

    @property
    def _user_name(self) -> str:
        return self.channels.login.subject.user_name

    # -- ports that somebody has -------------------------------------------------------------------

    def _holder(self, addresses: list[tuple[int, str]], port: int) -> Forward | None:
        """Find the listener of another link that is in the way."""
        wanted = {address for _, address in addresses}
        for forward in self._shared.forwards.get(port, ()):
            if any(_overlap(ours, theirs) for ours in wanted for theirs in forward.addresses):
                return forward
        return None

    def _check_takeover(self, holder: Forward) -> None:
        other = holder.owner
        if other is self:
            raise Refused(f"port {holder.port} is listened on for this connection already")
        if other.channels.login.identity != self.channels.login.identity:
            raise Refused(f"port {holder.port} is listened on for another user or key")

    async def _take_over(
        self, holder: Forward, host: str, port: int, answer: Callable[[bytes | Refused], None]
    ) -> None:
        """Ask the older link for a sign of life; without one, the port is ours."""
        older = holder.owner.channels.link
        try:
            if await older.answers(PROBE_DEADLINE_S):
                raise Refused(
                    f"port {port} is listened on for an older connection of yours, which lives: "
                    "end that one first"
                )
            holder.owner.remove(holder, f"taken over by link {self._link.link_id}")
            reply = self._listen(host, port, older.link_id)
        except Refused as error:
            answer(self._refused(host, port, error))
        else:
            answer(reply)

    # -- clients -----------------------------------------------------------------------------------

    def _welcome(self, forward: Forward, sock: socket.socket, address: Any) -> None:  # noqa: ANN401
        """Take a client: a channel towards the SSH client is opened for it."""
        originator = describe(address)
        requested = _shown(forward.bind_host, forward.port)
        try:
            record = self._begin(forward, requested, originator)
        except Refused as error:
            what = f"{requested} from {originator}"
            self.channels.decided(-1, "listen", what, str(error), allowed=False)
            _reset(sock)
            return
        except BaseException:
            _reset(sock)
            raise
        fields = ForwardedTcpip(forward.bind_host, forward.port, address[0], address[1])
        self._accepted += 1
        try:
            self._link.ask_for_channel(
                FORWARDED_TCPIP, fields.encode(), partial(self._answered, sock, record)
            )
        except ConnectionLost:
            self._accepted -= 1
            record.fail(-1, "the connection ended first")
            _reset(sock)

    def _begin(self, forward: Forward, requested: str, originator: str) -> Record:
        if self._accepted >= MAXIMUM_ACCEPTED:
            raise Refused(
                f"{MAXIMUM_ACCEPTED} clients wait for this connection, which is the limit"
            )
        if problem := self._forbidden(forward):
            raise Refused(problem)
        return self.channels.begin(FORWARDED_TCPIP, requested, originator)

    def _answered(self, sock: socket.socket, record: Record, port: ChannelPort) -> None:
        self._accepted -= 1
        if port.failure is None:
            self.channels.relay(record, sock, port, "the SSH client")
            return
        record.fail(port.channel.channel_id, str(port.failure))
        log.info(
            "link %d: %s from %s: %s",
            self._link.link_id, record.requested, record.originator, port.failure,
        )  # fmt: skip
        _reset(sock)

    # -- the end -----------------------------------------------------------------------------------

    def _forbidden(self, forward: Forward) -> str:
        """Ask the policy of the moment; return what forbids a listener, or nothing."""
        verdict = self._decide(forward.bind_host, forward.port)
        return "" if verdict.allowed else verdict.reason

    def recheck(self) -> None:
        """The policy has changed: close what it does not allow any more."""
        for forward in list(self._forwards.values()):
            if problem := self._forbidden(forward):
                self.remove(forward, problem)

    def remove(self, forward: Forward, reason: str) -> None:
        """Close a listener at once; its clients stay. Harmless if that was done."""
        key = (forward.bind_host, forward.port)
        if self._forwards.get(key) is not forward:
            return
        del self._forwards[key]
        there = self._shared.forwards[forward.port]
        there.remove(forward)
        if not there:
            del self._shared.forwards[forward.port]
        forward.close()
        self._shared.report(
            events.ListenerRemoved(
                self._link.link_id, self._user_name, forward.bind_host, forward.port, reason
            )
        )

    def close(self, reason: str) -> None:
        """Close all."""
        for forward in list(self._forwards.values()):
            self.remove(forward, reason)


def _shown(host: str, port: int) -> str:
    return f"{printable(host, 255) or '*'} port {port}"


def _overlap(first: str, second: str) -> bool:
    """Say whether two addresses cannot be bound to one port: equal, or one is all of a family."""
    one, two = ip_address(first), ip_address(second)
    return one.version == two.version and (one == two or one.is_unspecified or two.is_unspecified)


def _reset(sock: socket.socket) -> None:
    """Close with RST, so that a client cannot take it for a normal end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    sock.close()
