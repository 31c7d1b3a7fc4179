"""One link of `gateway serve`: its login, then what its client asks for, until it ends.

A link ends for one of these reasons, and the client is told: no login in time, too many links of
its user, its certificate has expired, the idle timeout, the maximum lifetime, its user is gone
after a reload, the server stops. ``_end`` knows the next one that the clock will bring, and
``_tick`` is called at that time.

Global requests are answered in their order (RFC 4254 §4), and one may have to wait for an older
link to be probed; so they are taken one after the other from a queue.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Final

import trio

from gateway import events
from gateway.errors import RemoteProtocolError, printable
from gateway.net import poller
from gateway.net.link import Link
from gateway.policy.limits import Drop, Offence
from gateway.policy.rules import Subject
from gateway.serving.authorize import Grant, Login
from gateway.serving.channels import Channels, Refused
from gateway.serving.listeners import Listeners
from gateway.serving.opens import Opens
from gateway.serving.page import session_page
from gateway.serving.places import Place, PortPlace, SocketPlace
from gateway.serving.sessions import Sessions
from gateway.serving.tunnels import Tunnels
from gateway.ssh import hostkeys, tunnel
from gateway.ssh.certificates import Certificate, CertificateError
from gateway.ssh.messages import (
    CANCEL,
    DirectStreamlocal,
    DirectTcpip,
    StreamlocalForward,
    TcpipForward,
)
from gateway.ssh.numbers import Disconnect, OpenFailure
from gateway.ssh.protocol import Protocol, ServerSetup

if TYPE_CHECKING:
    from gateway.net.carrier import Carrier
    from gateway.policy.limits import Startup
    from gateway.serving.shared import Shared
    from gateway.ssh.keys import PublicKey

log = logging.getLogger(__name__)

ALIVE_INTERVAL_S: Final = 15.0
ALIVE_COUNT_MAX: Final = 3
_PLACES: Final[dict[str, type[Place]]] = {
    TcpipForward.request_name: PortPlace,
    StreamlocalForward.request_name: SocketPlace,
}
_CANCELS: Final = {f"{CANCEL}{name}": place for name, place in _PLACES.items()}
_EXPLAINED: Final = (*_PLACES, tunnel.LEASE_REQUEST)  # their refusals, in a DEBUG message
MAXIMUM_WAITING_REQUESTS: Final = 256  # global requests that wait for their answer
MAXIMUM_PROOFS: Final = 8  # times that one link may have signatures by all host keys
GRACE_JITTER_MS: Final = 4000  # at random more for a login, as sshd: nobody foresees when it ends


class ServerLink:
    """One link, which is one of the startups until it has logged in."""

    def __init__(
        self, shared: Shared, carrier: Carrier, address: str, startup: Startup, local: str = ""
    ) -> None:
        self._shared = shared
        self._address = address
        self._startup = startup
        startup.oust = self._ousted
        options = shared.options
        setup = ServerSetup(
            options.host_keys,
            self._admit,
            options.preferences,
            options.rekey_limit,
            maximum_failures=shared.limits.max_auth_tries,
        )
        self._began_s = trio.current_time()
        self._jitter_s = secrets.randbelow(GRACE_JITTER_MS) / 1000
        self.link = Link(
            Protocol(setup, self._began_s),
            carrier,
            handler=self._handle,
            alive_interval_s=ALIVE_INTERVAL_S,
            alive_count_max=ALIVE_COUNT_MAX,
        )
        self.link.on_tick = self._tick
        self._local = local
        self._nursery: trio.Nursery | None = None
        self._served: _Served | None = None
        self._candidates: dict[str, tuple[PublicKey, Grant]] = {}  # by fingerprint
        self._attempts = 0
        self._key_exchanges = 0
        self._offence: Offence | None = Offence.NOAUTH

    @property
    def login(self) -> Login | None:
        """Who is logged in."""
        return self._served.channels.login if self._served else None

    async def run(self) -> None:
        """Serve the link to its end."""
        link, shared = self.link, self._shared
        shared.links[link.link_id] = self
        shared.report(
            events.LinkAccepted(link.link_id, link.carrier.name, self._local, self._address)
        )
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await link.run()
                nursery.cancel_scope.cancel()
        except BaseException as error:
            if isinstance(error, Exception):
                self._offence = Offence.CRASH
            raise
        finally:
            self._ended()

    def _ended(self) -> None:
        link, shared = self.link, self._shared
        user_name = ""
        if self._served is not None:
            user_name = self._served.channels.login.subject.user_name
            self._served.close()
            shared.users.close_link(user_name)
        shared.startups.end(self._startup)
        if self._offence is not None:
            shared.penalties.penalise(self._startup.source, self._offence, trio.current_time())
        del shared.links[link.link_id]
        shared.report(
            events.LinkClosed(
                link.link_id,
                link.carrier.name,
                printable(str(link.failure)),
                link.protocol.inbound.bytes_total,
                link.protocol.outbound.bytes_total,
                user_name,
                trio.current_time() - self._began_s,
                self._key_exchanges,
                link.ended_by,
                self._offence.name.lower() if self._offence is not None else "",
            )
        )

    def _ousted(self) -> None:
        self._shared.dropped[Drop.OUSTED] += 1
        self.link.disconnect(
            "there was no login yet, and others wait for one", Disconnect.TOO_MANY_CONNECTIONS
        )

    # -- the login ---------------------------------------------------------------------------------

    def _admit(self, user_name: str, key: PublicKey) -> int:
        """Asked for every offer, and again for the one whose signature is then verified."""
        try:
            grant = self._shared.people.admit(user_name, key, self._address, time.time())
        except CertificateError as error:
            log.info("%s: certificate refused: %s", self.link.carrier.name, printable(str(error)))
            return 0
        if grant is None:
            return 0
        self._candidates[key.fingerprint] = key, grant
        return grant.required_keys

    def _attempted(
        self, user_name: str, method: str, fingerprint: str, result: str, reason: str = ""
    ) -> None:
        self._attempts += 1
        key = self._candidates[fingerprint][0] if fingerprint in self._candidates else None
        attempted = events.LoginAttempted(
            self.link.link_id, user_name, method, fingerprint, result, reason, self._attempts,
            key.algorithm if key is not None else "",
        )  # fmt: skip
        if isinstance(key, Certificate):
            attempted = replace(
                attempted,
                certificate_id=printable(key.key_id, 128),
                certificate_serial=str(key.serial),
                authority=key.ca_key.fingerprint,
                principals=tuple(printable(name, 64) for name in key.principals),
            )
        self._shared.report(attempted)

    def _login_refused(self, event: events.AuthenticationRefused) -> None:
        user_name = printable(event.user_name, 64)
        self._offence = Offence.AUTHFAIL
        self._attempted(user_name, event.method, event.fingerprint, "refused", event.reason)
        log.info(
            "%s: login as %s refused: %s",
            self.link.carrier.name,
            user_name,
            printable(event.reason),
        )

    def _logged_in(self, event: events.Authenticated) -> None:
        shared, link, user_name = self._shared, self.link, event.user_name
        shared.startups.end(self._startup)
        self._offence = None
        self._attempted(printable(user_name, 64), event.method, event.fingerprint, "accepted")
        problem = shared.refuses_new() or shared.users.open_link(user_name, trio.current_time())
        if problem or self._nursery is None:
            link.disconnect(f"denied: {problem}", Disconnect.TOO_MANY_CONNECTIONS)
            return
        used = [self._candidates[name] for name in (*event.before, event.fingerprint)]
        self._candidates.clear()
        grants = tuple(grant for _, grant in used)
        subject = Subject(
            user_name,
            frozenset().union(*(grant.groups for grant in grants)),
            event.fingerprint,
            frozenset().union(*(grant.principals for grant in grants)),
            self._address,
        )
        login = Login(subject, tuple(key for key, _ in used), grants)
        self._served = _Served(Channels(shared, link, login, self._nursery))
        link.protocol.connection.shares.join(shared.budget_of(user_name))
        link.start_keepalive()
        link.protocol.connection.notify_global(
            hostkeys.OFFER, hostkeys.offer(shared.options.host_keys)
        )
        shared.report(
            events.LinkOpened(
                link.link_id, link.carrier.name, user_name, event.fingerprint, event.before
            )
        )
        self._tick(trio.current_time())

    # -- events of the link, none of which may wait ------------------------------------------------

    def _handle(self, event: events.Event) -> None:
        match event:
            case events.KeysExchanged(count):
                self._keyed(event, count)
            case events.Authenticated():
                self._logged_in(event)
            case events.PartiallyAuthenticated(method, _, fingerprint):
                user_name = self.link.protocol.auth.user_name or ""
                self._attempted(printable(user_name, 64), method, fingerprint, "partial")
            case events.AuthenticationRefused(_, method) if method != "none":
                self._login_refused(event)
            case events.ChannelOpenRequested() if self._served is not None:
                self._served.open_requested(event)
            case events.GlobalRequested() if self._served is not None:
                self._served.global_requested(event)

    def _keyed(self, event: events.KeysExchanged, count: int) -> None:
        link = self.link
        self._key_exchanges = count
        level = logging.INFO if count == 1 else logging.DEBUG
        log.log(level, "link %d: keys %d: %s", link.link_id, count, event.algorithms)
        version = printable(link.protocol.transport.peer_version)
        self._shared.report(events.LinkKeyed(link.link_id, version, event))

    # -- the clock, and what a reload takes away ---------------------------------------------------

    def _tick(self, now_s: float) -> None:
        end_s, reason = self._end(now_s)
        if now_s < end_s:
            self.link.look_by(end_s)
            if self._served is not None:
                self._served.tunnels.forget()
            return
        if self._served is None:
            self._offence = Offence.GRACE_EXCEEDED
        self.link.disconnect(reason)

    def _end(self, now_s: float) -> tuple[float, str]:
        """When this link is to end as things are now, and why; infinite if never."""
        limits, served = self._shared.limits, self._served
        if served is None:
            grace_s = limits.login_grace_s
            end_s = self._began_s + grace_s + self._jitter_s if grace_s else inf
            return end_s, f"no login within {grace_s:.0f} s"
        life_s, idle_s = limits.maximum_lifetime_s or inf, limits.idle_timeout_s or inf
        expires_in_s = served.channels.login.expires_s - time.time()
        return min(
            (now_s + expires_in_s, "the certificate of this login has expired"),
            (self._began_s + life_s, f"the maximum lifetime of a link is over: {life_s:.0f} s"),
            (served.channels.idle_since_s + idle_s, f"idle timeout: no channel for {idle_s:.0f} s"),
        )

    def stop_listening(self, reason: str) -> None:
        """Close all listeners that the client has asked for."""
        if self._served is not None:
            self._served.listeners.close(reason)

    def recheck(self) -> None:
        """The configuration has changed: end what it does not let in or listen any more."""
        self._tick(trio.current_time())
        login, served = self.login, self._served
        if login is None or served is None:
            return
        if all(self._is_still_admitted(login, key) for key in login.keys):
            served.listeners.recheck()
        else:
            self.link.disconnect(
                "the configuration has changed: this user or key may not log in any more"
            )

    def _is_still_admitted(self, login: Login, key: PublicKey) -> bool:
        people, subject = self._shared.people, login.subject
        try:
            grant = people.admit(subject.user_name, key, subject.address, time.time())
        except CertificateError:
            return False
        return grant is not None and grant.required_keys <= len(login.keys)


class _Served:
    """What a client that is logged in asks for."""

    def __init__(self, channels: Channels) -> None:
        self.channels = channels
        self.listeners = Listeners(channels)
        self._link = channels.link
        self._opens = Opens(channels)
        self.tunnels = Tunnels(channels)
        self._sessions = Sessions(channels, lambda: session_page(channels))
        self._takes_sessions = True
        self._requests: deque[events.GlobalRequested] = deque()
        self._is_answering = False
        self._proofs = 0

    def close(self) -> None:
        """The link is gone."""
        self.listeners.close("the connection ended")
        self.tunnels.close()
        self.channels.close()

    # -- channels ----------------------------------------------------------------------------------

    def open_requested(self, event: events.ChannelOpenRequested) -> None:
        """Take the peer's open."""
        kind = printable(event.channel_type, 64)
        try:
            match event.channel_type:
                case DirectTcpip.channel_type | DirectStreamlocal.channel_type:
                    self._opens.requested(event)
                case tunnel.CHANNEL_TYPE | tunnel.OFFLOAD_CHANNEL_TYPE:
                    self.tunnels.requested(event)
                case "session":
                    self._session_requested(event)
                case _:
                    raise Refused(f"unknown channel type {kind}", OpenFailure.UNKNOWN_CHANNEL_TYPE)
        except Refused as error:
            self.channels.refuse(event.channel_id, kind, error)
        except Exception:
            log.exception("link %d: internal error in an open of %s", self._link.link_id, kind)
            self._link.refuse_channel(
                event.channel_id, OpenFailure.CONNECT_FAILED, "an internal error of the server"
            )

    def _session_requested(self, event: events.ChannelOpenRequested) -> None:
        if self._takes_sessions:
            self._sessions.requested(event)
        else:  # somebody else than the user's program may be asking (OpenSSH PROTOCOL §2.2)
            self._link.disconnect(
                "a session was asked for after no-more-sessions", Disconnect.PROTOCOL_ERROR
            )

    # -- global requests ---------------------------------------------------------------------------

    def global_requested(self, event: events.GlobalRequested) -> None:
        """Take a global request; it is answered after those before it."""
        if len(self._requests) >= MAXIMUM_WAITING_REQUESTS:
            self._link.disconnect("too many global requests wait", Disconnect.PROTOCOL_ERROR)
            return
        self._requests.append(event)
        self._answer_next()

    def _answer_next(self) -> None:
        while self._requests and not self._is_answering and not self._link.is_lost:
            request = self._requests.popleft()
            self._is_answering = True
            try:
                self._answer(request)
            except Refused as error:
                self._answered(request, error)
            except RemoteProtocolError as error:
                self._answered(request, Refused(str(error)))
            except Exception:
                log.exception("link %d: internal error in a request", self._link.link_id)
                self._answered(request, Refused("an internal error of the server"))

    def _answer(self, request: events.GlobalRequested) -> None:
        """Act on a request and call ``_answered``, now or later. Raises `Refused`."""
        reply = b""
        match request.request_name:
            case name if name in _PLACES:
                self.listeners.add(
                    _PLACES[name].decode_untrusted(request.request_specific),
                    lambda reply: self._answered_later(request, reply),
                    wants_reply=request.want_reply,
                )
                return
            case name if name in _CANCELS:
                self.listeners.cancel(_CANCELS[name].decode_untrusted(request.request_specific))
            case tunnel.LEASE_REQUEST:
                reply = self.tunnels.lease(request.request_specific)
            case "no-more-sessions@openssh.com":
                self._takes_sessions = False
            case hostkeys.PROVE:
                reply = self._prove(request.request_specific)
            case "keepalive@openssh.com":
                pass
            case _:
                raise Refused("this request is not known here")
        self._answered(request, reply)

    def _answered_later(self, request: events.GlobalRequested, reply: bytes | Refused) -> None:
        self._answered(request, reply)
        poller.current().again(self._go_on)

    def _go_on(self) -> None:
        self._answer_next()
        self._link.flush()

    def _answered(self, request: events.GlobalRequested, reply: bytes | Refused) -> None:
        self._is_answering = False
        if self._link.is_lost:
            return
        connection = self._link.protocol.connection
        if isinstance(reply, Refused):
            if request.request_name in _EXPLAINED:
                connection.explain(str(reply))
            if request.want_reply:
                connection.reply_global(success=False)
        elif request.want_reply:
            connection.reply_global(success=True, response_specific=reply)

    def _prove(self, request_specific: bytes) -> bytes:
        self._proofs += 1
        if self._proofs > MAXIMUM_PROOFS:
            raise Refused(f"host keys were proven {MAXIMUM_PROOFS} times, which is the limit")
        transport = self._link.protocol.transport
        algorithm = transport.chosen.host_key if transport.chosen else ""
        keys = self.channels.shared.options.host_keys
        return hostkeys.proofs_untrusted(request_specific, keys, transport.session_id, algorithm)
