"""How much anybody may take of a server: a record of numbers, and who counts them is elsewhere."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one server; times in seconds, 0 for none where it says so."""

    login_grace_s: float = 60.0
    startups_begin: int = 10
    startups_rate_percent: int = 30
    startups_full: int = 100
    per_source_startups: int = 10
    max_auth_tries: int = 6
    penalties: bool = True
    links_per_user: int = 100
    channels_per_user: int = 1000
    opens_per_second_per_user: int = 200
    idle_timeout_s: float = 0.0  # 0: none
    maximum_lifetime_s: float = 0.0  # 0: none
    drain_s: float = 30.0
