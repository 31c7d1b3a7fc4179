"""The networks of the lab, as data: hosts, and the cables between them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class End:
    """One end of a cable: the device it is in its host, and that device's addresses."""

    host: str
    device: str
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class Topology:
    """Named hosts, each a namespace with a loopback device of its own, and no way out."""

    name: str
    hosts: tuple[str, ...]
    cables: tuple[tuple[End, End], ...]
    drawing: str


# Addresses for documentation (RFC 5737, RFC 3849) could be mistaken for unreachable ones in tests;
# these are private (RFC 1918, RFC 4193).
TWO_HOSTS = Topology(
    name="two-hosts",
    hosts=("client", "server"),
    cables=(
        (
            End("client", "eth0", ("10.99.0.1/24", "fd99::1/64")),
            End("server", "eth0", ("10.99.0.2/24", "fd99::2/64")),
        ),
    ),
    drawing="""\
    ┌── client ────────┐            ┌── server ────────┐
    │ 10.99.0.1/24     │            │     10.99.0.2/24 │
    │ fd99::1/64       eth0 ──── eth0       fd99::2/64 │
    │ lo               │            │               lo │
    └──────────────────┘            └──────────────────┘
      no default route                no default route
""",
)
