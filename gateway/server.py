"""`gateway serve`: the listener, one nursery per link, and the policy between them.

A composition root: it wires `net`, `ssh` and `policy` together and contains no protocol. Whatever
goes wrong in one link or channel ends that one, nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

import trio

from gateway import events
from gateway.errors import ConnectionLost, RemoteProtocolError, printable
from gateway.net.carrier import SocketCarrier
from gateway.net.dial import DialError, DialOptions, dial
from gateway.net.link import Link
from gateway.net.listen import describe, is_own_address, open_listeners, serve
from gateway.net.relay import Relay
from gateway.policy.key_limits import limits_of
from gateway.policy.permit import PermissionDenied
from gateway.policy.rules import EVERYTHING_BUT_THE_BOX, Policy, Rule, Subject, deny_wins
from gateway.ssh.algorithms import SERVER_PREFERENCES, Preferences
from gateway.ssh.certificates import Certificate, CertificateError
from gateway.ssh.messages import DirectTcpip
from gateway.ssh.numbers import OpenFailure
from gateway.ssh.protocol import Protocol, ServerSetup
from gateway.ssh.transport import RekeyLimit
from gateway.ssh.windows import Budget

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from ipaddress import IPv4Address, IPv6Address

    from gateway.ssh.authorized_keys import AuthorizedKey, AuthorizedKeys
    from gateway.ssh.keys import PrivateKey, PublicKey

log = logging.getLogger(__name__)

LOGIN_GRACE_S: Final = 60.0  # from accept to the end of the login
MAXIMUM_STARTUPS: Final = 100  # links that have not logged in yet; more are closed at once
CONNECT_TIMEOUT_S: Final = 30.0  # for a target
ALIVE_INTERVAL_S: Final = 15.0
ALIVE_COUNT_MAX: Final = 3


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What `gateway serve` was told."""

    listen: tuple[tuple[str | None, int], ...]
    host_keys: tuple[PrivateKey, ...]
    authorized_keys: AuthorizedKeys
    permit_open: tuple[Rule, ...] = (EVERYTHING_BUT_THE_BOX,)
    hosts: dict[str, str] = field(default_factory=dict)
    rekey_limit: RekeyLimit = field(default_factory=RekeyLimit)
    preferences: Preferences = SERVER_PREFERENCES


class Server:
    """All links of one `gateway serve`. ``report`` gets the events that are worth a line."""

    def __init__(self, options: ServerOptions, report: Callable[[events.Event], None]) -> None:
        self.options = options
        self.policy = Policy(options.permit_open, is_own_address)
        self.startups = 0
        self.report = report
        self.budget = Budget()
        self._user_budgets: WeakValueDictionary[str, Budget] = WeakValueDictionary()

    def budget_of(self, user_name: str) -> Budget:
        """Return the share of a user, which all links of that user have together."""
        budget = self._user_budgets.get(user_name)
        if budget is None:
            budget = self._user_budgets[user_name] = Budget(parent=self.budget)
        return budget

    async def run(self) -> None:
        """Listen and serve until cancelled. Raises `NetworkSetupError`."""
        with contextlib.ExitStack() as stack:
            listeners = [
                stack.enter_context(listener)
                for host, port in self.options.listen
                for listener in open_listeners(host, port)
            ]
            async with trio.open_nursery() as nursery:

                def welcome(sock: socket.socket, address: tuple[str, int]) -> None:
                    nursery.start_soon(self._serve_link, sock, address)

                for listener in listeners:
                    nursery.start_soon(serve, listener, welcome)
                    address, port = listener.getsockname()[:2]
                    self.report(events.ListenerOpened("SSH", address, port))

    async def _serve_link(self, sock: socket.socket, address: tuple[str, int]) -> None:
        if self.startups >= MAXIMUM_STARTUPS:
            sock.close()
            return
        try:
            carrier = SocketCarrier(sock, describe(address))
        except OSError:  # the client left already
            sock.close()
            return
        self.startups += 1
        try:
            await ServerLink(self, carrier, address[0]).run()
        except Exception:  # one link's defect must not end the others
            log.exception("internal error on the link from %s", carrier.name)


class ServerLink:
    """One link: its login, then its channels."""

    def __init__(self, server: Server, carrier: SocketCarrier, address: str) -> None:
        self._server = server
        self._address = address
        options = server.options
        setup = ServerSetup(
            options.host_keys, self._authorize, options.preferences, options.rekey_limit
        )
        self.link = Link(
            Protocol(setup, trio.current_time()),
            carrier,
            handler=self._handle,
            alive_interval_s=ALIVE_INTERVAL_S,
            alive_count_max=ALIVE_COUNT_MAX,
        )
        self._nursery: trio.Nursery | None = None
        self._user_name = ""
        self._key: AuthorizedKey | None = None
        self._candidates: dict[str, AuthorizedKey] = {}  # by fingerprint
        self._login_deadline = trio.CancelScope(deadline=trio.current_time() + LOGIN_GRACE_S)
        self._counts_as_startup = True
        self._relays: set[Relay] = set()

    async def run(self) -> None:
        """Serve the link to its end."""
        link = self.link
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                with self._login_deadline:
                    await link.run()
                if self._login_deadline.cancelled_caught:
                    log.info("%s: no login within %.0f s", link.carrier.name, LOGIN_GRACE_S)
                nursery.cancel_scope.cancel()
        finally:
            for relay in list(self._relays):
                relay.close()
            self._end_startup()
            protocol = link.protocol
            self._server.report(
                events.LinkClosed(
                    link.link_id,
                    link.carrier.name,
                    printable(str(link.failure)),
                    protocol.inbound.bytes_total,
                    protocol.outbound.bytes_total,
                )
            )

    def _end_startup(self) -> None:
        if self._counts_as_startup:
            self._counts_as_startup = False
            self._server.startups -= 1

    # -- events of the link, none of which may wait ------------------------------------------------

    def _authorize(self, user_name: str, key: PublicKey) -> bool:
        """Asked for every offer, and again for the one whose signature is then verified."""
        if isinstance(key, Certificate):
            line = self._vouched_for(user_name, key)
        else:
            line = self._server.options.authorized_keys.find(key, self._address, time.time())
        if line is not None:
            self._candidates[key.fingerprint] = line
        return line is not None

    def _vouched_for(self, user_name: str, certificate: Certificate) -> AuthorizedKey | None:
        """Find the CA's line; what line and certificate forbid is forbidden, each by itself."""
        keys = self._server.options.authorized_keys
        try:
            address, now_s = self._address, time.time()
            line, options = keys.find_authority(certificate, user_name, address, now_s)
            if not options.allows_address(self._address):
                raise CertificateError("it may not be used from this address")
            if options.force_command is not None or options.verification_required:
                raise CertificateError("it demands what this server cannot do")
        except CertificateError as error:
            log.info("%s: certificate refused: %s", self.link.carrier.name, printable(str(error)))
            return None
        return replace(line, port_forwarding=line.port_forwarding and options.port_forwarding)

    def _handle(self, event: events.Event) -> None:
        match event:
            case events.KeysExchanged(count):
                level = logging.INFO if count == 1 else logging.DEBUG
                log.log(level, "link %d: keys %d: %s", self.link.link_id, count, event.algorithms)
            case events.Authenticated():
                self._logged_in(event)
            case events.AuthenticationRefused(user_name, method, reason) if method != "none":
                log.info(
                    "%s: login as %s refused: %s",
                    self.link.carrier.name,
                    printable(user_name, 64),
                    printable(reason),
                )
            case events.ChannelOpenRequested():
                self._open_requested(event)
            case events.GlobalRequested(_, want_reply) if want_reply:
                self.link.protocol.connection.reply_global(success=False)

    def _logged_in(self, event: events.Authenticated) -> None:
        self._login_deadline.deadline = float("inf")
        self._end_startup()
        self._user_name = event.user_name
        self._key = self._candidates[event.fingerprint]
        self.link.protocol.connection.shares.join(self._server.budget_of(event.user_name))
        self.link.start_keepalive()
        self._server.report(
            events.LinkOpened(
                self.link.link_id, self.link.carrier.name, event.user_name, event.fingerprint
            )
        )

    def _open_requested(self, event: events.ChannelOpenRequested) -> None:
        if event.channel_type == "direct-tcpip":
            try:
                target = DirectTcpip.decode_untrusted(event.type_specific)
            except RemoteProtocolError as error:
                self.link.refuse_channel(event.channel_id, OpenFailure.CONNECT_FAILED, str(error))
                return
            if self._nursery is not None:
                self._nursery.start_soon(self._direct_tcpip, event.channel_id, target)
        elif event.channel_type == "session":
            self.link.refuse_channel(
                event.channel_id,
                OpenFailure.ADMINISTRATIVELY_PROHIBITED,
                "this is a tunnel server: there is no shell here, use -N",
            )
        else:
            self.link.refuse_channel(
                event.channel_id, OpenFailure.UNKNOWN_CHANNEL_TYPE, "unknown channel type"
            )

    # -- channels ----------------------------------------------------------------------------------

    def _permit(self, target: DirectTcpip, address: IPv4Address | IPv6Address) -> str:
        """Return the rule that allows this, or raise `PermissionDenied`."""
        host, port = target.host_to_connect, target.port_to_connect
        subject = Subject(self._user_name, frozenset(), "", frozenset(), self._address)
        verdict = deny_wins(
            self._server.policy.decide_open(subject, host, port, address),
            limits_of(self._key).decide_open(host, port, address),
        )
        if not verdict.allowed:
            raise PermissionDenied(verdict.reason)
        return verdict.reason

    async def _direct_tcpip(self, channel_id: int, target: DirectTcpip) -> None:
        requested = f"{printable(target.host_to_connect, 255)} port {target.port_to_connect}"
        decisions: list[events.Decision] = []

        def permit(address: IPv4Address | IPv6Address) -> None:
            make = partial(
                events.Decision,
                self.link.link_id,
                channel_id,
                self._user_name,
                "open",
                f"{requested} ({address})",
            )
            try:
                decisions.append(make(allowed=True, rule=self._permit(target, address)))
            except PermissionDenied as error:
                self._server.report(make(allowed=False, rule=str(error)))
                raise

        try:
            sock = await self._dial(target, permit)
        except PermissionDenied as error:
            self.link.refuse_channel(
                channel_id, OpenFailure.ADMINISTRATIVELY_PROHIBITED, str(error)
            )
            return
        except DialError as error:
            log.info("link %d: %s: %s", self.link.link_id, requested, error.text)
            self.link.refuse_channel(channel_id, OpenFailure.CONNECT_FAILED, error.text)
            return
        self._server.report(decisions[-1])
        self._relay(channel_id, requested, sock)

    async def _dial(
        self, target: DirectTcpip, permit: Callable[[IPv4Address | IPv6Address], None]
    ) -> socket.socket:
        if not 0 < target.port_to_connect < 65536:
            raise DialError(target.host_to_connect, f"port {target.port_to_connect} does not exist")
        return await dial(
            target.host_to_connect,
            target.port_to_connect,
            DialOptions(timeout_s=CONNECT_TIMEOUT_S),
            permit=permit,
            hosts=self._server.options.hosts,
        )

    def _relay(self, channel_id: int, requested: str, sock: socket.socket) -> None:
        try:
            dialled = describe(sock.getpeername())
            port = self.link.confirm_channel(channel_id)
        except OSError as error:  # the target is gone already
            sock.close()
            self.link.refuse_channel(channel_id, OpenFailure.CONNECT_FAILED, str(error.strerror))
            return
        except ConnectionLost:
            sock.close()
            return
        relay = Relay(sock, port)

        def ended() -> None:
            self._relays.discard(relay)
            self._server.report(
                events.ChannelEnded(
                    self.link.link_id,
                    channel_id,
                    requested,
                    dialled,
                    port.channel.bytes_in,
                    port.channel.bytes_out,
                    "link lost" if port.failure is not None else "ended",
                )
            )

        self._relays.add(relay)
        relay.start(ended)
