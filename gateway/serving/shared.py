"""What all links of one server share: the configuration of the moment, counters, and a report."""

from __future__ import annotations

import logging
import secrets
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import trio

from gateway.policy.limits import Drop, Limits, Penalties, Startups, UserCounters
from gateway.ssh.algorithms import SERVER_PREFERENCES, Preferences
from gateway.ssh.transport import RekeyLimit
from gateway.ssh.windows import Budget

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway import events
    from gateway.config.server_config import TunnelConfig
    from gateway.serving.authorize import Decides, People
    from gateway.serving.link import ServerLink
    from gateway.serving.listeners import Forward
    from gateway.serving.vpn import VpnHost
    from gateway.ssh.keys import PrivateKey

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What `gateway serve` was told."""

    listen: tuple[tuple[str | None, int], ...]
    host_keys: tuple[PrivateKey, ...]
    policy: Decides
    people: People
    hosts: dict[str, str] = field(default_factory=dict)
    rekey_limit: RekeyLimit = field(default_factory=RekeyLimit)
    preferences: Preferences = SERVER_PREFERENCES
    limits: Limits = field(default_factory=Limits)
    tunnel: TunnelConfig | None = None


class Shared:
    """One server's state. Nothing in here waits."""

    def __init__(
        self,
        options: ServerOptions,
        report: Callable[[events.Event], None],
        refuses_new: Callable[[], str] = str,
    ) -> None:
        self._report = report
        self.refuses_new = refuses_new
        """Asked before a login, channel or listener: "", or a sentence that says why not."""
        self.startups = Startups(options.limits, secrets.randbelow)
        self.penalties = Penalties(options.limits)
        self.users = UserCounters(options.limits)
        self.dropped: Counter[Drop] = Counter()
        self.links: dict[int, ServerLink] = {}
        self.forwards: dict[str, list[Forward]] = {}  # by `Place.spot`
        self.channels = 0
        self.no_channels = trio.Event()  # set when the last one ends while the server drains
        self.is_draining = False
        self.vpn: VpnHost | None = None  # set while the server runs, if it lends addresses
        self.budget = Budget()
        self._user_budgets: WeakValueDictionary[str, Budget] = WeakValueDictionary()
        self.apply(options)

    def apply(self, options: ServerOptions) -> None:
        """Decide everything from now on by these options."""
        self.options = options
        self.limits = options.limits
        self.policy = options.policy
        self.people = options.people
        self.startups.limits = self.penalties.limits = self.users.limits = options.limits

    def report(self, event: events.Event) -> None:
        """Tell of an event; who listens cannot break what happens."""
        try:
            self._report(event)
        except Exception:
            log.exception("internal error in the report of %s", type(event).__name__)

    def budget_of(self, user_name: str) -> Budget:
        """Return the share of a user, which all links of that user have together."""
        budget = self._user_budgets.get(user_name)
        if budget is None:
            budget = self._user_budgets[user_name] = Budget(parent=self.budget)
        return budget

    def begin_channel(self, user_name: str) -> str:
        """Count a channel; or return a sentence that says why there may be no more."""
        if self.is_draining:
            return "the server is about to stop and opens nothing new"
        if problem := self.refuses_new():
            return problem
        problem = self.users.open_channel(user_name, trio.current_time())
        if not problem:
            self.channels += 1
        return problem

    def end_channel(self, user_name: str) -> None:
        """A channel that was counted is over."""
        self.users.close_channel(user_name)
        self.channels -= 1
        if self.is_draining and not self.channels:
            self.no_channels.set()
