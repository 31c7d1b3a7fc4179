"""The channels of one link, whoever opened them: counted, reported, and ended with the link."""

from __future__ import annotations

import logging
from math import inf
from typing import TYPE_CHECKING, Protocol

import trio

from gateway import events
from gateway.errors import ConnectionLost, GatewayError
from gateway.net.relay import Relay
from gateway.policy.limits import SCAN_TARGETS
from gateway.ssh.numbers import OpenFailure

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from gateway.net.link import Link
    from gateway.net.port import ChannelPort
    from gateway.serving.authorize import Login
    from gateway.serving.shared import Shared

log = logging.getLogger(__name__)


class Refused(GatewayError):
    """A request is refused: with this sentence, and for a channel with this reason code.

    ``asked`` is what was asked for, where that is known, ``rule_id`` the rule that refuses.
    """

    def __init__(
        self,
        sentence: str,
        reason_code: int = OpenFailure.ADMINISTRATIVELY_PROHIBITED,
        *,
        asked: str = "",
        rule_id: str = "",
    ) -> None:
        super().__init__(sentence)
        self.reason_code = reason_code
        self.asked = asked
        self.rule_id = rule_id


class Carried(Protocol):
    """What moves the bytes of a channel: a `Relay`, or a `Pump`."""

    def close(self) -> None:
        """End at once."""


class Record:
    """One channel, from its request to its end; it counts until ``end`` or ``release``."""

    __slots__ = ("_asked_s", "_began_s", "_channels", "_is_counted", "_started", "channel_id",
                 "kind", "originator", "requested", "rule_id")  # fmt: skip

    def __init__(self, channels: Channels, kind: str, requested: str, originator: str) -> None:
        self.kind = kind
        self.requested = requested
        self.originator = originator
        self.channel_id = -1
        self.rule_id = ""
        self._asked_s = trio.current_time()
        self._channels = channels
        self._is_counted = True
        self._started: events.ChannelStarted | None = None
        self._began_s = 0.0

    def start(self, port: ChannelPort, dialled: str) -> None:
        """Report that data flows from now on."""
        self.channel_id = port.channel.channel_id
        self._began_s = trio.current_time()
        self._started = events.ChannelStarted(
            self._channels.link.link_id,
            self.channel_id,
            self._channels.login.subject.user_name,
            self.kind,
            self.requested,
            dialled,
            self.originator,
            self._began_s - self._asked_s,
            self.rule_id,
        )
        self._channels.shared.report(self._started)

    def fail(self, channel_id: int, reason: str, dialled: str = "") -> None:
        """Report that nothing came of it, although it was allowed."""
        self.release()
        self._channels.shared.report(
            events.ChannelFailed(
                self._channels.link.link_id,
                channel_id,
                self.kind,
                self.requested,
                dialled,
                self.originator,
                reason,
                self.rule_id,
            )
        )

    def end(self, port: ChannelPort, reason: str = "") -> None:
        """Report the end, once, if the start was."""
        started, self._started = self._started, None
        self.release()
        if started is not None:
            lost = "link lost" if isinstance(port.failure, ConnectionLost) else "ended"
            self._channels.shared.report(
                events.ChannelEnded(
                    started.link_id,
                    started.channel_id,
                    started.requested,
                    started.dialled,
                    port.channel.bytes_in,
                    port.channel.bytes_out,
                    reason or lost,
                    started.kind,
                    started.originator,
                    trio.current_time() - self._began_s,
                )
            )

    def release(self) -> None:
        """Count no more; harmless if that was done."""
        if self._is_counted:
            self._is_counted = False
            self._channels.ended(self)


class Channels:
    """All channels of one link that is logged in. ``nursery`` ends with the link."""

    def __init__(self, shared: Shared, link: Link, login: Login, nursery: trio.Nursery) -> None:
        self.shared = shared
        self.link = link
        self.login = login
        self._used_s = trio.current_time()
        self._nursery = nursery
        self._carried: set[Carried] = set()
        self._records: set[Record] = set()

    @property
    def idle_since_s(self) -> float:
        """Since when no channel is open; infinite while one is."""
        return inf if self._records else self._used_s

    def begin(self, kind: str, requested: str, originator: str = "") -> Record:
        """Count a channel. Raises `Refused` when there are too many."""
        self._used_s = trio.current_time()
        if problem := self.shared.begin_channel(self.login.subject.user_name):
            raise Refused(f"denied: {problem}", OpenFailure.RESOURCE_SHORTAGE, asked=requested)
        record = Record(self, kind, requested, originator)
        self._records.add(record)
        return record

    def ended(self, record: Record) -> None:
        """A record counts no more."""
        self._used_s = trio.current_time()
        self._records.discard(record)
        self.shared.end_channel(self.login.subject.user_name)
        if not self._records and self.shared.limits.idle_timeout_s:
            self.link.look_by(self._used_s + self.shared.limits.idle_timeout_s)

    def relay(self, record: Record, sock: socket.socket, port: ChannelPort, dialled: str) -> None:
        """Join a socket and an open channel, both of which are this object's from now on."""
        relay = Relay(sock, port)

        def ended() -> None:
            self.done(relay)
            record.end(port)

        record.start(port, dialled)
        self.carry(relay)
        relay.start(ended)

    def carry(self, carried: Carried) -> None:
        """Close what is carried when the link ends, until it is ``done``."""
        self._carried.add(carried)

    def done(self, carried: Carried) -> None:
        """It has ended by itself."""
        self._carried.discard(carried)

    def start_soon(
        self, function: Callable[[], Awaitable[None]], at_defect: Callable[[], object]
    ) -> None:
        """Run a task that ends with the link, and whose defects end nothing else.

        ``at_defect`` is called after one.
        """

        async def guarded() -> None:
            try:
                await function()
            except Exception:
                log.exception("link %d: internal error in %r", self.link.link_id, function)
                at_defect()

        self._nursery.start_soon(guarded)

    def refuse(self, channel_id: int, kind: str, error: Refused) -> None:
        """Refuse the peer's open, and report it."""
        asked = error.asked or kind
        self.decided(channel_id, "open", asked, str(error), allowed=False, rule_id=error.rule_id)
        self.link.refuse_channel(channel_id, error.reason_code, str(error))

    def decided(
        self,
        channel_id: int,
        action: str,
        what: str,
        rule: str,
        *,
        allowed: bool,
        rule_id: str = "",
    ) -> None:
        """Report a decision."""
        self.shared.report(
            events.Decision(
                self.link.link_id,
                channel_id,
                self.login.subject.user_name,
                action,
                what,
                allowed,
                rule,
                rule_id,
            )
        )

    def missed(self, target: str) -> None:
        """A target was refused or did not answer; many of them are reported as a scan."""
        user_name = self.login.subject.user_name
        if self.shared.users.miss(user_name, target, trio.current_time()):
            self.shared.report(
                events.ScanSuspected(self.link.link_id, user_name, SCAN_TARGETS, target)
            )

    def close(self) -> None:
        """End all: the link is gone."""
        for carried in list(self._carried):
            carried.close()
        for record in list(self._records):
            record.release()
