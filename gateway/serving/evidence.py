"""What is written into the audit log about each event of a server: records, without a clock.

The state is one small object per link. A link is recorded once somebody has logged in; the others
are counted. The user of a record is the one who was let in, escaped as everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from gateway import events
from gateway.audit.records import (
    Abuse,
    Auth,
    AuthResult,
    ChannelClass,
    ChannelClose,
    ChannelFail,
    ChannelOpen,
    ConfigReload,
    ConnClose,
    ConnOpen,
    ListenerAdd,
    ListenerRemove,
    Noise,
    PolicyDecision,
    ServerStart,
    ServerStop,
    Side,
    hassh,
)
from gateway.errors import printable
from gateway.ssh.messages import (
    DirectStreamlocal,
    DirectTcpip,
    ForwardedStreamlocal,
    ForwardedTcpip,
)

if TYPE_CHECKING:
    from gateway.audit.records import Record

MANY: Final = "many"  # the source of what was dropped at accept, which is counted for all together

_CLASSES: Final = {
    DirectTcpip.channel_type: ChannelClass.DIRECT_TCPIP,
    ForwardedTcpip.channel_type: ChannelClass.FORWARDED_TCPIP,
    DirectStreamlocal.channel_type: ChannelClass.STREAMLOCAL,
    ForwardedStreamlocal.channel_type: ChannelClass.STREAMLOCAL,
    "session": ChannelClass.SESSION,
    "tun@openssh.com": ChannelClass.TUN,
}
_SIDES: Final = {"us": Side.SERVER, "peer": Side.CLIENT, "network": Side.NETWORK}
_HYBRIDS: Final = ("mlkem", "sntrup")


class Sink(Protocol):
    """What is asked of an `AuditLog`."""

    def write(self, record: Record) -> bool:
        """Take a record."""

    def noise(self, source: str, reason: str) -> None:
        """Count what a stranger did."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What ``server.start`` says besides the addresses; ``host_keys`` are fingerprints."""

    version: str
    pid: int
    host_keys: tuple[str, ...]
    config_sha256: str = ""


@dataclass(slots=True)
class _Link:
    """``noise`` says how far a login came, as long as there is no ``user``."""

    address: str = ""
    peer: str = ""
    local: str = ""
    opened: ConnOpen | None = None
    user: str = ""
    fingerprint: str = ""
    noise: str = "ended before keys were exchanged"


class Evidence:
    """Makes records of events; `report` never waits."""

    def __init__(self, sink: Sink, facts: Facts) -> None:
        self._write = sink.write
        self._noise = sink.noise
        self._facts = facts
        self._links: dict[int, _Link] = {}

    @property
    def connections(self) -> int:
        """How many connections there are with a user."""
        return sum(bool(link.user) for link in self._links.values())

    def reloaded(self, config_sha256: str, problem: str = "") -> None:
        """The configuration was read again, or could not be."""
        self._write(ConfigReload(config_sha256, not problem, printable(problem)))

    def stopped(self, reason: str, duration_s: float, connections: int) -> None:
        """The server has ended."""
        self._write(ServerStop(reason, duration_s, connections))

    def report(self, event: events.Event) -> None:
        """Write what is to be written about an event."""
        match event:
            case events.ServerReady(addresses):
                facts = self._facts
                self._write(
                    ServerStart(
                        facts.version, facts.pid, addresses, facts.host_keys, facts.config_sha256
                    )
                )
            case events.ConnectionsDropped(reason, count):
                self._write(Noise(MANY, reason, count))
            case events.LinkAccepted(link_id, peer, local, address):
                self._links[link_id] = _Link(address, peer, local)
            case events.LinkKeyed(link_id) if event.keys.count == 1:
                self._keyed(self._links[link_id], event)
            case events.LoginAttempted(link_id):
                self._attempted(self._links[link_id], event)
            case events.LinkClosed(link_id):
                self._closed(self._links.pop(link_id), event)
            case _:
                self._report_use(event)

    def _report_use(self, event: events.Event) -> None:
        """Write what a user does."""
        match event:
            case events.Decision(link_id, _, _, action, what, allowed, reason, rule_id):
                link = self._links[link_id]
                self._write(
                    PolicyDecision(
                        link_id, link.user, rule_id, action, link.fingerprint, what, allowed, reason
                    )
                )
            case events.ChannelStarted():
                self._started(event)
            case events.ChannelFailed():
                self._failed(event)
            case events.ChannelEnded():
                self._ended(event)
            case events.ScanSuspected(link_id, _, targets, example):
                user = self._links[link_id].user
                self._write(Abuse(link_id, user, "scan", targets, printable(example)))
            case events.ListenerAdded(link_id, _, bind_host, port, _, _, rule_id):
                user = self._links[link_id].user
                self._write(ListenerAdd(link_id, user, printable(bind_host) or "*", port, rule_id))
            case events.ListenerRemoved(link_id, _, bind_host, port, reason, rule_id):
                user = self._links[link_id].user
                host = printable(bind_host) or "*"
                self._write(ListenerRemove(link_id, user, host, port, reason, rule_id))

    # -- links -------------------------------------------------------------------------------------

    @staticmethod
    def _keyed(link: _Link, event: events.LinkKeyed) -> None:
        keys = event.keys
        local, local_port = _address_and_port(link.local)
        link.noise = "ended before an attempt to log in"
        link.opened = ConnOpen(
            conn_id=event.link_id,
            source=link.address,
            source_port=_address_and_port(link.peer)[1],
            local=local,
            local_port=local_port,
            client_version=event.version,
            hassh=hassh(*keys.offers) if len(keys.offers) == 4 else "",
            kex=keys.kex,
            host_key=keys.host_key,
            cipher_in=keys.cipher_client_to_server,
            cipher_out=keys.cipher_server_to_client,
            mac_in=keys.mac_client_to_server,
            mac_out=keys.mac_server_to_client,
            strict=keys.strict,
            post_quantum=keys.kex.startswith(_HYBRIDS),
        )

    def _attempted(self, link: _Link, event: events.LoginAttempted) -> None:
        user = printable(event.user_name, 64)
        link.noise = f"login {event.result}, and ended"
        if event.result == AuthResult.ACCEPTED:
            link.user, link.fingerprint = user or "(none)", event.fingerprint
            user = link.user
            if link.opened is not None:
                self._write(link.opened)
                link.opened = None
        self._write(
            Auth(
                conn_id=event.link_id,
                source=link.address,
                user=user,
                method=printable(event.method, 64),
                result=AuthResult(event.result),
                attempt=event.number,
                reason=printable(event.reason),
                key_type=event.key_type,
                fingerprint=event.fingerprint,
                certificate_id=event.certificate_id,
                certificate_serial=event.certificate_serial,
                authority=event.authority,
                principals=event.principals,
            )
        )

    def _closed(self, link: _Link, event: events.LinkClosed) -> None:
        if not link.user:
            self._noise(link.address, link.noise)
            return
        self._write(
            ConnClose(
                conn_id=event.link_id,
                source=link.address,
                user=link.user,
                rekeys=max(event.key_exchanges - 1, 0),
                bytes_in=event.bytes_in,
                bytes_out=event.bytes_out,
                duration_s=event.duration_s,
                reason=event.reason,
                side=_SIDES[event.ended_by],
                penalty=event.penalty,
            )
        )

    # -- channels ----------------------------------------------------------------------------------

    def _started(self, event: events.ChannelStarted) -> None:
        self._write(
            ChannelOpen(
                conn_id=event.link_id,
                channel_id=event.channel_id,
                user=self._links[event.link_id].user,
                channel_class=_class_of(event.kind),
                requested=event.requested,
                dialled=printable(event.dialled),
                originator=event.originator,
                connect_s=event.connect_s,
                rule=event.rule_id,
            )
        )

    def _failed(self, event: events.ChannelFailed) -> None:
        self._write(
            ChannelFail(
                conn_id=event.link_id,
                channel_id=event.channel_id,
                user=self._links[event.link_id].user,
                channel_class=_class_of(event.kind),
                requested=event.requested,
                dialled=printable(event.dialled),
                originator=event.originator,
                reason=printable(event.reason),
                rule=event.rule_id,
            )
        )

    def _ended(self, event: events.ChannelEnded) -> None:
        self._write(
            ChannelClose(
                conn_id=event.link_id,
                channel_id=event.channel_id,
                user=self._links[event.link_id].user,
                channel_class=_class_of(event.kind),
                requested=event.requested,
                dialled=printable(event.dialled),
                bytes_in=event.bytes_in,
                bytes_out=event.bytes_out,
                duration_s=event.duration_s,
                reason=event.reason,
            )
        )


def _class_of(kind: str) -> ChannelClass:
    return _CLASSES.get(kind, ChannelClass.UNKNOWN)


def _address_and_port(text: str) -> tuple[str, int]:
    """Take apart what `gateway.net.listen.describe` made of a socket's name."""
    address, _, port = text.rpartition(" port ")
    return (address, int(port)) if port.isdecimal() and address else (text, 0)
