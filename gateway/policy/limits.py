"""How much one server, one source address and one user may have: numbers, and who counts them.

Pure: the caller brings the time (seconds on a clock that only goes forward) and the dice. Every
table has a maximum, and who would exceed it pushes out the entry that is worth least.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, ip_address, ip_network
from typing import TYPE_CHECKING, Final

from gateway.policy.addresses import unmapped

if TYPE_CHECKING:
    from collections.abc import Callable

IPV6_SOURCE_BITS: Final = 64  # what one customer gets (RFC 6177); OpenSSH takes single addresses

# ---- sshd_config(5), PerSourcePenalties of OpenSSH 9.8 -------------------------------------------
PENALTY_MINIMUM_S: Final = 15.0  # less than this together is not enforced
PENALTY_MAXIMUM_S: Final = 600.0
MAXIMUM_SOURCES: Final = 65_536

# ---- our own choices -----------------------------------------------------------------------------
UNDISTURBED_S: Final = 0.5  # for a login, which takes some round trips, before it may be ousted
MAXIMUM_IDLE_USERS: Final = 4096  # without a link, remembered for their bucket only
SCAN_TARGETS: Final = 50  # different ones that came to nothing in a period: somebody looks around
SCAN_PERIOD_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """All limits of a server; a time of 0 is none.

    Startups are links that have not logged in yet. From ``startups_begin`` on, one more is too many
    in so many per cent, growing to always at ``startups_full`` (sshd_config(5), MaxStartups): an
    older one goes for it then. See `Startups`.
    """

    login_grace_s: float = 60
    startups_begin: int = 10
    startups_rate_percent: int = 30
    startups_full: int = 100
    per_source_startups: int = 10
    max_auth_tries: int = 6
    penalties: bool = True
    links_per_user: int = 100
    channels_per_user: int = 1000
    opens_per_second_per_user: int = 200
    idle_timeout_s: float = 0
    maximum_lifetime_s: float = 0
    drain_s: float = 30


class Drop(Enum):
    """Why a connection is closed that has not logged in: at accept, but for ``OUSTED``."""

    STARTUPS = "too many connections that have not logged in"
    SOURCE = "too many connections from one address that have not logged in"
    PENALTY = "the address has a penalty for failed logins"
    OUSTED = "others wanted to log in, and these have not done it"
    DRAINING = "the server is about to stop"


class Offence(Enum):
    """What earns a source a penalty: its seconds, as in sshd_config(5)."""

    CRASH = 90.0
    AUTHFAIL = 5.0
    NOAUTH = 1.0
    GRACE_EXCEEDED = 10.0


def source_of(address: str) -> str | None:
    """Return what counts as one source: an IPv4 address, an IPv6 /64.

    None for what is not to be told apart by address: the loopback, where whole networks may arrive
    through a local proxy, and what is no IP address.
    """
    try:
        plain = unmapped(ip_address(address.partition("%")[0]))
    except ValueError:
        return None
    if plain.is_loopback:
        return None
    if isinstance(plain, IPv4Address):
        return str(plain)
    return str(ip_network((plain, IPV6_SOURCE_BITS), strict=False))


@dataclass(eq=False, slots=True)
class Startup:
    """A link that has not logged in yet. ``oust`` ends it: it has to make room for another one."""

    source: str | None
    began_s: float
    oust: Callable[[], object] = int


class Startups:
    """Who may begin a link; ``below(n)`` returns a random number from 0 to n - 1.

    sshd refuses the newcomer when there are too many. Then those who hold on and say nothing win,
    and whoever comes to log in loses. So it is somebody else who goes: of those whose source has
    most of them, who came first. Who is new as well, and of a source that has no more than the
    newcomer's, need not: a rush of logins must not end those that are under way. If all are, there
    is one more, up to ``startups_full``, where the newcomer is refused.

    The tables have no more entries than there are startups.
    """

    def __init__(self, limits: Limits, below: Callable[[int], int]) -> None:
        self.limits = limits
        self._below = below
        self._waiting: dict[Startup, None] = {}  # in the order in which they came
        self._by_source: dict[str, int] = {}

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._waiting)

    def begin(self, source: str | None, now_s: float) -> Startup | Drop:
        """Count a new connection, or say why it is to be dropped."""
        if source is not None and self._share(source) >= self.limits.per_source_startups:
            drop, rivals = Drop.SOURCE, [one for one in self._waiting if one.source == source]
        elif self._drops():
            drop, rivals = Drop.STARTUPS, list(self._waiting)
        else:
            return self._add(source, now_s)
        fair = 1 + self._share(source)
        rivals = [
            one
            for one in rivals
            if now_s - one.began_s >= UNDISTURBED_S or self._share(one.source) > fair
        ]
        if not rivals and drop is Drop.STARTUPS and self.count < self.limits.startups_full:
            return self._add(source, now_s)
        if not rivals:
            return drop
        ousted = max(rivals, key=lambda one: self._share(one.source))
        self.end(ousted)
        ousted.oust()
        return self._add(source, now_s)

    def end(self, startup: Startup) -> None:
        """One has logged in, or is gone; harmless if that was said."""
        if startup not in self._waiting:
            return
        del self._waiting[startup]
        if (source := startup.source) is not None:
            self._by_source[source] -= 1
            if not self._by_source[source]:
                del self._by_source[source]

    def _add(self, source: str | None, now_s: float) -> Startup:
        startup = Startup(source, now_s)
        self._waiting[startup] = None
        if source is not None:
            self._by_source[source] = self._share(source) + 1
        return startup

    def _share(self, source: str | None) -> int:
        return 1 if source is None else self._by_source.get(source, 0)

    def _drops(self) -> bool:
        """Whether one is too many: should_drop_connection in OpenSSH's sshd.c."""
        limits, count = self.limits, self.count
        if count < limits.startups_begin:
            return False
        if count >= limits.startups_full or limits.startups_rate_percent >= 100:
            return True
        span = limits.startups_full - limits.startups_begin
        percent = (100 - limits.startups_rate_percent) * (count - limits.startups_begin) // span
        return self._below(100) < percent + limits.startups_rate_percent


class Penalties:
    """Sources that misbehave: srclimit.c of OpenSSH. Penalties add up; small sums are forgiven."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._until_s: dict[str, float] = {}
        self._active: set[str] = set()
        self._queue: list[tuple[float, str]] = []  # a heap; entries that are outdated are skipped

    def __len__(self) -> int:
        return len(self._until_s)

    def penalise(self, source: str | None, offence: Offence, now_s: float) -> None:
        """Add to what a source has; the one that would be free first makes room for a new one."""
        if source is None or not self.limits.penalties:
            return
        self._expire(now_s)
        if source not in self._until_s and len(self._until_s) >= MAXIMUM_SOURCES:
            self._forget_first()
        until_s = self._until_s.get(source, now_s) + offence.value
        until_s = self._until_s[source] = min(until_s, now_s + PENALTY_MAXIMUM_S)
        if until_s - now_s >= PENALTY_MINIMUM_S:
            self._active.add(source)
        heapq.heappush(self._queue, (until_s, source))
        if len(self._queue) > 2 * MAXIMUM_SOURCES:
            self._queue = [(end_s, name) for name, end_s in self._until_s.items()]
            heapq.heapify(self._queue)

    def refuses(self, source: str | None, now_s: float) -> bool:
        """Say whether a source is to wait."""
        self._expire(now_s)
        return source in self._active and self.limits.penalties

    def _expire(self, now_s: float) -> None:
        while self._queue and (
            self._queue[0][0] <= now_s or self._until_s.get(self._queue[0][1]) != self._queue[0][0]
        ):
            self._pop()

    def _forget_first(self) -> None:
        count = len(self._until_s)
        while len(self._until_s) == count:
            self._pop()

    def _pop(self) -> None:
        until_s, source = heapq.heappop(self._queue)
        if self._until_s.get(source) == until_s:
            del self._until_s[source]
            self._active.discard(source)


class _User:
    """What one user has; ``tokens`` are the channels that may be opened at once.

    ``missed`` are targets that came to nothing since ``missed_since_s``, at most `SCAN_TARGETS`.
    """

    __slots__ = ("channels", "links", "missed", "missed_since_s", "seen_s", "tokens")

    def __init__(self, tokens: float, now_s: float) -> None:
        self.links = 0
        self.channels = 0
        self.tokens = tokens
        self.seen_s = now_s
        self.missed: set[str] = set()
        self.missed_since_s = now_s


class UserCounters:
    """Links, channels and the rate of opens of each user who is logged in."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._users: dict[str, _User] = {}  # who left last stands last

    def __len__(self) -> int:
        return len(self._users)

    def open_link(self, user_name: str, now_s: float) -> str:
        """Count a link; or return a sentence that says why there may be no more."""
        user = self._users.get(user_name)
        if user is None:
            user = self._users[user_name] = _User(self._burst(), now_s)
        if user.links >= self.limits.links_per_user:
            return f"this user has {user.links} connections, which is the limit links_per_user"
        user.links += 1
        return ""

    def close_link(self, user_name: str) -> None:
        """A link that was counted is gone."""
        user = self._users.pop(user_name)
        user.links -= 1
        self._users[user_name] = user
        if not user.links and len(self._users) > MAXIMUM_IDLE_USERS:
            idle = next(name for name, found in self._users.items() if not found.links)
            del self._users[idle]

    def open_channel(self, user_name: str, now_s: float) -> str:
        """Count a channel of a user with a link; or return a sentence that says why not."""
        user, limits = self._users[user_name], self.limits
        rate = limits.opens_per_second_per_user
        user.tokens = min(self._burst(), user.tokens + (now_s - user.seen_s) * rate)
        user.seen_s = now_s
        if user.channels >= limits.channels_per_user:
            return f"this user has {user.channels} channels, which is the limit channels_per_user"
        if user.tokens < 1:
            return f"more than {rate} channels in a second: the limit opens_per_second_per_user"
        user.tokens -= 1
        user.channels += 1
        return ""

    def close_channel(self, user_name: str) -> None:
        """A channel that was counted is over."""
        self._users[user_name].channels -= 1

    def miss(self, user_name: str, target: str, now_s: float) -> bool:
        """Count a target that came to nothing; say, once a period, whether it is a scan."""
        user = self._users[user_name]
        if now_s - user.missed_since_s >= SCAN_PERIOD_S:
            user.missed.clear()
            user.missed_since_s = now_s
        if len(user.missed) >= SCAN_TARGETS:
            return False
        user.missed.add(target)
        return len(user.missed) == SCAN_TARGETS

    def counts(self, user_name: str) -> tuple[int, int]:
        """Return how many links and channels a user has now."""
        user = self._users.get(user_name)
        return (user.links, user.channels) if user else (0, 0)

    def _burst(self) -> float:
        return 2.0 * self.limits.opens_per_second_per_user
