"""What listens for a client: "tcpip-forward", "streamlocal-forward" and their cancels.

THEORY OF OPERATION

`places` knows the two kinds of places where one can listen, and RFC and OpenSSH PROTOCOL say how
they are asked for. A client that is accepted becomes a channel towards the SSH client, and a relay
as any other; the policy is asked again for each.

A place belongs to one link, and to no other until that one cancels or ends. Only when the user is
the same, with the same key, and the older link does not answer a probe, is it dead without knowing
it yet: its listener is closed and the newer link has the place.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from gateway import events
from gateway.errors import ConnectionLost, NetworkSetupError
from gateway.net.listen import describe, reset, serve
from gateway.serving.authorize import authorize
from gateway.serving.channels import Refused

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from gateway.net.port import ChannelPort
    from gateway.policy.rules import Action, Verdict
    from gateway.serving.channels import Channels, Record
    from gateway.serving.places import Bound, Place

log = logging.getLogger(__name__)

PROBE_DEADLINE_S: Final = 3.0  # for an older link to show that it lives
MAXIMUM_FORWARDS: Final = 64  # of one link
MAXIMUM_ACCEPTED: Final = 512  # clients of one link that wait for the SSH client's answer


class Forward:
    """One place that is listened on for a link."""

    def __init__(self, owner: Listeners, bound: Bound, rule_id: str) -> None:
        self.owner = owner
        self.place = bound.place
        self.bound = bound
        self.rule_id = rule_id


class Listeners:
    """The listeners of one link."""

    def __init__(self, channels: Channels) -> None:
        self.channels = channels
        self._shared = channels.shared
        self._link = channels.link
        self._forwards: dict[Place, Forward] = {}  # as the client names them
        self._accepted = 0

    # -- requests ----------------------------------------------------------------------------------

    def add(
        self, place: Place, answer: Callable[[bytes | Refused], None], *, wants_reply: bool
    ) -> None:
        """Listen; ``answer`` is called once, now or later, with the reply's specific fields."""
        try:
            self._check(place, wants_reply=wants_reply)
            holder = self._holder(place)
            if holder is None:
                answer(self._listen(place))
                return
            self._check_takeover(holder)
        except Refused as error:
            answer(self._refused(place, error))
            return
        self.channels.start_soon(
            partial(self._take_over, holder, place, answer),
            lambda: answer(Refused("an internal error of the server")),
        )

    def cancel(self, place: Place) -> None:
        """Stop listening, at once. Raises `Refused`."""
        forward = self._forwards.get(place)
        if forward is None:
            raise Refused(f"{place.shown} is not listened on for this connection")
        self.remove(forward, "cancelled")

    def _check(self, place: Place, *, wants_reply: bool) -> None:
        """Ask everybody who may object. Raises `Refused`."""
        if problem := self._shared.refuses_new():
            raise Refused(f"denied: {problem}")
        if len(self._forwards) >= MAXIMUM_FORWARDS:
            raise Refused(
                f"this connection listens on {MAXIMUM_FORWARDS} places, which is the limit"
            )
        verdict = place.check(self._decide, wants_reply=wants_reply)
        if not verdict.allowed:
            raise Refused(verdict.reason, rule_id=verdict.rule_id)
        if place in self._forwards:
            raise Refused(f"{place.shown} is listened on for this connection already")
        self.channels.decided(
            -1, "listen", place.shown, verdict.reason, allowed=True, rule_id=verdict.rule_id
        )

    def _decide(self, action: Action, host: str, port: int) -> Verdict:
        """Ask the policy of the moment."""
        return authorize(self._shared.policy, self.channels.login, action, host, port)

    def _refused(self, place: Place, error: Refused) -> Refused:
        self.channels.decided(
            -1, "listen", place.shown, str(error), allowed=False, rule_id=error.rule_id
        )
        return error

    def _listen(self, asked: Place, taken_from: int = 0) -> bytes:
        """Bind; return the reply. Raises `Refused`."""
        try:
            bound = asked.bind(self._decide)
        except NetworkSetupError as error:
            raise Refused(str(error)) from error
        place = bound.place
        verdict = place.decide(self._decide)  # with port 0 a port was asked for, not this one
        if not verdict.allowed:
            bound.close()
            raise Refused(verdict.reason, rule_id=verdict.rule_id)
        forward = self._forwards[place] = Forward(self, bound, verdict.rule_id)
        self._shared.forwards.setdefault(place.spot, []).append(forward)
        for sock in bound.sockets:
            self.channels.start_soon(
                partial(serve, sock, partial(self._welcome, forward)),
                partial(self.remove, forward, "internal error"),
            )
        self._shared.report(
            events.ListenerAdded(
                self._link.link_id,
                self._user_name,
                *place.name,
                bound.addresses,
                taken_from,
                forward.rule_id,
            )
        )
        return bound.reply

    @property
    def _user_name(self) -> str:
        return self.channels.login.subject.user_name

    # -- places that somebody has ------------------------------------------------------------------

    def _holder(self, place: Place) -> Forward | None:
        """Find the listener of another link that is in the way."""
        wanted = place.addresses(self._decide)
        for forward in self._shared.forwards.get(place.spot, ()):
            if place.is_in_the_way(forward.bound.addresses, wanted):
                return forward
        return None

    def _check_takeover(self, holder: Forward) -> None:
        other, spot = holder.owner, holder.place.spot
        if other is self:
            raise Refused(f"{spot} is listened on for this connection already")
        if other.channels.login.identity != self.channels.login.identity:
            raise Refused(f"{spot} is listened on for another user or key")

    async def _take_over(
        self, holder: Forward, place: Place, answer: Callable[[bytes | Refused], None]
    ) -> None:
        """Ask the older link for a sign of life; without one, the place is ours."""
        older = holder.owner.channels.link
        try:
            if await older.answers(PROBE_DEADLINE_S):
                raise Refused(
                    f"{place.spot} is listened on for an older connection of yours, which lives: "
                    "end that one first"
                )
            holder.owner.remove(holder, f"taken over by link {self._link.link_id}")
            reply = self._listen(place, older.link_id)
        except Refused as error:
            answer(self._refused(place, error))
        else:
            answer(reply)

    # -- clients -----------------------------------------------------------------------------------

    def _welcome(self, forward: Forward, sock: socket.socket, address: Any) -> None:  # noqa: ANN401
        """Take a client: a channel towards the SSH client is opened for it."""
        place, originator = forward.place, describe(address)
        try:
            record = self._begin(place, originator)
        except Refused as error:
            what = f"{place.shown} from {originator}"
            self.channels.decided(
                -1, "listen", what, str(error), allowed=False, rule_id=error.rule_id
            )
            reset(sock)
            return
        except BaseException:
            reset(sock)
            raise
        self._accepted += 1
        try:
            self._link.ask_for_channel(
                place.channel_type, place.fields(address), partial(self._answered, sock, record)
            )
        except ConnectionLost:
            self._accepted -= 1
            record.fail(-1, "the connection ended first")
            reset(sock)

    def _begin(self, place: Place, originator: str) -> Record:
        if self._accepted >= MAXIMUM_ACCEPTED:
            raise Refused(
                f"{MAXIMUM_ACCEPTED} clients wait for this connection, which is the limit"
            )
        verdict = place.decide(self._decide)
        if not verdict.allowed:
            raise Refused(verdict.reason, rule_id=verdict.rule_id)
        record = self.channels.begin(place.channel_type, place.shown, originator)
        record.rule_id = verdict.rule_id
        return record

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
        reset(sock)

    # -- the end -----------------------------------------------------------------------------------

    def recheck(self) -> None:
        """The policy has changed: close what it does not allow any more."""
        for forward in list(self._forwards.values()):
            verdict = forward.place.decide(self._decide)
            if not verdict.allowed:
                self.remove(forward, verdict.reason)

    def remove(self, forward: Forward, reason: str) -> None:
        """Close a listener at once; its clients stay. Harmless if that was done."""
        place = forward.place
        if self._forwards.get(place) is not forward:
            return
        del self._forwards[place]
        there = self._shared.forwards[place.spot]
        there.remove(forward)
        if not there:
            del self._shared.forwards[place.spot]
        forward.bound.close()
        self._shared.report(
            events.ListenerRemoved(
                self._link.link_id, self._user_name, *place.name, reason, forward.rule_id
            )
        )

    def close(self, reason: str) -> None:
        """Close all."""
        for forward in list(self._forwards.values()):
            self.remove(forward, reason)
